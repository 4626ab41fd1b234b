"""An encoder's dense features: one per cell, matched where each is the other's nearest."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cadloc.config import EncoderFeatures
from cadloc.encoders import Encoder
from cadloc.encoders.images import STRIDE
from cadloc.encoding import encode_image
from cadloc.geometry import Array, cell_pixels
from cadloc.matching.local_features import LocalFeatures, Matches, mutual_nearest, similarities


class DenseMatcher:
    """Cells of the trial's own encoder; the render's pixel is refined within its cell."""

    def __init__(self, config: EncoderFeatures, encoder: Encoder) -> None:
        self._config = config
        self._encoder = encoder

    def describe(self, image: NDArray[np.uint8], known: NDArray[np.bool_] | None = None) -> LocalFeatures:
        """A feature for each cell of an RGB image (H, W, 3), those whose middle is not `known` (H, W) left out."""
        features = encode_image(self._encoder, image)
        lengths = np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-12)
        rows, columns = features.shape[:2]
        pixels = cell_pixels(rows, columns, STRIDE)
        kept = np.ones((rows, columns), bool)
        if known is not None:
            column, row = np.moveaxis(pixels.astype(int), -1, 0)
            kept = known[row, column]
        cells = np.full(kept.shape, -1, np.int64)
        cells[kept] = np.arange(kept.sum())
        return LocalFeatures(image, pixels[kept], (features / lengths)[kept].astype(np.float16), cells)

    def match(self, query: LocalFeatures, render: LocalFeatures, near_px: float | None = None) -> Matches:
        """Pairs that are each other's nearest, at a cosine of at least `min_similarity`."""
        cosines = similarities(query, render, near_px)
        rows, columns = mutual_nearest(cosines, self._config.min_similarity)
        return Matches(query.pixels[rows], render.pixels[columns] + _offsets(cosines, rows, columns, render))


def _offsets(cosines: Tensor, rows: NDArray[np.int64], columns: NDArray[np.int64], render: LocalFeatures) -> Array:
    """Where between the cells (M, 2), in pixels, the similarity peaks: a parabola through three of them per axis."""
    assert render.cells is not None, "features of a grid know their cells"
    place = (render.pixels[columns] / STRIDE).astype(int)
    padded = np.pad(render.cells, 1, constant_values=-1)
    at = partial(_neighbour_cosines, cosines.numpy(), rows, padded, place)
    middle = cosines.numpy()[rows, columns]
    return np.stack([_peak(at(0, -1), middle, at(0, 1)), _peak(at(-1, 0), middle, at(1, 0))], axis=-1) * STRIDE


def _neighbour_cosines(
    cosines: NDArray[np.float32],
    rows: NDArray[np.int64],
    padded: NDArray[np.int64],
    place: NDArray[np.int64],
    down: int,
    right: int,
) -> NDArray[np.float32]:
    neighbour = padded[place[:, 1] + 1 + down, place[:, 0] + 1 + right]
    values = np.where(neighbour >= 0, cosines[rows, neighbour], np.nan)
    return np.where(values < -1.5, np.nan, values)  # out of reach


def _peak(before: NDArray[np.float32], middle: NDArray[np.float32], after: NDArray[np.float32]) -> Array:
    """Place of the maximum of the parabola through values at -1, 0, 1; 0 where a neighbour is missing."""
    bend = before - 2 * middle + after
    place = 0.5 * (before - after) / np.where(bend < -1e-6, bend, np.nan)
    return np.asarray(np.nan_to_num(place).clip(-0.5, 0.5), np.float64)
