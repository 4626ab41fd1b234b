"""Ray: this machine's cores or a cluster. Only this module and its two neighbours import ray."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from cadloc_sweep.executors import StageEvent, StageJob, TrialEvent
from cadloc_sweep.failures import ExecutorUnreachable
from cadloc_sweep.space_settings import NoStop, Objective, Stop

if TYPE_CHECKING:
    from cadloc_sweep.agenda import Agenda

LOCAL = "local"

ANSWER_TIMEOUT_S = 5.0
JOIN_TIMEOUT_S = 40.0


class RayExecutor:
    """Stages as tasks and trials as Tune trials; Ray starts with the first of them, not before.

    `address` is `local` (a Ray of our own with `cpus` and `gpus`, by default all there are), `auto` (the cluster
    that runs on this machine) or `HOST:PORT` of a head node. `stop` and `objective` choose Tune's scheduler.
    """

    def __init__(
        self,
        address: str = LOCAL,
        cpus: int | None = None,
        gpus: int | None = None,
        *,
        stop: Stop = NoStop(),  # noqa: B008 -- frozen
        objective: Objective = Objective(),  # noqa: B008 -- frozen
    ) -> None:
        self._address = address
        self._cpus, self._gpus = cpus, gpus
        self._stop, self._objective = stop, objective
        self._draining = threading.Event()
        self._connected = self._owned = False

    def build_stages(self, jobs: Sequence[StageJob], on_event: Callable[[StageEvent], None]) -> None:
        """Builds all jobs in parallel, chunk by chunk. Raises ExecutorUnreachable."""
        if jobs and not self._draining.is_set():
            self._connect()
            from cadloc_sweep.executors import on_ray_stages

            on_ray_stages.build_stages(jobs, on_event, self._draining.is_set, worker_environment())

    def run(
        self, agenda: Agenda, on_stage: Callable[[StageEvent], None], on_trial: Callable[[TrialEvent], None]
    ) -> None:
        """Stages and trials at once, as many as fit. Raises ExecutorUnreachable, OutOfResources."""
        if agenda.left and not self._draining.is_set():
            self._connect()
            from cadloc_sweep.executors import on_ray_trials

            place = on_ray_trials.Place(self._stop, self._objective, worker_environment())
            on_ray_trials.run(agenda, on_stage, on_trial, self._draining.is_set, place)

    def drain(self) -> None:
        """Nothing new starts; running trials end at their next progress."""
        self._draining.set()

    def close(self) -> None:
        """Leaves the cluster; a Ray of our own ends, and nobody else's."""
        if self._owned:
            import ray

            ray.shutdown()
        self._connected = self._owned = False

    def _connect(self) -> None:
        if self._connected:
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        logging.getLogger("ray").setLevel(logging.ERROR)
        import ray

        if not ray.is_initialized():
            self._join() if self._address != LOCAL else self._start()
            self._owned = True
        self._connected = True

    def _start(self) -> None:
        import ray

        try:
            ray.init(
                address=LOCAL,
                num_cpus=self._cpus,
                num_gpus=self._gpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": {**worker_environment(), "PYTHONPATH": _import_path()}},
            )
        except (ConnectionError, OSError, RuntimeError) as error:
            raise ExecutorUnreachable(f"Ray does not start on this machine: {error}") from error

    def _join(self) -> None:
        import ray

        _use_token()
        check_reachable(self._address)
        try:
            ray.init(
                address=self._address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": worker_environment()},
            )
        except (ConnectionError, RuntimeError) as error:
            raise ExecutorUnreachable(f"no Ray cluster at {self._address}: {error}") from error


def worker_environment() -> dict[str, str]:
    """Variables of every worker: headless graphics (`PYOPENGL_PLATFORM` of this process, else EGL), no own threads.

    And a C library that keeps freed memory: training frees and asks for the same 16 MB arrays in every step,
    and returning them to the system in between costs a page fault for each page.
    """
    graphics = {"PYOPENGL_PLATFORM": os.environ.get("PYOPENGL_PLATFORM", "egl"), "LP_NUM_THREADS": "0"}
    memory = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**33), "MALLOC_TOP_PAD_": str(2**26)}
    return {**graphics, **memory}


def _import_path() -> str:
    """This process's import path: on the same machine workers find a user's own modules where it does."""
    return os.pathsep.join(dict.fromkeys(os.path.abspath(folder) for folder in sys.path))


def check_reachable(address: str) -> None:
    """Raises ExecutorUnreachable unless a cluster answers at the address and lets us in.

    Ray itself waits for ever at a closed port and when its token is refused, so that the port is tried first and
    then the joining, in a process that can be ended.
    """
    if address != "auto":
        _check_port(address)
    command = [sys.executable, "-c", _JOINING, address]
    try:
        tried = subprocess.run(command, capture_output=True, timeout=JOIN_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise ExecutorUnreachable(f"Ray cluster at {address}: {_reason(error.stderr or b'')}") from error
    if tried.returncode != 0:
        raise ExecutorUnreachable(f"Ray cluster at {address}: {_reason(tried.stderr)}")


def _reason(said: bytes) -> str:
    """Why joining failed, from what the attempt wrote to standard error."""
    text = said.decode(errors="replace")
    if "InvalidAuthToken" in text:
        return "it refuses this machine's Ray token (~/.ray/auth_token or RAY_AUTH_TOKEN)"
    return (text.strip().splitlines() or ["no answer"])[-1]


_JOINING = "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR'); ray.shutdown()"


def _check_port(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdigit():
        raise ExecutorUnreachable(f"address {address!r}: neither `local`, `auto` nor HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_TIMEOUT_S).close()
    except OSError as error:
        raise ExecutorUnreachable(f"no Ray cluster at {address}: {error.strerror or error}") from error


def _use_token() -> None:
    """Shows the token where there is one: `ray start` asks for it then, but joining by address does not by itself."""
    from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available

    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
