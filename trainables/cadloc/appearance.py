"""How synthetic views look: light, sky and camera drawn at random, so that features must not rely on them.

Domain randomisation (Tobin et al. 2017, section III): geometry is never touched, so scene coordinates stay exact.
Images are premultiplied: colour times `coverage` (H, W) in [0, 1], the share of a pixel that the model covers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from cadloc.geometry import Array
from cadloc.rendering import Light
from cadloc.views_config import RandomisationConfig

Image: TypeAlias = NDArray[np.uint8]
Pixels: TypeAlias = NDArray[np.float32]

DISPLAY_GAMMA = 2.2
_PLAIN_GREY = 127.0
_SKY_SCALE = 4
_CLOUD_PERIOD = 64
_CLOUD_OCTAVES = 4
_JPEG_QUALITY = int(cv2.IMWRITE_JPEG_QUALITY)


def view_generator(seed: int, name: str, purpose: str) -> np.random.Generator:
    """Random numbers of one view for one purpose: the same whichever process asks, and in whatever order."""
    return np.random.default_rng([seed, *f"{name}/{purpose}".encode()])


def draw_light(config: RandomisationConfig, rng: np.random.Generator) -> Light:
    """A random sun and sky for the configured share of views, else the renderer's fixed soft light."""
    if rng.uniform() >= config.light:
        return Light()
    strength, sun_share, warmth = rng.uniform(0.75, 1.15), rng.uniform(0.35, 0.7), rng.uniform(-0.04, 0.12)
    sun = strength * sun_share * np.array([1 + warmth, 1.0, 1 - 1.5 * warmth])
    blue = rng.uniform(0.0, 0.15)
    ambient = strength * (1 - sun_share) * np.array([1.0 - 0.5 * blue, 1.0, 1.0 + blue])
    return Light(
        sun_direction=sun_direction(rng.uniform(0, 360), rng.uniform(12, 70)),
        sun_colour=rgb(sun),
        ambient_colour=rgb(ambient),
        shadows=bool(rng.uniform() < config.shadows),
    )


def sun_direction(azimuth_deg: float, elevation_deg: float) -> tuple[float, float, float]:
    """Unit vector in `cad` towards a sun; azimuth is counter-clockwise from +x."""
    azimuth, elevation = np.deg2rad([azimuth_deg, elevation_deg])
    return rgb(np.array([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)]))


def rgb(values: Array) -> tuple[float, float, float]:
    """Three numbers of an array (3,) as a tuple of floats."""
    first, second, third = (float(value) for value in values)
    return first, second, third


def randomised(
    image: Pixels,
    coverage: Pixels,
    cad_from_cam: Array,
    intrinsics: Array,
    config: RandomisationConfig,
    rng: np.random.Generator,
) -> Image:
    """A render (H, W, 3), premultiplied, 0 to 255, as a random camera under a random sky gives it: uint8 RGB."""
    background: Pixels | float = _PLAIN_GREY
    if rng.uniform() < config.background:
        background = draw_sky(rng).image(cad_from_cam, intrinsics, *coverage.shape)
    seen = image + (1 - coverage[..., None]) * background
    seen = blurred(seen, rng.uniform(0, config.blur_px))
    seen = cv2.LUT(as_image(seen), _tone_table(config, rng))
    noise = rng.uniform(0, config.noise) * 255
    noisy = as_image(seen + noise * rng.standard_normal(seen.shape, dtype=np.float32))
    low, high = config.jpeg_quality
    return compressed(noisy, int(rng.integers(low, high + 1)))


def _tone_table(config: RandomisationConfig, rng: np.random.Generator) -> Image:
    """Exposure, white balance and gamma as one table (1, 256, 3); gains act on linear light."""
    gain = 2.0 ** (config.exposure_ev * rng.standard_normal())
    balance = np.exp(config.white_balance * rng.standard_normal(3))
    gamma = np.exp(config.gamma * rng.standard_normal())
    linear = (np.arange(256)[:, None] / 255.0) ** DISPLAY_GAMMA * gain * balance
    return as_image(255 * np.minimum(linear, 1.0) ** (gamma / DISPLAY_GAMMA))[None]


