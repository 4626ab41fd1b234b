"""Stages as Ray tasks: chunks in parallel, with a bounded number in flight."""

from __future__ import annotations

import heapq
import itertools
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import ray
from ray.exceptions import RayError, RayTaskError

from cadloc.catalog import needs_gpu
from cadloc_sweep.executors import StageEvent, StageJob

NO_THREADS = {"LP_NUM_THREADS": "0", "OMP_NUM_THREADS": "1"}
"""One task per core: software rendering (LP: llvmpipe) and numerics must not start threads of their own."""

RETRIES = 2
"""How often a piece is tried again when its worker dies (memory, node); its own exceptions are final."""

AHEAD = 2
"""Pieces waiting beyond those that can run at once: enough to keep workers busy, few enough to stop soon."""

Step: TypeAlias = Literal["chunks", "chunk", "finish"]
Answer: TypeAlias = tuple[int, float]


class Jobs(Protocol):
    """Where jobs come from, as `cadloc_sweep.agenda.Agenda` hands them out."""

    def next_job(self, before: int | None = None) -> StageJob | None:
        """The first job, of those of a rank below `before`, that can be begun now; None if there is none."""
        ...

    def rank(self, job: StageJob) -> int:
        """The job's place in the order in which jobs are wanted."""
        ...


class Listed:
    """Jobs that are there already, in their order."""

    def __init__(self, jobs: Sequence[StageJob]) -> None:
        self._ranks = {job.spec.key: rank for rank, job in enumerate(jobs)}
        self._jobs = iter(jobs)

    def next_job(self, before: int | None = None) -> StageJob | None:
        """The next one, once no earlier one has a piece to hand out."""
        return None if before is not None else next(self._jobs, None)

    def rank(self, job: StageJob) -> int:
        """Its number."""
        return self._ranks[job.spec.key]


@dataclass(frozen=True)
class _Piece:
    """One task: how many chunks, one of them, or the end of a stage."""

    job: StageJob
    step: Step
    chunk: int = 0


@dataclass
class _Stage:
    """What is known about a stage under way."""

    total: int = 0
    done: int = 0
    seconds: float = 0.0
    over: bool = False


def work(job: StageJob, step: Step, chunk: int) -> Answer:
    """One piece of a stage, in a worker; returns its count (of chunks or of items) and its seconds."""
    start = time.perf_counter()
    if step == "chunks":
        return job.chunks(), time.perf_counter() - start
    if step == "chunk":
        return job.build_chunk(chunk), time.perf_counter() - start
    job.finish()
    return 0, time.perf_counter() - start


def build_stages(
    jobs: Sequence[StageJob],
    on_event: Callable[[StageEvent], None],
    draining: Callable[[], bool],
    environment: Mapping[str, str],
) -> None:
    """Builds all jobs on the connected cluster; stops submitting when `draining`, and waits for what runs."""
    building = Building(Listed(jobs), on_event, draining, environment)
    try:
        while building.pump(timeout_s=1.0):
            pass
    finally:
        building.cancel()


def _gpus(piece: _Piece) -> int:
    """GPUs of one piece: none where the cluster has none, so that the stage can say so instead of waiting for ever."""
    if piece.step != "chunk" or not needs_gpu(piece.job.spec):
        return 0
    return int(ray.cluster_resources().get("GPU", 0) >= 1)  # type: ignore[no-untyped-call]


