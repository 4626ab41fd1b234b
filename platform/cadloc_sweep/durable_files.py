"""Files that are either as they were or as they were meant to be, and tell when they are neither."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

from cadloc.contract import CadlocError, Fault, InputError, Json, canonical, digest

CHECKSUM = "checksum"

_FULL = (errno.ENOSPC, errno.EDQUOT)


class CorruptFile(CadlocError):
    """A file's content is not what was written."""


def make_folder(folder: Path, option: str) -> None:
    """Makes the folder that a command line's option names, if need be. Raises InputError where it cannot be written.

    A full disk is no fault of the option's: that OSError goes through.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        reason = "" if os.access(folder, os.W_OK | os.X_OK) else os.strerror(errno.EACCES)
    except OSError as error:
        if error.errno in _FULL:
            raise
        reason = "it is no folder" if isinstance(error, FileExistsError) else str(error.strerror)
    if reason:
        raise InputError(Fault(option, str(folder), reason, "a folder that can be written"))


def write_aside(path: Path, text: str) -> None:
    """Replaces a file as a whole: written aside, forced to disk, renamed. Nobody ever sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}-{time.time_ns()}")
    try:
        with open(aside, "x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    force_folder(path.parent)


def force_folder(folder: Path) -> None:
    """Forces a folder's entries to disk: a rename survives a power cut only after this."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, data: Json) -> None:
    """Replaces a file by readable JSON."""
    write_aside(path, json.dumps(data, indent=1, allow_nan=False) + "\n")


def write_sealed(path: Path, data: Mapping[str, Json]) -> None:
    """Replaces a file by a JSON object with a checksum inside. Raises ValueError for numbers that are not finite."""
    write_json(path, sealed(data))


def read_sealed(path: Path) -> dict[str, Json]:
    """What `write_sealed` wrote, without the checksum. Raises CorruptFile, or OSError when it cannot be read."""
    try:
        return unsealed(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, CorruptFile) as error:
        raise CorruptFile(f"{path}: {error}") from error


def sealed(data: Mapping[str, Json]) -> dict[str, Json]:
    """The object with a checksum over its other keys."""
    return {**data, CHECKSUM: digest(data)}


def unsealed(text: str) -> dict[str, Json]:
    """The object in a text, without its checksum. Raises CorruptFile when text and checksum disagree."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorruptFile("not JSON (cut off?)") from error
    if not isinstance(data, dict) or CHECKSUM not in data:
        raise CorruptFile("no checksum in it")
    checksum = data.pop(CHECKSUM)
    try:
        matches = digest(data) == checksum
    except ValueError:
        matches = False
    if not matches:
        raise CorruptFile("its content does not match its checksum")
    return data


def append_sealed(path: Path, data: Mapping[str, Json]) -> None:
    """Appends an object with its checksum as one line, forced to disk."""
    line = canonical(sealed(data)) + "\n"
    with open(path, "ab") as file:
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def read_sealed_lines(path: Path) -> tuple[list[dict[str, Json]], int]:
    """The lines that are whole, and the number of those that are not.

    A last line without its end is damage, whatever it says: what is appended next would become part of it.
    """
    whole: list[dict[str, Json]] = []
    *lines, rest = path.read_bytes().split(b"\n")
    bad = 1 if rest else 0
    for line in lines:
        if not line:
            continue
        try:
            whole.append(unsealed(line.decode("utf-8")))
        except (CorruptFile, UnicodeDecodeError):
            bad += 1
    return whole, bad
