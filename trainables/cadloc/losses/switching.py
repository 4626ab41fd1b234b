"""Coordinates first, reprojection then: a coarse start from the CAD model, a precise end from the images."""

from __future__ import annotations

from typing import assert_never

from cadloc.loss_config import SwitchingLoss
from cadloc.losses.coordinate import CoordinatePhase
from cadloc.losses.reprojection import ReprojectionPhase
from cadloc.samples import SceneScale


def switching_phase(config: SwitchingLoss, progress: float, scale: SceneScale) -> CoordinatePhase | ReprojectionPhase:
    """The loss in force at `progress` in [0, 1] of the run; with `reset`, each side has a course of its own."""
    if progress < config.at:
        return CoordinatePhase(config.coordinate, _course(config, progress, 0.0, config.at), scale)
    return ReprojectionPhase(config.reprojection, _course(config, progress, config.at, 1.0))


def _course(config: SwitchingLoss, progress: float, start: float, end: float) -> float:
    """Progress of the thresholds of the side that acts from `start` to `end`."""
    match config.schedule:
        case "reset":
            return (progress - start) / (end - start)
        case "continue":
            return progress
        case _:
            assert_never(config.schedule)
