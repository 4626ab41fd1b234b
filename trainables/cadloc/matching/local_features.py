"""Local features of an image, and which of them show the same point in another."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cadloc.geometry import Array
from cadloc.localization import REFERENCE_SIDE_PX


@dataclass(frozen=True, eq=False)
class LocalFeatures:
    """N features of an image: `pixels` (N, 2) float64 and unit `descriptors` (N, C), float16 to store or float32.

    `image` (H, W, 3) uint8 is what they were found in: matchers that look at images have C = 0. On a grid, `cells`
    (rows, cols) holds the row of the feature in each cell, -1 where there is none.
    """

    image: NDArray[np.uint8]
    pixels: Array
    descriptors: NDArray[np.floating]
    cells: NDArray[np.int64] | None = field(default=None)

    @property
    def short_side_px(self) -> int:
        """The shorter of the image's sides."""
        return int(min(self.image.shape[:2]))


@dataclass(frozen=True, eq=False)
class Matches:
    """M pairs of a pixel of the query (M, 2) and one of the render (M, 2)."""

    query_pixels: Array
    render_pixels: Array

    def __len__(self) -> int:
        return len(self.query_pixels)


def similarities(query: LocalFeatures, render: LocalFeatures, near_px: float | None) -> Tensor:
    """Cosines (Nq, Nr) of all pairs; -2 for pairs of pixels farther than `near_px` from each other, if that is given.

    `near_px` is for a short side of 480 px, and presumes images of the same camera and size.
    """
    a = torch.from_numpy(np.asarray(query.descriptors, np.float32))
    b = torch.from_numpy(np.asarray(render.descriptors, np.float32))
    cosines = a @ b.T
    if near_px is not None:
        limit_px = near_px * query.short_side_px / REFERENCE_SIDE_PX
        u, v = (
            torch.from_numpy(np.ascontiguousarray(query.pixels[:, axis], np.float32))[:, None]
            - torch.from_numpy(np.ascontiguousarray(render.pixels[:, axis], np.float32))[None]
            for axis in (0, 1)
        )
        cosines.masked_fill_(u.square_().add_(v.square_()) > limit_px**2, -2.0)
    return cosines


def mutual_nearest(cosines: Tensor, least: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns (M,) of the pairs that are each other's nearest, at a cosine of at least `least`."""
    if not cosines.numel():
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    best, column = cosines.max(1)
    row = cosines.max(0).indices
    mutual = (row[column] == torch.arange(len(cosines))) & (best >= least) & (best > -2.0)
    rows = np.flatnonzero(mutual.numpy())
    return rows, column.numpy()[rows]


def ratio_tested(cosines: Tensor, ratio: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns (M,) of mutual nearest pairs whose descriptors' distance is below `ratio` times that to the
    second nearest, seen from both images (Lowe 2004, section 7.1)."""
    if min(cosines.shape) < 2:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    distinct = _distance_ratio(cosines, 1) < ratio
    rows, columns = mutual_nearest(cosines, least=-1.0)
    kept = distinct.numpy()[rows] & (_distance_ratio(cosines, 0) < ratio).numpy()[columns]
    return rows[kept], columns[kept]


def _distance_ratio(cosines: Tensor, dim: int) -> Tensor:
    """Nearest over second nearest distance of unit vectors; rivals out of reach do not count."""
    squared = (2 - 2 * cosines.topk(2, dim).values).clamp_min(1e-12)
    first, second = squared.unbind(dim)
    return (first / second).sqrt()
