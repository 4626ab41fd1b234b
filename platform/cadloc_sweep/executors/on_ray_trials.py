"""Trials under Ray Tune: fed in the plan's order, run by actors that outlive them, written by whoever runs them."""

from __future__ import annotations

import math
import os
import pickle
import tempfile
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search import Searcher

from cadloc.contract import Progress
from cadloc_sweep.executors import TrialEvent, TrialTask
from cadloc_sweep.executors.on_ray_worker import WATCHED, TuneTrainable
from cadloc_sweep.failures import OutOfResources
from cadloc_sweep.space_settings import AshaStop, MedianStop, NoStop, Objective, Stop
from cadloc_sweep.trials import Resources, TrialResult, TrialStatus
from cadloc_sweep.worker import lost_result

TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # five files per trial that nobody reads
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # the last progress has test metrics only
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # Tune's own state is never restored: the ledger is
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # the sweep has its own
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "1000000000",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # the new one prints tables in spite of verbose=0
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
}
"""Settings of Tune that exist as environment variables only."""

DEATHS = 1
"""How often a trial is taken up again after its worker died (memory, node), from its last checkpoint."""

_LONGEST_RUNG = 1_000_000  # ASHA ends whoever reaches its longest rung; trials end by themselves


def run_trials(
    tasks: Sequence[TrialTask],
    on_event: Callable[[TrialEvent], None],
    draining: Callable[[], bool],
    stop: Stop,
    objective: Objective,
) -> None:
    """Runs all tasks on the connected cluster. Raises OutOfResources for a trial that no node could hold."""
    for resources in {task.trial.resources for task in tasks}:
        _check_fits(resources)
    os.environ.update(TUNE_ENVIRONMENT)
    sweep = tasks[0].directory.parents[1]  # beside the folder of the trials, where every node can reach it
    with tempfile.TemporaryDirectory(prefix=".tune-", dir=sweep, ignore_cleanup_errors=True) as scratch:
        flag = Path(scratch) / "drain"
        events = _Events(tasks, on_event, draining, flag)
        _tuner(tasks, events, flag, stop, objective, Path(scratch)).fit()
        events.raise_caught()


def slots(resources: Resources) -> int:
    """How many trials of this size the cluster's living nodes hold at once."""
    return sum(_holds(node, resources) for node in _nodes()) // resources.workers


def _check_fits(resources: Resources) -> None:
    if slots(resources) == 0:
        has = "; ".join(f"{node.get('CPU', 0):g} CPU, {node.get('GPU', 0):g} GPU" for node in _nodes())
        one = resources.workers == 1
        asks = "a trial asks" if one else f"a trial's {resources.workers} workers ask"
        raise OutOfResources(
            f"{asks} for {resources.cpu:g} CPU and {resources.gpu:g} GPU{'' if one else ' each'}; "
            f"{'no node has' if one else 'the nodes do not have'} that much ({has}); lower `resources` of the space"
        )


def _holds(node: Mapping[str, float], resources: Resources) -> int:
    by_cpu = node.get("CPU", 0.0) / resources.cpu
    by_gpu = node.get("GPU", 0.0) / resources.gpu if resources.gpu else math.inf
    return int(min(by_cpu, by_gpu) + 1e-9)


