"""One image seen by another camera at the same place: scaled, turned about its axis, cropped — with its exact pose.

Turning about the optical axis and changing the intrinsics moves no point nearer or farther, so the image warps by
one affine map and the depth along the axis stays what it was. Rotating about the image's centre instead, as is
often done, is wrong wherever the principal point lies elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from cadloc.config import AugmentationConfig
from cadloc.encoders.images import STRIDE
from cadloc.geometry import Array, rotation_about_z

DEPTH_EDGE = 0.05
"""Relative depth range over a 3 × 3 neighbourhood above which a pixel straddles an edge (its depth is nobody's)."""


@dataclass(frozen=True)
class Warp:
    """A camera at the place of another: its intrinsics (3, 3), its turn about the optical axis, its image size."""

    intrinsics: Array
    rotation_deg: float
    width_px: int
    height_px: int

    @property
    def warped_from_cam(self) -> Array:
        """Rigid (4, 4): the warped camera's frame from the original one's."""
        return rotation_about_z(self.rotation_deg)

    def warped_from_pixels(self, intrinsics: Array) -> Array:
        """Affine map (3, 3) from pixels of the original image, taken with `intrinsics`, to pixels of the warped."""
        return np.asarray(self.intrinsics @ self.warped_from_cam[:3, :3] @ np.linalg.inv(intrinsics))

    def original_pixels(self, pixels: Array, intrinsics: Array) -> Array:
        """Where warped pixels (..., 2) lie in the original image taken with `intrinsics`."""
        original_from_warped = np.linalg.inv(self.warped_from_pixels(intrinsics))
        return np.asarray(pixels @ original_from_warped[:2, :2].T + original_from_warped[:2, 2])

    def image(
        self, image: NDArray[np.uint8], intrinsics: Array, *, border: int = cv2.BORDER_REFLECT_101
    ) -> NDArray[np.uint8]:
        """The warped image (height, width, ...) uint8, interpolated; outside it is reflected, or as `border` says."""
        # OpenCV counts pixel centres as integers.
        to_corner, to_centre = np.eye(3), np.eye(3)
        to_corner[:2, 2], to_centre[:2, 2] = 0.5, -0.5
        affine = to_centre @ self.warped_from_pixels(intrinsics) @ to_corner
        size = (self.width_px, self.height_px)
        return np.asarray(cv2.warpAffine(image, affine[:2], size, flags=cv2.INTER_LINEAR, borderMode=border), np.uint8)


def identity_warp(intrinsics: Array, width_px: int, height_px: int) -> Warp:
    """The camera itself, its image cropped on the right and below to multiples of the stride."""
    return Warp(np.asarray(intrinsics, np.float64), 0.0, width_px - width_px % STRIDE, height_px - height_px % STRIDE)


def draw_warp(
    config: AugmentationConfig, intrinsics: Array, width_px: int, height_px: int, generator: np.random.Generator
) -> Warp:
    """A random warp: scale drawn log-uniformly, rotation uniformly (ACE, supplement).

    The image grows or shrinks with the scale to the nearest multiples of the stride, the content stays centred.
    """
    low, high = np.log(config.scale)
    scale = float(np.exp(generator.uniform(low, high)))
    width, height = (max(STRIDE, round(side * scale / STRIDE) * STRIDE) for side in (width_px, height_px))
    warped = scale * np.asarray(intrinsics, np.float64)
    warped[2, 2] = 1.0
    warped[:2, 2] += (np.array([width, height]) - scale * np.array([width_px, height_px])) / 2
    return Warp(warped, float(generator.uniform(-1, 1) * config.rotation_deg), width, height)


@dataclass(frozen=True)
class Jitter:
    """Factors of brightness and contrast, in torchvision's sense of the two; 1 and 1 change nothing."""

    brightness: float = 1.0
    contrast: float = 1.0

    def image(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The image (H, W, ...) in this light. Every pixel depends on its own value and the mean: a table says how."""
        bright = np.arange(256, dtype=np.float32) * np.float32(self.brightness)
        flat = np.ascontiguousarray(image).reshape(len(image), -1)
        counts = cv2.calcHist([flat], [0], None, [256], [0, 256]).ravel().astype(np.float64)
        mean = (counts * bright).sum() / image.size
        table = np.clip((bright - mean) * self.contrast + mean + 0.5, 0, 255).astype(np.uint8)
        return np.asarray(cv2.LUT(image, table), np.uint8)


def draw_jitter(config: AugmentationConfig, generator: np.random.Generator) -> Jitter:
    """Random factors within the configured ranges."""
    brightness = 1 + generator.uniform(-1, 1) * config.brightness
    return Jitter(brightness, 1 + generator.uniform(-1, 1) * config.contrast)


def jitter(image: NDArray[np.uint8], config: AugmentationConfig, generator: np.random.Generator) -> NDArray[np.uint8]:
    """The image with brightness and contrast scaled by random factors."""
    return draw_jitter(config, generator).image(image)


def sample_depth_m(depth_m: NDArray[np.floating], pixels: Array) -> Array:
    """Depth (N,) at pixels (N, 2) of a depth image (H, W) with 0 = unknown; NaN where there is none.

    The inverse depth is interpolated between the four pixels around: it is linear across a plane's image, so planes
    are met exactly. NaN where the 3 × 3 pixels around are not all known or range over more than `DEPTH_EDGE`.
    """
    limit = np.array(depth_m.shape[::-1]) - 1.0
    inside = ((pixels >= 1) & (pixels <= limit)).all(axis=1)
    u, v = np.clip(np.nan_to_num(pixels), 1, limit).T
    column, row = (np.minimum(x.astype(int), size - 2) for x, size in ((u, depth_m.shape[1]), (v, depth_m.shape[0])))
    around = np.stack([depth_m[row + i, column + j] for i in (-1, 0, 1) for j in (-1, 0, 1)]).astype(np.float64)
    nearest, farthest = around.min(axis=0), around.max(axis=0)
    known = inside & (nearest > 0) & (farthest - nearest <= DEPTH_EDGE * nearest)
    inverse = _bilinear(1.0 / np.where(known, around, 1.0), u - column - 0.5, v - row - 0.5)
    return np.where(known, 1.0 / inverse, np.nan)


def _bilinear(around: Array, right: Array, down: Array) -> Array:
    """Values (N,) beside the middle of 3 × 3 values (9, N), by -0.5 to 0.5 pixels to the right and down."""
    grid = around.reshape(3, 3, -1)
    step_right, step_down = np.abs(right), np.abs(down)
    beside = np.where(right < 0, grid[:, 0], grid[:, 2])
    across = (1 - step_right) * grid[:, 1] + step_right * beside
    return np.asarray((1 - step_down) * across[1] + step_down * np.where(down < 0, across[0], across[2]))
