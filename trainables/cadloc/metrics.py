"""Accuracy of a set of queries: the errors of every pose, and the few numbers that stand for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from cadloc.geometry import Array, inverse, rotation_error_deg, translation_error_m
from cadloc.localization import Estimate

FAILED_TRANSLATION_M = 1e6
FAILED_ROTATION_DEG = 180.0
"""What a median over mostly failed queries reads: finite, so that it can be stored, and beyond any real error."""

RECALLS: Mapping[str, tuple[float, float]] = {
    "recall_5cm_5deg": (0.05, 5),
    "recall_10cm_5deg": (0.10, 5),
    "recall_25cm_2deg": (0.25, 2),
    "recall_50cm_5deg": (0.50, 5),
    "recall_5m_10deg": (5.0, 10),
}
"""Limits (metres, degrees) of ACE's tables, the outdoor benchmarks' and two between."""

SCALE_FREE_RECALL = "recall_1pct_2deg"
SCALE_FREE_LIMITS = (0.01, 2.0)
"""Limits that mean the same in a room and before a cathedral: a share of the scene's diameter, and degrees."""


@dataclass(frozen=True, eq=False)
class PoseErrors:
    """Errors (N,) of N queries against their true poses; infinite where localization failed."""

    translation_m: Array
    rotation_deg: Array

    @classmethod
    def of(cls, estimates: Sequence[Estimate], cam_from_cad: Array) -> PoseErrors:
        """Against the true `cam_from_cad` (N, 4, 4), in the order of the estimates."""
        true = inverse(cam_from_cad)
        translation_m, rotation_deg = np.full(len(estimates), np.inf), np.full(len(estimates), np.inf)
        for i, estimate in enumerate(estimates):
            if estimate.cad_from_cam is not None:
                translation_m[i] = translation_error_m(estimate.cad_from_cam, true[i])
                rotation_deg[i] = rotation_error_deg(estimate.cad_from_cam, true[i])
        return cls(translation_m, rotation_deg)

    def recall(self, limit_m: float, limit_deg: float) -> float:
        """Share of queries with both errors strictly below their limits; failures count as missed."""
        return float(np.mean((self.translation_m < limit_m) & (self.rotation_deg < limit_deg)))


def summary(
    errors: PoseErrors, estimates: Sequence[Estimate], coordinate_error_median_m: float, diameter_m: float
) -> dict[str, float]:
    """All metrics of one query set, every one finite.

    A failed query has an infinite error: it is missed by all recalls, and a median is `FAILED_TRANSLATION_M` or
    `FAILED_ROTATION_DEG` where more than half of the queries failed. `failures` counts them.
    """
    translation_m = _median(errors.translation_m, FAILED_TRANSLATION_M)
    limit_m = SCALE_FREE_LIMITS[0] * diameter_m
    return {
        "translation_error_median_m": translation_m,
        "translation_error_median_pct": 100 * translation_m / diameter_m,
        "rotation_error_median_deg": _median(errors.rotation_deg, FAILED_ROTATION_DEG),
        **{name: errors.recall(*limits) for name, limits in RECALLS.items()},
        SCALE_FREE_RECALL: errors.recall(limit_m, SCALE_FREE_LIMITS[1]),
        "scene_coordinate_error_median_m": coordinate_error_median_m,
        "inlier_share_median": float(np.median([estimate.inlier_share for estimate in estimates])),
        "failures": float(np.sum(~np.isfinite(errors.translation_m))),
    }


def coordinate_error_median_m(predicted: ArrayLike, true: ArrayLike) -> float:
    """Median distance of predicted to true scene coordinates (..., 3) where the true ones are known.

    `FAILED_TRANSLATION_M` where none is known, or where most predictions are not finite.
    """
    distances = np.linalg.norm(np.asarray(predicted, np.float64) - np.asarray(true, np.float64), axis=-1)
    known = np.isfinite(np.asarray(true)).all(axis=-1)
    distances = np.where(np.isfinite(distances), distances, np.inf)[known]
    return _median(distances, FAILED_TRANSLATION_M) if len(distances) else FAILED_TRANSLATION_M


def _median(values: Array, sentinel: float) -> float:
    """The median; the sentinel where it is infinite (half of an even number of infinite values suffices)."""
    median = float(np.median(values))
    return median if np.isfinite(median) else sentinel
