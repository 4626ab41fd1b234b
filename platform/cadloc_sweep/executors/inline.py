"""Everything in this process, one after the other: the reference that every other executor must agree with."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from cadloc.contract import Fault, InputError, Progress, WorkerLost
from cadloc_sweep.executors import StageEvent, StageJob, TrialEvent, TrialTask
from cadloc_sweep.worker import lost_result, run_steps

if TYPE_CHECKING:
    from cadloc_sweep.agenda import Agenda

_POLL_S = 0.2
"""How often a stage that another process builds is looked for, where there is nothing else to do."""


class InlineExecutor:
    """Runs stages and trials in the calling thread.

    One trial after the other leaves a scheduler nothing to compare, and one process has no others to share a trial
    with: raises InputError for any scheduler but `none`, for several workers, and for packing by all means.
    """

    def __init__(self, scheduler: str = "none", workers: int = 1, pack: str = "auto") -> None:
        if scheduler != "none":
            action = "use --executor ray, or --set 'stop={scheduler: none}'"
            raise InputError(Fault("the space", "stop.scheduler", scheduler, "none with the inline executor", action))
        if workers > 1:
            action = "use --executor ray, or --set resources.workers=1"
            raise InputError(
                Fault("the space", "resources.workers", str(workers), "1 with the inline executor", action)
            )
        if pack == "always":
            action = "use --executor ray, or --set resources.pack=auto"
            allowed = "auto or never with the inline executor"
            raise InputError(Fault("the space", "resources.pack", pack, allowed, action))
        self._draining = False

    def build_stages(self, jobs: Sequence[StageJob], on_event: Callable[[StageEvent], None]) -> None:
        """Builds the jobs in order; see `Executor`."""
        for job in jobs:
            if self._draining:
                return
            self._build(job, on_event)

    def run(
        self, agenda: Agenda, on_stage: Callable[[StageEvent], None], on_trial: Callable[[TrialEvent], None]
    ) -> None:
        """Each trial in the plan's order, its stages just before it; see `Executor`.

        Out of that order only while another process builds what the next trial needs.
        """
        while agenda.left and not self._draining:
            task = agenda.next_task(in_order=True)
            job = agenda.next_job() if task is None else None
            if task is None and job is None:
                task = agenda.next_task()
            if self._draining:  # asked to stop while it was asked for work
                return
            if task is not None:
                self._run(task, on_trial)
            elif job is not None:
                self._build(job, on_stage)
            else:
                time.sleep(_POLL_S)

    def drain(self) -> None:
        """Ends at the next chunk or progress; see `Executor`."""
        self._draining = True

    def close(self) -> None:
        """Holds nothing."""

    def _run(self, task: TrialTask, on_event: Callable[[TrialEvent], None]) -> None:
        def on_progress(progress: Progress) -> None:
            on_event(TrialEvent(task.trial.id, "progress", progress=progress))

        on_event(TrialEvent(task.trial.id, "started"))
        try:
            result = run_steps(task, on_progress, stop=lambda: self._draining)
        except WorkerLost as error:  # a process that helped; elsewhere the trial would be taken up again
            result = lost_result(task, str(error))
        on_event(TrialEvent(task.trial.id, "ended", result=result))

    def _build(self, job: StageJob, on_event: Callable[[StageEvent], None]) -> None:
        try:
            built = self._built(job, on_event)
        except Exception as error:  # noqa: BLE001 -- whatever a stage raises ends that stage alone
            text = "".join(traceback.format_exception(error))
            built = StageEvent(job, "failed", error=error, traceback=text)
        if built is not None:
            on_event(built)

    def _built(self, job: StageJob, on_event: Callable[[StageEvent], None]) -> StageEvent | None:
        start, total, items = time.perf_counter(), job.chunks(), 0
        for chunk in range(total):
            if self._draining:
                return None
            made = job.build_chunk(chunk)
            items += made
            on_event(StageEvent(job, "chunk", chunk + 1, total, made))
        job.finish()
        return StageEvent(job, "built", total, total, items, time.perf_counter() - start)
