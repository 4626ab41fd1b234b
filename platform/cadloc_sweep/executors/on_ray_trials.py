"""Trials under Ray Tune: fed in the plan's order, run by actors that outlive them, written by whoever runs them."""

from __future__ import annotations

import itertools
import os
import pickle
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from cadloc.contract import Progress
from cadloc_sweep.agenda import POLL_S, Agenda
from cadloc_sweep.executors import StageEvent, TrialEvent, TrialTask
from cadloc_sweep.executors.on_ray_packing import Packs
from cadloc_sweep.executors.on_ray_searcher import NotKept, PlanSearcher, Room, check_fits
from cadloc_sweep.executors.on_ray_stages import Building
from cadloc_sweep.executors.on_ray_worker import WATCHED, TuneTrainable
from cadloc_sweep.space_settings import AshaStop, MedianStop, NoStop, Objective, Stop
from cadloc_sweep.trials import TrialResult, TrialStatus
from cadloc_sweep.worker import lost_result

TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # five files per trial that nobody reads
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # the last progress has test metrics only
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # Tune's own state is never restored: the ledger is
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # the sweep has its own
    "TUNE_MAX_PENDING_TRIALS_PG": "1000000",  # actors start side by side; the searcher hands out no more than fit
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "1000000000",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # the new one prints tables in spite of verbose=0
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
}
"""Settings of Tune that exist as environment variables only."""

DEATHS = 1
"""How often a trial is taken up again after its worker died (memory, node), from its last checkpoint."""

_LONGEST_RUNG = 1_000_000  # ASHA ends whoever reaches its longest rung; trials end by themselves


def run(
    agenda: Agenda,
    on_stage: Callable[[StageEvent], None],
    on_trial: Callable[[TrialEvent], None],
    draining: Callable[[], bool],
    place: Place,
) -> None:
    """Builds the agenda's stages and runs its trials on the connected cluster; what runs ends before it returns.

    Drained, it waits for trials, and for stages of which all pieces are there; what else is made of a stage would be
    thrown away, or is taken up again from where it stands.
    Tune runs in rounds: one begins when a trial's stages are there, and ends when no trial is left or ready.
    Raises OutOfResources for a trial that no node could hold.
    """
    os.environ.update(TUNE_ENVIRONMENT)
    sweep = agenda.tasks[0].directory.parents[1]  # beside the folder of the trials, where every node can reach it
    with tempfile.TemporaryDirectory(prefix=".tune-", dir=sweep, ignore_cleanup_errors=True) as scratch:
        events = _Events(agenda.tasks, on_trial, draining, Path(scratch) / "drain")
        stages = Ends(on_stage)
        building, packs = Building(agenda, stages.heard, events.draining, place.environment), Packs()
        scheduler = _scheduler(place.stop, place.objective)
        try:
            for number in itertools.count():
                while agenda.ready is None and agenda.left and not events.draining():
                    if not building.pump(POLL_S):
                        time.sleep(POLL_S)  # another process builds what is missing
                if not agenda.trials_left or events.draining():
                    break
                _round(number, agenda, events, building, packs, scheduler, place, Path(scratch))
                events.raise_caught()
            while (stages.near or not events.draining()) and building.pump(timeout_s=1.0):
                pass
        finally:
            packs.close()
            building.cancel()


class Ends:
    """Passes the events of stages on, and keeps in mind which of them have all pieces, and only the end to come."""

    def __init__(self, on_event: Callable[[StageEvent], None]) -> None:
        self._on_event = on_event
        self.near: set[Path] = set()
        """Folders in which these stages are made."""

    def heard(self, event: StageEvent) -> None:
        """An event of a stage."""
        near = event.kind == "chunk" and event.done == event.total
        (self.near.add if near else self.near.discard)(event.job.directory)
        self._on_event(event)


@dataclass(frozen=True)
class Place:
    """What the trials of a sweep have in common: how they are stopped early, and the variables of their workers."""

    stop: Stop
    objective: Objective
    environment: Mapping[str, str]


def _round(
    number: int,
    agenda: Agenda,
    events: _Events,
    building: Building,
    packs: Packs,
    scheduler: TrialScheduler,
    place: Place,
    scratch: Path,
) -> None:
    """One run of Tune; its loop builds stages, too."""
    resources = {packs.asked(task) for task in agenda.tasks}
    for each in resources:
        check_fits(each)
    room = Room(agenda, building)
    largest = max(resources, key=lambda each: each.cpu * each.workers)
    events.begin(room, lambda timeout_s: building.pump(timeout_s, lambda: room.pieces(largest)))
    tasks = {task.trial.id: task for task in agenda.tasks}
    trainable = tune.with_parameters(TuneTrainable, tasks=tasks, flag=events.flag, stop=place.stop)
    tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=PlanSearcher(agenda, room, packs, events.pump, events.draining),
            scheduler=scheduler,
            num_samples=-1,
            reuse_actors=not packs.compete(agenda.tasks),  # Tune keeps one that is idle, and its GPU from servers
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name=f"trials-{number}",
            storage_path=str(scratch),
            callbacks=[events],
            failure_config=tune.FailureConfig(max_failures=DEATHS),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    ).fit()


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


class _Events(NotKept, tune.Callback):
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
        self.flag = flag
        self._room: Room | None = None
        self._pump: Callable[[float], bool] = lambda _: False
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

    def begin(self, room: Room, pump: Callable[[float], bool]) -> None:
        """Another round begins: stages are built by `pump`, which waits so many seconds for an answer."""
        self._room, self._pump = room, pump

    def pump(self, timeout_s: float) -> bool:
        """Builds stages. Where there is nothing to wait for, it waits in vain: another process may build one."""
        try:
            if not self._pump(timeout_s):
                time.sleep(timeout_s)
        except Exception as error:  # noqa: BLE001 -- as in `_tell`
            self._caught = self._caught or error
        return True

    def on_step_begin(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        """Goes on with the stages; tells the workers to drain: they look for the flag between two steps."""
        assert self._room is not None, "a round begins with begin"
        self._room.starting = any(trial.status == TuneTrial.PENDING for trial in trials)
        self.pump(0.0)
        if self.draining() and not self.flag.exists():
            self.flag.touch()

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
        except BaseException as error:  # noqa: BLE001 -- kept and raised by run: Tune would wrap it
            self._caught = self._caught or error


def _last_words(trial: TuneTrial) -> str:
    # Where Tune itself looks for the error it has not been copied to by now.
    file = Path(trial.pickled_error_file or "")
    error = pickle.loads(file.read_bytes()) if file.is_file() else None
    error = getattr(error, "cause", None) or error
    lines = str(error).strip().splitlines() if error else []
    return f"the worker died: {type(error).__name__}: {lines[0] if lines else 'no reason known'}"
