"""Files of a pre-training run that outlive a power cut: forced to disk before they get their names."""

from __future__ import annotations

import os
from pathlib import Path


def write_forced(path: Path, content: bytes) -> None:
    """Replaces a file as a whole: whatever is killed, whenever, the old one or the new one is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.partial")
    aside.write_bytes(content)
    _force(aside)
    aside.replace(path)
    _force(path.parent)


def publish_folder(aside: Path, folder: Path) -> None:
    """Gives a folder of files that are all written its name; then it is there for good."""
    for path in (*sorted(aside.iterdir()), aside):
        _force(path)
    aside.replace(folder)
    _force(folder.parent)


def _force(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
