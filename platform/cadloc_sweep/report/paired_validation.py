"""What validation says of each arm against the baseline: arms are chosen by it, and by nothing that a test tells."""

from __future__ import annotations

import math
from collections.abc import Mapping

from cadloc_sweep.report.results import Arm, SweepResults

METRICS: Mapping[str, tuple[str, float]] = {
    "translation_error_m": ("translation_error_median_pct", 100.0),
    "rotation_error_deg": ("rotation_error_median_deg", 180.0),
}
"""Column of the pose tables -> the metric of validation beside it, and the most that it counts."""


def validation_changes(results: SweepResults, domain: str, metric: str) -> dict[str, float]:
    """Label of each arm but the baseline -> change of its validation error in percent.

    The mean over scenes of the mean log ratio over shared seeds, as in `paired`; without an interval: views are few.
    Empty for a metric or a domain that is not validated on, and for arms without any scene.
    """
    if metric not in METRICS:
        return {}
    name, cap = METRICS[metric]
    baselines = {arm.scene: arm for arm in results.arms if arm.choice == results.baseline_choice}
    ratios: dict[str, list[float]] = {}
    for arm in results.arms:
        baseline = baselines.get(arm.scene)
        if baseline is None or baseline is arm:
            continue
        ratio = _mean_log_ratio(arm, baseline, f"validation/{domain}/{name}", cap)
        if ratio is not None:
            ratios.setdefault(arm.label, []).append(ratio)
    return {label: 100 * math.expm1(math.fsum(each) / len(each)) for label, each in ratios.items()}


def _mean_log_ratio(arm: Arm, baseline: Arm, metric: str, cap: float) -> float | None:
    ours, theirs = arm.values(metric), baseline.values(metric)
    logs = [
        math.log(min(ours[pair], cap) / min(theirs[pair], cap))
        for pair in ours
        if pair in theirs and min(ours[pair], theirs[pair]) > 0
    ]
    return math.fsum(logs) / len(logs) if logs else None
