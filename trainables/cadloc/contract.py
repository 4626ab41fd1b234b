"""What a trial and whoever runs it agree on: errors, stages, progress. Imports nothing heavy."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol, TypeAlias

Json: TypeAlias = Any
"""A JSON value: None, bool, int, float, str, list of Json, dict of str to Json."""


class CadlocError(Exception):
    """Root of every error this project raises on purpose."""


@dataclass(frozen=True)
class Fault:
    """One thing wrong in one place of one input file."""

    file: str
    key: str
    found: str
    allowed: str
    action: str = ""
    line: int | None = None

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        text = f"{place}: {self.key}: found {self.found}; allowed: {self.allowed}"
        return f"{text}; {self.action}" if self.action else text


class InputError(CadlocError):
    """Input that cannot be used; carries every fault found, not only the first (exit code 2)."""

    def __init__(self, faults: Sequence[Fault] | Fault) -> None:
        self.faults: tuple[Fault, ...] = (faults,) if isinstance(faults, Fault) else tuple(faults)
        super().__init__("\n".join(str(fault) for fault in self.faults))

    def __reduce__(self) -> tuple[type[InputError], tuple[tuple[Fault, ...]]]:
        return (InputError, (self.faults,))


class MissingSystemLibrary(CadlocError):
    """A system library is absent; the message names it and the command that installs it (exit code 5)."""


class DivergenceError(CadlocError):
    """Training left the range in which it can recover: NaN, or a loss that explodes."""


class WorkerLost(RuntimeError):
    """Another process that has a part in a trial's training is gone: no fault of the trial's."""


@dataclass(frozen=True)
class Progress:
    """What a trial has reached: yielded at every validation, and once more at the end with `finished`."""

    step: int
    samples_seen: int
    metrics: Mapping[str, float]
    finished: bool = False


Pack: TypeAlias = Callable[[Any], Any]
"""Sends a StretchRequest to a server, waits, and returns its StretchAnswer. Raises WorkerLost."""


@dataclass(frozen=True)
class TrialContext:
    """Where a trial works: its own folder, the finished stages it asked for by role, its device.

    It may be one of several `workers` that share the trial's training, number `worker` of them: processes that are
    joined by `torch.distributed`.

    Where `pack` is given, it sends stretches of training to a server that trains many trials' heads at once
    (`cadloc.packing`). The server has the trial's accelerator then, and `device` is for everything else. Evaluation may
    use `cpus` processes.
    """

    directory: Path
    stages: Mapping[str, Path]
    device: str = "cpu"
    worker: int = 0
    workers: int = 1
    pack: Pack | None = None
    cpus: int = 1


class Trainable(Protocol):
    """A trial as a generator: it yields `Progress` as it goes; the last one is `finished`.

    It writes its artifacts below `context.directory` and nothing anywhere else. Closing the generator stops
    the trial; starting it again in the same directory resumes from the last checkpoint.

    Where training is shared it is called in every worker. Worker 0 does all of the above; the others take their parts
    of its steps, write nothing, and may wait for worker 0 for ever: its end is theirs.
    """

    def __call__(self, config: Any, context: TrialContext) -> Iterator[Progress]: ...


@dataclass(frozen=True)
class StageSpec:
    """A step whose output is stored and reused: what makes it, and what it is made from.

    `config` is the slice of the trial configuration that the output depends on (paths replaced by file
    digests are not needed here: `files` are hashed by content). `inputs` are other stages, by role.
    """

    kind: str
    code_version: str
    config: Mapping[str, Json]
    inputs: Mapping[str, StageSpec] = field(default_factory=dict)
    files: tuple[Path, ...] = ()

    @property
    def key(self) -> str:
        """Content address: 16 hex digits over kind, code version, config, input keys and file digests."""
        return digest(
            {
                "kind": self.kind,
                "code_version": self.code_version,
                "config": _without_paths(self.config),
                "inputs": {role: spec.key for role, spec in self.inputs.items()},
                "files": [content_digest(path) for path in self.files],
            }
        )


class StageBuilder(Protocol):
    """The module that makes one kind of stage. Chunks are independent and may run in parallel processes."""

    def chunks(self, config: Mapping[str, Json], inputs: Mapping[str, Path]) -> int:
        """Number of independent pieces of work; at least 1."""
        ...

    def build_chunk(self, config: Mapping[str, Json], inputs: Mapping[str, Path], directory: Path, chunk: int) -> int:
        """Makes piece `chunk` below `directory`; returns how many items (views, samples) it made."""
        ...

    def finish(self, config: Mapping[str, Json], inputs: Mapping[str, Path], directory: Path) -> None:
        """Joins the pieces; called once, after all of them."""
        ...


StageResolver: TypeAlias = Callable[[Any], Mapping[str, StageSpec]]

PATH_KEYS = frozenset({"path", "registration", "weights", "images", "reconstruction", "mapping", "validation", "query"})
"""Configuration keys that may hold a file's or folder's place: identity comes from its content, not its place."""


def canonical(value: Json) -> str:
    """JSON with sorted keys, no white space, and numbers in one spelling (1.0 and 1 are the same)."""
    return json.dumps(_plain_numbers(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Json) -> str:
    """First 16 hex digits of the SHA-256 of `canonical(value)`."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """SHA-256 of the file's content; cached by place, size and time of change."""
    stat = path.stat()
    return _file_digest(str(path), stat.st_size, stat.st_mtime_ns)


def files_below(path: Path) -> tuple[Path, ...]:
    """The file itself, or all files below a folder, sorted, through links; hidden files and folders are not content."""
    if not path.is_dir():
        return (path,)
    found: list[Path] = []
    walked: set[str] = set()
    for folder, folders, names in os.walk(path, followlinks=True):
        walked.add(os.path.realpath(folder))
        # A link back to a folder above would never end.
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and os.path.realpath(os.path.join(folder, name)) not in walked
        ]
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    return tuple(sorted(found))


def content_digest(path: Path) -> str:
    """SHA-256 of a file, or over the relative names and contents of all files below a folder."""
    if not path.is_dir():
        return file_digest(path)
    whole = hashlib.sha256()
    for place in files_below(path):
        whole.update(f"{place.relative_to(path).as_posix()}\0{file_digest(place)}\n".encode())
    return whole.hexdigest()


@cache
def _file_digest(path: str, _size: int, _mtime_ns: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def identity(config: Json) -> Json:
    """The configuration with every file's place replaced by its content's digest: what a trial *is*."""
    if isinstance(config, Mapping):
        return {key: _path_identity(key, value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [identity(item) for item in config]
    return config


def _path_identity(key: str, value: Json) -> Json:
    if key in PATH_KEYS and isinstance(value, str) and "/" in value and Path(value).exists():
        return f"sha256:{content_digest(Path(value))}"
    return identity(value)


def _without_paths(config: Json) -> Json:
    if isinstance(config, Mapping):
        return {
            key: ("*" if key in PATH_KEYS and isinstance(value, str) and "/" in value else _without_paths(value))
            for key, value in config.items()
        }
    if isinstance(config, list | tuple):
        return [_without_paths(item) for item in config]
    return config


def _plain_numbers(value: Json) -> Json:
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    if isinstance(value, Mapping):
        return {str(key): _plain_numbers(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_numbers(item) for item in value]
    return value
