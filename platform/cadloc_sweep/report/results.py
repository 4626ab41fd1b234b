"""The results of one sweep, arm by arm: read from the plan and from what each trial wrote."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import ValidationError

from cadloc.contract import Fault, InputError, Json
from cadloc.documents import load_document
from cadloc_sweep.failures import StateCorrupt
from cadloc_sweep.ledger import read_results
from cadloc_sweep.report.statistics import Interval, paired_difference, t_interval
from cadloc_sweep.space_settings import Objective
from cadloc_sweep.trials import SweepPaths, Trial, TrialResult

STAND_IN_FROM = 1e4
"""No scene and no error is that large, in metres or percent."""

PLANNED = "planned"
"""Status of a trial that has not ended yet."""


@dataclass(frozen=True)
class TrialOutcome:
    """A planned trial and how it ended; `result` is None while it has not."""

    trial: Trial
    result: TrialResult | None

    @property
    def status(self) -> str:
        """The result's status, or `planned`."""
        return PLANNED if self.result is None else self.result.status

    @property
    def metrics(self) -> Mapping[str, float]:
        """The trial's last metrics; empty before its end."""
        return {} if self.result is None else self.result.metrics


@dataclass(frozen=True)
class Arm:
    """One configuration on one scene: `n` seeds finished, `failed` did not; metrics over the finished ones."""

    scene: str
    label: str
    factors: Mapping[str, Json]
    outcomes: tuple[TrialOutcome, ...]

    @property
    def n(self) -> int:
        """Number of finished trials."""
        return len(self.finished)

    @property
    def failed(self) -> int:
        """Number of failed trials."""
        return sum(outcome.status == "failed" for outcome in self.outcomes)

    @property
    def finished(self) -> list[TrialOutcome]:
        """The trials that the statistics are about: those that reached their end."""
        return [outcome for outcome in self.outcomes if outcome.status == "finished"]

    @cached_property
    def metrics(self) -> dict[str, Interval]:
        """Mean and 95 % t interval over seeds of every metric that a finished trial reported."""
        names = dict.fromkeys(name for outcome in self.finished for name in outcome.metrics)
        return {name: t_interval(list(self.values(name).values())) for name in names}

    def values(self, metric: str) -> dict[tuple[str, int], float]:
        """The metric of each finished trial that has it, by (scene, seed)."""
        return {
            (self.scene, outcome.trial.seed): outcome.metrics[metric]
            for outcome in self.finished
            if metric in outcome.metrics
        }

    @property
    def metric(self) -> bool:
        """Whether the scene's metres are metres on the ground."""
        return self.outcomes[0].trial.config.scene.metric

    def has_failed(self, metric: str) -> bool:
        """Whether some seed's value stands in for an error that does not exist: half of its queries have no pose."""
        return any(is_stand_in(metric, value) for value in self.values(metric).values())

    @property
    def choice(self) -> dict[str, Json]:
        """The factors without the scene: equal for the same arm on another scene."""
        return {name: value for name, value in self.factors.items() if name != "scene"}


@dataclass(frozen=True)
class SweepResults:
    """All trials of a sweep's latest plan. `baseline` is the factor values of the arm that others are compared with."""

    space: str
    objective: str
    mode: str
    outcomes: tuple[TrialOutcome, ...]
    baseline_choice: Mapping[str, Json] | None = None
    notes: tuple[str, ...] = ()

    @cached_property
    def arms(self) -> tuple[Arm, ...]:
        """The arms, scene by scene, in the plan's order."""
        groups: dict[str, list[TrialOutcome]] = {}
        for outcome in self.outcomes:
            groups.setdefault(outcome.trial.arm, []).append(outcome)
        arms = [
            Arm(found[0].trial.scene, found[0].trial.arm_label, found[0].trial.factors, tuple(found))
            for found in groups.values()
        ]
        return tuple(sorted(arms, key=lambda arm: self.scenes.index(arm.scene)))

    @cached_property
    def scenes(self) -> tuple[str, ...]:
        """The scenes in the plan's order."""
        return tuple(dict.fromkeys(outcome.trial.scene for outcome in self.outcomes))

    @cached_property
    def domains(self) -> tuple[str, ...]:
        """Query sets that some finished trial was tested on, in alphabetical order."""
        parts = [name.split("/") for arm in self.arms for name in arm.metrics]
        return tuple(sorted({part[1] for part in parts if len(part) == 3 and part[0] == "test"}))

    @property
    def counts(self) -> Mapping[str, int]:
        """Number of trials per status."""
        return Counter(outcome.status for outcome in self.outcomes)

    @property
    def baseline(self) -> str | None:
        """Label of the arm that others are compared with, if it was tried."""
        return next((arm.label for arm in self.arms if arm.choice == self.baseline_choice), None)

    def difference_from_baseline(self, arm: Arm) -> Interval | None:
        """The arm's objective minus the baseline's on the same scene, over shared seeds. None: it is the baseline."""
        baseline = next((a for a in self.arms if a.scene == arm.scene and a.choice == self.baseline_choice), None)
        if baseline is None or baseline is arm:
            return None
        return paired_difference(arm.values(self.objective), baseline.values(self.objective))

    def to_json(self) -> dict[str, Json]:
        """The report for programs: `space`, `arms` (per scene, finished trials only), `trials` (all)."""
        return {
            "space": self.space,
            "arms": [_arm_json(arm) for arm in self.arms],
            "trials": [_trial_json(outcome) for outcome in self.outcomes],
        }


