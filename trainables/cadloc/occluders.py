"""People and cars in front of a building: drawn flat, textured, standing on the ground, at their true size."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from cadloc.appearance import Pixels, blurred, rgb
from cadloc.geometry import Array, inverse, project, transform_points
from cadloc.rendering import Light

_MOST_PLACES = 60
_NEAREST_M, _FARTHEST_M = 3.5, 45.0
_CAR_SHARE = 0.15
_OVERSIZE = 2
_SMALLEST_PX = 6


@dataclass(frozen=True, eq=False)
class Sprite:
    """A flat picture (H, W, 4): RGB 0 to 255 and opacity 0 to 1; `size_m` is its width and height in metres."""

    pixels: Pixels
    size_m: tuple[float, float]
    turn_deg: float


@dataclass(frozen=True, eq=False)
class Camera:
    """A pinhole camera at `cad_from_cam` (4, 4), its image `shape` (H, W)."""

    cad_from_cam: Array
    intrinsics: Array
    shape: tuple[int, int]

    @property
    def eye(self) -> Array:
        """Camera centre (3,) in `cad`."""
        return self.cad_from_cam[:3, 3]

    def pixels(self, points: Array) -> Array | None:
        """Pixels (N, 2) of points (N, 3) in `cad`; None unless all of them lie a metre in front of the camera."""
        points_cam = transform_points(inverse(self.cad_from_cam), points)
        return project(points_cam, self.intrinsics) if points_cam[:, 2].min() >= 1.0 else None

    def window(self, pixels: Array) -> tuple[slice, slice] | None:
        """Rows and columns of the image that the box about `pixels` (N, 2) touches; None when it touches none."""
        low = np.maximum(np.floor(pixels.min(axis=0)), 0).astype(int)
        high = np.minimum(np.ceil(pixels.max(axis=0)), self.shape[::-1]).astype(int)
        return None if (high <= low).any() else (slice(low[1], high[1]), slice(low[0], high[0]))


def draw_occluders(
    image: Pixels,
    depth_m: NDArray[np.float32],
    cad_from_cam: Array,
    intrinsics: Array,
    ground_z_m: float,
    light: Light,
    largest_share: float,
    rng: np.random.Generator,
) -> NDArray[np.bool_]:
    """Draws people and cars into `image` (H, W, 3), 0 to 255, leaving out who would hide more than `largest_share`.

    They hide what is behind them and are hidden by what is nearer (`depth_m` (H, W), 0 = sky). Returns the hidden
    pixels (H, W).
    """
    camera = Camera(cad_from_cam, intrinsics, (depth_m.shape[0], depth_m.shape[1]))
    lit = (np.array(light.ambient_colour) + 0.5 * np.array(light.sun_colour)).astype(np.float32)
    occluded = np.zeros(depth_m.shape, dtype=bool)
    places = [_place(camera, ground_z_m, rng) for _ in range(rng.integers(_MOST_PLACES + 1))]
    for foot, distance_m in sorted(places, key=lambda place: -place[1]):
        if not _is_visible(camera, foot):
            continue
        sprite = _car(rng) if rng.uniform() < _CAR_SHARE else _person(rng)
        _draw(sprite, foot, distance_m, camera, image, depth_m, lit, occluded, largest_share)
    return occluded


def _place(camera: Camera, ground_z_m: float, rng: np.random.Generator) -> tuple[Array, float]:
    """A point (3,) on the ground in the camera's sector, and its depth; near and far alike on a logarithmic scale."""
    eye, forward = camera.eye, camera.cad_from_cam[:3, 2]
    half_view = np.arctan(0.5 * camera.shape[1] / camera.intrinsics[0, 0])
    bearing = np.arctan2(forward[1], forward[0]) + rng.uniform(-half_view, half_view)
    far_m = np.exp(rng.uniform(np.log(_NEAREST_M), np.log(_FARTHEST_M))) + max(eye[2] - ground_z_m - 2.0, 0.0)
    foot = np.array([eye[0] + far_m * np.cos(bearing), eye[1] + far_m * np.sin(bearing), ground_z_m])
    return foot, float((foot - eye) @ forward)


def _is_visible(camera: Camera, foot: Array) -> bool:
    """Whether a person at `foot` would be in view, and large enough to be worth drawing."""
    axis = camera.pixels(np.stack([foot, foot + np.array([0.0, 0.0, 1.7])]))
    if axis is None or abs(axis[0, 1] - axis[1, 1]) < _SMALLEST_PX:
        return False
    return camera.window(axis + np.array([[-1.0, 0.0], [1.0, 0.0]])) is not None


