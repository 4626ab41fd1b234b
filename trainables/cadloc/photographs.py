"""Simulated photographs: a weathered scene under weather, with passers-by, through a camera that takes pictures.

They stand in for real query images of scenes that exist in code only. What differs from `cadloc.appearance`: light
and sky belong together, things stand in the way, and the camera works in linear light with automatic exposure.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from cadloc.appearance import (
    DISPLAY_GAMMA,
    Image,
    Pixels,
    Sky,
    as_image,
    blurred,
    compressed,
    draw_sky,
    rgb,
    sun_direction,
)
from cadloc.geometry import Array
from cadloc.occluders import draw_occluders
from cadloc.rendering import Light

LARGEST_OCCLUDED_SHARE = 0.2

_MIDDLE_GREY = 0.18
_LUMINANCE = np.array([0.2126, 0.7152, 0.0722], dtype=np.float32)  # ITU-R BT.709


@dataclass(frozen=True, eq=False)
class Weather:
    """A sun and the sky it shines from; `visibility_m` is where haze has taken 63 % of the contrast."""

    light: Light
    sky: Sky
    visibility_m: float


def draw_weather(rng: np.random.Generator) -> Weather:
    """Sunshine with shadows under a blue sky in two thirds of all cases, else overcast and shadowless."""
    overcast = rng.uniform() < 1 / 3
    cloudiness = rng.uniform(0.75, 1.0) if overcast else rng.uniform(0.0, 0.5)
    elevation_deg = rng.uniform(12, 65)
    # A low sun is dimmer and redder: its light crosses more air (air mass of about 1 / sin of the elevation).
    air = 1 / np.sin(np.deg2rad(elevation_deg))
    sun = rng.uniform(0.6, 0.85) * np.exp(-np.array([0.03, 0.08, 0.16]) * air)
    ambient = rng.uniform(0.4, 0.55) * np.array([0.92, 1.0, 1.1])
    if overcast:
        sun, ambient = 0.15 * sun, rng.uniform(0.65, 0.85) * np.array([0.98, 1.0, 1.03])
    light = Light(sun_direction(rng.uniform(0, 360), elevation_deg), rgb(sun), rgb(ambient), shadows=not overcast)
    return Weather(light, draw_sky(rng, cloudiness), rng.uniform(800, 5000))


def photograph(
    image: Pixels,
    coverage: Pixels,
    depth_m: NDArray[np.float32],
    cad_from_cam: Array,
    intrinsics: Array,
    ground_z_m: float,
    weather: Weather,
    rng: np.random.Generator,
) -> tuple[Image, NDArray[np.bool_]]:
    """A photograph (H, W, 3) uint8 RGB of a render, and the pixels (H, W) where something hides the model.

    `image` (H, W, 3) is premultiplied by `coverage`, 0 to 255; `depth_m` (H, W) is 0 where nothing was hit.
    """
    sky = weather.sky.image(cad_from_cam, intrinsics, *coverage.shape)
    haze = (1 - np.exp(-depth_m / weather.visibility_m))[..., None] * coverage[..., None]
    hazy = image + haze * (weather.sky.horizon.astype(np.float32) * coverage[..., None] - image)
    seen = hazy + (1 - coverage[..., None]) * sky
    largest = LARGEST_OCCLUDED_SHARE * rng.beta(1.0, 1.5)
    occluded = draw_occluders(seen, depth_m, cad_from_cam, intrinsics, ground_z_m, weather.light, largest, rng)
    return developed(seen, rng), occluded


def developed(scene: Pixels, rng: np.random.Generator) -> Image:
    """What a phone makes of a scene (H, W, 3), 0 to 255: exposure, lens, motion, noise, tone, compression."""
    linear: Pixels = np.maximum(scene / 255, 0.0).astype(np.float32) ** np.float32(DISPLAY_GAMMA)
    linear *= (_exposure(linear, rng) * np.exp(0.06 * rng.standard_normal(3))).astype(np.float32)
    linear = _shaken(blurred(linear, _lens_blur_px(linear, rng)), rng) * _vignette(linear.shape, rng)
    linear = _noisy(linear, rng)
    display = _filmic(linear) ** np.float32(1 / DISPLAY_GAMMA)
    grey = (display @ _LUMINANCE)[..., None]
    display = grey + np.float32(rng.uniform(0.85, 1.2)) * (display - grey)
    return compressed(as_image(255 * display), int(rng.integers(60, 93)))


def _exposure(linear: Pixels, rng: np.random.Generator) -> float:
    """Gain of a centre-weighted meter that aims at middle grey, and misses by a third of a stop now and then."""
    rows, columns = (np.linspace(-1, 1, size)[:, None] for size in linear.shape[:2])
    weight = np.exp(-(rows**2 + columns.T**2))
    metered = np.exp(np.average(np.log(linear @ _LUMINANCE + 1e-3), weights=weight))
    gain = np.clip(_MIDDLE_GREY / metered, 0.25, 4.0)
    return float(gain * 2.0 ** (0.33 * rng.standard_normal()))


def _lens_blur_px(linear: Pixels, rng: np.random.Generator) -> float:
    """Softness of the lens, and in a sixth of the photographs some defocus; in proportion to the image."""
    unit_px = linear.shape[0] / 480
    return float(unit_px * (rng.uniform(0.3, 0.7) + (rng.uniform(0.3, 1.0) if rng.uniform() < 1 / 6 else 0.0)))


def _shaken(linear: Pixels, rng: np.random.Generator) -> Pixels:
    """Blur along a line in a third of the photographs: a hand that moved by up to 4 pixels of 480."""
    length_px = rng.uniform(1, 4) * linear.shape[0] / 480
    angle = rng.uniform(0, np.pi)
    if rng.uniform() > 1 / 3:
        return linear
    size = 2 * int(np.ceil(length_px / 2)) + 1
    kernel = np.zeros((size, size), np.float32)
    offset = np.array([np.cos(angle), np.sin(angle)]) * length_px / 2
    ends = np.rint((size // 2 + np.stack([-offset, offset])) * 256).astype(int)
    cv2.line(kernel, tuple(map(int, ends[0])), tuple(map(int, ends[1])), 1.0, 1, cv2.LINE_8, shift=8)
    return np.asarray(cv2.filter2D(linear, -1, kernel / kernel.sum()), dtype=np.float32)


def _vignette(shape: tuple[int, ...], rng: np.random.Generator) -> Pixels:
    """Fall-off towards the corners (H, W, 1): the cos⁴ law of a simple lens, partly corrected."""
    half_diagonal = np.hypot(shape[0], shape[1]) / 2
    rows, columns = (np.arange(size) + 0.5 - size / 2 for size in shape[:2])
    tangent = rng.uniform(0.1, 0.6) * np.hypot(rows[:, None], columns) / half_diagonal
    return np.asarray(1 / (1 + tangent**2) ** 2, dtype=np.float32)[..., None]


def _noisy(linear: Pixels, rng: np.random.Generator) -> Pixels:
    """Photon noise, whose variance grows with the signal, and the sensor's own."""
    shot, read = np.exp(rng.uniform(np.log(2e-4), np.log(4e-3))), rng.uniform(0.0005, 0.004)
    deviation = np.sqrt(np.float32(shot) * linear + np.float32(read**2))
    noisy = linear + deviation * rng.standard_normal(linear.shape, dtype=np.float32)
    return np.asarray(np.maximum(noisy, 0.0))


def _filmic(linear: Pixels) -> Pixels:
    """Tone curve with a soft shoulder, in [0, 1] (Narkowicz 2015, "ACES filmic tone mapping curve")."""
    return np.clip(linear * (2.51 * linear + 0.03) / (linear * (2.43 * linear + 0.59) + 0.14), 0.0, 1.0)
