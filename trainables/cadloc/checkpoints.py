"""Checkpoints of training loops: read whole, or taken for absent when a crash cut them off."""

from __future__ import annotations

import logging
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

_LOG = logging.getLogger(__name__)


def read_checkpoint(path: Path, device: str | torch.device) -> dict[str, Any] | None:
    """What `torch.save` wrote to `path`; None where there is no file, or one cut off by a crash (that is logged).

    Tensors and plain values only: a file with code in it is not run, and counts as damaged.
    """
    if not path.is_file():
        return None
    try:
        stored: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, OSError, UnpicklingError) as error:
        _LOG.warning("%s cannot be read (%s): begun anew", path, str(error).split("\n")[0])
        return None
    return stored
