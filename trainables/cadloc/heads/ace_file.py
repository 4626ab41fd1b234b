"""ACE's head file: the state dict that ACE, and what grew from it, keeps a map in, and our head; both ways.

Facts of the format are from ACE's public documentation and code (Brachmann et al., CVPR 2023). ACE halves every
tensor of the file. Here the read-out (last layer, centre, scales) stays in float32, as a centre in half precision
is off by centimetres at 50 m, by metres at 5 km, and infinite beyond 65,504 m; ACE's own reader takes either.
"""

from __future__ import annotations

import io
import math
import re
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from cadloc.contract import Fault, InputError
from cadloc.encoders.ace import read_state_dict
from cadloc.encoders.weights_file import check_fits
from cadloc.head_config import AceHead
from cadloc.heads import build
from cadloc.heads.ace import AcePerceptron
from cadloc.heads.perceptron import LARGEST_SCALE, SMALLEST_SCALE
from cadloc.whole_files import write_bytes

KEY = "map"

ACE_WIDTH = 512
"""The only width that ACE's own code builds."""

SCALES = {
    "max_scale": LARGEST_SCALE,
    "min_scale": SMALLEST_SCALE,
    "max_inv_scale": 1 / LARGEST_SCALE,
    "h_beta": math.log(2) / (1 - 1 / LARGEST_SCALE),
    "min_inv_scale": 1 / SMALLEST_SCALE,
}
"""Constants of the homogeneous read-out, which ACE keeps in the file, each of shape (1,)."""

_SCALE_TOLERANCE = 5e-3
"""Relative: the rounding of any half precision, and less than any change made on purpose."""

_READ_OUT = ("fc3.", "mean", *SCALES)
"""Beginnings of the names that stay float32."""

_SKIP, _CENTRE = "trunk.skip", "centre"
_GLACE = ("centers", "fcc.")


@dataclass(frozen=True, eq=False)
class AceFile:
    """What a head file holds: the head, float32, its settings, and how far rounding may have moved its centre."""

    head: AcePerceptron
    config: AceHead
    centre_rounding_m: float


def write_ace_head(path: Path, head: AcePerceptron, *, float32: bool = False) -> None:
    """Writes the head under ACE's names and shapes; half precision but for the read-out, unless all is `float32`.

    The same head gives the same bytes. Raises InputError for weights that are not finite in half precision.
    """
    content = io.BytesIO()
    torch.save(_stored(path, ace_state(head), float32), content)
    write_bytes(path, content.getvalue())


def read_ace_head(path: Path, dimensions: int | None = None) -> AceFile:
    """The head of a file of ACE's: a head's state dict, or a whole regressor's (its `heads.` part).

    `dimensions` is what the encoder to be used says per cell, where one is known. Raises InputError with every
    fault: of the file, of its names, shapes and numbers, of a scale other than ACE's, of an encoder it does not fit.
    """
    state = _head_part(_read(path))
    if any(name.startswith(_GLACE) for name in state):
        raise InputError(Fault(str(path), KEY, "a head of GLACE's, with clustered centres", "ACE's head, one centre"))
    config, inputs = _architecture(path, state)
    faults = _faults(path, state, config, inputs)
    if dimensions is not None and inputs != dimensions:
        action = "a head reads the features it was trained on only"
        faults.append(Fault(str(path), KEY, f"{inputs} features per cell", f"the encoder's {dimensions}", action))
    if faults:
        raise InputError(faults)
    return AceFile(_head(state, config, inputs), config, _rounding_m(state["mean"]))


def ace_state(head: AcePerceptron) -> dict[str, Tensor]:
    """Tensors of a head by ACE's names, float32: weights (out, in, 1, 1), biases (out,), `mean` (1, 3, 1, 1)."""
    ours = head.state_dict()
    state: dict[str, Tensor] = {}
    for our, ace in _layers(len(head.trunk.blocks), f"{_SKIP}.weight" in ours).items():
        state[f"{ace}.weight"] = ours[f"{our}.weight"][:, :, None, None]
        state[f"{ace}.bias"] = ours[f"{our}.bias"]
    state["mean"] = ours[_CENTRE].reshape(1, 3, 1, 1)
    if state["fc3.bias"].shape[0] == 4:
        state |= {name: torch.full((1,), value) for name, value in SCALES.items()}
    return {name: value.detach().float() for name, value in state.items()}


# --- our names and ACE's ----------------------------------------------------------------------------------


def _layers(blocks: int, skip: bool) -> dict[str, str]:
    """ACE's name of each of our linear layers."""
    names = {f"trunk.first.{2 * layer}": f"res3_conv{layer + 1}" for layer in range(3)}
    for block in range(blocks):
        names |= {f"trunk.blocks.{block}.{2 * layer}": f"{block}c{layer}" for layer in range(3)}
    names |= {"trunk.last.0": "fc1", "trunk.last.2": "fc2", "read_out": "fc3"}
    return {_SKIP: "head_skip", **names} if skip else names


