"""A light MLflow server over the results of a sweep, in a process group of its own that ends with this one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cadloc.contract import Fault, InputError
from cadloc_sweep.failures import ExitCode, SweepError
from cadloc_sweep.trackers.own_store import own_store_uri
from cadloc_sweep.trials import SweepPaths

STARTING_TIMEOUT_S = 120.0
ENDING_TIMEOUT_S = 5.0


class ServerError(SweepError):
    """The MLflow server did not start; the message ends with the last lines that it wrote."""

    exit_code = ExitCode.UNREACHABLE


def server_command(store_uri: str, artifacts: Path, host: str, port: int) -> list[str]:
    """The command line of a server with one worker; its default of four workers takes about 3 GB."""
    return [
        *(sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", host, "--port", str(port)),
        *("--backend-store-uri", store_uri, "--artifacts-destination", artifacts.resolve().as_uri()),
    ]


def server_environment() -> dict[str, str]:
    """This process's environment with MLflow's job executor and telemetry off."""
    off = {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
    }
    return {**os.environ, **off}


@contextmanager
def server(store_uri: str, artifacts: Path, host: str, port: int, log: Path) -> Iterator[str]:
    """The URL of a server that answers; leaving the context ends it and all its children.

    Raises ServerError when the port is taken, when it ends before it answers, or does not answer within two minutes.
    """
    _check_free(host, port)
    with open(log, "wb") as output:
        process = subprocess.Popen(
            server_command(store_uri, artifacts, host, port),
            env=server_environment(),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_until_ready(process, f"http://{host}:{port}", log)
        yield f"http://{host}:{port}"
    finally:
        _end_group(process)


def serve(store_uri: str, artifacts: Path, host: str, port: int, say: Callable[[str], None]) -> None:
    """Runs the server until Ctrl-C or SIGTERM; tells its URL once it answers. Raises ServerError."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.NamedTemporaryFile(prefix="cadloc-mlflow-", suffix=".log") as log:
        try:
            say("MLflow is starting …")
            with server(store_uri, artifacts, host, port, Path(log.name)) as url:
                say(f"MLflow at {url} (Ctrl-C ends it)")
                signal.pause()
        except KeyboardInterrupt:
            say("ended")


def kept_store_uri(out: Path) -> str:
    """URI of the database that `run --out` keeps. Raises InputError when there is none."""
    paths = SweepPaths(out, "")
    if not paths.mlflow_database.is_file():
        action = "run a space first, or pass --out or --tracking-uri"
        raise InputError(Fault("--out", str(out), "no mlflow.db in it", "a folder that `run --out` filled", action))
    return own_store_uri(paths)


def _check_free(host: str, port: int) -> None:
    """Whoever has the port already would answer in our server's stead."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        raise ServerError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port") from error


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    until = time.monotonic() + STARTING_TIMEOUT_S
    while time.monotonic() < until:
        if process.poll() is not None:
            raise ServerError(f"the MLflow server ended with code {process.returncode}:\n{_tail(log)}")
        if _answers(f"{url}/health"):
            return
        time.sleep(0.2)
    raise ServerError(f"the MLflow server does not answer at {url}:\n{_tail(log)}")


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2.0) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-8:])


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Ends the whole group: the server's children outlive a signal to their parent alone."""
    for sent in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sent)
            process.wait(ENDING_TIMEOUT_S)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
