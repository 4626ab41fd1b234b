"""Queries per second whose poses are solved, on scene coordinates made in code."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from benchmarks.measurement import Measurement, interleaved
from cadloc.geometry import (
    Array,
    cell_pixels,
    inverse,
    look_at,
    pinhole,
    rigid,
    transform_points,
    translation_error_m,
    unproject,
)
from cadloc.localization import localize_best
from cadloc.pose_solvers import PoseSolvers, Query
from cadloc.training_config import LocalizationConfig

QUERIES, ROUNDS = 32, 5
WIDTH_PX, HEIGHT_PX = 640, 480
NOISE_M, OUTLIERS = 0.05, 0.4
ALL_CELLS = LocalizationConfig()
SUBSET = LocalizationConfig(sampling="prosac", max_cells=1000)
OPENCV_ITERATIONS = 1000


class Problem(NamedTuple):
    """A query and the pose that made it."""

    query: Query
    cad_from_cam: Array


def measure() -> Iterator[Measurement]:
    """The same settings side by side, a subset of cells in PROSAC's order, and OpenCV's solver."""
    problems = [_problem(seed) for seed in range(QUERIES)]
    cores = os.cpu_count() or 1
    solvers = PoseSolvers(cores)
    works: dict[str, Callable[[], Sequence[Array | None]]] = {
        "one by one": lambda: [_pose(localize_best(*query)) for query, _ in problems],
        "side by side": lambda: _side_by_side(solvers, problems, ALL_CELLS),
        "subset": lambda: _side_by_side(solvers, problems, SUBSET),
        "opencv": lambda: [_by_opencv(query) for query, _ in problems],
    }
    errors_m = {name: _median_error_m(work(), problems) for name, work in works.items()}
    rates = {name: rate * QUERIES for name, rate in interleaved(dict(works), ROUNDS).items()}
    solvers.close()
    told = {name: f"median error {1000 * error:.1f} mm" for name, error in errors_m.items()}
    one = f"one by one, all cells, uniform sampling ({told['one by one']}; ours {{}})"
    limit = {"limit": cores * rates["one by one"], "limit_is": "every core at work on the same settings"}
    yield Measurement(
        "pnp.side_by_side", rates["side by side"], "queries/s", rates["one by one"],
        what=one.format(told["side by side"]), **limit,
    )  # fmt: skip
    yield Measurement("pnp.subset", rates["subset"], "queries/s", rates["one by one"], what=one.format(told["subset"]))
    yield Measurement(
        "pnp.opencv", rates["subset"], "queries/s", rates["opencv"],
        what=f"OpenCV's solvePnPRansac of {OPENCV_ITERATIONS} iterations and refinement, all cells "
        f"({told['opencv']}; ours {told['subset']})",
    )  # fmt: skip


def _problem(seed: int) -> Problem:
    """A camera's cells at 5 to 15 m with noise, two fifths of them anywhere; the right ones are surer, on average."""
    generator = np.random.default_rng(seed)
    K = pinhole(WIDTH_PX, HEIGHT_PX, 62.0)
    cad_from_cam = look_at([12 + generator.normal(), -7 + generator.normal(), 1.6], [0, 0, 4])
    pixels = cell_pixels(HEIGHT_PX // 8, WIDTH_PX // 8).reshape(-1, 2)
    points = transform_points(cad_from_cam, unproject(pixels, generator.uniform(5, 15, len(pixels)), K))
    points += generator.normal(0, NOISE_M, points.shape)
    wrong = generator.random(len(pixels)) < OUTLIERS
    points[wrong] = generator.uniform(-10, 10, (wrong.sum(), 3))
    sure = (generator.normal(0, 1, len(pixels)) + ~wrong).astype(np.float32)
    guess = points.astype(np.float32), sure
    return Problem(Query([guess], pixels, K, WIDTH_PX, HEIGHT_PX, ALL_CELLS, seed), cad_from_cam)


def _side_by_side(
    solvers: PoseSolvers, problems: Sequence[Problem], config: LocalizationConfig
) -> Sequence[Array | None]:
    answers = [solvers.submit(query._replace(config=config)) for query, _ in problems]
    return [_pose(answer()) for answer in answers]


def _pose(answered) -> Array | None:  # type: ignore[no-untyped-def]
    return answered.estimate.cad_from_cam


def _by_opencv(query: Query) -> Array | None:
    points, _ = query.guesses[0]
    found, rotation, translation, inliers = cv2.solvePnPRansac(
        points.astype(np.float64), query.pixels, query.intrinsics, None, iterationsCount=OPENCV_ITERATIONS,
        reprojectionError=query.config.threshold_px, confidence=0.9999, flags=cv2.SOLVEPNP_P3P,
    )  # fmt: skip
    if not found:
        return None
    kept = inliers.ravel()
    rotation, translation = cv2.solvePnPRefineLM(
        points[kept].astype(np.float64), query.pixels[kept], query.intrinsics, None, rotation, translation
    )
    return inverse(rigid(cv2.Rodrigues(rotation)[0], translation.ravel()))


def _median_error_m(poses: Sequence[Array | None], problems: Sequence[Problem]) -> float:
    each = zip(poses, problems, strict=True)
    return float(np.median([np.inf if pose is None else translation_error_m(pose, true) for pose, (_, true) in each]))
