"""Losses and errors of validation over the course of training, arm by arm, read from the trials' histories."""

from __future__ import annotations

import csv
import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from cadloc.contract import Fault, InputError
from cadloc_sweep.report.geometric import geometric_interval
from cadloc_sweep.report.progress_axis import ProgressAxis
from cadloc_sweep.report.results import Arm, SweepResults, is_stand_in
from cadloc_sweep.report.statistics import Interval
from cadloc_sweep.trials import SweepPaths

HISTORY = "history.csv"

MEASURES: Mapping[str, str] = {
    "loss_m": "mean 3D distance",
    "loss_px": "mean reprojection error",
    "translation_error_median_m": "median translation error",
}
"""Measures of validation, the same for every arm whatever its loss -> what they are."""

AXES: Mapping[ProgressAxis, str] = {
    ProgressAxis.iterations: "step",
    ProgressAxis.samples: "train/samples_seen",
    ProgressAxis.seconds: "time/training_s",
}
"""Axis -> its column of a history."""

History: TypeAlias = Mapping[int, Mapping[str, float]]
"""Milestone's step -> column -> number."""

Line: TypeAlias = tuple[tuple[float, float], ...]
"""Places on the axis and values, milestones without a value left out."""


@dataclass(frozen=True)
class Milestone:
    """A validation of all of an arm's seeds: mean place on the axis; geometric mean over seeds with its interval.

    The interval's mean is None where some seed has no error to tell, as half of its queries have no pose.
    """

    place: float
    interval: Interval


@dataclass(frozen=True)
class Curve:
    """One measure of one arm on one scene: the milestones that all of its `n` seeds reached, and each seed alone.

    `ragged` says that seeds ended at different steps; `switch` is the place of the switch between losses.
    """

    scene: str
    label: str
    measure: str
    milestones: tuple[Milestone, ...]
    seeds: tuple[Line, ...]
    ragged: bool
    switch: float | None

    @property
    def n(self) -> int:
        """Number of seeds."""
        return len(self.seeds)


@dataclass(frozen=True)
class Progression:
    """The curves of a sweep; `domain` is the query set that was validated on, `axis` what progress is counted in."""

    space: str
    domain: str
    axis: ProgressAxis
    curves: tuple[Curve, ...]


def read_progression(
    results: SweepResults, paths: SweepPaths, axis: ProgressAxis, note: Callable[[str], None] = lambda _: None
) -> Progression:
    """The curves of all finished trials; those without a usable `history.csv` are noted and left out.

    Validation is of the objective's query set where histories have it, else of `synthetic`, else of the first there
    is. Raises InputError where no history has any of `MEASURES`.
    """
    histories = _histories(results, paths, AXES[axis], note)
    domain = _domain(results, histories)
    made = [
        _curve(arm, runs, domain, measure, AXES[axis])
        for arm in results.arms
        if (runs := [histories[each.trial.id] for each in arm.finished if each.trial.id in histories])
        for measure in MEASURES
    ]
    curves = tuple(curve for curve in made if any(curve.seeds))
    if not curves:
        allowed = f"validation/{domain}/ followed by {', '.join(MEASURES)} in the history of a finished trial"
        raise InputError(Fault(results.space, "--progression", "no such number in any history", allowed))
    return Progression(results.space, domain, axis, curves)


def _histories(
    results: SweepResults, paths: SweepPaths, column: str, note: Callable[[str], None]
) -> dict[str, History]:
    found: dict[str, History] = {}
    without = []
    for outcome in (outcome for arm in results.arms for outcome in arm.finished):
        history = _history(paths.trial(outcome.trial.id).directory / HISTORY)
        if history and all(column in row for row in history.values()):
            found[outcome.trial.id] = history
        else:
            without.append(outcome.trial.id)
    if without:
        named = ", ".join(without[:3]) + (", …" if len(without) > 3 else "")
        note(f"left out, no {HISTORY} with a column {column}: {len(without)} finished trials ({named})")
    if not found:
        allowed = f"finished trials that left a {HISTORY}"
        raise InputError(Fault(str(paths.directory), "--progression", "none with a history", allowed))
    return found


def _history(path: Path) -> History:
    """The rows of a history by step; empty where there is none that can be read."""
    try:
        with path.open(newline="", encoding="utf-8") as lines:
            rows = [{name: float(text) for name, text in row.items() if text} for row in csv.DictReader(lines)]
        return {int(row["step"]): row for row in rows}
    except (OSError, ValueError, TypeError, KeyError, csv.Error):
        return {}


def _domain(results: SweepResults, histories: Mapping[str, History]) -> str:
    columns = {name for history in histories.values() for row in history.values() for name in row}
    parts = [name.split("/") for name in sorted(columns)]
    known = [part[1] for part in parts if len(part) == 3 and part[0] == "validation" and part[2] in MEASURES]
    wanted = [*results.objective.split("/")[1:2], "synthetic", *known]
    return next((domain for domain in wanted if domain in known), "synthetic")


def _curve(arm: Arm, runs: Sequence[History], domain: str, measure: str, column: str) -> Curve:
    metric = f"validation/{domain}/{measure}"
    shared = [step for step in runs[0] if all(step in run for run in runs)]
    return Curve(
        arm.scene,
        arm.label,
        measure,
        tuple(_milestone([run[step] for run in runs], metric, column) for step in shared),
        tuple(_line(run, metric, column) for run in runs),
        any(set(run) != set(runs[0]) for run in runs),
        _switch(arm, runs, column),
    )


def _milestone(rows: Sequence[Mapping[str, float]], metric: str, column: str) -> Milestone:
    known = [value for row in rows if (value := _value(row, metric)) is not None]
    interval = geometric_interval(known) if len(known) == len(rows) else Interval(len(known), None, None, None)
    return Milestone(math.fsum(row[column] for row in rows) / len(rows), interval)


def _line(run: History, metric: str, column: str) -> Line:
    values = ((row[column], _value(row, metric)) for row in run.values())
    return tuple((place, value) for place, value in values if value is not None)


def _value(row: Mapping[str, float], metric: str) -> float | None:
    """None where the number is missing, has no logarithm, or stands in for an error that does not exist."""
    value = row.get(metric, math.nan)
    return value if math.isfinite(value) and value > 0 and not is_stand_in(metric, value) else None


def _switch(arm: Arm, runs: Sequence[History], column: str) -> float | None:
    """The mean place at which the arm's trials changed their loss: between milestones as if at constant speed.

    None where a run may have stopped early: it switches sooner, at a step that only its training knew.
    """
    config = arm.outcomes[0].trial.config
    if config.loss.name != "switching" or getattr(config.training.schedule, "early_stop", None) is not None:
        return None
    step = config.loss.at * config.training.iterations
    places = [place for run in runs if (place := _place(run, step, column)) is not None]
    return math.fsum(places) / len(places) if places else None


def _place(run: History, step: float, column: str) -> float | None:
    """Where on the axis a run was at a step; None for one that ended before."""
    steps = [0, *run]
    places = [0.0, *(row[column] for row in run.values())]
    after = bisect_left(steps, step)
    if after == len(steps):
        return None
    share = (step - steps[after - 1]) / (steps[after] - steps[after - 1])
    return places[after - 1] + share * (places[after] - places[after - 1])
