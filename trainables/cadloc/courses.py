"""What a run does at each of its steps, as far as its settings alone say. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from cadloc.loss_config import (
    CoordinateLoss,
    FadeLoss,
    LateralRadialLoss,
    LossConfig,
    PerSampleSwitchLoss,
    ReprojectionLoss,
    SwitchingLoss,
    UncertainCoordinateLoss,
)
from cadloc.pacing import Pace
from cadloc.training_config import TrainingConfig

FALLING = frozenset({"dyntanh", "geman_mcclure", "barron"})
"""Kernels whose threshold follows the run's progress; the others keep their largest (`cadloc.losses.kernels`)."""


class Moment(NamedTuple):
    """All that tells a step of one run from that of another on the same samples, from the same weights.

    `progress` is 0 where the loss acts alike all along; `validated` says whether a milestone follows the step.
    """

    loss: LossConfig
    progress: float
    learning_rate: float
    validated: bool


class Course:
    """The steps of a run that does not stop early, under one loss and one group of training settings."""

    def __init__(self, loss: LossConfig, training: TrainingConfig) -> None:
        self.loss, self.training = loss, training
        self.steps = training.iterations
        self._pace = Pace(training, loss)
        self._milestones = frozenset(milestones(training, self.steps))

    def at(self, step: int) -> Moment | None:
        """Step `step`, counted from 0; None after the last."""
        if step >= self.steps:
            return None
        loss, progress = acting(self.loss, self._pace.progress(step))
        loss, moves = _without_idle_settings(loss)
        return Moment(loss, progress if moves else 0.0, self._pace.learning_rate(step), step + 1 in self._milestones)

    def agrees(self, other: Course, until: int) -> bool:
        """Whether two runs do the same in all steps before `until`."""
        return all(self.at(step) == other.at(step) for step in range(until))


def milestones(training: TrainingConfig, end: int) -> Sequence[int]:
    """Steps after which a head is validated: evenly spread over the iterations, and the `end` of the run."""
    count = min(training.validations, training.iterations)
    spread = (training.iterations * (i + 1) // count for i in range(count))
    return [*(step for step in spread if step < end), end]


def acting(loss: LossConfig, progress: float) -> tuple[LossConfig, float]:
    """The loss in force at `progress` in [0, 1] of a run, and its own progress: composed losses taken apart.

    `cadloc.losses.phase_at` says the same of both.
    """
    if isinstance(loss, SwitchingLoss):
        before = progress < loss.at
        start, end = (0.0, loss.at) if before else (loss.at, 1.0)
        own = (progress - start) / (end - start) if loss.schedule == "reset" else progress
        return (loss.coordinate if before else loss.reprojection), own
    if isinstance(loss, FadeLoss) and progress >= loss.over:
        return loss.reprojection, progress
    return loss, progress


@cache
def _without_idle_settings(loss: LossConfig) -> tuple[LossConfig, bool]:
    """An acting loss with settings that it does not read at their defaults, and whether it reads the progress."""
    match loss:
        case FadeLoss():
            return loss.model_copy(update={"reprojection": _without_idle_settings(loss.reprojection)[0]}), True
        case PerSampleSwitchLoss():
            inner, moves = _without_idle_settings(loss.reprojection)
            return loss.model_copy(update={"reprojection": inner}), moves
        case CoordinateLoss(kernel="none"):
            return CoordinateLoss(measure=loss.measure), False
        case LateralRadialLoss(kernel="none"):
            return LateralRadialLoss(kernel="none", radial=loss.radial), False
        case UncertainCoordinateLoss() | SwitchingLoss():
            return loss, False
        case ReprojectionLoss() | CoordinateLoss() | LateralRadialLoss():
            return loss if (moves := loss.kernel in FALLING) else _without_course(loss), moves


def _without_course(loss: ReprojectionLoss | CoordinateLoss | LateralRadialLoss) -> LossConfig:
    smallest = "smallest_px" if isinstance(loss, CoordinateLoss) else "soft_clamp_min_px"
    defaults = type(loss).model_fields
    return loss.model_copy(update={key: defaults[key].default for key in ("course", smallest)})
