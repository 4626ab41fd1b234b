"""Constraints: what the CAD model says of predicted points, whatever the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

import torch
from torch import Tensor

from cadloc.constraint_config import (
    ConstraintConfig,
    DepthConstraint,
    FreeSpaceConstraint,
    RangeConstraint,
    SurfaceConstraint,
)
from cadloc.constraints.constraint import Constraint, softened
from cadloc.constraints.depth import Depth
from cadloc.constraints.depth_range import DepthRange
from cadloc.constraints.free_space import FreeSpace, ZBuffers
from cadloc.constraints.surface import FieldLookup, Surface
from cadloc.datasets.ace_layout import Dataset
from cadloc.distance_field import DistanceField
from cadloc.samples import Batch, Samples


@dataclass(frozen=True)
class Constraints:
    """Constraints by name, and the weight of each in their sum."""

    by_name: Mapping[str, Constraint]
    weights: Mapping[str, float]

    def __call__(self, coordinates: Tensor, batch: Batch) -> Tensor:
        """Weighted sum of what predicted coordinates (B, 3) in `cad` cost, a scalar in pixels."""
        return self.weighted(self.named(coordinates, batch))

    def named(self, coordinates: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Mean cost over the batch, unweighted, a scalar in pixels, of each constraint."""
        return {name: softened(each.penalties_px(coordinates, batch)).mean() for name, each in self.by_name.items()}

    def weighted(self, means_px: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of what `named` gives."""
        return torch.stack([self.weights[name] * mean_px for name, mean_px in means_px.items()]).sum()


def build(configs: Sequence[ConstraintConfig], stages: Mapping[str, Path], samples: Samples) -> Constraints | None:
    """The constraints of a trial on the device of its samples; None where there are none.

    `free_space` reads the stage `views/synthetic`, `surface` the stage `distance_field`. Raises InputError for views
    without depth.
    """
    if not configs:
        return None
    by_name: dict[str, Constraint] = {config.name: _built(config, stages, samples) for config in configs}
    return Constraints(by_name, {config.name: config.weight for config in configs})


def _built(config: ConstraintConfig, stages: Mapping[str, Path], samples: Samples) -> Constraint:
    device, scale = samples.features.device, samples.scale
    match config:
        case DepthConstraint():
            return Depth(config)
        case RangeConstraint():
            return DepthRange(config, scale)
        case FreeSpaceConstraint():
            views = Dataset.open(stages["views/synthetic"]).views("mapping")
            return FreeSpace(config, ZBuffers.of_views(views, config.views, device), scale.metres_per_pixel)
        case SurfaceConstraint():
            field = FieldLookup(DistanceField.open(stages["distance_field"]), device)
            return Surface(config, field, scale.metres_per_pixel)
        case _:
            assert_never(config)
