"""Metrics: what counts as recalled, and that failures are neither hidden nor infinite."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cadloc.geometry import inverse, look_at, rigid, rotation_about_z
from cadloc.localization import Estimate
from cadloc.metric_names import POSE_METRICS
from cadloc.metrics import (
    FAILED_ROTATION_DEG,
    FAILED_TRANSLATION_M,
    PoseErrors,
    coordinate_error_median_m,
    summary,
)

TRUE = look_at([10, 2, 1.5], [0, 0, 3])


def off_by(translation_m: float, rotation_deg: float = 0.0) -> Estimate:
    """An estimate that misses TRUE by so much."""
    pose = rigid((TRUE @ rotation_about_z(rotation_deg))[:3, :3], TRUE[:3, 3] + [translation_m, 0, 0])
    return Estimate(pose, 100, 0.5, 0.5, 0.01)


FAILED = Estimate(None, 0, 0.0, 0.0, 0.01)


def metrics_of(*estimates: Estimate, diameter_m: float = 20.0) -> dict[str, float]:
    """Summary of estimates whose true pose is TRUE."""
    errors = PoseErrors.of(estimates, np.stack([inverse(TRUE)] * len(estimates)))
    return summary(errors, estimates, 0.1, diameter_m)


def test_errors_are_those_put_in() -> None:
    """Translation and rotation errors are recovered."""
    errors = PoseErrors.of([off_by(0.3, 2.0)], inverse(TRUE)[None])
    assert errors.translation_m[0] == pytest.approx(0.3)
    assert errors.rotation_deg[0] == pytest.approx(2.0)


def test_recall_limits_are_strict() -> None:
    """An error at the limit is missed; one just below is recalled; both errors must be below."""
    errors = PoseErrors(np.array([0.25, 0.2499, 0.1, 0.1]), np.array([1.0, 1.0, 2.0, 1.9]))
    assert errors.recall(0.25, 2.0) == 0.5


def test_failures_are_missed_and_counted_and_leave_medians_of_the_rest() -> None:
    """One failure of three: recalls drop by a third, medians stay finite measurements."""
    metrics = metrics_of(off_by(0.01), off_by(0.02), FAILED)
    assert metrics["failures"] == 1
    assert metrics["recall_5m_10deg"] == pytest.approx(2 / 3)
    assert metrics["translation_error_median_m"] == pytest.approx(0.02)


def test_medians_over_mostly_failed_queries_are_the_documented_sentinels() -> None:
    """When half or more failed, the medians are 1e6 m and 180 degrees, and JSON can hold them."""
    metrics = metrics_of(off_by(0.01), FAILED, FAILED)
    assert metrics["translation_error_median_m"] == FAILED_TRANSLATION_M
    assert metrics["rotation_error_median_deg"] == FAILED_ROTATION_DEG
    json.dumps(metrics, allow_nan=False)


def test_every_promised_metric_is_reported() -> None:
    """The catalog's list of metrics is a part of every summary."""
    assert set(POSE_METRICS) <= set(metrics_of(off_by(0.1)))


def test_scale_free_metrics_do_not_change_when_the_scene_grows() -> None:
    """Ten times the error in ten times the scene: same percentage, same recall."""
    small, large = metrics_of(off_by(0.1), diameter_m=20), metrics_of(off_by(1.0), diameter_m=200)
    assert small["translation_error_median_pct"] == pytest.approx(large["translation_error_median_pct"])
    assert small["recall_1pct_2deg"] == large["recall_1pct_2deg"] == 1.0


def test_coordinate_error_ignores_unknown_cells() -> None:
    """Cells whose true coordinate is NaN do not count; a set without any known cell reads as failed."""
    true = np.array([[0.0, 0, 0], [1, 1, 1], [np.nan] * 3])
    predicted = true + np.array([0, 0, 0.5])
    predicted[2] = 1e9
    assert coordinate_error_median_m(predicted, true) == pytest.approx(0.5)
    assert coordinate_error_median_m(predicted, np.full((3, 3), np.nan)) == FAILED_TRANSLATION_M
