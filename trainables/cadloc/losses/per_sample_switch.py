"""DSAC*'s switch: each sample goes from distance to reprojection error when its prediction has come near enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cadloc.loss_config import PerSampleSwitchLoss
from cadloc.losses.coordinate import coordinate_errors_m, normalised_errors_px, pixels_per_metre
from cadloc.losses.kernels import Moment
from cadloc.losses.phase import Evidence, Prediction, Unit, mean_where
from cadloc.losses.reprojection import clamped_px, project
from cadloc.samples import Batch


def far_off(coordinates: Tensor, batch: Batch, config: PerSampleSwitchLoss) -> Tensor:
    """Whether coordinates (B, 3) are farther from the true ones than `within_m` and than `within_px` span, (B,)."""
    within_m = (config.within_px / pixels_per_metre(batch)).clamp(min=config.within_m)
    return coordinate_errors_m(coordinates, batch) > within_m


@dataclass(frozen=True)
class PerSampleSwitchPhase:
    """Mean over the samples that have a known coordinate or a valid projection, in pixels."""

    config: PerSampleSwitchLoss
    progress: Moment
    unit: ClassVar[Unit] = "px"
    evidence: ClassVar[Evidence] = "points"

    def loss(self, predicted: Prediction, batch: Batch) -> Tensor:
        """Mean over the samples that count, 0 where none does: a scalar in pixels."""
        config, coordinates = self.config, predicted.coordinates
        projection = project(coordinates, batch, config.reprojection)
        by_distance = batch.known & (far_off(coordinates, batch, config) | ~projection.valid)
        losses = torch.where(
            by_distance,
            normalised_errors_px(coordinates, batch),
            clamped_px(projection, config.reprojection, self.progress),
        )
        return mean_where(losses, batch.known | projection.valid, batch.workers)
