"""Poses of many queries at once: solvers in processes of their own, for PoseLib keeps Python's lock while it works.

A process is `python -m cadloc.pose_solvers`: it reads queries from its standard input and answers on its standard
output, without torch, and ends when its parent does. Which process solves a query, and when, changes nothing; nor does
it that one is killed: the query goes to another.
"""

from __future__ import annotations

import atexit
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from multiprocessing.pool import ExceptionWithTraceback  # type: ignore[attr-defined]
from queue import SimpleQueue
from typing import IO, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cadloc.contract import WorkerLost
from cadloc.geometry import Array
from cadloc.localization import Answered, localize_best
from cadloc.training_config import LocalizationConfig

Answer: TypeAlias = Answered | Exception
"""What a solver says of a query; an error is an answer too."""

_LOST = (EOFError, OSError, pickle.UnpicklingError)
"""What reading from, writing to or starting a process raises where that process is gone, or cannot be."""


class Query(NamedTuple):
    """Arguments of `localize_best`."""

    guesses: Sequence[tuple[NDArray[np.float32], NDArray[np.float32] | None]]
    pixels: Array
    intrinsics: Array
    width_px: int
    height_px: int
    config: LocalizationConfig
    seed: int


class PoseSolvers:
    """`count` processes that solve queries side by side; with one, the caller's own solves them as they come."""

    def __init__(self, count: int) -> None:
        self._solvers = [_Solver() for _ in range(count if count > 1 else 0)]
        self._idle: SimpleQueue[_Solver] = SimpleQueue()
        for solver in self._solvers:
            self._idle.put(solver)
        self._threads = ThreadPoolExecutor(count) if count > 1 else None

    def submit(self, query: Query) -> Callable[[], Answered]:
        """A function that waits for the answer.

        It raises what the solver raised, or WorkerLost where processes end before they answer.
        """
        if self._threads is None:
            answer = _answer(query)
            return lambda: _told(answer)
        future = self._threads.submit(self._ask, query)
        return lambda: _told(future.result())

    def close(self) -> None:
        """Ends the processes; queries that were submitted are answered first."""
        if self._threads is not None:
            self._threads.shutdown()
        for solver in self._solvers:
            solver.close()

    def _ask(self, query: Query) -> Answer:
        solver = self._idle.get()
        try:
            return solver.ask(query)
        finally:
            self._idle.put(solver)


class _Solver:
    """A process that solves one query at a time; where it is lost, the next query starts another."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = _started()

    def ask(self, query: Query) -> Answer:
        """The answer of the process or, if it is lost, of a new one. Raises WorkerLost where that is lost too."""
        try:
            return self._sent(query)
        except _LOST:
            # Where memory is short, idle processes are killed as well: that says nothing of the query.
            self._end()
        try:
            return self._sent(query)
        except _LOST as error:
            self._end()
            raise WorkerLost("a process that solves poses ended before it answered, and so did the next") from error

    def close(self) -> None:
        """Ends the process, which is idle."""
        if self._process is not None:
            self._process.communicate()

    def _sent(self, query: Query) -> Answer:
        self._process = self._process or _started()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        _send(self._process.stdin, query)
        answer: Answer = pickle.load(self._process.stdout)
        return answer

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()


@cache
def pose_solvers(count: int) -> PoseSolvers:
    """The solvers of this process, kept for its next trial: starting them takes as long as many a query set."""
    solvers = PoseSolvers(count)
    atexit.register(solvers.close)
    return solvers


def serve(asked: IO[bytes], answers: IO[bytes]) -> None:
    """Answers queries until there are no more, or nobody to answer."""
    with suppress(*_LOST):
        while True:
            answer = _answer(pickle.load(asked))
            _send(answers, _with_cause(answer) if isinstance(answer, Exception) else answer)


def _answer(query: Query) -> Answer:
    """What the query comes to; where pickling loses an error, one of its name and message."""
    try:
        return localize_best(*query)
    except Exception as error:  # noqa: BLE001 -- whatever it is, it is raised where the answer is waited for
        if _portable(error):
            return error
        told = RuntimeError(f"{type(error).__name__}: {error}")
        told.__cause__ = error
        return told


def _with_cause(error: Exception) -> object:
    """What arrives as the error itself: pickling loses where it comes from, so that is told as its cause."""
    return ExceptionWithTraceback(error, error.__traceback__)


def _portable(error: Exception) -> bool:
    """Whether pickling gives back an error of this type and message."""
    try:
        kept = pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 -- it runs the code of whatever class it is
        return False
    return type(kept) is type(error) and str(kept) == str(error)


def _told(answer: Answer) -> Answered:
    if isinstance(answer, Exception):
        raise answer
    return answer


def _started() -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "cadloc.pose_solvers"]
    # An interrupt from the terminal goes to the caller's process group: it ends the caller, and that ends these.
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, process_group=0)


def _send(pipe: IO[bytes], message: object) -> None:
    pickle.dump(message, pipe, protocol=pickle.HIGHEST_PROTOCOL)
    pipe.flush()


if __name__ == "__main__":
    answers_to = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints is no answer
    serve(sys.stdin.buffer, answers_to)