def _draw(
    sprite: Sprite,
    foot: Array,
    distance_m: float,
    camera: Camera,
    image: Pixels,
    depth_m: NDArray[np.float32],
    lit: Pixels,
    occluded: NDArray[np.bool_],
    largest_share: float,
) -> None:
    quad = camera.pixels(_corners(sprite, foot, camera.eye))
    window = None if quad is None else camera.window(quad)
    if quad is None or window is None:
        return
    warped = _warped(sprite, quad, window)
    behind = depth_m[window]
    opacity = warped[..., 3] * ((behind == 0) | (behind > distance_m))
    newly = (opacity > 0.5) & ~occluded[window]
    if occluded.sum() + newly.sum() > largest_share * occluded.size:
        return
    _draw_contact_shadow(image, sprite, foot, distance_m, camera, depth_m)
    image[window] += opacity[..., None] * (warped[..., :3] * lit - image[window])
    occluded[window] |= newly


def _corners(sprite: Sprite, foot: Array, eye: Array) -> Array:
    """Corners (4, 3) in `cad` of a sprite that stands at `foot` and faces the eye but for its turn, from upper left."""
    away = (foot - eye)[:2] / np.linalg.norm((foot - eye)[:2])
    angle = np.deg2rad(sprite.turn_deg) + np.arctan2(-away[0], away[1])
    width, height = sprite.size_m
    right = 0.5 * width * np.array([np.cos(angle), np.sin(angle), 0.0])
    up = np.array([0.0, 0.0, height])
    return np.stack([foot - right + up, foot + right + up, foot + right, foot - right])


def _warped(sprite: Sprite, quad: Array, window: tuple[slice, slice]) -> Pixels:
    """The sprite with its corners at pixels `quad` (4, 2), (H, W, 4) for the image's window."""
    columns, rows = (int(np.clip(np.ceil(size), 2, 600)) for size in np.ptp(quad, axis=0))
    # Made as small as it will be seen before it is warped: the warp interpolates, it does not average.
    small = cv2.resize(sprite.pixels, (columns, rows), interpolation=cv2.INTER_AREA)
    source = np.array([[0, 0], [columns, 0], [columns, rows], [0, rows]], np.float32) - 0.5
    corner = np.array([window[1].start, window[0].start])
    window_from_sprite = cv2.getPerspectiveTransform(source, (quad - corner - 0.5).astype(np.float32))
    size = (window[1].stop - window[1].start, window[0].stop - window[0].start)
    return np.asarray(cv2.warpPerspective(small, window_from_sprite, size, flags=cv2.INTER_LINEAR), dtype=np.float32)


def _draw_contact_shadow(
    image: Pixels, sprite: Sprite, foot: Array, distance_m: float, camera: Camera, depth_m: NDArray[np.float32]
) -> None:
    """Darkens the ground about the feet; without it things seem to hover."""
    around = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    radius_m = 0.5 * sprite.size_m[0]
    ring = camera.pixels(foot + radius_m * np.stack([np.cos(around), np.sin(around), np.zeros(24)], axis=-1))
    window = None if ring is None else camera.window(ring + np.array([[-4.0, -4.0], [4.0, 4.0]]).repeat(12, axis=0))
    if ring is None or window is None:
        return
    behind = depth_m[window]
    shadow = np.zeros(behind.shape, np.float32)
    points = (ring - [window[1].start, window[0].start] - 0.5) * 16
    cv2.fillPoly(shadow, [np.rint(points).astype(np.int32)], 0.5, cv2.LINE_AA, shift=4)
    near = (behind == 0) | (behind > distance_m - 1.5 * radius_m)
    image[window] *= 1 - (blurred(shadow, 1.5) * near)[..., None]


def _person(rng: np.random.Generator) -> Sprite:
    """Somebody about 1.7 m tall, standing or walking, seen from any side."""
    height_m = float(np.clip(1.7 + 0.12 * rng.standard_normal(), 1.1, 2.0))
    canvas = np.zeros((256 * _OVERSIZE, 112 * _OVERSIZE, 4), np.float32)
    coat, trousers, hair = _cloth(rng), _cloth(rng, 0.5), _cloth(rng, 0.4)
    skin = np.array([225.0, 180.0, 150.0]) * rng.uniform(0.4, 1.0)
    stride, lean = rng.uniform(2, 20), rng.uniform(-3, 3)
    hip, knee, sole = 125.0, 190.0, 252.0
    for side in (-1, 1):
        foot_x = 56 + side * stride
        bend = 56 + side * (stride * 0.4 + 4)
        _line(canvas, [(56 + side * 7, hip), (bend, knee), (foot_x, sole - 4)], 15, trousers)
        _line(canvas, [(foot_x - 2, sole - 3), (foot_x + 8 * np.sign(lean or 1), sole - 3)], 8, trousers * 0.4)
        elbow = (56 + side * rng.uniform(24, 34), 92 + rng.uniform(-6, 6))
        hand = (elbow[0] + side * rng.uniform(-14, 8), elbow[1] + rng.uniform(10, 34))
        _line(canvas, [(56 + side * 19, 56), elbow, hand], 12, coat * 0.88)
        _line(canvas, [hand, (hand[0], hand[1] + 4)], 10, skin)
    hem = hip + rng.uniform(0, 40)
    _polygon(canvas, [(35, 50), (77, 50), (76 + lean, hem), (36 + lean, hem)], coat)
    _line(canvas, [(56, 44), (56, 34)], 14, skin * 0.9)
    _disc(canvas, (56 + lean, 24), (13, 17), skin)
    _disc(canvas, (56 + lean, 17), (14, 11), hair)
    if rng.uniform() < 0.35:
        bag_x = 56 + rng.choice([-20, 20])
        _polygon(canvas, [(bag_x - 12, 60), (bag_x + 12, 60), (bag_x + 12, 105), (bag_x - 12, 105)], _cloth(rng))
    return Sprite(_finished(canvas, rng), (height_m * 112 / 256, height_m), 0.0)


