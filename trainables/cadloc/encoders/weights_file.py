"""Faults of weight files, in one wording."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from cadloc.contract import Fault, InputError

KEY = "encoder.weights"


def fault(path: Path, found: str, allowed: str, action: str = "") -> InputError:
    """The error to raise for a weight file that cannot be used."""
    return InputError(Fault(str(path), KEY, found, allowed, action))


def check_fits(path: Path, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Raises InputError, one fault per name or shape that differs between the file and the architecture."""
    faults = [
        Fault(str(path), KEY, f"no {name}", f"{name} of shape {tuple(wanted[name].shape)}")
        for name in sorted(wanted.keys() - found.keys())
    ]
    faults += [
        Fault(str(path), KEY, f"unknown name {name}", f"the architecture's {len(wanted)} names")
        for name in sorted(found.keys() - wanted.keys())
    ]
    faults += [
        Fault(str(path), KEY, f"{name} of shape {tuple(found[name].shape)}", f"shape {tuple(wanted[name].shape)}")
        for name in sorted(wanted.keys() & found.keys())
        if found[name].shape != wanted[name].shape
    ]
    if faults:
        raise InputError(faults)
