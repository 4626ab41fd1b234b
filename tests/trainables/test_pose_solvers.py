"""Solvers of poses in processes of their own: whatever is killed, interrupted or raised, as in the caller's own."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
import pytest

from cadloc import pose_solvers
from cadloc.contract import WorkerLost
from cadloc.geometry import Array, cell_pixels, look_at, pinhole, transform_points, unproject
from cadloc.pose_solvers import PoseSolvers, Query, serve
from cadloc.training_config import LocalizationConfig

SIZE_PX = (160, 120)
K = pinhole(*SIZE_PX, 60)
PIXELS = cell_pixels(15, 20).reshape(-1, 2)
DEPTH_M = np.random.default_rng(3).uniform(5, 15, len(PIXELS))
POINTS = transform_points(look_at([12, -7, 1.6], [0, 0, 4]), unproject(PIXELS, DEPTH_M, K)).astype(np.float32)
QUERY = Query([(POINTS, None)], PIXELS, K, *SIZE_PX, LocalizationConfig(max_iterations=500, min_iterations=100), 0)


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """The processes started during the test, in order."""
    started: list[subprocess.Popen[bytes]] = []

    class Recorded(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Recorded)
    return started


@contextmanager
def solvers_of(count: int) -> Iterator[PoseSolvers]:
    solvers = PoseSolvers(count)
    yield solvers
    solvers.close()


def pose(solvers: PoseSolvers, query: Query = QUERY) -> Array:
    """The pose that the solvers find."""
    found = solvers.submit(query)().estimate.cad_from_cam
    assert found is not None
    return found


def test_a_killed_process_costs_no_answer(processes: list[subprocess.Popen[bytes]]) -> None:
    """The query goes to a new process and comes to what it comes to without any."""
    with solvers_of(1) as alone, solvers_of(2) as solvers:
        for process in list(processes):
            process.kill()
            process.wait()
        np.testing.assert_array_equal(pose(solvers), pose(alone))
        assert len(processes) == 3


def test_where_no_process_lives_the_worker_is_lost_until_one_does(
    processes: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes that end at once, or cannot be started, fail the query as no fault of its own, and only while so."""
    ends_at_once = shutil.which("true")
    assert ends_at_once is not None
    with monkeypatch.context() as broken:
        broken.setattr(sys, "executable", ends_at_once)
        solvers = PoseSolvers(2)
        with pytest.raises(WorkerLost):
            pose(solvers)
        assert len(processes) == 3
        broken.setattr(sys, "executable", "/nowhere/python")
        for _ in range(2):
            with pytest.raises(WorkerLost):
                pose(solvers)
    assert len(pose(solvers)) == 4
    solvers.close()
    assert all(process.returncode is not None for process in processes)


def refused(solvers: PoseSolvers, query: Query) -> BaseException:
    """The error that the query comes to."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 -- which one it is, is the question
        pose(solvers, query)
    return caught.value


def test_an_error_is_the_same_from_one_process_or_several() -> None:
    """Type and message; where in the other process it comes from is told as its cause."""
    by_opencv = LocalizationConfig(solver="opencv", max_iterations=100, min_iterations=100)
    wrong = {
        IndexError: QUERY._replace(intrinsics=K[:1]),
        ValueError: QUERY._replace(guesses=[]),
        cv2.error: QUERY._replace(intrinsics=K[:2], config=by_opencv),
    }
    with solvers_of(1) as alone, solvers_of(2) as several:
        for expected, query in wrong.items():
            one, other = refused(alone, query), refused(several, query)
            assert type(one) is type(other) is expected
            assert str(one) == str(other)
            assert "localization.py" in str(other.__cause__)


def test_an_error_that_cannot_be_pickled_is_told_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the caller's process and in another, alike."""

    class LocalError(Exception):
        """Pickle finds no such class."""

    def raising(*query: object) -> None:
        raise LocalError("of this place")

    monkeypatch.setattr(pose_solvers, "localize_best", raising)
    answers = io.BytesIO()
    serve(io.BytesIO(pickle.dumps(QUERY)), answers)
    told = pickle.loads(answers.getvalue())
    for error in (told, refused(PoseSolvers(1), QUERY)):
        assert type(error) is RuntimeError
        assert str(error) == "LocalError: of this place"


def test_an_interrupt_of_the_parent_reaches_no_process(processes: list[subprocess.Popen[bytes]]) -> None:
    """From its very start, each is in a process group of its own."""
    with solvers_of(2):
        assert [os.getpgid(process.pid) for process in processes] == [process.pid for process in processes]
        for process in processes:
            process.kill()


def test_processes_end_with_their_parent() -> None:
    """However that ends: one that lived on would hold the pipe of the error output open."""
    program = "import os, cadloc.pose_solvers as p; p.PoseSolvers(2); os.kill(os.getpid(), 9)"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (-signal.SIGKILL, b"")
