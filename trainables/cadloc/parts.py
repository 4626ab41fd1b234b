"""Stored arrays made piece by piece: every chunk leaves a part, the parts are joined in order."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def write_part(directory: Path, chunk: int, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Stores a chunk's arrays, to be joined along their first axis by `join_parts`."""
    part = _part(directory, chunk)
    part.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        np.save(part / f"{name}.npy", array)


def join_parts(directory: Path, count: int, names: Sequence[str]) -> None:
    """Concatenates the parts of each array into `directory/NAME.npy`, one part in memory at a time; removes them."""
    for name in names:
        parts = [np.load(_part(directory, chunk) / f"{name}.npy", mmap_mode="r") for chunk in range(count)]
        shape = (sum(len(part) for part in parts), *parts[0].shape[1:])
        joined = np.lib.format.open_memmap(directory / f"{name}.npy", "w+", parts[0].dtype, shape)
        starts = np.cumsum([0, *(len(part) for part in parts)])
        for start, part in zip(starts[:-1], parts, strict=True):
            joined[start : start + len(part)] = part
        joined.flush()
    shutil.rmtree(directory / "parts")


def _part(directory: Path, chunk: int) -> Path:
    return directory / "parts" / f"{chunk:05d}"