def _car(rng: np.random.Generator) -> Sprite:
    """A car of 3.6 to 4.8 m from its side, turned by up to 40 degrees."""
    length_m = rng.uniform(3.6, 4.8)
    canvas = np.zeros((128 * _OVERSIZE, 360 * _OVERSIZE, 4), np.float32)
    paint = _cloth(rng) if rng.uniform() < 0.5 else np.full(3, rng.uniform(20, 235))
    glass, rubber = np.array([45.0, 55.0, 65.0]), np.full(3, 25.0)
    front, back, roof = rng.uniform(85, 125), rng.uniform(275, 340), rng.uniform(6, 26)
    cabin = [(front, 52), (front + 45, roof), (back - 35, roof), (back, 52)]
    _polygon(canvas, [(6, 105), (4, 70), (40, 55), *cabin, (350, 58), (356, 100), (350, 110), (10, 110)], paint)
    middle = (front + back) / 2
    for left, right in ((front + 12, middle - 5), (middle + 5, back - 10)):
        window = [(left, 52), (max(left, front + 47), roof + 8), (min(right, back - 40), roof + 8), (right, 52)]
        _polygon(canvas, window, glass * rng.uniform(0.6, 1.8))
    _line(canvas, [(middle, 54), (middle, 104)], 1, paint * 0.6)
    for wheel_x in (75.0, 285.0):
        _disc(canvas, (wheel_x, 104), (24, 23), rubber)
        _disc(canvas, (wheel_x, 104), (13, 13), np.full(3, 140.0))
    _disc(canvas, (10, 76), (7, 7), np.array([240.0, 235.0, 210.0]))
    _disc(canvas, (352, 76), (5, 8), np.array([170.0, 25.0, 20.0]))
    if rng.uniform() < 0.5:
        canvas = np.ascontiguousarray(canvas[:, ::-1])
    return Sprite(_finished(canvas, rng), (length_m, length_m * 128 / 360), rng.uniform(-40, 40))


def _cloth(rng: np.random.Generator, brightness: float = 0.9) -> Array:
    """A colour (3,), mostly muted."""
    value = colorsys.hsv_to_rgb(rng.uniform(), rng.beta(1.0, 3.5), rng.uniform(0.08, brightness))
    return 255 * np.array(value)


def _finished(canvas: Pixels, rng: np.random.Generator) -> Pixels:
    """A drawing at its final size, with folds, shading and grain."""
    width, height = canvas.shape[1] // _OVERSIZE, canvas.shape[0] // _OVERSIZE
    # Colour is averaged with its opacity, so that the empty canvas does not darken the outline.
    canvas[..., :3] *= canvas[..., 3:]
    small = np.asarray(cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA), dtype=np.float32)
    small[..., :3] /= np.maximum(small[..., 3:], 1e-3)
    folds, grain = (rng.standard_normal(size, dtype=np.float32) for size in ((24, 10), (height // 2, width // 2)))
    shade = 0.12 * cv2.resize(folds, (width, height), interpolation=cv2.INTER_CUBIC)
    shade += 0.06 * cv2.resize(grain, (width, height))
    shade += np.linspace(-1, 1, width, dtype=np.float32) * np.float32(rng.uniform(-0.2, 0.2))
    small[..., :3] = np.minimum(small[..., :3] * np.maximum(1 + shade, 0.2)[..., None], 255)
    return small


def _pixels(points: object) -> NDArray[np.int32]:
    return np.rint(np.asarray(points, dtype=np.float64) * _OVERSIZE).astype(np.int32)


def _opaque(colour: Array) -> tuple[float, float, float, float]:
    return (*rgb(colour), 1.0)


def _polygon(canvas: Pixels, points: list[tuple[float, float]], colour: Array) -> None:
    cv2.fillPoly(canvas, [_pixels(points)], _opaque(colour))


def _line(canvas: Pixels, points: list[tuple[float, float]], width: float, colour: Array) -> None:
    cv2.polylines(canvas, [_pixels(points)], False, _opaque(colour), int(width * _OVERSIZE))


def _disc(canvas: Pixels, centre: tuple[float, float], radii: tuple[float, float], colour: Array) -> None:
    x, y = (int(value) for value in _pixels(centre))
    across, along = (int(value) for value in _pixels(radii))
    cv2.ellipse(canvas, (x, y), (across, along), 0, 0, 360, _opaque(colour), -1)
