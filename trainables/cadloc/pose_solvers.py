"""Poses of many queries at once: solvers in processes of their own, for PoseLib keeps Python's lock while it works.

A process is `python -m cadloc.pose_solvers`: it reads queries from its standard input and answers on its standard
output, without torch, and ends when its parent does. Which process solves a query, and when, changes nothing.
"""

from __future__ import annotations

import atexit
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from queue import SimpleQueue
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cadloc.geometry import Array
from cadloc.localization import Answered, localize_best
from cadloc.training_config import LocalizationConfig


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
        self._processes = [_started() for _ in range(count if count > 1 else 0)]
        self._idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
        for process in self._processes:
            self._idle.put(process)
        self._threads = ThreadPoolExecutor(count) if count > 1 else None

    def submit(self, query: Query) -> Callable[[], Answered]:
        """A function that waits for the answer. Raises what the solver raised."""
        if self._threads is None:
            answer = localize_best(*query)
            return lambda: answer
        future: Future[Answered] = self._threads.submit(self._asked, query)
        return future.result

    def close(self) -> None:
        """Ends the processes; queries that were submitted are answered first."""
        if self._threads is not None:
            self._threads.shutdown()
        for process in self._processes:
            process.communicate()

    def _asked(self, query: Query) -> Answered:
        process = self._idle.get()
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            _send(process.stdin, query)
            answer = pickle.load(process.stdout)
        except (EOFError, OSError) as error:
            self._processes.remove(process)
            process.kill()
            process = _started()
            self._processes.append(process)
            raise RuntimeError("a process that solves poses ended before it answered") from error
        finally:
            self._idle.put(process)
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, Answered)
        return answer


@cache
def pose_solvers(count: int) -> PoseSolvers:
    """The solvers of this process, kept for its next trial: starting them takes as long as many a query set."""
    solvers = PoseSolvers(count)
    atexit.register(solvers.close)
    return solvers


def serve(asked: IO[bytes], answers: IO[bytes]) -> None:
    """Answers queries until there are no more."""
    while True:
        try:
            query = pickle.load(asked)
        except EOFError:
            return
        try:
            answer: Answered | Exception = localize_best(*query)
        except ValueError as error:
            answer = error
        _send(answers, answer)


def _started() -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "cadloc.pose_solvers"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)


def _send(pipe: IO[bytes], message: object) -> None:
    pickle.dump(message, pipe, protocol=pickle.HIGHEST_PROTOCOL)
    pipe.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt ends the parent, and that ends this
    answers_to = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints is no answer
    serve(sys.stdin.buffer, answers_to)
