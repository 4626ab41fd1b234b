"""What a sweep has to do: stages in the order in which its trials need them, and trials whose stages are there."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from cadloc.contract import StageSpec
from cadloc.prefixes import TRUNK
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

    Keys are computed once, at the start: each is a digest over all that a stage is made from.
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
        self._inputs = order_of_need(plan, trials)
        self._specs = {key: plan.specs[key] for key in self._inputs}
        self._ranks = {key: rank for rank, key in enumerate(self._inputs)}
        self._places = {key: store.directory(spec) for key, spec in self._specs.items()}
        self._missing = {key: spec for key, spec in self._specs.items() if not store.has(spec)}
        self._begun: dict[str, tuple[StageJob, ExitStack]] = {}
        self._keys: dict[Path, str] = {}
        self._asked_s: dict[str, float] = {}
        self._broken: dict[str, StageEvent] = {}
        self._needs = [plan.stages[trial.id] for trial in trials]
        self._tasks = [
            TrialTask(trial, self._places_of(needs), paths.trial(trial.id).directory)
            for trial, needs in zip(trials, self._needs, strict=True)
        ]
        self._waiting = list(range(len(self._tasks)))
        self._ready: list[int] = []
        self._look()

    @property
    def tasks(self) -> tuple[TrialTask, ...]:
        """All trials, in the plan's order."""
        return tuple(self._tasks)

    @property
    def missing(self) -> list[StageSpec]:
        """The stages that are not there, in the order in which trials need them."""
        return list(self._missing.values())

    @property
    def ready(self) -> TrialTask | None:
        """The trial that `next_task` would hand out now, if any."""
        return self._tasks[self._ready[0]] if self._ready else None

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
        return self._ranks[self._keys[job.directory]]

    def next_job(self, before: int | None = None) -> StageJob | None:
        """The first stage, of those of a rank below `before`, that can be begun now; None if there is none."""
        self._polled()
        for key in list(self._missing):
            if before is not None and self._ranks[key] >= before:
                return None
            if key in self._missing and key not in self._begun and self._has_inputs(key):
                job = self._begin(key)
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
        return self._tasks[heapq.heappop(self._ready)]

    def built(self, job: StageJob, items: int, seconds: float) -> None:
        """Puts a finished stage in its place."""
        self._store.publish(job, items, seconds)
        self._settle(self._keys[job.directory])

    def failed(self, event: StageEvent) -> list[tuple[TrialTask, StageEvent]]:
        """Gives a stage up, and all that is made from it: the trials that need one of them, with the event.

        A trunk, which is no part of a result, takes no trial along: those that it was for begin where the last one
        before it ends, or at the first step. What then nobody needs is not made any more, unless it was begun.
        """
        failed = self._keys[event.job.directory]
        self._store.abandon(event.job)
        self._broken[failed] = event
        for key, inputs in self._inputs.items():  # inputs stand before what is made from them
            broken = [self._broken[inner] for inner in inputs if inner in self._broken]
            if broken:
                self._broken.setdefault(key, broken[0])
        for index in self._waiting:
            self._begin_earlier(index)
        lost = list(self._lost())
        self._give_back(failed)
        self._want_less()
        self._look()
        return lost

    def close(self) -> None:
        """Removes what unfinished stages have made so far, and gives their locks back."""
        for job, lock in self._begun.values():
            self._store.abandon(job)
            lock.close()
        self._begun.clear()

    def _has_inputs(self, key: str) -> bool:
        return self._missing.keys().isdisjoint(self._inputs[key])

    def _places_of(self, needs: Mapping[str, str]) -> dict[str, Path]:
        return {role: self._places[key] for role, key in needs.items()}

    def _begin(self, key: str) -> StageJob | None:
        """The job, its lock held; None where another process holds it, or has built the stage in the meantime."""
        if time.monotonic() - self._asked_s.get(key, -POLL_S) < POLL_S:
            return None
        self._asked_s[key], spec = time.monotonic(), self._specs[key]
        with ExitStack() as lock:
            try:
                lock.enter_context(self._store.locked([spec], waiting=_give_up))
            except BlockingIOError:
                return None
            if self._store.has(spec):
                self._settle(key)
                return None
            job = self._store.begin(spec)
            self._keys[job.directory] = key
            self._begun[key] = (job, lock.pop_all())
            return job

    def _settle(self, key: str) -> None:
        """A stage is there."""
        self._missing.pop(key, None)
        self._give_back(key)
        self._look()

    def _give_back(self, key: str) -> None:
        """Whoever has begun the stage is done with it."""
        if key in self._begun:
            _, lock = self._begun.pop(key)
            lock.close()

    def _begin_earlier(self, index: int) -> None:
        """A trial does without what trunks of its have failed."""
        sound = {role: self._last_sound(key) for role, key in self._needs[index].items()}
        needs = {role: key for role, key in sound.items() if key is not None}
        if needs != self._needs[index]:
            self._needs[index] = needs
            self._tasks[index] = replace(self._tasks[index], stages=self._places_of(needs))

    def _last_sound(self, key: str) -> str | None:
        """Of a failed trunk the last before it that has not failed, if there is one; any other stage itself."""
        if key not in self._broken or self._specs[key].kind != TRUNK:
            return key
        before = next((inner for inner in self._inputs[key] if self._specs[inner].kind == TRUNK), None)
        return None if before is None else self._last_sound(before)

    def _want_less(self) -> None:
        """Of what is missing, what waiting trials need and what is begun stays, and what these are made from."""
        needed = {*self._begun, *(key for index in self._waiting for key in self._needs[index].values())}
        for key in reversed(self._inputs):
            if key in needed and key in self._missing:
                needed.update(self._inputs[key])
        self._missing = {key: spec for key, spec in self._missing.items() if key in needed}

    def _look(self) -> None:
        """Trials whose stages are all there become ready."""
        open_ = self._missing.keys() | self._broken.keys()
        for index in self._waiting:
            if open_.isdisjoint(self._needs[index].values()):
                heapq.heappush(self._ready, index)
        self._waiting = [index for index in self._waiting if not open_.isdisjoint(self._needs[index].values())]

    def _lost(self) -> Iterator[tuple[TrialTask, StageEvent]]:
        lost = [index for index in self._waiting if not self._broken.keys().isdisjoint(self._needs[index].values())]
        self._waiting = sorted(set(self._waiting) - set(lost))
        for index in lost:
            yield (
                self._tasks[index],
                next(self._broken[key] for key in self._needs[index].values() if key in self._broken),
            )


def order_of_need(plan: Plan, trials: Sequence[Trial]) -> dict[str, tuple[str, ...]]:
    """Keys of the stages of some trials, each once, in the order in which the trials need them, inputs first; each
    with the keys of what it is made from."""
    found: dict[str, tuple[str, ...]] = {}
    known = {id(spec): key for key, spec in plan.specs.items()}

    def add(key: str) -> None:
        if key not in found:
            inputs = tuple(known.get(id(inner)) or inner.key for inner in plan.specs[key].inputs.values())
            for inner in inputs:
                add(inner)
            found[key] = inputs

    for trial in trials:
        for key in plan.stages[trial.id].values():
            add(key)
    return found


def _give_up() -> None:
    raise BlockingIOError