def _nodes() -> list[Mapping[str, float]]:
    """What each living node has in all."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def _tuner(
    tasks: Sequence[TrialTask], events: _Events, flag: Path, stop: Stop, objective: Objective, scratch: Path
) -> tune.Tuner:
    trainable = tune.with_parameters(TuneTrainable, tasks={task.trial.id: task for task in tasks}, flag=flag, stop=stop)
    return tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=PlanSearcher(tasks, events.draining),
            scheduler=_scheduler(stop, objective),
            num_samples=-1,
            reuse_actors=True,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name="trials",
            storage_path=str(scratch),
            callbacks=[events],
            failure_config=tune.FailureConfig(max_failures=DEATHS),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    )


def _scheduler(stop: Stop, objective: Objective) -> TrialScheduler:
    watched: dict[str, Any] = {"metric": WATCHED, "mode": objective.mode, "time_attr": "training_iteration"}
    match stop:
        case NoStop():
            return FIFOScheduler()  # type: ignore[no-untyped-call]
        case AshaStop():
            return AsyncHyperBandScheduler(
                **watched, grace_period=stop.grace, reduction_factor=stop.reduction, max_t=_LONGEST_RUNG
            )
        case MedianStop():
            return MedianStoppingRule(**watched, grace_period=stop.grace, min_samples_required=stop.min_trials)


def _name(trial: TuneTrial) -> str:
    return str(trial.config["trial"])


class _NotKept:
    """Tune pickles all its parts to disk for a restore that never comes; locks and listeners cannot go there."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class PlanSearcher(_NotKept, Searcher):
    """Hands out the plan's trials in order, a few more at a time than can run: the rest is nobody's yet."""

    def __init__(self, tasks: Sequence[TrialTask], draining: Callable[[], bool]) -> None:
        super().__init__()
        self._waiting = deque(tasks)
        self._out = 0
        self._draining = draining

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]  # Ray forgets FINISHED
        """The next trial, None while enough are out, FINISHED when there are no more (or draining).

        One more than can run is out, to wait in Tune for its resources. It knows nothing of those of several workers.
        """
        if not self._waiting or self._draining():
            return str(Searcher.FINISHED)
        resources = self._waiting[0].trial.resources
        if self._out >= slots(resources) + (resources.workers == 1):
            return None
        self._out += 1
        task = self._waiting.popleft()
        asked = {"cpu": resources.cpu, "gpu": resources.gpu, "workers": resources.workers}
        return {"trial": task.trial.id, **asked}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """One more may go out."""
        self._out -= 1

    def save(self, checkpoint_path: str) -> None:
        """Nothing: what has run is in the ledger."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: a sweep resumes from its ledger, with a new searcher."""


class _Events(_NotKept, tune.Callback):
    """Tune's events as the sweep's, each trial started and ended once; an error of the listener drains and is kept."""

    def __init__(
        self,
        tasks: Sequence[TrialTask],
        on_event: Callable[[TrialEvent], None],
        draining: Callable[[], bool],
        flag: Path,
    ) -> None:
        self._tasks = {task.trial.id: task for task in tasks}
        self._on_event = on_event
        self._draining = draining
        self._flag = flag
        self._started: set[str] = set()
        self._ended: set[str] = set()
        self._caught: BaseException | None = None

    def draining(self) -> bool:
        """Whether nothing new may start."""
        return self._caught is not None or self._draining()

    def raise_caught(self) -> None:
        """Raises what the listener raised, if it did."""
        if self._caught is not None:
            raise self._caught

    def on_step_begin(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        """Tells the workers to drain: they look for the flag between two steps."""
        if self.draining() and not self._flag.exists():
            self._flag.touch()

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """A worker has the trial (again, after a death)."""
        if _name(trial) not in self._started and not self.draining():
            self._started.add(_name(trial))
            self._tell(TrialEvent(_name(trial), "started"))

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any
    ) -> None:
        """A progress, or the end, or both."""
        if _name(trial) in self._started and "progress" in result:
            self._tell(TrialEvent(_name(trial), "progress", Progress(**result["progress"])))
        if result.get("result"):
            self._end(trial, TrialResult.from_json(result["result"]))

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Ended without a result: by the scheduler, or drained before it began."""
        name = _name(trial)
        if name in self._started and name not in self._ended:
            status: TrialStatus = "interrupted" if self.draining() else "stopped"
            reason = "drained before it began" if self.draining() else "ended early by the scheduler"
            self._end(trial, lost_result(self._tasks[name], reason, status))

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """The worker is gone for good: what it could not write is written here."""
        if _name(trial) not in self._ended:
            self._end(trial, lost_result(self._tasks[_name(trial)], _last_words(trial)))

    def _end(self, trial: TuneTrial, result: TrialResult) -> None:
        if _name(trial) not in self._started:
            self._started.add(_name(trial))
            self._tell(TrialEvent(_name(trial), "started"))
        self._ended.add(_name(trial))
        self._tell(TrialEvent(_name(trial), "ended", result=result))

    def _tell(self, event: TrialEvent) -> None:
        try:
            self._on_event(event)
        except BaseException as error:  # noqa: BLE001 -- kept and raised by run_trials: Tune would wrap it
            self._caught = self._caught or error


def _last_words(trial: TuneTrial) -> str:
    # Where Tune itself looks for the error it has not been copied to by now.
    file = Path(trial.pickled_error_file or "")
    error = pickle.loads(file.read_bytes()) if file.is_file() else None
    error = getattr(error, "cause", None) or error
    lines = str(error).strip().splitlines() if error else []
    return f"the worker died: {type(error).__name__}: {lines[0] if lines else 'no reason known'}"
