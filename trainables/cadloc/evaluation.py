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
from cadloc.testing import Answer


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a head says of V queries: scene coordinates (N, 3) float32 of all cells, estimates, errors, metrics."""

    scene_coordinates: NDArray[np.float32]
    estimates: tuple[Estimate, ...]
    errors: PoseErrors
    metrics: dict[str, float]
    threshold_px: float

    def answers(self, queries: Queries) -> list[Answer]:
        """Per query of those evaluated: its estimate, and the cells and points it was found from."""
        points = (self.scene_coordinates[queries.cells(i)].astype(np.float64) for i in range(len(queries)))
        pixels = (queries.pixels(i) for i in range(len(queries)))
        each = zip(self.estimates, pixels, points, strict=True)
        return [Answer(estimate, pixel, point, self.threshold_px) for estimate, pixel, point in each]

    @property
    def localization_median_s(self) -> float:
        """Median time of the pose solver per query: no metric, for it differs from run to run."""
        return float(np.median([estimate.runtime_s for estimate in self.estimates]))


def evaluate(
    head: Head, queries: Queries, config: LocalizationConfig, *, diameter_m: float, seed: int, device: str = "cpu"
) -> Evaluation:
    """Localizes every query; `diameter_m` is the scene's, for the metrics that are relative to it."""
    predicted = [predict_cells(head, queries.features[queries.cells(i)], device) for i in range(len(queries))]
    estimates = tuple(
        localize(points, queries.pixels(i), queries.intrinsics[i], width_px, height_px, config, seed)
        for i, (points, (width_px, height_px)) in enumerate(zip(predicted, queries.sizes_px.tolist(), strict=True))
    )
    points = np.concatenate(predicted)
    errors = PoseErrors.of(estimates, queries.cam_from_cad)
    coordinate_error_m = coordinate_error_median_m(points, queries.scene_coordinates)
    return Evaluation(
        points,
        estimates,
        errors,
        summary(errors, estimates, coordinate_error_m, diameter_m),
        config.threshold_px,
    )


def predict_cells(head: Head, features: NDArray[np.floating], device: str = "cpu") -> NDArray[np.float32]:
    """Scene coordinates (N, 3) in `cad` of features (N, C)."""
    return np.asarray(head.predict(torch.from_numpy(np.array(features)).to(device)).cpu().numpy())
