"""Whether a render shows what a photo shows, at a glance: no search, a few milliseconds, tolerant of some pixels."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from cadloc.geometry import Array

_CELL_PX = 8
_ORIENTATIONS = 8
_LEAST_CELLS = 12
_ANGLES = np.arange(_ORIENTATIONS) * (2 * np.pi / _ORIENTATIONS)
_DIRECTIONS = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)]).astype(np.float32)
_NEIGHBOUR = np.float32(np.cos(_ANGLES[1]))
_SKY = 230  # what stands behind the model in the render: outlines against a bright sky are edges too


def agreement(photo: NDArray[np.uint8], render: NDArray[np.uint8], mask: NDArray[np.bool_]) -> float:
    """Correlation, within [-1, 1], of edge directions per 8 px cell over the cells where `mask` (H, W) is mostly true.

    Photo and render are (H, W, 3) uint8 RGB, best of 100 to 250 px. What all cells of a picture have in common is
    taken off first, so pictures of unlike places score about 0, whatever their style. 0 where the model is not seen.
    """
    seen = cv2.dilate(mask.astype(np.uint8), np.ones((5, 5), np.uint8))
    cells = _per_cell(seen.astype(np.float32)[..., None])[..., 0] > 0.5
    if cells.sum() < _LEAST_CELLS:
        return 0.0
    backed = np.where(mask[..., None], render, np.uint8(_SKY))
    return _correlation(_edge_directions(photo)[cells], _edge_directions(backed)[cells])


def _correlation(first: Array, second: Array) -> float:
    first, second = first - first.mean(axis=0), second - second.mean(axis=0)
    power = np.sqrt((first**2).sum() * (second**2).sum())
    return float((first * second).sum() / power) if power > 0 else 0.0


def _edge_directions(image: NDArray[np.uint8]) -> Array:
    """Square roots of the shares of 8 undirected edge directions per cell, (rows, columns, 8); flat cells are zero."""
    luma = np.sqrt(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255)
    across, down = cv2.Sobel(luma, cv2.CV_32F, 1, 0, scale=0.125), cv2.Sobel(luma, cv2.CV_32F, 0, 1, scale=0.125)
    magnitude = np.hypot(across, down)
    # Twice the angle makes opposite directions one: (cos, sin)(2θ)·m from the gradient, without an arc tangent.
    turned = np.stack([across**2 - down**2, 2 * across * down], axis=-1) / (magnitude[..., None] + 1e-9)
    near = np.maximum(turned @ _DIRECTIONS - _NEIGHBOUR * magnitude[..., None], 0)
    histograms = _per_cell(near)
    histograms = np.maximum(histograms, 0)  # the running sums of a box filter go a rounding below zero
    return np.asarray(np.sqrt(histograms / (histograms.sum(axis=-1, keepdims=True) + 0.02)), np.float64)


def _per_cell(maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Means over 16 px windows about the cells, (rows, columns, C), from (H, W, C)."""
    pooled = cv2.blur(maps, (2 * _CELL_PX, 2 * _CELL_PX)).reshape(maps.shape)
    return np.asarray(pooled[_CELL_PX // 2 :: _CELL_PX, _CELL_PX // 2 :: _CELL_PX])
