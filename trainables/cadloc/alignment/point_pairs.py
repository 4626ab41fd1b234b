"""The similarity between two frames from points known in both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pycolmap
from numpy.typing import ArrayLike, NDArray

from cadloc.geometry import Array, Similarity

FEWEST = 3
ROBUST_FROM = 6
"""Pairs from which a wrong one can be told from the right ones."""

_COLLINEAR = 1e-3


@dataclass(frozen=True, eq=False)
class PairFit:
    """`dst_from_src`, distances (N,) of the moved points from their partners in units of dst, and which were used."""

    dst_from_src: Similarity
    residuals: Array
    used: NDArray[np.bool_]


def similarity_from_pairs(
    points_src: ArrayLike, points_dst: ArrayLike, *, robust: bool | None = None, max_error: float | None = None
) -> PairFit:
    """Least-squares Sim(3) (Umeyama, PAMI 1991) between points (N, 3) and their partners (N, 3), N ≥ 3.

    `robust` (None: from six pairs on) leaves out pairs farther than `max_error` (units of dst; None: 5 % of the
    partners' root mean square distance from their middle) from what LO-RANSAC finds. Raises ValueError for fewer
    than three pairs, non-finite ones, points all on one line, and where no three pairs agree.
    """
    src, dst = np.asarray(points_src, np.float64), np.asarray(points_dst, np.float64)
    if src.shape != dst.shape or src.ndim != 2 or src.shape[1] != 3:
        raise ValueError(f"points of shapes {src.shape} and {dst.shape} are not pairs (N, 3)")
    if not (np.isfinite(src).all() and np.isfinite(dst).all()):
        raise ValueError("pairs with coordinates that are not finite")
    _check_spread(src, dst)
    used = np.ones(len(src), bool)
    if robust if robust is not None else len(src) >= ROBUST_FROM:
        radius = float(np.sqrt(((dst - dst.mean(axis=0)) ** 2).sum(axis=1).mean()))
        used = _agreeing(src, dst, 0.05 * radius if max_error is None else max_error)
        _check_spread(src[used], dst[used])
    dst_from_src = _umeyama(src[used], dst[used])
    return PairFit(dst_from_src, np.linalg.norm(dst_from_src.transform_points(src) - dst, axis=1), used)


def _check_spread(*frames: Array) -> None:
    if len(frames[0]) < FEWEST:
        raise ValueError(f"{len(frames[0])} pairs that agree; a similarity needs {FEWEST}")
    for points in frames:
        singular = np.linalg.svd(points - points.mean(axis=0), compute_uv=False)
        if singular[1] <= _COLLINEAR * singular[0]:
            raise ValueError("the points lie on one line: the rotation about it is free")


def _agreeing(src: Array, dst: Array, max_error: float) -> NDArray[np.bool_]:
    options = pycolmap.RANSACOptions(max_error=max_error, random_seed=0, min_num_trials=1000, max_num_trials=10_000)
    found: Any = pycolmap.estimate_sim3d_robust(src, dst, options)  # a dict, whatever its signature says
    if found is None:
        raise ValueError(f"no {FEWEST} pairs agree within {max_error:.3g}")
    return np.asarray(found["inlier_mask"], np.bool_)


def _umeyama(src: Array, dst: Array) -> Similarity:
    mean_src, mean_dst = src.mean(axis=0), dst.mean(axis=0)
    covariance = (dst - mean_dst).T @ (src - mean_src) / len(src)
    left, singular, right = np.linalg.svd(covariance)
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(left @ right)) or 1.0])
    rotation = (left * signs) @ right
    scale = float((singular * signs).sum() / ((src - mean_src) ** 2).sum(axis=1).mean())
    return Similarity(scale, rotation, mean_dst - scale * rotation @ mean_src)
