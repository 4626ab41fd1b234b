"""A head against encoded queries: scene coordinates, poses and their errors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from cadloc.config import LocalizationConfig
from cadloc.heads.head import Head
from cadloc.localization import Estimate, localize
from cadloc.metrics import PoseErrors, coordinate_error_median_m, summary
from cadloc.queries import Queries


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a head says of V queries: scene coordinates (V, rows, cols, 3) float32, estimates, errors, metrics."""

    scene_coordinates: NDArray[np.float32]
    estimates: tuple[Estimate, ...]
    errors: PoseErrors
    metrics: dict[str, float]

    @property
    def localization_median_s(self) -> float:
        """Median time of the pose solver per query: no metric, for it differs from run to run."""
        return float(np.median([estimate.runtime_s for estimate in self.estimates]))


def evaluate(
    head: Head, queries: Queries, config: LocalizationConfig, *, diameter_m: float, seed: int, device: str = "cpu"
) -> Evaluation:
    """Localizes every query; `diameter_m` is the scene's, for the metrics that are relative to it."""
    predicted = np.stack([predict_grid(head, queries.features[i], device) for i in range(len(queries))])
    pixels = queries.pixels.reshape(-1, 2)
    size = (queries.width_px, queries.height_px)
    estimates = tuple(
        localize(predicted[i].reshape(-1, 3), pixels, queries.intrinsics[i], *size, config, seed)
        for i in range(len(queries))
    )
    errors = PoseErrors.of(estimates, queries.cam_from_cad)
    coordinate_error_m = coordinate_error_median_m(predicted, queries.scene_coordinates)
    return Evaluation(predicted, estimates, errors, summary(errors, estimates, coordinate_error_m, diameter_m))


def predict_grid(head: Head, features: NDArray[np.floating], device: str = "cpu") -> NDArray[np.float32]:
    """Scene coordinates (rows, cols, 3) in `cad` of a grid of features (rows, cols, C)."""
    cells = torch.from_numpy(np.array(features)).reshape(-1, features.shape[-1]).to(device)
    return np.asarray(head.predict(cells).cpu().numpy()).reshape(*features.shape[:2], 3)
