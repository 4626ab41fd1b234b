"""Distance to the known scene coordinate: what a CAD model can supervise and photographs alone cannot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cadloc.losses.phase import Evidence, Unit
from cadloc.samples import Batch


def coordinate_errors_m(coordinates: Tensor, batch: Batch) -> Tensor:
    """Euclidean distances (B,) of coordinates (B, 3) in `cad` to the true ones."""
    distances: Tensor = torch.linalg.vector_norm(coordinates - batch.scene_coordinates, dim=1)
    return distances


@dataclass(frozen=True)
class CoordinatePhase:
    """Mean Euclidean distance, in metres."""

    unit: ClassVar[Unit] = "m"
    evidence: ClassVar[Evidence] = "points"

    def loss(self, coordinates: Tensor, batch: Batch) -> Tensor:
        """Mean over the batch, a scalar in metres."""
        return coordinate_errors_m(coordinates, batch).mean()

    def metres_per_unit(self, metres_per_pixel: float) -> float:
        """1: the loss is in metres already."""
        return 1.0
