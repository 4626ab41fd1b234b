"""Stages as Ray tasks: chunks in parallel, with a bounded number in flight."""

from __future__ import annotations

import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

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
    variables = {**environment, **NO_THREADS}
    task = ray.remote(num_cpus=1, max_retries=RETRIES, runtime_env={"env_vars": variables})(work)
    building = _Building(jobs, on_event)
    flying: dict[Any, _Piece] = {}
    try:
        while building.waiting or flying:
            while building.waiting and not draining() and len(flying) < _window():
                piece = building.waiting.popleft()
                if not building.stage(piece.job).over:
                    gpus = _gpus(piece)
                    flying[task.options(num_gpus=gpus).remote(piece.job, piece.step, piece.chunk)] = piece
            if not flying:
                return
            ready, _ = ray.wait(list(flying), num_returns=1, timeout=1.0)
            for reference in ready:
                building.received(flying.pop(reference), reference)
    finally:
        for reference in flying:  # the listener gave up: nobody waits for these any more
            ray.cancel(reference, force=True)


def _gpus(piece: _Piece) -> int:
    """GPUs of one piece: none where the cluster has none, so that the stage can say so instead of waiting for ever."""
    if piece.step != "chunk" or not needs_gpu(piece.job.spec):
        return 0
    return int(ray.cluster_resources().get("GPU", 0) >= 1)  # type: ignore[no-untyped-call]


class _Building:
    """Turns answers into events and into the next pieces."""

    def __init__(self, jobs: Sequence[StageJob], on_event: Callable[[StageEvent], None]) -> None:
        self._stages = {job.spec.key: _Stage() for job in jobs}
        self._on_event = on_event
        self.waiting = deque(_Piece(job, "chunks") for job in jobs)

    def stage(self, job: StageJob) -> _Stage:
        return self._stages[job.spec.key]

    def received(self, piece: _Piece, reference: Any) -> None:
        stage = self.stage(piece.job)
        try:
            count, seconds = ray.get(reference)
        except RayError as error:
            self._failed(piece.job, stage, error)
            return
        if stage.over:
            return
        stage.seconds += seconds
        self.waiting.extendleft(reversed(list(self._next(piece, stage, count))))

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