def _architecture(path: Path, state: Mapping[str, Tensor]) -> tuple[AceHead, int]:
    """The head's settings and the number of features it reads, as the shapes tell; ACE's own where they are missing."""
    blocks = sum(bool(re.fullmatch(r"\d+c0\.weight", name)) for name in state)
    width = _side(state, "fc1.weight", 0, ACE_WIDTH)
    homogeneous = _side(state, "fc3.weight", 0, 4) != 3
    try:
        config = AceHead(width=width, blocks=blocks, homogeneous=homogeneous)
    except ValidationError as error:
        told = [Fault(str(path), KEY, f"{e['loc'][0]} {e['input']}", e["msg"]) for e in error.errors()]
        raise InputError(told) from error
    return config, _side(state, "res3_conv1.weight", 1, ACE_WIDTH)


def _side(state: Mapping[str, Tensor], name: str, axis: int, otherwise: int) -> int:
    tensor = state.get(name)
    return otherwise if tensor is None or tensor.ndim != 4 else int(tensor.shape[axis])


def _head(state: Mapping[str, Tensor], config: AceHead, inputs: int) -> AcePerceptron:
    head = _built(config, inputs)
    ours = head.state_dict()
    for our, ace in _layers(config.blocks, f"{_SKIP}.weight" in ours).items():
        ours[f"{our}.weight"] = state[f"{ace}.weight"][:, :, 0, 0].float()
        ours[f"{our}.bias"] = state[f"{ace}.bias"].float()
    ours[_CENTRE] = state["mean"].reshape(3).float()
    head.load_state_dict(ours)
    return head.eval()


def _built(config: AceHead, inputs: int) -> AcePerceptron:
    head = build(config, inputs, seed=0)
    assert isinstance(head, AcePerceptron)
    return head


# --- what may be wrong with a file ------------------------------------------------------------------------


def _read(path: Path) -> dict[str, Tensor]:
    """The file's tensors; whatever cannot be read as such is one InputError, under this file's key."""
    try:
        state = read_state_dict(path)
    except InputError as error:
        raise InputError([replace(fault, key=KEY) for fault in error.faults]) from error
    if zipfile.is_zipfile(path) and _damaged_member(path) is not None:  # torch takes changed bytes for values
        found = "content that differs from its check sum"
        raise InputError(Fault(str(path), KEY, found, "a head saved with torch.save"))
    return state


def _damaged_member(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as members:
            return members.testzip()
    except (zipfile.BadZipFile, EOFError, RuntimeError, zlib.error) as error:
        return str(error)


def _head_part(state: dict[str, Tensor]) -> dict[str, Tensor]:
    part = {name.removeprefix("heads."): value for name, value in state.items() if name.startswith("heads.")}
    return part or state


def _faults(path: Path, state: Mapping[str, Tensor], config: AceHead, inputs: int) -> list[Fault]:
    with torch.device("meta"):  # shapes only: those of the file may be of any size
        wanted = ace_state(_built(config, inputs))
    faults: list[Fault] = []
    try:
        check_fits(path, state, wanted)
    except InputError as error:
        faults += [replace(fault, key=KEY) for fault in error.faults]
    fitting = {name: state[name] for name in wanted if name in state and state[name].shape == wanted[name].shape}
    faults += [fault for name, value in fitting.items() if (fault := _number_fault(path, name, value)) is not None]
    return faults


def _number_fault(path: Path, name: str, value: Tensor) -> Fault | None:
    """What is wrong with the numbers of a tensor of the right shape; None where they can be used."""
    if value.layout is not torch.strided or not value.is_floating_point():
        return Fault(str(path), KEY, f"{name} of {value.layout} {value.dtype}", "dense floating point numbers")
    if not value.isfinite().all():
        of_centre = "the scene is too far from its origin for half precision: train it near the origin"
        return Fault(str(path), KEY, f"{name} not finite", "finite numbers", of_centre if name == "mean" else "")
    scale = SCALES.get(name)
    if scale is not None and not math.isclose(value.item(), scale, rel_tol=_SCALE_TOLERANCE):
        return Fault(str(path), KEY, f"{name} {value.item():g}", f"{scale:g}, as ACE trains")
    return None


def _rounding_m(centre: Tensor) -> float:
    """Length of the largest error that rounding (3,) numbers to their type can make."""
    magnitudes = centre.double().abs().clamp(min=torch.finfo(centre.dtype).tiny)
    halves = 2.0 ** magnitudes.log2().floor() * torch.finfo(centre.dtype).eps / 2
    return float(halves.norm())


def _stored(path: Path, state: Mapping[str, Tensor], float32: bool) -> dict[str, Tensor]:
    """The tensors as the file holds them. Raises InputError where one is not finite there."""
    stored = {
        name: (value if float32 or name.startswith(_READ_OUT) else value.half()).cpu().contiguous()
        for name, value in state.items()
    }
    faults = [
        Fault(
            str(path),
            KEY,
            f"{name} not finite",
            "finite weights" if float32 else "weights within ±65,504, or --float32",
        )
        for name, value in stored.items()
        if not value.isfinite().all()
    ]
    if faults:
        raise InputError(faults)
    return stored
