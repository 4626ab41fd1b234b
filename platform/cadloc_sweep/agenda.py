"""What a sweep has to do: stages in the order in which its trials need them, and trials whose stages are there."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

from cadloc.contract import StageSpec
from cadloc_sweep.executors import StageEvent, StageJob, TrialTask
from cadloc_sweep.plan import Plan
from cadloc_sweep.stages import StageStore
from cadloc_sweep.trials import SweepPaths, Trial

POLL_S = 0.2
"""How often a stage that another process builds is looked for."""


class Agenda:
    """Hands out each stage and each trial once, on one thread: a stage as soon as what it is made from is there, a
    trial as soon as its stages are.

    A stage is locked in the store from `next_job` until `built`, `failed` or `close`. One that another process has
    locked is passed over, and found there later, or handed out after all. `polled` is called at every request.
    """

    def __init__(
        self,
        plan: Plan,
        trials: Sequence[Trial],
        paths: SweepPaths,
        store: StageStore,
        polled: Callable[[], None] = lambda: None,
    ) -> None:
        self._store, self._polled = store, polled
        self._specs = order_of_need(plan, trials)
        self._ranks = {spec.key: rank for rank, spec in enumerate(self._specs)}
        self._missing = {spec.key: spec for spec in self._specs if not store.has(spec)}
        self._begun: dict[str, tuple[StageJob, ExitStack]] = {}
        self._asked_s: dict[str, float] = {}
        self._broken: dict[str, StageEvent] = {}
        self._keys = [tuple(plan.stages[trial.id].values()) for trial in trials]
        self.tasks = tuple(
            TrialTask(
                trial,
                {role: store.directory(plan.specs[key]) for role, key in plan.stages[trial.id].items()},
                paths.trial(trial.id).directory,
            )
            for trial in trials
        )
        self._waiting = list(range(len(self.tasks)))
        self._ready: list[int] = []
        self._look()

    @property
    def missing(self) -> list[StageSpec]:
        """The stages that are not there, in the order in which trials need them."""
        return list(self._missing.values())

    @property
    def ready(self) -> TrialTask | None:
        """The trial that `next_task` would hand out now, if any."""
        return self.tasks[self._ready[0]] if self._ready else None

    @property
    def trials_left(self) -> bool:
        """Whether there is a trial that was not handed out."""
        return bool(self._waiting or self._ready)

    @property
    def left(self) -> bool:
        """Whether there is a trial that was not handed out, or a stage that can still be made."""
        return self.trials_left or self.building

    @property
    def building(self) -> bool:
        """Whether stages are still to be made, here or by another process."""
        return bool(self._missing)

    def rank(self, job: StageJob) -> int:
        """The job's place in the order in which trials need stages."""
        return self._ranks[job.spec.key]

    def next_job(self, before: int | None = None) -> StageJob | None:
        """The first stage, of those of a rank below `before`, that can be begun now; None if there is none."""
        self._polled()
        for key, spec in list(self._missing.items()):
            if before is not None and self._ranks[key] >= before:
                return None
            if key in self._missing and key not in self._begun and self._has_inputs(spec):
                job = self._begin(spec)
                if job is not None:
                    return job
        return None

    def next_task(self, in_order: bool = False) -> TrialTask | None:
        """The first trial, in the plan's order, whose stages are all there; None if there is none.

        `in_order`: none either while an earlier trial waits for its stages.
        """
        self._polled()
        if not self._ready or (in_order and self._waiting and self._waiting[0] < self._ready[0]):
            return None
        return self.tasks[heapq.heappop(self._ready)]

    def built(self, job: StageJob, items: int, seconds: float) -> None:
        """Puts a finished stage in its place."""
        self._store.publish(job, items, seconds)
        self._settle(job.spec.key)

    def failed(self, event: StageEvent) -> list[tuple[TrialTask, StageEvent]]:
        """Gives a stage up, and all that is made from it: the trials that need one of them, with the event."""
        self._store.abandon(event.job)
        self._broken[event.job.spec.key] = event
        for spec in self._specs:  # inputs stand before what is made from them
            broken = [self._broken[inner.key] for inner in spec.inputs.values() if inner.key in self._broken]
            if broken:
                self._broken.setdefault(spec.key, broken[0])
        for key in self._broken:
            self._settle(key)
        return list(self._lost())

    def close(self) -> None:
        """Removes what unfinished stages have made so far, and gives their locks back."""
        for job, lock in self._begun.values():
            self._store.abandon(job)
            lock.close()
        self._begun.clear()

    def _has_inputs(self, spec: StageSpec) -> bool:
        return not any(inner.key in self._missing for inner in spec.inputs.values())

    def _begin(self, spec: StageSpec) -> StageJob | None:
        """The job, its lock held; None where another process holds it, or has built the stage in the meantime."""
        if time.monotonic() - self._asked_s.get(spec.key, -POLL_S) < POLL_S:
            return None
        self._asked_s[spec.key] = time.monotonic()
        with ExitStack() as lock:
            try:
                lock.enter_context(self._store.locked([spec], waiting=_give_up))
            except BlockingIOError:
                return None
            if self._store.has(spec):
                self._settle(spec.key)
                return None
            job = self._store.begin(spec)
            self._begun[spec.key] = (job, lock.pop_all())
            return job

    def _settle(self, key: str) -> None:
        """A stage is there, or never will be."""
        self._missing.pop(key, None)
        if key in self._begun:
            _, lock = self._begun.pop(key)
            lock.close()
        self._look()

    def _look(self) -> None:
        """Trials whose stages are all there become ready."""
        open_ = self._missing.keys() | self._broken.keys()
        for index in self._waiting:
            if open_.isdisjoint(self._keys[index]):
                heapq.heappush(self._ready, index)
        self._waiting = [index for index in self._waiting if not open_.isdisjoint(self._keys[index])]

    def _lost(self) -> Iterator[tuple[TrialTask, StageEvent]]:
        lost = [index for index in self._waiting if not self._broken.keys().isdisjoint(self._keys[index])]
        self._waiting = [index for index in self._waiting if index not in lost]
        for index in lost:
            yield self.tasks[index], next(self._broken[key] for key in self._keys[index] if key in self._broken)


def order_of_need(plan: Plan, trials: Sequence[Trial]) -> list[StageSpec]:
    """The stages of some trials, each once, in the order in which the trials need them; inputs first."""
    found: dict[str, StageSpec] = {}

    def add(spec: StageSpec) -> None:
        for inner in spec.inputs.values():
            if inner.key not in found:
                add(inner)
        found.setdefault(spec.key, spec)

    for trial in trials:
        for key in plan.stages[trial.id].values():
            add(plan.specs[key])
    return list(found.values())


def _give_up() -> None:
    raise BlockingIOError