@dataclass(frozen=True, eq=False)
class Sky:
    """A sky with clouds above the horizon and flat land below it; colours (3,) RGB, 0 to 255.

    `cloud_noise` (octaves, period, period) are random grids; `cloudiness` in [0, 1] is how much of the sky they fill.
    """

    zenith: Array
    horizon: Array
    land: Array
    cloud: Array
    cloudiness: float
    cloud_noise: Pixels

    def image(self, cad_from_cam: Array, intrinsics: Array, height_px: int, width_px: int) -> Pixels:
        """What a camera sees of it, (H, W, 3) float32; soft, so drawn at a quarter of the size."""
        rows, columns = -(-height_px // _SKY_SCALE), -(-width_px // _SKY_SCALE)
        u, v = np.meshgrid((np.arange(columns) + 0.5) * _SKY_SCALE, (np.arange(rows) + 0.5) * _SKY_SCALE)
        rays = np.stack([u, v, np.ones_like(u)], axis=-1) @ (cad_from_cam[:3, :3] @ np.linalg.inv(intrinsics)).T
        rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
        up = rays[..., 2:]
        height = np.clip(up, 0.0, 1.0) ** 0.6
        colour = self.horizon + height * (self.zenith - self.horizon)
        clouds = self._clouds(rays)[..., None] * np.clip(up / 0.15, 0.0, 1.0)
        colour = colour + clouds * (self.cloud - colour)
        colour = np.where(up < 0, self.land + np.exp(up / 0.03) * (self.horizon - self.land), colour)
        size = (columns * _SKY_SCALE, rows * _SKY_SCALE)
        large = cv2.resize(colour.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
        return np.asarray(large[:height_px, :width_px], dtype=np.float32)

    def _clouds(self, rays: Array) -> Pixels:
        """Opacity (H, W) of a flat layer of clouds: fractal noise, each octave half as strong and twice as fine."""
        layer = (rays[..., :2] / np.maximum(rays[..., 2:], 0.05)).astype(np.float32)
        density = np.zeros(layer.shape[:2], np.float32)
        for octave, noise in enumerate(self.cloud_noise):
            place = np.mod(layer * 1.5 * 2.0**octave, _CLOUD_PERIOD).astype(np.float32)
            cell = cv2.remap(noise, place[..., 0], place[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
            density += cell * 0.5 ** (octave + 1)
        return np.asarray(np.clip((density - (0.75 - 0.6 * self.cloudiness)) / 0.15, 0.0, 1.0), dtype=np.float32)


def draw_sky(rng: np.random.Generator, cloudiness: float | None = None) -> Sky:
    """A random sky, from clear blue over scattered clouds to overcast grey; `cloudiness` fixes which."""
    cloudiness = rng.uniform() if cloudiness is None else cloudiness
    blue = np.array([80.0, 130.0, 205.0]) + rng.uniform(-25, 25, 3)
    grey = np.full(3, rng.uniform(150, 225)) + rng.uniform(-6, 6, 3)
    overcast = np.clip((cloudiness - 0.5) / 0.4, 0.0, 1.0)
    clear_horizon = np.array([190.0, 210.0, 230.0]) + rng.uniform(-20, 20, 3)
    return Sky(
        zenith=blue + overcast * (grey - blue),
        horizon=clear_horizon + overcast * (1.05 * grey - clear_horizon),
        land=np.array([105.0, 108.0, 96.0]) + rng.uniform(-35, 35) + rng.uniform(-10, 10, 3),
        cloud=np.full(3, rng.uniform(200, 250)) * (1 - 0.15 * overcast),
        cloudiness=float(cloudiness),
        cloud_noise=rng.uniform(size=(_CLOUD_OCTAVES, _CLOUD_PERIOD, _CLOUD_PERIOD)).astype(np.float32),
    )


def blurred(image: Pixels, sigma_px: float) -> Pixels:
    """Gaussian blur; below a fifth of a pixel there is nothing to do."""
    return image if sigma_px < 0.2 else np.asarray(cv2.GaussianBlur(image, (0, 0), sigma_px), dtype=np.float32)


def as_image(values: NDArray[np.floating[Any]]) -> Image:
    """Values on the scale 0 to 255, rounded and clipped to uint8."""
    return np.asarray(np.clip(np.rint(values), 0, 255), dtype=np.uint8)


def compressed(image: Image, quality: int) -> Image:
    """The image after a JPEG round trip."""
    ok, data = cv2.imencode(".jpg", image[..., ::-1], [_JPEG_QUALITY, quality])
    assert ok, f"not encodable: {image.shape}"
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB), dtype=np.uint8)
