"""Between reprojection error and depth-normalised distance: one knob says what errors along the viewing ray cost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cadloc.loss_config import LateralRadialLoss, ReprojectionLoss
from cadloc.losses.coordinate import NEAREST_M, normalised_errors_px, pixels_per_metre
from cadloc.losses.kernels import Clamp, Moment, robust
from cadloc.losses.phase import Evidence, Prediction, Unit, mean_where
from cadloc.losses.reprojection import project
from cadloc.samples import Batch

_LIMITS = ReprojectionLoss(norm="l2")
"""Which predictions are invalid."""


def lateral_radial_errors_px(coordinates: Tensor, batch: Batch, radial: float) -> Tensor:
    """Errors (B,) of coordinates (B, 3) in `cad`, `radial` in [0, 1] (`LateralRadialLoss`), in pixels.

    The lateral part is the derivative of the projection at the true point, applied to the difference.
    """
    truth_cam = batch.in_camera(batch.targets)
    difference_cam = batch.in_camera(coordinates) - truth_cam
    depth_m = batch.depth_m.clamp(min=NEAREST_M)[:, None]
    across = (difference_cam[:, :2] - truth_cam[:, :2] / depth_m * difference_cam[:, 2:]) / depth_m
    lateral_px = torch.einsum("bij,bj->bi", batch.intrinsics[:, :2, :2], across)
    distance_px = difference_cam * pixels_per_metre(batch)[:, None]
    # One norm of all five components: a sum of squared norms under a root has no gradient at zero.
    components = torch.cat([math.sqrt(1 - radial * radial) * lateral_px, radial * distance_px], dim=1)
    errors: Tensor = torch.linalg.vector_norm(components, dim=1)
    return errors


@dataclass(frozen=True)
class LateralRadialPhase:
    """Mean over the samples whose coordinate is known, in pixels.

    Predictions that reprojection with its default limits calls invalid cost the depth-normalised distance: the
    lateral error of a point behind the camera may be nought.
    """

    config: LateralRadialLoss
    progress: Moment
    unit: ClassVar[Unit] = "px"
    evidence: ClassVar[Evidence] = "points"

    def loss(self, predicted: Prediction, batch: Batch) -> Tensor:
        """Mean over the known samples, 0 where there is none: a scalar in pixels."""
        config, coordinates = self.config, predicted.coordinates
        clamp = Clamp(config.kernel, config.course, config.soft_clamp_px, config.soft_clamp_min_px)
        losses = robust(lateral_radial_errors_px(coordinates, batch, config.radial), clamp, self.progress)
        valid = project(coordinates, batch, _LIMITS).valid
        return mean_where(
            torch.where(valid, losses, normalised_errors_px(coordinates, batch)), batch.known, batch.workers
        )
