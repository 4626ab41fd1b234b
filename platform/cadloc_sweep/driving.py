"""The driver of one run: builds stages, runs trials, and turns the executor's events into records."""

from __future__ import annotations

import errno
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from types import FrameType

from cadloc.contract import InputError, MissingSystemLibrary
from cadloc.documents import dump_document
from cadloc.prefixes import TRUNK
from cadloc_sweep.agenda import Agenda
from cadloc_sweep.displays import Display
from cadloc_sweep.durable_files import write_aside, write_json
from cadloc_sweep.executors import Executor, StageEvent, TrialEvent, TrialTask
from cadloc_sweep.failures import SweepError
from cadloc_sweep.ledger import Ledger
from cadloc_sweep.outcomes import Outcome
from cadloc_sweep.plan import Plan
from cadloc_sweep.spaces import SearchSpace
from cadloc_sweep.stages import StageStore
from cadloc_sweep.trackers import Tracker
from cadloc_sweep.trials import SweepPaths, Trial, TrialResult
from cadloc_sweep.worker import lost_result

_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


class Driver:
    """One run of a sweep. `untold` are trials whose end no driver lived to record and tell."""

    def __init__(
        self,
        space: SearchSpace,
        plan: Plan,
        paths: SweepPaths,
        store: StageStore,
        trackers: Sequence[Tracker],
        display: Display,
        ledger: Ledger,
    ) -> None:
        self._space, self._plan, self._paths, self._store = space, plan, paths, store
        self._trackers, self._display, self._ledger = trackers, display, ledger
        self._trials: Mapping[str, Trial] = {trial.id: trial for trial in plan.trials}
        told = ledger.told()
        self.untold = [
            trial for trial in plan.trials
            if trial.id in ledger.results and told.get(trial.id) != ledger.results[trial.id].status
        ]  # fmt: skip
        self._executor: Executor | None = None
        self._items: Counter[str] = Counter()
        self._drained = self._out_of_disk = False

    def run(self, pending: Sequence[Trial], make_executor: Callable[[], Executor]) -> None:
        """Tells the trackers what they missed, and works on what is pending; however it ends, they hear of the end."""
        self._paths.control.mkdir(exist_ok=True)
        self._paths.stop_request.unlink(missing_ok=True)
        self._ledger.record("run", trials=len(self._plan.trials))
        self._tell(lambda tracker: tracker.start_sweep(self._space, self._plan))
        try:
            self._tell_untold({trial.id for trial in pending})
            if pending:
                self._work(pending, make_executor)
        finally:
            outcome = self.outcome(len(pending))
            self._tell(lambda tracker: tracker.end_sweep(outcome))

    def _tell_untold(self, waiting: set[str]) -> None:
        """Ends that nobody told, but of the trials that run again now."""
        for trial in self.untold:
            if trial.id not in waiting:
                self._tell(lambda tracker, trial=trial: tracker.trial_started(trial))  # type: ignore[misc]
                self._ended(trial, self._ledger.results[trial.id])

    def outcome(self, run_now: int) -> Outcome:
        """The results of the plan's trials so far."""
        results = {key: result for key, result in self._ledger.results.items() if key in self._trials}
        return Outcome(results, len(self._trials), run_now, self._drained, self._out_of_disk)

    def write_down(self) -> None:
        """The space and the plan beside the results, for whoever reads them later."""
        write_aside(self._paths.space, dump_document(dict(self._space.resolved), self._space.question))
        write_json(self._paths.plan, self._plan.to_json())

    def _work(self, pending: Sequence[Trial], make_executor: Callable[[], Executor]) -> None:
        """Stages and trials, each as soon as it can be."""
        self._executor = executor = make_executor()
        try:
            with (
                self._draining_on_interrupt(),
                closing(Agenda(self._plan, pending, self._paths, self._store, self._heed_stop_request)) as agenda,
            ):
                self._display.stages_wanted(agenda.missing)
                if not self._drained:
                    executor.run(agenda, lambda event: self._on_stage(agenda, event), self._on_trial)
        finally:
            executor.close()

    def _on_stage(self, agenda: Agenda, event: StageEvent) -> None:
        spec, lost = event.job.spec, []
        if event.kind == "chunk":
            self._items[spec.key] += event.items
        elif event.kind == "built":
            agenda.built(event.job, self._items[spec.key], event.seconds)
            self._ledger.record("stage_built", kind=spec.kind, key=spec.key, seconds=round(event.seconds, 3))
        else:
            self._stage_failed(event)
            lost = agenda.failed(event)
        self._display.stage_event(event)
        for task, cause in lost:
            self._lost(task, cause)
        self._heed_stop_request()

    def _lost(self, task: TrialTask, broken: StageEvent) -> None:
        """A trial fails with the stage that it needs."""
        result = lost_result(task, f"stage {broken.job.spec.kind} failed: {broken.error}", trace=broken.traceback)
        self._on_trial(TrialEvent(task.trial.id, "started"))
        self._on_trial(TrialEvent(task.trial.id, "ended", result=result))

    def _stage_failed(self, event: StageEvent) -> None:
        """A stage that fails, fails its trials; a bad input, a missing library or a full disk ends the sweep.

        A trunk's trials take its steps by themselves, and find out what is wrong; only a full disk ends the sweep.
        """
        spec, error = event.job.spec, event.error
        self._ledger.record("stage_failed", kind=spec.kind, key=spec.key, error=str(error))
        if isinstance(error, OSError) and error.errno in _FULL_DISK:
            raise error
        if spec.kind == TRUNK:
            self._display.note(f"stage {TRUNK} {spec.key} failed: {error}; its trials take its steps by themselves")
        elif isinstance(error, InputError | MissingSystemLibrary | SweepError):
            raise error

    def _on_trial(self, event: TrialEvent) -> None:
        trial = self._trials[event.trial_id]
        if event.kind == "started":
            self._ledger.record("started", trial=trial.id)
            self._tell(lambda tracker: tracker.trial_started(trial))
        elif event.progress is not None:
            progress = event.progress
            self._tell(lambda tracker: tracker.trial_progress(trial, progress))
        elif event.result is not None:
            self._ended(trial, event.result)
        self._display.trial_event(event)
        self._heed_stop_request()

    def _ended(self, trial: Trial, result: TrialResult) -> None:
        self._ledger.results[trial.id] = result
        self._ledger.record("ended", trial=trial.id, status=result.status)
        if result.out_of_disk:
            self._out_of_disk = True
            self._drain()
        directory = self._paths.trial(trial.id).directory
        self._tell(lambda tracker: tracker.trial_ended(trial, result, directory))

    def _tell(self, call: Callable[[Tracker], None]) -> None:
        for tracker in self._trackers:
            call(tracker)

    def _heed_stop_request(self) -> None:
        if not self._drained and self._paths.stop_request.exists():
            self._display.note(
                f"{self._paths.stop_request}: asked to stop; running trials end at their next checkpoint"
            )
            self._drained = True
            self._drain()

    def _drain(self) -> None:
        if self._executor is not None:
            self._executor.drain()

    @contextmanager
    def _draining_on_interrupt(self) -> Iterator[None]:
        """The first interrupt (or SIGTERM) drains, the second goes through as KeyboardInterrupt."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def heed(_number: int, _frame: FrameType | None) -> None:
            if self._drained:
                raise KeyboardInterrupt
            self._drained = True
            self._display.note("interrupted: running trials end at their next checkpoint; once more to kill")
            self._drain()

        before = {number: signal.signal(number, heed) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
