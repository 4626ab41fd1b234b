"""Anchors: points spread over the scene's surface, and how well each explains what was seen."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from cadloc.contract import Fault, InputError
from cadloc.samples import Batch

MOST_POINTS = 60_000
POINTS_PER_ANCHOR = 30
ROUNDS = 8
"""k-means: on at most this many points per anchor, for so many rounds; more moves anchors by less than a tenth
of their spacing."""

HALVINGS = 10
"""From an eighth of the scene to less than a thousandth of that."""

BEHIND = -1e4
"""Log-likelihood of an anchor behind the camera."""

NEAREST_M = 0.1


def place_anchors(
    points: NDArray[np.floating], count: int, seed: int, key: str = "head.anchors"
) -> NDArray[np.float64]:
    """k-means centres (count, 3) of points (N, 3); raises InputError, naming `key`, when there are fewer points."""
    if len(points) < count:
        allowed = f"at most the {len(points)} points there are to cluster"
        raise InputError(Fault("configuration", key, str(count), allowed))
    generator = np.random.default_rng(seed)
    some = max(count, min(len(points), MOST_POINTS, POINTS_PER_ANCHOR * count))
    chosen = points[generator.choice(len(points), some, replace=False)].astype(np.float64)
    centres = chosen[generator.choice(some, count, replace=False)]
    for _ in range(ROUNDS):
        nearest = cKDTree(centres).query(chosen)[1]
        members = np.bincount(nearest, minlength=count)[:, None]
        sums = np.stack([np.bincount(nearest, chosen[:, axis], count) for axis in range(3)], axis=1)
        centres = np.where(members > 0, sums / np.maximum(members, 1), centres)
    return centres


def area_uniform(points: NDArray[np.floating], count: int) -> NDArray[np.floating]:
    """Those of points (N, 3) on a surface that are left when it is thinned evenly: one per voxel.

    Voxels are halved until they leave enough for `count` clusters, or every distinct point its own.
    """
    if not len(points):
        return points
    lowest = points.min(axis=0)
    size_m = float(np.ptp(points, axis=0).max()) / 8 or 1.0
    for _ in range(HALVINGS):
        _, first = np.unique(((points - lowest) / size_m).astype(np.int64), axis=0, return_index=True)
        if len(first) >= POINTS_PER_ANCHOR * count:
            break
        size_m /= 2
    return points[np.sort(first)]


def spacing_m(anchors: NDArray[np.float64]) -> float:
    """Median distance of an anchor (K, 3) to its nearest neighbour, in metres."""
    return float(np.median(cKDTree(anchors).query(anchors, 2)[0][:, 1]))


def log_likelihood_of_points(anchors: Tensor, points: Tensor, deviation_m: Tensor) -> Tensor:
    """(B, K): how well anchors (K, 3) explain points (B, 3): −distance² / 2 deviation², up to a constant."""
    squared = torch.addmm((anchors**2).sum(dim=1), points, anchors.T, alpha=-2)
    return (squared + (points**2).sum(dim=1, keepdim=True)).relu_().div_(-2 * deviation_m**2)


def log_likelihood_of_rays(anchors: Tensor, batch: Batch, origin: Tensor, deviation_m: Tensor) -> Tensor:
    """(B, K): how well anchors (K, 3), relative to `origin`, explain the pixels: by their distance to the rays.

    Poses and pixels are all it knows: every anchor along a ray explains it, and only the agreement of many views
    tells the surface from what is hidden behind it. Anchors behind the camera are excluded.
    """
    centres = batch.centres_cad - origin
    directions = batch.directions_cad
    along_m = torch.addmm(-(centres * directions).sum(dim=1, keepdim=True), directions, anchors.T)
    squared = torch.addmm((anchors**2).sum(dim=1), centres, anchors.T, alpha=-2)
    squared += (centres**2).sum(dim=1, keepdim=True)
    squared = torch.addcmul(squared, along_m, along_m, value=-1).relu_().div_(-2 * deviation_m**2)
    return squared.masked_fill_(along_m < NEAREST_M, BEHIND)
