"""What cameras and weather do to an image: drawn anew for every image the encoder is pre-trained on.

A feature that agrees between two draws describes the building, not the picture: this and the changed materials of
the made-up buildings are all that stands for the step from renderings to photographs.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]
"""(H, W, 3) float32 RGB, nominally in [0, 1]."""


def photographed(
    image: NDArray[np.uint8], background: NDArray[np.bool_], generator: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """The image (H, W, 3) uint8 under another sky, light and camera, and where (H, W) something stands before it."""
    light = image.astype(np.float32) / 255
    light[background] = sky(image.shape[:2], generator)[background]
    light *= _field(image.shape[:2], generator, deviation=generator.uniform(0, 0.35))[..., None]
    hidden = _occlude(light, generator)
    return _developed(light, generator), hidden


def sky(shape: tuple[int, int], generator: np.random.Generator) -> Image:
    """A vertical gradient of two random pale colours with clouds, or something rougher (trees, other houses)."""
    rows = np.linspace(0, 1, shape[0], dtype=np.float32)[:, None, None]
    top, bottom = (generator.uniform(0.1, 1) * (1 + generator.normal(0, 0.12, 3)) for _ in range(2))
    smooth = top * (1 - rows) + bottom * rows
    rough = generator.random() < 0.35
    clouds = _field(shape, generator, deviation=generator.uniform(0, 0.6 if rough else 0.25), finest=48 if rough else 8)
    return np.asarray(smooth * clouds[..., None], np.float32)


def _field(shape: tuple[int, int], generator: np.random.Generator, *, deviation: float, finest: int = 6) -> Image:
    """Smooth log-normal factors (H, W) around 1: shadows, clouds."""
    total = np.zeros(shape, np.float32)
    cells, weight = 2, 1.0
    while cells <= finest:
        coarse = generator.normal(0, weight, (cells + 1, cells + 2)).astype(np.float32)
        total += cv2.resize(coarse, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)
        cells, weight = cells * 2, weight * 0.7
    return np.asarray(np.exp(deviation * total), np.float32)


def _occlude(light: Image, generator: np.random.Generator) -> NDArray[np.bool_]:
    """Paints up to three textured ellipses (people, cars, leaves) into `light`; returns where (H, W)."""
    height, width = light.shape[:2]
    hidden = np.zeros((height, width), np.uint8)
    if generator.random() < 0.4:
        for _ in range(int(generator.integers(1, 4))):
            middle = (int(generator.uniform(0, width)), int(generator.uniform(0.3, 1) * height))
            axes = (int(generator.uniform(0.02, 0.13) * width), int(generator.uniform(0.04, 0.2) * height))
            cv2.ellipse(hidden, middle, axes, float(generator.uniform(-30, 30)), 0, 360, 1, -1)
    where = hidden.astype(bool)
    if where.any():
        colour = generator.uniform(0.02, 0.8, 3)
        texture = _field((height, width), generator, deviation=0.5, finest=40)[..., None] * colour
        light[where] = texture[where]
    return where


def _developed(light: Image, generator: np.random.Generator) -> NDArray[np.uint8]:
    """The picture (H, W, 3) uint8 a random camera makes of the light: colour, exposure, optics, noise, JPEG."""
    mixing = np.eye(3) + generator.normal(0, 0.08, (3, 3))
    gains = np.exp(generator.normal(0, 0.1, 3))
    exposure = generator.uniform(0.25, 0.55) / max(float(light.mean()), 0.05)
    picture = np.clip(light @ (mixing * gains * exposure).astype(np.float32), 0, 1)
    picture = picture ** np.float32(np.exp(generator.normal(0, 0.25)))
    if generator.random() < 0.5:
        picture = cv2.GaussianBlur(picture, (0, 0), generator.uniform(0.3, 1.3))
    noise = generator.standard_normal(picture.shape, dtype=np.float32) * np.float32(generator.uniform(0, 0.03))
    stored = np.asarray(np.clip((picture + noise) * 255 + 0.5, 0, 255), np.uint8)
    if generator.random() < 0.4:
        _, code = cv2.imencode(".jpg", stored, [cv2.IMWRITE_JPEG_QUALITY, int(generator.integers(40, 96))])
        stored = np.asarray(cv2.imdecode(code, cv2.IMREAD_COLOR), np.uint8)
    return stored
