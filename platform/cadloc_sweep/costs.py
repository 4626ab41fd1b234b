"""What a plan will cost, as far as earlier work tells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import median

from cadloc.contract import Json, digest
from cadloc_sweep.ledger import read_results
from cadloc_sweep.plan import Plan
from cadloc_sweep.stages import StageStore
from cadloc_sweep.trials import SweepPaths, Trial, trial_from_file

_BUDGET_KEYS = ("trainable", "views", "encoder", "buffer", "head", "training")
"""Parts of a configuration that decide how long a trial takes; its loss hardly matters."""


@dataclass(frozen=True)
class Cost:
    """Seconds of work (not of waiting: several run at once; that of workers adds up) for what is still to be done.

    `trial_seconds` and `stage_seconds` cover what earlier trials of the same budget and stored stages of the same
    kind tell about; `unknown_trials` and `unknown_stages` count the rest.
    """

    trials: int
    stages: Mapping[str, int]
    trial_seconds: float
    stage_seconds: float
    unknown_trials: int
    unknown_stages: int


def cost_of(plan: Plan, paths: SweepPaths, store: StageStore) -> Cost:
    """The cost of what a plan's next run would do (failed trials are not run again)."""
    results = read_results(paths)
    pending = [trial for trial in plan.trials if trial.id not in results or results[trial.id].status == "interrupted"]
    keys = {key for trial in pending for key in plan.stages[trial.id].values()}
    missing = [spec.kind for level in plan.levels(keys) for spec in level if not store.directory(spec).is_dir()]
    trial_times = _trial_times(paths)
    stage_times = _medians((entry.kind, entry.seconds) for entry in store.entries())
    budgets = [_budget(trial) for trial in pending]
    return Cost(
        trials=len(pending),
        stages={kind: missing.count(kind) for kind in dict.fromkeys(missing)},
        trial_seconds=sum(
            trial_times.get(budget, 0.0) * trial.resources.workers
            for trial, budget in zip(pending, budgets, strict=True)
        ),
        stage_seconds=sum(stage_times.get(kind, 0.0) for kind in missing),
        unknown_trials=_absent(budgets, trial_times),
        unknown_stages=_absent(missing, stage_times),
    )


def _trial_times(paths: SweepPaths) -> dict[str, float]:
    """Median seconds of finished trials by budget."""
    times: list[tuple[str, float]] = []
    for result in read_results(paths).values():
        with suppress(OSError, ValueError, TypeError, KeyError):
            if result.status == "finished":
                times.append((_budget(trial_from_file(paths.trial(result.id))), result.seconds))
    return _medians(times)


def _budget(trial: Trial) -> str:
    config: Mapping[str, Json] = trial.config.model_dump(mode="json")
    return digest({key: config[key] for key in _BUDGET_KEYS} | {"workers": trial.resources.workers})


def _medians(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
    groups: dict[str, list[float]] = {}
    for key, seconds in pairs:
        groups.setdefault(key, []).append(seconds)
    return {key: median(group) for key, group in groups.items()}


def _absent(wanted: Sequence[str], known: Mapping[str, float]) -> int:
    return sum(key not in known for key in wanted)
