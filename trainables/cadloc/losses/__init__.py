"""Losses: how wrong a predicted scene coordinate is, and what may be known to say so."""

from __future__ import annotations

from typing import assert_never

from cadloc.config import CoordinateLoss, LossConfig, ReprojectionLoss, SwitchingLoss
from cadloc.losses.coordinate import CoordinatePhase
from cadloc.losses.phase import Phase
from cadloc.losses.reprojection import ReprojectionPhase
from cadloc.losses.switching import switching_phase

YARDSTICKS: tuple[Phase, ...] = (CoordinatePhase(), ReprojectionPhase(ReprojectionLoss(), 0.0))
"""One fixed loss per unit, by which every arm's convergence is measured, whatever it trains on: the mean distance,
and the reprojection error at its widest clamp (the schedule's narrowing alone would make a curve fall)."""


def phase_at(config: LossConfig, progress: float) -> Phase:
    """The loss in force at `progress` in [0, 1] of the run, its schedules resolved."""
    match config:
        case ReprojectionLoss():
            return ReprojectionPhase(config, progress)
        case CoordinateLoss():
            return CoordinatePhase()
        case SwitchingLoss():
            return switching_phase(config, progress)
        case _:
            assert_never(config)
