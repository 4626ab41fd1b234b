"""Reprojection with a 3D prior that fades: the CAD model shows where to begin, the images where to end."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cadloc.loss_config import FadeLoss
from cadloc.losses.coordinate import coordinate_errors_m, pixels_per_metre
from cadloc.losses.kernels import Moment
from cadloc.losses.phase import Evidence, Prediction, Unit
from cadloc.losses.reprojection import ReprojectionPhase, privileged_reprojection_losses
from cadloc.samples import Batch


def fade_weight(config: FadeLoss, progress: Moment) -> Moment:
    """Weight of the prior at `progress` in [0, 1]: half a cosine from `weight` at the start to 0 at `over`."""
    if isinstance(progress, Tensor):
        return config.weight * 0.5 * (1 + torch.cos(math.pi * (progress / config.over).clamp(max=1.0)))
    return config.weight * 0.5 * (1 + math.cos(math.pi * min(1.0, progress / config.over)))


def prior_px(coordinates: Tensor, batch: Batch, config: FadeLoss) -> Tensor:
    """Distances (B,) beyond the margin, as pixels at the true depth; 0 where no coordinate is known."""
    margin_m = (config.margin_pct / 100 * batch.depth_m).clamp(min=config.margin_m)
    beyond_m = (coordinate_errors_m(coordinates, batch) - margin_m).clamp(min=0.0)
    return (beyond_m * pixels_per_metre(batch)).where(batch.known, 0.0)


@dataclass(frozen=True)
class FadePhase:
    """Mean of the reprojection error and the weighted prior over the batch, in pixels, while the prior acts."""

    config: FadeLoss
    progress: Moment
    unit: ClassVar[Unit] = "px"
    evidence: ClassVar[Evidence] = "points"

    def loss(self, predicted: Prediction, batch: Batch) -> Tensor:
        """Mean over the batch, a scalar in pixels."""
        coordinates = predicted.coordinates
        losses = privileged_reprojection_losses(coordinates, batch, self.config.reprojection, self.progress)
        weight = fade_weight(self.config, self.progress)
        return (losses + weight * prior_px(coordinates, batch, self.config)).mean()


def fading_phase(config: FadeLoss, progress: float) -> FadePhase | ReprojectionPhase:
    """The loss in force at `progress` in [0, 1] of the run: from `over` on plain reprojection, from poses only."""
    if progress < config.over:
        return FadePhase(config, progress)
    return ReprojectionPhase(config.reprojection, progress)
