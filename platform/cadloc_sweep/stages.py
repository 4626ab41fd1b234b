"""A content-addressed store of stage outputs: `<root>/<kind>/<key>/`, whole or absent, shared by every sweep.

An entry is built aside (`<root>/tmp/…`) and renamed into place together with its `manifest.json`: sizes and
digests of its files, what it was made from, how long that took. A lock per key keeps sweeps that run at the
same time from building one twice. A build that is killed begins anew, but for kinds in `cadloc.catalog.RESUMABLE`,
which are long and go on from their own checkpoints.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cadloc.catalog import RESUMABLE
from cadloc.contract import DivergenceError, Json, StageSpec, file_digest
from cadloc.whole_files import DAMAGED
from cadloc_sweep.durable_files import CorruptFile, force_folder, read_sealed, write_sealed
from cadloc_sweep.executors import StageJob
from cadloc_sweep.lock import try_lock

MANIFEST = "manifest.json"
USED = "used"
_SCHEMA = 1
_LOCK_POLL_S = 0.2


@dataclass(frozen=True)
class StageEntry:
    """One stored stage. `used` is when a sweep last asked for it, in seconds since 1970."""

    kind: str
    key: str
    directory: Path
    bytes: int
    files: int
    items: int
    seconds: float
    created: float
    used: float


@dataclass(frozen=True)
class ResumableJob(StageJob):
    """A job that goes on from what an earlier attempt left in its folder.

    Whoever is killed leaves that, and so does nearly every error: what stands there may be hours of work, and little
    that fails (a device that is gone, memory, a disk) is its fault. The work's own verdict that it diverged is.
    """

    def build_chunk(self, chunk: int) -> int:
        """As `StageJob`. Here, where the error is raised: a worker that is killed has none."""
        try:
            return super().build_chunk(chunk)
        except DivergenceError:
            shutil.rmtree(self.directory, ignore_errors=True)
            raise

    def finish(self) -> None:
        """As `StageJob`. Files that were set aside on the way are no part of the stage."""
        super().finish()
        for path in self.directory.glob(f"*{DAMAGED}"):
            path.unlink(missing_ok=True)


class StageStore:
    """Stages below one folder. `built` counts, by kind, the entries that this object has put in.

    `note` is told of entries that were found damaged and are built again.
    """

    def __init__(self, root: Path, note: Callable[[str], None] = lambda _: None) -> None:
        self.root = root.expanduser().absolute()  # workers stand in other folders
        self.note = note
        self.built: Counter[str] = Counter()
        self._verified: set[str] = set()

    def directory(self, spec: StageSpec) -> Path:
        """Where the stage stands, or will."""
        return self.root / folder_of(spec.kind) / spec.key

    def has(self, spec: StageSpec) -> bool:
        """Whether the stage is there and whole: every file read once per process, only its size after that.

        A damaged entry is moved out of the way, with a note.
        """
        directory = self.directory(spec)
        if not directory.is_dir():
            return False
        faults = list(entry_faults(directory, deep=spec.key not in self._verified))
        if faults:
            self._discard(directory)
            self.note(f"stage {spec.kind} {spec.key}: {faults[0]}; it is built again")
            return False
        self._verified.add(spec.key)
        (directory / USED).touch()
        return True

    @contextmanager
    def locked(self, specs: Iterable[StageSpec], waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Holds the locks of several stages. `waiting` is called every 0.2 s while another process holds one;
        it may raise to give up.

        Locks are taken in the order of the keys, so that two sweeps never wait for each other in a circle.
        """
        folder = self.root / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            for key in sorted({spec.key for spec in specs}):
                stack.enter_context(_file_lock(folder / key, waiting))
            yield

    def begin(self, spec: StageSpec) -> StageJob:
        """A job for a stage whose lock is held and whose inputs are there; what an earlier attempt left is removed,
        unless the stage goes on from it."""
        aside = self.root / "tmp" / f"{folder_of(spec.kind)}-{spec.key}"
        job = ResumableJob if spec.kind in RESUMABLE else StageJob
        _remove_half_written(aside) if job is ResumableJob else shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True, exist_ok=True)
        return job(spec, {role: self.directory(inner) for role, inner in spec.inputs.items()}, aside)

    def publish(self, job: StageJob, items: int, seconds: float) -> Path:
        """Puts a finished job's folder in its place; returns that place."""
        spec, final = job.spec, self.directory(job.spec)
        manifest = {
            "schema": _SCHEMA,
            "kind": spec.kind,
            "key": spec.key,
            "code_version": spec.code_version,
            "config": spec.config,
            "inputs": {role: inner.key for role, inner in spec.inputs.items()},
            "files": {name: [size, digest] for name, size, digest in _contents(job.directory)},
            "items": items,
            "seconds": round(seconds, 3),
            "created": round(time.time(), 3),
        }
        write_sealed(job.directory / MANIFEST, manifest)
        (job.directory / USED).touch()
        final.parent.mkdir(parents=True, exist_ok=True)
        if final.exists():
            self._discard(final)
        os.replace(job.directory, final)
        force_folder(final.parent)
        self.built[spec.kind] += 1
        self._verified.add(spec.key)
        return final

    def abandon(self, job: StageJob) -> None:
        """Removes what a job has made so far, unless the next attempt goes on from it."""
        if not isinstance(job, ResumableJob):
            shutil.rmtree(job.directory, ignore_errors=True)

    def entries(self) -> list[StageEntry]:
        """All stored stages, oldest first; damaged manifests are left out (`verify` names them)."""
        found = []
        for directory in self._directories():
            try:
                found.append(_entry(directory))
            except (CorruptFile, OSError):
                continue
        return sorted(found, key=lambda entry: (entry.created, entry.key))

    def verify(self) -> dict[Path, str]:
        """What is wrong with which entry, every file read; empty when all are whole."""
        faults = {directory: next(entry_faults(directory, deep=True), None) for directory in self._directories()}
        return {directory: fault for directory, fault in faults.items() if fault is not None}

    def prune(self, keep: Iterable[str] = (), older_than_s: float = 0.0) -> list[StageEntry]:
        """Removes entries last used longer ago than that, but those to be kept, and left-overs; returns the entries.

        What an unfinished stage would go on from counts as an entry does, but is not among those returned.
        """
        kept, now = set(keep), time.time()
        gone = [entry for entry in self.entries() if entry.key not in kept and now - entry.used >= older_than_s]
        for entry in gone:
            with self._one_lock(entry.key):
                self._discard(entry.directory)
        for left_over in self._left_overs():
            if not _goes_on(left_over, kept, now - older_than_s):
                shutil.rmtree(left_over, ignore_errors=True)
        return gone

    def _left_overs(self) -> Iterator[Path]:
        """Folders of builds that nobody works on any more."""
        folder = self.root / "tmp"
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            try:
                with self._one_lock(path.name.rsplit("-", 1)[-1], wait=False):
                    yield path
            except BlockingIOError:
                continue

    @contextmanager
    def _one_lock(self, key: str, wait: bool = True) -> Iterator[None]:
        (self.root / "locks").mkdir(parents=True, exist_ok=True)
        with _file_lock(self.root / "locks" / key, (lambda: None) if wait else _give_up):
            yield

    def _directories(self) -> Iterator[Path]:
        for kind in sorted(self.root.iterdir()) if self.root.is_dir() else ():
            if kind.is_dir() and kind.name not in ("tmp", "locks"):
                yield from sorted(path for path in kind.iterdir() if path.is_dir())

    def _discard(self, directory: Path) -> None:
        """Renames first: a reader sees the whole entry or none."""
        grave = self.root / "tmp" / f"discarded-{os.getpid()}-{time.time_ns()}-{directory.name}"
        grave.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # another process may be doing the same
            os.replace(directory, grave)
        shutil.rmtree(grave, ignore_errors=True)


