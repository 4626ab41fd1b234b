"""One driver per sweep: a lock that dies with its process."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
from pathlib import Path
from types import TracebackType

from cadloc.contract import Fault, InputError, Json
from cadloc_sweep.failures import SweepLocked

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class SweepLock:
    """Held from `with` to its end. Entering raises SweepLocked while another living process holds it.

    The kernel's file lock decides; process, start of process, boot and host, written inside, decide where file locks
    do not reach (some network file systems), and say who it is. A lock left by a dead process of this machine is
    taken over; whether one of another machine still lives cannot be seen from here, so that its lock counts.
    Entering raises InputError on a file system that knows no file locks.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle: int | None = None

    def __enter__(self) -> SweepLock:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._take(handle)
        except BaseException:
            os.close(handle)
            raise
        self._handle = handle
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle is not None:
            os.ftruncate(self._handle, 0)
            os.close(self._handle)
            self._handle = None

    def _take(self, handle: int) -> None:
        free = try_lock(handle, self._path)
        owner = _owner(os.pread(handle, 4096, 0))
        if not free or _elsewhere(owner) or _alive(owner):
            who = f"process {owner.get('pid', '?')} on {owner.get('host', '?')}"
            gone = "; if it runs there no more, delete this file" if _elsewhere(owner) else ""
            raise SweepLocked(f"{self._path}: {who} drives this sweep; wait for it, or stop it{gone}")
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(_me()).encode(), 0)
        os.fsync(handle)


def try_lock(handle: int, path: Path) -> bool:
    """Takes the kernel's lock of an open file; False while somebody else holds it.

    Raises InputError where the file system knows no such locks: nothing would keep two sweeps apart.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        found = f"a file system without file locks (flock: {error.strerror})"
        action = "choose a folder on another file system"
        raise InputError(Fault(str(path), "the lock", found, "a file system with file locks", action)) from error
    return True


def _me() -> dict[str, Json]:
    pid = os.getpid()
    return {"pid": pid, "started": _start_of(pid), "boot": _boot_id(), "host": socket.gethostname()}


def _owner(content: bytes) -> dict[str, Json]:
    with contextlib.suppress(ValueError):
        owner = json.loads(content)
        return owner if isinstance(owner, dict) else {}
    return {}


def _elsewhere(owner: dict[str, Json]) -> bool:
    """Whether the lock was written on another machine."""
    return bool(owner.get("host", socket.gethostname()) != socket.gethostname())


def _alive(owner: dict[str, Json]) -> bool:
    """Whether the process that wrote the lock still runs on this machine, in this boot."""
    pid = owner.get("pid")
    if not isinstance(pid, int) or owner.get("boot", _boot_id()) != _boot_id():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return bool(owner.get("started", _start_of(pid)) == _start_of(pid))


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return socket.gethostname()


def _start_of(pid: int) -> str:
    """The kernel's start time of a process: a number that a later process with the same id does not share."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
