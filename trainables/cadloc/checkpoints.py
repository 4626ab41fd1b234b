"""Checkpoints of training loops: read whole, or set aside where a crash or a bad disk damaged them."""

from __future__ import annotations

import io
import logging
import struct
import zlib
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch

from cadloc.whole_files import set_aside

_LOG = logging.getLogger(__name__)
_READER = "PytorchStreamReader"
"""How torch begins what it says of the archive, and only that; it has one type of error for all that can happen."""


def read_checkpoint(path: Path) -> dict[str, Any] | None:
    """What `torch.save` wrote to `path`; None where there is no file, or a damaged one, which is logged and set aside.

    Damaged is what is cut off, differs from its own check sums, is no checkpoint, or has code in it (which is not
    run: tensors and plain values only). All else says nothing against the file and is raised, OSError where it may
    not be read and what torch raises for want of memory: the work in it is not lost.

    Tensors are on the CPU; modules and optimizers copy them to where their own are.
    """
    if not path.is_file():
        return None
    content = path.read_bytes()
    try:
        _check_sums(content)
        stored: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (BadZipFile, UnpicklingError, ValueError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not str(error).startswith(_READER):
            raise
        told = str(error).split("\n")[0]
        _LOG.warning("%s cannot be read (%s): begun anew; it is kept as %s", path, told, set_aside(path).name)
        return None
    return stored


def _check_sums(content: bytes) -> None:
    """Reads every member: torch itself takes changed bytes of a tensor for its values. Raises BadZipFile."""
    try:
        with ZipFile(io.BytesIO(content)) as members:
            damaged = members.testzip()
    except (ValueError, EOFError, RuntimeError, zlib.error, struct.error) as error:  # of headers that are nonsense
        raise BadZipFile(str(error)) from error
    if damaged is not None:
        raise BadZipFile(f"{damaged} differs from its check sum")
