"""Depth: the CAD's z-buffer says how far from its camera a point is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cadloc.constraint_config import DepthConstraint
from cadloc.samples import Batch

SMALLEST_RATIO = 0.1
"""Of predicted to true depth, below which the logarithm goes on as its tangent."""


@dataclass(frozen=True)
class Depth:
    """Predicted and true depth may differ by a factor of exp(± tolerance); samples of unknown depth are free.

    |log ẑ − log z| times the true depth is, to first order, the deviation in metres: focal length times it, pixels.
    """

    config: DepthConstraint

    def penalties_px(self, coordinates: Tensor, batch: Batch) -> Tensor:
        """See `Constraint.penalties_px`; points behind the camera are pulled forward."""
        logarithm = log_or_tangent(batch.in_camera(coordinates)[:, 2] / batch.depth_m)
        excess = (logarithm.abs() - self.config.tolerance).clamp(min=0)
        return torch.where(batch.known, batch.focal_px * excess, 0.0)


def log_or_tangent(ratios: Tensor) -> Tensor:
    """Logarithms (B,), continued below `SMALLEST_RATIO` by a straight line: finite for zero and negative ratios."""
    tangent = math.log(SMALLEST_RATIO) + ratios / SMALLEST_RATIO - 1
    return torch.where(ratios > SMALLEST_RATIO, ratios.clamp(min=SMALLEST_RATIO).log(), tangent)
