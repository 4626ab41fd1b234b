"""Surface: points lie on the CAD model, wherever on it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cadloc.constraint_config import SurfaceConstraint
from cadloc.constraints.constraint import pixels_per_metre
from cadloc.distance_field import DistanceField
from cadloc.samples import Batch

RESOLVED_CELLS = 0.25
"""What a grid tells apart of a surface with detail, in cells: above the ground, it lays nine in ten of the points of
the built-in scenes' surfaces within 0.22 cells of them, be the cells 0.2 m or 0.9 m."""


class FieldLookup:
    """A distance field as tensors, its ways and their lengths side by side: the distance of any point."""

    def __init__(self, field: DistanceField, device: str | torch.device = "cpu") -> None:
        offsets_m = torch.from_numpy(np.asarray(field.offsets_m, np.float32))
        lengths_m = torch.linalg.vector_norm(offsets_m, dim=-1, keepdim=True)
        grid = torch.cat([offsets_m, lengths_m], dim=-1).permute(3, 0, 1, 2)[None]
        extent_m = field.spacing_m * (np.array(field.offsets_m.shape[2::-1]) - 1)
        self._grid = grid.contiguous().to(device)
        self._lowest = torch.tensor(field.origin_m, dtype=torch.float32, device=device)
        self._highest = torch.tensor(field.origin_m + extent_m, dtype=torch.float32, device=device)
        self._spacing_m = field.spacing_m

    @property
    def error_m(self) -> float:
        """By how much the distance of a point on the surface may come out too large."""
        return RESOLVED_CELLS * self._spacing_m

    def distances_m(self, points_cad: Tensor) -> Tensor:
        """Distance (B,) of points (B, 3) from the surface: continuous, with a finite gradient towards it everywhere.

        Within a cell of the surface it is the length of the interpolated way: right where the surface is flat. Two
        cells away it is the interpolated length: half-way between two walls ways cancel, lengths do not. In between
        it passes from one to the other. Outside the grid the distance to its box is added.
        """
        inside = torch.minimum(torch.maximum(points_cad, self._lowest), self._highest)
        place = 2 * (inside - self._lowest) / (self._highest - self._lowest) - 1
        values = torch.nn.functional.grid_sample(self._grid, place[None, None, None], align_corners=True)
        way_m, length_m = torch.linalg.vector_norm(values[0, :3, 0, 0], dim=0), values[0, 3, 0, 0]
        afar = (length_m / self._spacing_m - 1).clamp(0, 1)
        outside_m = torch.linalg.vector_norm(points_cad - inside, dim=1)
        distances_m: Tensor = torch.lerp(way_m, length_m, afar) + outside_m
        return distances_m


@dataclass(frozen=True)
class Surface:
    """No point is farther from the CAD's surface than `tolerance_m`, beyond what the distance field can tell."""

    config: SurfaceConstraint
    field: FieldLookup
    metres_per_pixel: float

    def penalties_px(self, coordinates: Tensor, batch: Batch) -> Tensor:
        """See `Constraint.penalties_px`; true coordinates matter only to the measure."""
        tolerance_m = self.config.tolerance_m + self.field.error_m
        off_m = (self.field.distances_m(coordinates) - tolerance_m).clamp(min=0)
        return pixels_per_metre(batch, self.metres_per_pixel) * off_m
