"""ACE's reprojection error: where the predicted point appears in the image, against where it was seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cadloc.config import ReprojectionLoss
from cadloc.losses.phase import Evidence, Unit
from cadloc.samples import Batch
from cadloc.schedules import circle


def soft_clamp_px(config: ReprojectionLoss, progress: float) -> float:
    """Error beyond which the loss saturates, at `progress` in [0, 1] of its phase."""
    return circle(progress, config.soft_clamp_px, config.soft_clamp_min_px)


def reprojection_losses(coordinates: Tensor, batch: Batch, config: ReprojectionLoss, clamp_px: float) -> Tensor:
    """Losses (B,) of coordinates (B, 3) in `cad` (ACE, section 3.4 and supplement).

    Valid predictions cost `clamp · tanh(error / clamp)` of the L1 pixel error. Those too close, too far or more
    than the hard clamp away cost their L1 distance in `cam` to a point on the pixel's ray at the target depth,
    which has a gradient where the projection has none. Both are computed for all and chosen by `where`: no
    boolean indexing, hence no wait for the device.
    """
    points_cam = batch.in_camera(coordinates)
    depth_m = points_cam[:, 2]
    in_front = points_cam / depth_m.clamp(min=config.depth_min_m)[:, None]
    pixels = torch.einsum("bij,bj->bi", batch.intrinsics[:, :2], in_front)
    error_px = (pixels - batch.pixels).abs().sum(dim=1)
    valid = (depth_m >= config.depth_min_m) & (depth_m <= config.depth_max_m) & (error_px <= config.hard_clamp_px)
    target_cam = config.depth_target_m * batch.rays_cam
    to_target_m = (points_cam - target_cam).abs().sum(dim=1)
    return torch.where(valid, clamp_px * torch.tanh(error_px / clamp_px), to_target_m)


@dataclass(frozen=True)
class ReprojectionPhase:
    """Mean clamped reprojection error, in pixels."""

    config: ReprojectionLoss
    progress: float
    unit: ClassVar[Unit] = "px"
    evidence: ClassVar[Evidence] = "rays"

    def loss(self, coordinates: Tensor, batch: Batch) -> Tensor:
        """Mean over the batch, a scalar in pixels."""
        clamp_px = soft_clamp_px(self.config, self.progress)
        return reprojection_losses(coordinates, batch, self.config, clamp_px).mean()

    def metres_per_unit(self, metres_per_pixel: float) -> float:
        """What a pixel spans."""
        return metres_per_pixel
