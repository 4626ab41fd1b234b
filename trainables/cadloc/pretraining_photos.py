"""What cameras and weather do to an image: drawn anew for every image the encoder is pre-trained on.

A feature that agrees between two draws describes the building, not the picture: this and the changed materials of
the made-up buildings are all that stands for the step from renderings to photographs.
"""

from __future__ import annotations

from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

Picture: TypeAlias = NDArray[np.float32]
"""(H, W, 3) float32 RGB, nominally in [0, 1]."""

_COARSE = 8  # skies and shadows are smooth: drawn on a grid this many times smaller


def photographed(
    image: NDArray[np.uint8], background: NDArray[np.bool_], generator: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """The image (H, W, 3) uint8 under another sky, light and camera, and where (H, W) something stands before it."""
    light = image.astype(np.float32)
    light *= np.float32(1 / 255)
    shape = (image.shape[0], image.shape[1])
    light[background] = sky(shape, generator)[background]
    light *= _field(shape, generator, deviation=generator.uniform(0, 0.25), finest=6)[..., None]
    hidden = _occlude(light, generator)
    metered = float(light[~background].mean()) if not background.all() else 1.0
    return _developed(light, metered, generator), hidden


def sky(shape: tuple[int, int], generator: np.random.Generator) -> Picture:
    """A vertical gradient of two random pale colours with clouds, or something rougher (trees, other houses)."""
    height, width = shape[0] // _COARSE, shape[1] // _COARSE
    rows = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    top, bottom = (generator.uniform(0.1, 1) * (1 + generator.normal(0, 0.12, 3)) for _ in range(2))
    rough = generator.random() < 0.35
    deviation, finest = generator.uniform(0, 0.6 if rough else 0.25), 48 if rough else 8
    clouds = _field((height, width), generator, deviation=deviation, finest=finest)
    coarse = (top * (1 - rows) + bottom * rows) * clouds[..., None]
    return np.asarray(cv2.resize(coarse.astype(np.float32), shape[::-1], interpolation=cv2.INTER_CUBIC), np.float32)


def _field(
    shape: tuple[int, int], generator: np.random.Generator, *, deviation: float, finest: int
) -> NDArray[np.float32]:
    """Smooth log-normal factors (H, W) around 1, with detail down to `finest` parts of the image: shadows, clouds."""
    total = np.zeros(shape, np.float32)
    cells, weight = 2, 1.0
    while cells <= finest:
        coarse = generator.normal(0, weight, (cells + 1, cells + 2)).astype(np.float32)
        total += cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC)
        cells, weight = cells * 2, weight * 0.7
    return np.asarray(np.exp(np.float32(deviation) * total), np.float32)


def _occlude(light: Picture, generator: np.random.Generator) -> NDArray[np.bool_]:
    """Paints up to three textured ellipses (people, cars, leaves) into `light`; returns where (H, W)."""
    height, width = light.shape[:2]
    hidden = np.zeros((height, width), np.uint8)
    if generator.random() < 0.3:
        for _ in range(int(generator.integers(1, 4))):
            middle = (int(generator.uniform(0, width)), int(generator.uniform(0.3, 1) * height))
            axes = (int(generator.uniform(0.02, 0.13) * width), int(generator.uniform(0.04, 0.2) * height))
            cv2.ellipse(hidden, middle, axes, float(generator.uniform(-30, 30)), 0, 360, 1, -1)
    where = hidden.astype(bool)
    if where.any():
        texture = _field((height, width), generator, deviation=0.5, finest=40)[where]
        light[where] = texture[:, None] * generator.uniform(0.02, 0.8, 3)
    return where


def _developed(light: Picture, metered: float, generator: np.random.Generator) -> NDArray[np.uint8]:
    """The picture (H, W, 3) uint8 a random camera makes of the light: colour, exposure, optics, noise, JPEG.

    It exposes for the building, whose mean is `metered`, to between a quarter and a half of full scale.
    """
    mixing = np.eye(3) + generator.normal(0, 0.06, (3, 3))
    gains = np.exp(generator.normal(0, 0.1, 3))
    exposure = generator.uniform(0.25, 0.5) / max(metered, 0.05)
    picture = cv2.transform(light, (255 * exposure * gains * mixing).T.astype(np.float32))
    if generator.random() < 0.5:
        picture = cv2.GaussianBlur(picture, (0, 0), generator.uniform(0.3, 1.0))
    grain = generator.standard_normal(picture.shape[:2], dtype=np.float32) * np.float32(generator.uniform(0, 5))
    # Saturating to 8 bits is OpenCV's; gamma is then a table look-up.
    stored = cv2.add(picture, cv2.merge([grain] * 3), dtype=cv2.CV_8U)
    gamma = np.exp(generator.normal(0, 0.2))
    stored = cv2.LUT(stored, np.round(255 * (np.arange(256) / 255) ** gamma).astype(np.uint8))
    if generator.random() < 0.4:
        _, code = cv2.imencode(".jpg", stored, [cv2.IMWRITE_JPEG_QUALITY, int(generator.integers(40, 96))])
        return np.asarray(cv2.imdecode(code, cv2.IMREAD_COLOR), np.uint8)
    return np.asarray(stored, np.uint8)
