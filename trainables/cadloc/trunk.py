"""The stage `trunk`: the first steps of training, taken once for all trials that begin with them.

Inputs: those of the trials' stages that training and validation read, and the trunk before it, if there is one, as
`trunk`. It leaves a checkpoint, in the middle of things, and the history until there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from cadloc.config import TrialConfig
from cadloc.contract import Fault, InputError, Json, TrialContext
from cadloc.glace import ImagesTold
from cadloc.head_config import GlaceHead
from cadloc.regression import NothingTold, Told, train_trunk


def chunks(config: Mapping[str, Json], inputs: Mapping[str, Path]) -> int:
    """One: each step builds on the one before."""
    return 1


def build_chunk(config: Mapping[str, Json], inputs: Mapping[str, Path], directory: Path, chunk: int) -> int:
    """Trains to the step `until`, going on from a checkpoint below `directory`; returns the number of the step.

    Raises InputError for a device that is not there, and for samples too few for the head or a batch.
    """
    if config["device"] == "cuda" and not torch.cuda.is_available():
        raise InputError(Fault("the space", "resources.gpu", "a GPU asked for, and none here", "0"))
    trial = TrialConfig.model_validate(config["trial"])
    context = TrialContext(directory, inputs, config["device"])
    until: int = config["until"]
    train_trunk(trial, context, _told(trial, context), until)
    return until


def finish(config: Mapping[str, Json], inputs: Mapping[str, Path], directory: Path) -> None:
    """Nothing is left to do."""


def _told(trial: TrialConfig, context: TrialContext) -> Told:
    if isinstance(trial.head, GlaceHead) and trial.head.global_features is not None:
        return ImagesTold(trial.head, trial, context)
    return NothingTold()
