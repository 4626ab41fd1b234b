"""A head against encoded queries: scene coordinates, poses and their errors."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cadloc.geometry import Array
from cadloc.heads.head import Guess, Head
from cadloc.localization import Answered, Estimate, localize_best
from cadloc.metrics import PoseErrors, coordinate_error_median_m, summary
from cadloc.pose_solvers import Query, pose_solvers
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
    solvers: int = 1,
) -> Evaluation:
    """Localizes every query; `diameter_m` is the scene's, for the metrics that are relative to it.

    `candidates` (V, H, G) are global features to read each query with. Poses are solved by `solvers` processes while
    further queries are read by the head; how many there are changes nothing of the result.
    """
    told = [None] * len(queries) if candidates is None else list(candidates)
    read = (_guesses(head, queries, i, device, told[i]) for i in range(len(queries)))
    # A device works ahead on all queries while the first ones are waited for.
    asked = (
        _query(queries, i, guesses, config, seed) for i, guesses in enumerate(read if device == "cpu" else [*read])
    )
    found = list(_answered(asked, solvers))
    points = np.concatenate([points for points, _ in found])
    estimates = tuple(estimate for _, estimate in found)
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
    """Scene coordinates (N, 3) and estimate of the guess whose pose has most inliers, the first of equals."""
    on_host = [_on_host(guess) for guess in guesses]
    best, estimate = localize_best(on_host, pixels, intrinsics, width_px, height_px, config, seed)
    return on_host[best][0], estimate


def _answered(asked: Iterable[Query], count: int) -> Iterator[tuple[NDArray[np.float32], Estimate]]:
    """Scene coordinates and estimate of every query, in order; few are kept waiting, which bounds the memory."""
    solvers = pose_solvers(count)
    waiting: deque[tuple[Query, Callable[[], Answered]]] = deque()

    def next_answered() -> tuple[NDArray[np.float32], Estimate]:
        query, answer = waiting.popleft()
        best, estimate = answer()
        return query.guesses[best][0], estimate

    for query in asked:
        waiting.append((query, solvers.submit(query)))
        if len(waiting) > 2 * count:
            yield next_answered()
    while waiting:
        yield next_answered()


def _query(queries: Queries, image: int, guesses: Sequence[Guess], config: LocalizationConfig, seed: int) -> Query:
    width_px, height_px = queries.sizes_px[image].tolist()
    on_host = [_on_host(guess) for guess in guesses]
    return Query(on_host, queries.pixels(image), queries.intrinsics[image], width_px, height_px, config, seed)


def _guesses(head: Head, queries: Queries, query: int, device: str, told: NDArray[np.float32] | None) -> list[Guess]:
    features = _on(device, queries.features[queries.cells(query)])
    return list(head.guesses(features, None if told is None else _on(device, told)))


def _on_host(guess: Guess) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    confidence = None if guess.confidence is None else guess.confidence.cpu().numpy()
    return guess.coordinates.cpu().numpy(), confidence


def _on(device: str, array: NDArray[np.floating]) -> Tensor:
    return torch.from_numpy(np.array(array)).to(device)
