"""What a client and its server send each other: a stretch of training, whole, and what came of it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from cadloc.config import TrialConfig
from cadloc.contract import CadlocError, WorkerLost
from cadloc.stretch import Progression, Stretch


@dataclass(frozen=True)
class StretchRequest:
    """Steps to take up to `milestone`, from a `state` that `packed` gave; `stages` are the trial's, by role.

    `alone`: not together with others, because a step of theirs failed.
    """

    config: TrialConfig
    stages: Mapping[str, Path]
    state: bytes
    milestone: int
    alone: bool = False


@dataclass(frozen=True)
class StretchAnswer:
    """Where the stretch ended, and the error that ended it, if one did: InputError leaves the state as it was sent.

    An empty state is the one that was sent, too. WorkerLost is no fault of the stretch's, and asks for it `alone`.
    """

    state: bytes
    error: CadlocError | WorkerLost | None = None


def packed(stretch: Stretch) -> bytes:
    """Head, optimizer, progression and window of a stretch: tensors and plain values only, and nobody else's."""
    content = io.BytesIO()
    progression = vars(stretch.progression)
    window = stretch.window.state()
    torch.save(_by_itself({**stretch.learner.state(), "progression": progression, "window": window}), content)
    return content.getvalue()


def _by_itself(value: Any) -> Any:
    """The same, its tensors on the CPU and none of them a view: of a row of a pack, all rows would be saved."""
    match value:
        case torch.Tensor():
            here = value.cpu()
            return here.clone() if here.untyped_storage().nbytes() > here.nbytes else here
        case Mapping():
            return {key: _by_itself(each) for key, each in value.items()}
        case list():
            return [_by_itself(each) for each in value]
        case _:
            return value


def unpacked(state: bytes) -> dict[str, Any]:
    """What `packed` gave, on the CPU. Raises CadlocError for anything else; no code in it is run."""
    try:
        stored: dict[str, Any] = torch.load(io.BytesIO(state), map_location="cpu", weights_only=True)
    except (UnpicklingError, ValueError, RuntimeError, EOFError) as error:
        raise CadlocError(f"a stretch's state of {len(state)} bytes cannot be read: {error}") from error
    if missing := {"head", "optimizer", "progression", "window"} - stored.keys():
        raise CadlocError(f"a stretch's state lacks {', '.join(sorted(missing))}")
    return stored


def take_up(stretch: Stretch, stored: Mapping[str, Any]) -> None:
    """Puts learner, progression and window of a stretch where `unpacked` says, in place."""
    told = Progression(**stored["progression"])
    vars(stretch.progression).update(vars(told))
    stretch.learner.take_up(stored, told.cooling_from)
    stretch.window.take_up(stored["window"])
    stretch.step = told.step
