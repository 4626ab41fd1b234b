"""Losses: how wrong a predicted scene coordinate is, and what may be known to say so."""

from __future__ import annotations

from typing import assert_never

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
from cadloc.losses.coordinate import CoordinatePhase
from cadloc.losses.fade import fading_phase
from cadloc.losses.lateral_radial import LateralRadialPhase
from cadloc.losses.per_sample_switch import PerSampleSwitchPhase
from cadloc.losses.phase import Phase
from cadloc.losses.reprojection import ReprojectionPhase
from cadloc.losses.switching import switching_phase
from cadloc.losses.uncertain_coordinate import UncertainCoordinatePhase
from cadloc.samples import SceneScale

YARDSTICKS: tuple[Phase, ...] = (CoordinatePhase(), ReprojectionPhase(ReprojectionLoss(), 0.0))
"""One fixed loss per unit, by which every arm's convergence is measured, whatever it trains on: the mean distance
of what is known, and the reprojection error at its widest clamp (the schedule's narrowing alone would make a curve
fall)."""


def phase_at(config: LossConfig, progress: float, scale: SceneScale) -> Phase:
    """The loss in force at `progress` in [0, 1] of the run in a scene of the given scale, its schedules resolved."""
    match config:
        case ReprojectionLoss():
            return ReprojectionPhase(config, progress)
        case CoordinateLoss():
            return CoordinatePhase(config, progress, scale)
        case LateralRadialLoss():
            return LateralRadialPhase(config, progress)
        case FadeLoss():
            return fading_phase(config, progress)
        case SwitchingLoss():
            return switching_phase(config, progress, scale)
        case PerSampleSwitchLoss():
            return PerSampleSwitchPhase(config, progress)
        case UncertainCoordinateLoss():
            return UncertainCoordinatePhase(config)
        case _:
            assert_never(config)
