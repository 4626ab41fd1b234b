"""How few samples each arm needs for the error that the baseline ends with: runs of several lengths, paired by seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from cadloc.contract import Fault, InputError
from cadloc.faults import did_you_mean
from cadloc_sweep.report.budgets import Family, families, family_key, planned_samples, samples_seen
from cadloc_sweep.report.geometric import geometric_interval
from cadloc_sweep.report.results import Arm, SweepResults, is_stand_in
from cadloc_sweep.report.statistics import Interval

Verdict: TypeAlias = Literal["better", "not distinguishable", "worse"]
"""Whether the interval of a ratio of errors lies at or below 1, around it, or above."""

SAME_BUDGET = 0.01
"""Budgets that differ by no larger share are the same."""

MORE_IS_BETTER = ("recall", "inlier_share", "agreement", "precision", "kept")
"""Parts of the names of metrics that are no errors."""

Values: TypeAlias = Mapping[tuple[str, int], float]


@dataclass(frozen=True)
class Budget:
    """Runs of one length: samples `planned`, and those `seen` on average (fewer where runs stop early).

    `share`: seen samples over the reference's; `error`: mean over seeds; `ratio` to the reference's error, geometric
    mean and interval over the seeds that both have; `complete`: those are all the reference has. `failed`: some seed
    has no error to tell. `is_reference`: it is what all others are compared with.
    """

    planned: int
    seen: float
    share: float
    error: float | None
    ratio: Interval
    complete: bool
    failed: bool
    is_reference: bool

    @property
    def reaches(self) -> bool:
        """Whether the reference's error is reached: the mean ratio over all of its seeds is 1 or less."""
        return self.complete and self.ratio.mean is not None and self.ratio.mean <= 1

    @property
    def verdict(self) -> Verdict | None:
        """None without an interval, and for the reference."""
        if self.is_reference or self.ratio.lo is None or self.ratio.hi is None:
            return None
        return "better" if self.ratio.hi < 1 else "worse" if self.ratio.lo > 1 else "not distinguishable"


@dataclass(frozen=True)
class Efficiency:
    """One family of arms (all factors but the budget) on one scene; its budgets, the smallest first."""

    label: str
    is_baseline: bool
    budgets: tuple[Budget, ...]

    @property
    def reached(self) -> Budget | None:
        """The budget with the fewest samples that reaches the reference's error."""
        return min((each for each in self.budgets if each.reaches), key=lambda each: each.seen, default=None)

    def at(self, planned: int) -> Budget | None:
        """The budget of that many planned samples, or the largest below."""
        return max(
            (each for each in self.budgets if each.planned <= (1 + SAME_BUDGET) * planned),
            key=lambda each: each.planned,
            default=None,
        )


@dataclass(frozen=True)
class SceneEfficiency:
    """All families of one scene, the baseline's first.

    `error` (mean over `n` seeds), `planned` and `samples` are those of the reference, the baseline at its largest
    budget.
    """

    scene: str
    error: float
    n: int
    planned: int
    samples: float
    families: tuple[Efficiency, ...]


def read_efficiency(
    results: SweepResults, metric: str, note: Callable[[str], None] = lambda _: None
) -> tuple[SceneEfficiency, ...]:
    """Every scene whose reference has finished and has an error; the others are noted and left out.

    Raises InputError for an unknown metric, one of which more is better, a sweep without a baseline or with one
    budget only, and where no scene is left.
    """
    _check(results, metric)
    made = [_scene(results, scene, metric, note) for scene in results.scenes]
    found = tuple(scene for scene in made if scene is not None)
    if not found:
        allowed = "the baseline finished at its largest budget, with a positive error and train/samples_seen"
        raise InputError(Fault(results.space, "--efficiency", "no scene with a reference", allowed))
    return found


def _check(results: SweepResults, metric: str) -> None:
    known = sorted({name for arm in results.arms for name in arm.metrics})
    errors = [name for name in known if not any(part in name for part in MORE_IS_BETTER)]
    if metric not in errors:
        found = f"{metric}, of which more is better" if metric in known else metric
        guess = "" if metric in known else did_you_mean(metric, errors)
        raise InputError(Fault(results.space, "--efficiency", found, "an error that the trials report", guess))
    if results.baseline_choice is None:
        allowed = "one that tried its baseline"
        raise InputError(Fault(results.space, "--efficiency", "a sweep without a baseline", allowed))
    budgets = {round(seen) for arm in results.arms if (seen := samples_seen(arm)) is not None}
    if len(budgets | {planned_samples(arm) for arm in results.arms}) < 2:
        allowed = "a sweep with the factor training.iterations, or whose trials stop early"
        raise InputError(Fault(results.space, "--efficiency", "one budget for all arms", allowed))


def _scene(results: SweepResults, scene: str, metric: str, note: Callable[[str], None]) -> SceneEfficiency | None:
    key = family_key(results.baseline_choice or {})
    found = families([arm for arm in results.arms if arm.scene == scene])
    baseline = next((family for family in found if family.key == key), None)
    reference = None if baseline is None else baseline.arms[-1]
    errors = {} if reference is None else _errors(reference, metric)
    samples = None if reference is None else samples_seen(reference)
    if reference is None or not errors or not samples:
        note(f"left out: {scene}, as its baseline has not finished at its largest budget, or has no error there")
        return None
    ordered = sorted(found, key=lambda family: family.key != key)
    rows = tuple(_family(family, family.key == key, reference, samples, metric) for family in ordered)
    mean = math.fsum(errors.values()) / len(errors)
    return SceneEfficiency(scene, mean, len(errors), planned_samples(reference), samples, rows)


def _family(family: Family, is_baseline: bool, reference: Arm, samples: float, metric: str) -> Efficiency:
    budgets = [_budget(arm, reference, samples, metric) for arm in family.arms]
    return Efficiency(family.label, is_baseline, tuple(budget for budget in budgets if budget is not None))


def _budget(arm: Arm, reference: Arm, samples: float, metric: str) -> Budget | None:
    """None for an arm that has not finished, or has not learned from samples at all."""
    seen, values, theirs = samples_seen(arm), _errors(arm, metric), _errors(reference, metric)
    if not seen:
        return None
    ratio = geometric_interval([values[pair] / theirs[pair] for pair in values if pair in theirs])
    return Budget(
        planned=planned_samples(arm),
        seen=seen,
        share=seen / samples,
        error=math.fsum(values.values()) / len(values) if values else None,
        ratio=ratio,
        complete=ratio.n == len(theirs),
        failed=not values and bool(arm.values(metric)),
        is_reference=arm is reference,
    )


def _errors(arm: Arm, metric: str) -> Values:
    """The metric by (scene, seed); empty when one of them is not positive, or stands in for a failure."""
    values = arm.values(metric)
    wrong = any(not math.isfinite(value) or value <= 0 or is_stand_in(metric, value) for value in values.values())
    return {} if wrong else values


def same_budgets(scenes: Sequence[SceneEfficiency]) -> bool:
    """Whether every run saw as many samples as were planned: none stopped early."""
    budgets = [budget for scene in scenes for family in scene.families for budget in family.budgets]
    return all(abs(budget.seen - budget.planned) <= SAME_BUDGET * budget.planned for budget in budgets)
