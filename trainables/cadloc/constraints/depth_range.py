"""Range: no point lies behind its camera, or beyond everything that the views see."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from cadloc.constraint_config import RangeConstraint
from cadloc.constraints.constraint import pixels_per_metre
from cadloc.samples import Batch, SceneScale


@dataclass(frozen=True)
class DepthRange:
    """Depths between `nearest_m` and `farthest_ratio` times the largest known one, if there is one."""

    config: RangeConstraint
    scale: SceneScale

    def penalties_px(self, coordinates: Tensor, batch: Batch) -> Tensor:
        """See `Constraint.penalties_px`."""
        depth_m = batch.in_camera(coordinates)[:, 2]
        farthest_m = self.config.farthest_ratio * (self.scale.farthest_m or math.inf)
        outside_m = (self.config.nearest_m - depth_m).clamp(min=0) + (depth_m - farthest_m).clamp(min=0)
        return pixels_per_metre(batch, self.scale.metres_per_pixel) * outside_m
