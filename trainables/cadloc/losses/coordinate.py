"""Distance to the known scene coordinate: what a CAD model can supervise and photographs alone cannot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cadloc.loss_config import CoordinateLoss
from cadloc.losses.kernels import Clamp, Moment, robust
from cadloc.losses.phase import Evidence, Prediction, Unit, mean_where
from cadloc.samples import Batch, SceneScale

NEAREST_M = 0.1
"""True depths below this count as this where something is divided by them: where ACE's valid depths begin."""
LEAST_CLAMP_M = 1e-3
"""Bound of the largest threshold in scenes of no extent."""

_RAW = CoordinateLoss()
_NOWHERE = SceneScale(0.0, 0.0, 0.0)


def coordinate_errors_m(coordinates: Tensor, batch: Batch) -> Tensor:
    """Euclidean distances (B,) of coordinates (B, 3) in `cad` to the true ones; finite also where none is known."""
    distances: Tensor = torch.linalg.vector_norm(coordinates - batch.targets, dim=1)
    return distances


def pixels_per_metre(batch: Batch) -> Tensor:
    """How many pixels (B,) a metre at the true depth of each sample spans: focal length by depth; 1 m where unknown."""
    return batch.focal_px / batch.depth_m.clamp(min=NEAREST_M)


def normalised_errors_px(coordinates: Tensor, batch: Batch) -> Tensor:
    """Depth-normalised distances (B,): as they would look from the camera, focal length · distance / true depth."""
    return coordinate_errors_m(coordinates, batch) * pixels_per_metre(batch)


@dataclass(frozen=True)
class CoordinatePhase:
    """Mean distance over the samples whose coordinate is known, in metres or as pixels, raw or under a kernel.

    `scale` matters under a kernel only: the threshold goes from `largest_pct` of the diameter down to what
    `smallest_px` span at the point's depth.
    """

    config: CoordinateLoss = _RAW
    progress: Moment = 0.0
    scale: SceneScale = _NOWHERE
    evidence: ClassVar[Evidence] = "points"

    @property
    def unit(self) -> Unit:
        """That of the measure."""
        return "px" if self.config.measure == "pixels" else "m"

    def loss(self, predicted: Prediction, batch: Batch) -> Tensor:
        """Mean over the known samples, 0 where there is none: a scalar in metres or pixels."""
        errors = coordinate_errors_m(predicted.coordinates, batch)
        per_metre = pixels_per_metre(batch) if self.config.measure == "pixels" else 1.0
        errors = errors * per_metre
        if self.config.kernel != "none":
            errors = robust(errors, self._clamp(batch, per_metre), self.progress)
        return mean_where(errors, batch.known, batch.workers)

    def _clamp(self, batch: Batch, per_metre: Tensor | float) -> Clamp:
        """Thresholds for errors of which `per_metre` are a metre."""
        config = self.config
        largest_m = max(config.largest_pct / 100 * self.scale.diameter_m, LEAST_CLAMP_M)
        smallest_m = config.smallest_px / pixels_per_metre(batch)
        return Clamp(config.kernel, config.course, largest_m * per_metre, smallest_m * per_metre)