class Building:
    """Stages under way: turns answers into events and into the next pieces, those wanted first before others."""

    def __init__(
        self,
        jobs: Jobs,
        on_event: Callable[[StageEvent], None],
        draining: Callable[[], bool],
        environment: Mapping[str, str],
    ) -> None:
        self._jobs, self._on_event, self._draining = jobs, on_event, draining
        variables = {**environment, **NO_THREADS}
        self._task = ray.remote(num_cpus=1, max_retries=RETRIES, runtime_env={"env_vars": variables})(work)
        self._stages: dict[str, _Stage] = {}
        self._waiting: list[tuple[int, int, _Piece]] = []
        self._flying: dict[Any, _Piece] = {}
        self._numbers = itertools.count()

    @property
    def pieces(self) -> int:
        """Pieces that run or could run."""
        return len(self._waiting) + len(self._flying)

    @property
    def pieces_on_gpu(self) -> int:
        """Those of them that take a GPU."""
        return sum(_gpus(piece) for piece in (*self._flying.values(), *(piece for _, _, piece in self._waiting)))

    def pump(self, timeout_s: float, window: Callable[[], int] | None = None) -> bool:
        """Submits what `window` lets fly at once, and hears the answers: waits so long for one, takes all there are.

        False when nothing flies: there is nothing to wait for. What runs is heard even when draining.
        """
        self._submit(window or _window)
        if not self._flying:
            return False
        ready, _ = ray.wait(list(self._flying), num_returns=1, timeout=timeout_s)
        if ready:
            ready, _ = ray.wait(list(self._flying), num_returns=len(self._flying), timeout=0)
        for reference in ready:
            self._received(self._flying.pop(reference), reference)
        if ready:
            self._submit(window or _window)
        return True

    def cancel(self) -> None:
        """Ends what runs; nobody waits for it any more."""
        for reference in self._flying:
            ray.cancel(reference, force=True)
        self._flying.clear()

    def _submit(self, window: Callable[[], int]) -> None:
        while not self._draining() and len(self._flying) < window():
            job = self._jobs.next_job(self._waiting[0][0] if self._waiting else None)
            if job is not None:
                self._stages[job.spec.key] = _Stage()
                self._put(_Piece(job, "chunks"))
            if not self._waiting:
                return
            piece = heapq.heappop(self._waiting)[-1]
            if not self._stages[piece.job.spec.key].over and not self._draining():
                reference = self._task.options(num_gpus=_gpus(piece)).remote(piece.job, piece.step, piece.chunk)
                self._flying[reference] = piece

    def _put(self, piece: _Piece) -> None:
        heapq.heappush(self._waiting, (self._jobs.rank(piece.job), next(self._numbers), piece))

    def _received(self, piece: _Piece, reference: Any) -> None:
        stage = self._stages[piece.job.spec.key]
        try:
            count, seconds = ray.get(reference)
        except RayError as error:
            self._failed(piece.job, stage, error)
            return
        if stage.over:
            return
        stage.seconds += seconds
        for following in self._next(piece, stage, count):
            self._put(following)

    def _next(self, piece: _Piece, stage: _Stage, count: int) -> Iterator[_Piece]:
        """The pieces that can follow now. Those of a stage come before later stages': it frees its inputs' memory."""
        job = piece.job
        if piece.step == "chunks":
            stage.total = count
            yield from (_Piece(job, "chunk", chunk) for chunk in range(count))
        elif piece.step == "chunk":
            stage.done += 1
            self._on_event(StageEvent(job, "chunk", stage.done, stage.total, count, stage.seconds))
            if stage.done == stage.total:
                yield _Piece(job, "finish")
        else:
            stage.over = True
            self._on_event(StageEvent(job, "built", stage.total, stage.total, 0, stage.seconds))

    def _failed(self, job: StageJob, stage: _Stage, error: RayError) -> None:
        if stage.over:
            return
        stage.over = True
        cause = original(error)
        text = "".join(traceback.format_exception(error))
        self._on_event(StageEvent(job, "failed", stage.done, stage.total, 0, stage.seconds, cause, text))


def original(error: RayError) -> Exception:
    """The exception that the task raised, or Ray's own when its worker died."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(error, RayTaskError) and isinstance(cause, Exception) else error


def _window() -> int:
    return int(ray.cluster_resources().get("CPU", 1)) + AHEAD  # type: ignore[no-untyped-call]
