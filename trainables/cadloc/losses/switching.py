"""Coordinates first, reprojection then: a coarse start from the CAD model, a precise end from the images."""

from __future__ import annotations

from typing import assert_never

from cadloc.config import SwitchingLoss
from cadloc.losses.coordinate import CoordinatePhase
from cadloc.losses.reprojection import ReprojectionPhase


def switching_phase(config: SwitchingLoss, progress: float) -> CoordinatePhase | ReprojectionPhase:
    """The loss in force at `progress` in [0, 1] of the run."""
    if progress < config.at:
        return CoordinatePhase()
    match config.schedule:
        case "reset":
            return ReprojectionPhase(config.reprojection, (progress - config.at) / (1 - config.at))
        case "continue":
            return ReprojectionPhase(config.reprojection, progress)
        case _:
            assert_never(config.schedule)
