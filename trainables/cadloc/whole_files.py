"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

DAMAGED = ".damaged"
"""Ending of files that were set aside."""


def write_bytes(path: Path, content: bytes) -> None:
    """Writes aside and renames: a reader finds the old file or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_bytes(content)
    os.replace(aside, path)


def set_aside(path: Path) -> Path:
    """Renames a file that is of no use to NAME.damaged, in place of an older one of that name; returns the new place.

    So nothing is written over it before somebody could look at it.
    """
    aside = path.with_name(path.name + DAMAGED)
    os.replace(path, aside)
    return aside
