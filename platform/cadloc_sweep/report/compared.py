"""Any one metric of the trials, arm against baseline: ratios paired by seed, per scene and over scenes.

Seeds decide here, not queries: for metrics that are one number per trial, such as the median error of scene
coordinates, which hundreds of thousands of cells make steady where a handful of poses is not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cadloc.contract import Fault, InputError, Json
from cadloc.faults import did_you_mean
from cadloc_sweep.report.paired_text import interval_text
from cadloc_sweep.report.results import Arm, SweepResults, is_stand_in
from cadloc_sweep.report.statistics import Interval, t_interval
from cadloc_sweep.report.tables import Table


@dataclass(frozen=True)
class ComparedArm:
    """One arm: mean of the metric per scene, its change in percent (95 % t interval over the log ratios of shared
    seeds), and over scenes (`pooled`: t interval over the scenes' means). Nothing where a value is not positive, or
    stands in for an error that does not exist."""

    label: str
    means: Mapping[str, float]
    changes: Mapping[str, Interval]
    pooled: Interval | None

    @property
    def decided(self) -> tuple[int, int]:
        """Number of scenes whose interval lies below and above zero."""
        intervals = [change for change in self.changes.values() if change.decided]
        below = sum(change.mean is not None and change.mean < 0 for change in intervals)
        return below, len(intervals) - below


def compare_metric(results: SweepResults, metric: str) -> tuple[ComparedArm, ...]:
    """All arms, the baseline first. Raises InputError for a sweep without a baseline, and an unknown metric."""
    known = sorted({name for arm in results.arms for name in arm.metrics})
    if metric not in known:
        guess = did_you_mean(metric, known)
        raise InputError(Fault(results.space, "--compare", metric, "a metric of the trials", guess))
    if results.baseline is None:
        raise InputError(Fault(results.space, "--compare", "a sweep without a baseline", "one that tried its baseline"))
    by_label: dict[str, list[Arm]] = {}
    for arm in sorted(results.arms, key=lambda arm: arm.choice != results.baseline_choice):
        by_label.setdefault(arm.label, []).append(arm)
    baselines = {arm.scene: arm for arm in by_label[results.baseline]}
    return tuple(_compared(label, arms, baselines, metric) for label, arms in by_label.items())


def tables(results: SweepResults, metric: str, arms: Sequence[ComparedArm]) -> list[Table]:
    """Arms × scenes twice: means, and changes against the baseline."""
    means = [(arm.label, *(_digits(arm.means.get(scene)) for scene in results.scenes)) for arm in arms]
    changes = [
        (
            arm.label,
            *(_shown(arm.changes.get(scene)) for scene in results.scenes),
            _shown(arm.pooled),
            "{} / {}".format(*arm.decided),
        )
        for arm in arms[1:]
    ]
    headings = ("arm", *results.scenes, "over scenes", "below / above")
    return [
        Table(f"{results.space}: {metric}", ("arm", *results.scenes), tuple(means)),
        Table(f"{results.space}: change of {metric} against {arms[0].label}, %", headings, tuple(changes)),
    ]


def footnote(arms: Sequence[ComparedArm]) -> str:
    """What the numbers are."""
    intervals = sum(change.lo is not None for arm in arms for change in arm.changes.values())
    return (
        "means over seeds; change: exp(mean log ratio over shared seeds) − 1 with its 95 % t interval, ! excludes 0; "
        "over scenes: the same over the scenes' means, about scenes like these; what seeds share (views, buffer, a "
        f"tuned encoder, queries) is left out of a scene's interval; of the {intervals} intervals about one in twenty "
        "excludes 0 by chance"
    )


def as_json(metric: str, arms: Sequence[ComparedArm]) -> str:
    """The comparison as JSON, changes in percent."""
    return json.dumps({"metric": metric, "arms": [_arm_json(arm) for arm in arms]}, indent=2, allow_nan=False)


def _compared(label: str, arms: Sequence[Arm], baselines: Mapping[str, Arm], metric: str) -> ComparedArm:
    means, logs = dict[str, float](), dict[str, list[float]]()
    for arm in arms:
        values = _usable(arm, metric)
        if values:
            means[arm.scene] = math.fsum(values.values()) / len(values)
        baseline = baselines.get(arm.scene)
        if baseline is not None and baseline is not arm:
            theirs = _usable(baseline, metric)
            logs[arm.scene] = [math.log(values[pair] / theirs[pair]) for pair in values if pair in theirs]
    known = {scene: ratios for scene, ratios in logs.items() if ratios}
    changes = {scene: _in_percent(t_interval(ratios)) for scene, ratios in known.items()}
    centres = [math.fsum(ratios) / len(ratios) for ratios in known.values()]
    return ComparedArm(label, means, changes, _in_percent(t_interval(centres)) if centres else None)


def _usable(arm: Arm, metric: str) -> dict[tuple[str, int], float]:
    values = arm.values(metric)
    wrong = any(not math.isfinite(value) or value <= 0 or is_stand_in(metric, value) for value in values.values())
    return {} if wrong else values


def _in_percent(logs: Interval) -> Interval:
    mean, lo, hi = (None if value is None else 100 * math.expm1(value) for value in (logs.mean, logs.lo, logs.hi))
    return Interval(logs.n, mean, lo, hi)


def _arm_json(arm: ComparedArm) -> dict[str, Json]:
    changes: dict[str, Json] = {scene: _interval_json(change) for scene, change in arm.changes.items()}
    pooled = None if arm.pooled is None else _interval_json(arm.pooled)
    return {"arm": arm.label, "means": dict(arm.means), "changes": changes, "over_scenes": pooled}


def _interval_json(change: Interval) -> dict[str, Json]:
    return {"n": change.n, "mean_pct": change.mean, "lo_pct": change.lo, "hi_pct": change.hi}


def _digits(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3}f}"


def _shown(change: Interval | None) -> str:
    return "–" if change is None or change.mean is None else interval_text(change)
