"""A head against encoded queries: scene coordinates, poses and their errors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cadloc.geometry import Array
from cadloc.heads.head import Guess, Head
from cadloc.localization import Estimate, localize
from cadloc.metrics import PoseErrors, coordinate_error_median_m, summary
from cadloc.queries import Queries
from cadloc.testing import Answer
from cadloc.training_config import LocalizationConfig


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
    head: Head,
    queries: Queries,
    config: LocalizationConfig,
    *,
    diameter_m: float,
    seed: int,
    device: str = "cpu",
    candidates: NDArray[np.float32] | None = None,
) -> Evaluation:
    """Localizes every query; `diameter_m` is the scene's, for the metrics that are relative to it.

    `candidates` (V, H, G) are global features to read each query with.
    """
    answers = []
    for i, (width_px, height_px) in enumerate(queries.sizes_px.tolist()):
        features = _on(device, queries.features[queries.cells(i)])
        told = None if candidates is None else _on(device, candidates[i])
        camera = queries.pixels(i), queries.intrinsics[i], width_px, height_px
        answers.append(localize_guesses(head.guesses(features, told), *camera, config, seed))
    predicted = [points for points, _ in answers]
    estimates = tuple(estimate for _, estimate in answers)
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


def localize_guesses(
    guesses: Iterable[Guess],
    pixels: Array,
    intrinsics: Array,
    width_px: int,
    height_px: int,
    config: LocalizationConfig,
    seed: int,
) -> tuple[NDArray[np.float32], Estimate]:
    """Scene coordinates (N, 3) and estimate of the guess whose pose has most inliers, the first of equals.

    All guesses are about the same cells at `pixels` (N, 2), so inliers can be compared. The runtime is that of all.
    """
    answers = []
    for guess in guesses:
        points = np.asarray(guess.coordinates.cpu().numpy())
        confidence = None if guess.confidence is None else guess.confidence.cpu().numpy()
        answers.append((points, localize(points, pixels, intrinsics, width_px, height_px, config, seed, confidence)))
    points, best = max(answers, key=lambda answer: answer[1].inliers)
    return points, replace(best, runtime_s=sum(estimate.runtime_s for _, estimate in answers))


def _on(device: str, array: NDArray[np.floating]) -> Tensor:
    return torch.from_numpy(np.array(array)).to(device)
