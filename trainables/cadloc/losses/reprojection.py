"""ACE's reprojection error: where the predicted point appears in the image, against where it was seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from cadloc.loss_config import ReprojectionLoss
from cadloc.losses.coordinate import normalised_errors_px
from cadloc.losses.kernels import Clamp, Moment, robust
from cadloc.losses.phase import Evidence, Prediction, Unit
from cadloc.samples import Batch


class Projection(NamedTuple):
    """Predicted points `points_cam` (B, 3), their `errors_px` (B,) in the image, and which are `valid` (B,)."""

    points_cam: Tensor
    errors_px: Tensor
    valid: Tensor


def project(coordinates: Tensor, batch: Batch, config: ReprojectionLoss) -> Projection:
    """Projection of coordinates (B, 3) in `cad` (ACE, section 3.4 and supplement).

    Invalid are those too close, too far, or more than the hard clamp away; their errors are finite all the same.
    """
    points_cam = batch.in_camera(coordinates)
    depth_m = points_cam[:, 2]
    in_front = points_cam / depth_m.clamp(min=config.depth_min_m)[:, None]
    pixels = torch.einsum("bij,bj->bi", batch.intrinsics[:, :2], in_front)
    error_px = _norms(pixels - batch.pixels, config)
    valid = (depth_m >= config.depth_min_m) & (depth_m <= config.depth_max_m) & (error_px <= config.hard_clamp_px)
    return Projection(points_cam, error_px, valid)


def clamped_px(projection: Projection, config: ReprojectionLoss, progress: Moment) -> Tensor:
    """Losses (B,) of the projection's errors under the kernel, at `progress` in [0, 1] of its course."""
    clamp = Clamp(config.kernel, config.course, config.soft_clamp_px, config.soft_clamp_min_px)
    return robust(projection.errors_px, clamp, progress)


def reprojection_losses(coordinates: Tensor, batch: Batch, config: ReprojectionLoss, progress: Moment) -> Tensor:
    """Losses (B,) of coordinates (B, 3) in `cad` (ACE, section 3.4 and supplement), from poses and pixels alone.

    Valid predictions cost their error under the kernel. Invalid ones cost their L1 distance in `cam` to a point on
    the pixel's ray at the target depth, which has a gradient where the projection has none. Both are computed for
    all and chosen by `where`: no boolean indexing, hence no wait for the device.
    """
    projection = project(coordinates, batch, config)
    to_target_m = _to_ray_target_m(projection, batch, config)
    return torch.where(projection.valid, clamped_px(projection, config, progress), to_target_m)


def privileged_reprojection_losses(
    coordinates: Tensor, batch: Batch, config: ReprojectionLoss, progress: Moment
) -> Tensor:
    """As `reprojection_losses`, but who knows where an invalid prediction belongs does not send it to a guess.

    Invalid predictions of known coordinates cost the depth-normalised distance to these, in pixels.
    """
    projection = project(coordinates, batch, config)
    to_target_m = _to_ray_target_m(projection, batch, config)
    lost = torch.where(batch.known, normalised_errors_px(coordinates, batch), to_target_m)
    return torch.where(projection.valid, clamped_px(projection, config, progress), lost)


@dataclass(frozen=True)
class ReprojectionPhase:
    """Mean clamped reprojection error, in pixels."""

    config: ReprojectionLoss
    progress: Moment
    unit: ClassVar[Unit] = "px"
    evidence: ClassVar[Evidence] = "rays"

    def loss(self, predicted: Prediction, batch: Batch) -> Tensor:
        """Mean over the batch, a scalar in pixels."""
        return reprojection_losses(predicted.coordinates, batch, self.config, self.progress).mean()


def _norms(differences_px: Tensor, config: ReprojectionLoss) -> Tensor:
    """Lengths (B,) of (B, 2); both norms have gradient zero at zero."""
    if config.norm == "l1":
        return differences_px.abs().sum(dim=1)
    lengths: Tensor = torch.linalg.vector_norm(differences_px, dim=1)
    return lengths


def _to_ray_target_m(projection: Projection, batch: Batch, config: ReprojectionLoss) -> Tensor:
    return (projection.points_cam - config.depth_target_m * batch.rays_cam).abs().sum(dim=1)