def is_stand_in(metric: str, value: float) -> bool:
    """Whether a median error is what `cadloc.metrics` and `cadloc.dcre` write where most queries failed.

    Metres and percent read 1e6 then (percent of a scene: times 100 over its size), degrees 180.
    """
    name = metric.rpartition("/")[2]
    if not name.endswith(("_m", "_deg", "_pct")) or "recall_" in name:
        return False
    return value >= (180 if name.endswith("_deg") else STAND_IN_FROM)


def read_sweep(directory: Path, note: Callable[[str], None] = lambda _: None) -> SweepResults:
    """The results below `<out>/<space name>`; a result that is not what its trial wrote is noted and left out.

    Raises InputError when the folder holds no sweep, StateCorrupt when its plan cannot be read.
    """
    directory = directory.resolve()
    paths = SweepPaths(directory.parent, directory.name)
    if not paths.plan.is_file():
        found = "no plan.json in it" if directory.is_dir() else "no such folder"
        action = f"sweeps here: {', '.join(_sweeps_in(directory)) or 'none'}"
        raise InputError(Fault(str(directory), "the folder", found, "<out>/<space name> of a sweep", action))
    try:
        plan = json.loads(paths.plan.read_text(encoding="utf-8"))
        trials = [Trial.from_json(item) for item in plan["trials"]]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StateCorrupt(f"{paths.plan}: cannot be read ({error}); `run` writes it anew") from error
    objective = read_objective(paths)
    outcomes = join(trials, read_results(paths, note))
    return SweepResults(plan["space"], objective.metric, objective.mode, outcomes, plan.get("baseline"))


def read_objective(paths: SweepPaths) -> Objective:
    """The objective of the space as it was run. Raises StateCorrupt when its file says something else."""
    try:
        data = load_document(paths.space).data
        return Objective.model_validate(data.get("objective", {}))
    except (InputError, AttributeError, ValidationError) as error:
        raise StateCorrupt(f"{paths.space}: is not the space that was run ({error}); `run` writes it anew") from error


def join(trials: Iterable[Trial], results: Mapping[str, TrialResult]) -> tuple[TrialOutcome, ...]:
    """Each planned trial with its result, if it has one."""
    return tuple(TrialOutcome(trial, results.get(trial.id)) for trial in trials)


def _sweeps_in(directory: Path) -> Sequence[str]:
    return sorted(str(path.parent) for path in directory.glob("*/plan.json"))


def _arm_json(arm: Arm) -> dict[str, Json]:
    metrics = {name: {"mean": each.mean, "lo": each.lo, "hi": each.hi} for name, each in arm.metrics.items()}
    return {"scene": arm.scene, "factors": dict(arm.factors), "n": arm.n, "metrics": metrics}


def _trial_json(outcome: TrialOutcome) -> dict[str, Json]:
    trial = outcome.trial
    finite = {name: value if math.isfinite(value) else None for name, value in outcome.metrics.items()}
    return {
        "id": trial.id,
        "scene": trial.scene,
        "seed": trial.seed,
        "factors": dict(trial.factors),
        "status": outcome.status,
        "metrics": finite,
    }