def folder_of(kind: str) -> str:
    """The folder of a kind: its name, as a user's own kinds `module:object` may be spelled in a path."""
    return kind.replace(":", ".").replace("/", ".")


def _remove_half_written(aside: Path) -> None:
    """Files that a kill cut off, those of `cadloc.whole_files` and those of `publish`: they would be published."""
    for path in (*aside.glob(".*"), aside / MANIFEST, aside / USED):
        path.unlink(missing_ok=True)


def _goes_on(left_over: Path, kept: Collection[str], since: float) -> bool:
    """Whether a stage is to go on from a left-over: one of a kind that can, to be kept or worked on since then."""
    kind, _, key = left_over.name.rpartition("-")
    return kind in map(folder_of, RESUMABLE) and (key in kept or left_over.stat().st_mtime > since)


def entry_faults(directory: Path, deep: bool) -> Iterator[str]:
    """What is wrong with an entry: its manifest, missing files, sizes, and (deep) contents."""
    try:
        manifest = read_sealed(directory / MANIFEST)
    except (CorruptFile, OSError) as error:
        yield f"no usable manifest ({error})"
        return
    for name, (size, digest) in manifest["files"].items():
        path = directory / name
        if not path.is_file():
            yield f"{name} is missing"
        elif path.stat().st_size != size:
            yield f"{name} has {path.stat().st_size} bytes instead of {size}"
        elif deep and file_digest(path) != digest:
            yield f"{name} does not match its digest"


def keys_in_use(out: Path) -> set[str]:
    """Keys of the stages that the latest plans of the sweeps below `out` read, inputs of inputs included."""
    keys: set[str] = set()
    for path in out.glob("*/plan.json"):
        try:
            plan = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        keys |= set(plan.get("kinds", {})) if isinstance(plan, Mapping) else set()
    return keys


def _entry(directory: Path) -> StageEntry:
    manifest: Mapping[str, Json] = read_sealed(directory / MANIFEST)
    used = directory / USED
    return StageEntry(
        kind=manifest["kind"],
        key=manifest["key"],
        directory=directory,
        bytes=sum(size for size, _ in manifest["files"].values()),
        files=len(manifest["files"]),
        items=manifest["items"],
        seconds=manifest["seconds"],
        created=manifest["created"],
        used=used.stat().st_mtime if used.exists() else manifest["created"],
    )


def _contents(directory: Path) -> Iterator[tuple[str, int, str]]:
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            yield path.relative_to(directory).as_posix(), path.stat().st_size, file_digest(path)


@contextmanager
def _file_lock(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    with open(path, "a") as file:
        while not try_lock(file.fileno(), path):
            waiting()
            time.sleep(_LOCK_POLL_S)
        yield


def _give_up() -> None:
    raise BlockingIOError
