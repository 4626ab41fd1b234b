"""What a plan will cost, as far as earlier work tells."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from statistics import median

from cadloc.contract import Json, StageSpec, digest
from cadloc.prefixes import TRUNK, own_steps
from cadloc_sweep.ledger import read_results
from cadloc_sweep.plan import Plan
from cadloc_sweep.stages import StageStore
from cadloc_sweep.trials import SweepPaths, Trial, TrialResult, trial_from_file

_BUDGET_KEYS = ("trainable", "views", "encoder", "projection", "buffer", "head", "training")
"""Parts of a configuration that decide how long a trial takes; its loss hardly matters."""
_TRAINING_S = "time/training_s"


@dataclass(frozen=True)
class Sharing:
    """Training of the plan's trials that begin with steps of others: each by itself, and with what they share once.

    Seconds are 0 where no trial of the same budget tells them.
    """

    trials: int
    steps_alone: int
    steps: int
    seconds_alone: float
    seconds: float


@dataclass(frozen=True)
class Cost:
    """Seconds of work (not of waiting: several run at once; that of workers adds up) for what is still to be done.

    `trial_seconds` and `stage_seconds` cover what earlier trials of the same budget and stored stages of the same
    kind tell about; `unknown_trials` and `unknown_stages` count the rest. Packed trials are among these: while one
    trains, so do others, and its seconds are not work of its own. `sharing` is of all trials, done or not.
    """

    trials: int
    stages: Mapping[str, int]
    trial_seconds: float
    stage_seconds: float
    unknown_trials: int
    unknown_stages: int
    sharing: Sharing


def cost_of(plan: Plan, paths: SweepPaths, store: StageStore) -> Cost:
    """The cost of what a plan's next run would do (failed trials are not run again)."""
    results = read_results(paths)
    pending = [trial for trial in plan.trials if trial.id not in results or results[trial.id].status == "interrupted"]
    keys = {key for trial in pending for key in plan.stages[trial.id].values()}
    missing = [spec for level in plan.levels(keys) for spec in level if not store.directory(spec).is_dir()]
    rates = _Rates(plan, paths, store)
    trials, stages = [rates.of_trial(trial) for trial in pending], [rates.of_stage(spec) for spec in missing]
    kinds = [spec.kind for spec in missing]
    return Cost(
        trials=len(pending),
        stages={kind: kinds.count(kind) for kind in dict.fromkeys(kinds)},
        trial_seconds=_sum(trials),
        stage_seconds=_sum(stages),
        unknown_trials=trials.count(None),
        unknown_stages=stages.count(None),
        sharing=_sharing(plan, rates),
    )


def _sharing(plan: Plan, rates: _Rates) -> Sharing:
    sharing = [trial for trial in plan.trials if TRUNK in plan.stages[trial.id]]
    trunks = [spec for spec in plan.specs.values() if spec.kind == TRUNK]
    alone = [(trial.config.training.iterations, _budget_of(trial)) for trial in sharing]
    shared = [(steps - _start(plan, trial), budget) for trial, (steps, budget) in zip(sharing, alone, strict=True)]
    shared += [(own_steps(spec), _budget(spec.config["trial"])) for spec in trunks]
    return Sharing(
        trials=len(sharing),
        steps_alone=sum(steps for steps, _ in alone),
        steps=sum(steps for steps, _ in shared),
        seconds_alone=rates.of_steps(alone),
        seconds=rates.of_steps(shared),
    )


class _Rates:
    """Medians of what was done before: seconds of a trial from its first step and of a step, both by budget, and of a
    stage, by kind. A step is training alone, without validation."""

    def __init__(self, plan: Plan, paths: SweepPaths, store: StageStore) -> None:
        self._plan, entries = plan, store.entries()
        self._created = {entry.key: entry.created for entry in entries}
        self._stages = _medians((entry.kind, entry.seconds) for entry in entries)
        trials: list[tuple[str, float]] = []
        steps: list[tuple[str, float]] = []
        for trial, result in _finished(paths):
            budget, trained_s = _budget_of(trial), result.metrics.get(_TRAINING_S, 0.0)
            step_s = trained_s / trial.config.training.iterations
            start = self._started_at(trial, result)
            if start or result.seconds >= trained_s:  # else it went on from something that is not known any more
                trials.append((budget, result.seconds + start * step_s))
            steps += [(budget, step_s)] if _TRAINING_S in result.metrics else []
        self._trials, self._steps = _medians(trials), _medians(steps)

    def _started_at(self, trial: Trial, result: TrialResult) -> int:
        """The step from which on the trial did train by itself: 0 where its trunk was not there yet."""
        key = self._plan.stages.get(trial.id, {}).get(TRUNK)
        there = key is not None and self._created.get(key, inf) <= result.started
        return _start(self._plan, trial) if there else 0

    def of_trial(self, trial: Trial) -> float | None:
        """Seconds, but for what it starts from; None where nothing tells."""
        budget = _budget_of(trial)
        if trial.packs or budget not in self._trials:
            return None
        before_s = _start(self._plan, trial) * self._steps.get(budget, 0.0)
        return max(0.0, self._trials[budget] - before_s) * trial.resources.workers

    def of_stage(self, spec: StageSpec) -> float | None:
        """Seconds; None where nothing tells."""
        step_s = self._steps.get(_budget(spec.config["trial"])) if spec.kind == TRUNK else None
        return self._stages.get(spec.kind) if step_s is None else own_steps(spec) * step_s

    def of_steps(self, steps: Sequence[tuple[int, str]]) -> float:
        """Seconds of so many steps of a budget each; 0 where nothing tells of one."""
        known = all(budget in self._steps for _, budget in steps)
        return sum(count * self._steps[budget] for count, budget in steps) if known else 0.0


def _finished(paths: SweepPaths) -> Iterator[tuple[Trial, TrialResult]]:
    """Trials that finished and whose seconds were their own, with their results."""
    for result in read_results(paths).values():
        if result.status == "finished":
            with suppress(OSError, ValueError, TypeError, KeyError):
                trial = trial_from_file(paths.trial(result.id))
                if not trial.packs:
                    yield trial, result


def _start(plan: Plan, trial: Trial) -> int:
    """The step from which on the trial trains by itself."""
    key = plan.stages.get(trial.id, {}).get(TRUNK)
    return 0 if key is None else int(plan.specs[key].config["until"])


def _budget_of(trial: Trial) -> str:
    return _budget(trial.config.model_dump(mode="json"), trial.resources.workers)


def _budget(config: Mapping[str, Json], workers: int = 1) -> str:
    return digest({key: config[key] for key in _BUDGET_KEYS} | {"workers": workers})


def _medians(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
    groups: dict[str, list[float]] = {}
    for key, seconds in pairs:
        groups.setdefault(key, []).append(seconds)
    return {key: median(group) for key, group in groups.items()}


def _sum(seconds: Iterable[float | None]) -> float:
    return sum(each or 0.0 for each in seconds)
