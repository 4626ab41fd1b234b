"""Evaluation: of several guesses about an image, the one that most cells agree on, whatever the order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cadloc.evaluation import evaluate, localize_guesses
from cadloc.geometry import (
    Array,
    cell_pixels,
    inverse,
    look_at,
    pinhole,
    transform_points,
    translation_error_m,
    unproject,
)
from cadloc.heads.head import Guess, Head, HeadOutput, TrainingOutput
from cadloc.losses.phase import Evidence
from cadloc.pose_solvers import Query, pose_solvers
from cadloc.queries import Queries
from cadloc.samples import Batch, Samples
from cadloc.training_config import LocalizationConfig

SIZE_PX = (160, 120)
K = pinhole(*SIZE_PX, 60)
PIXELS = cell_pixels(15, 20).reshape(-1, 2)
CONFIG = LocalizationConfig(max_iterations=500, min_iterations=100)
POSES = np.stack([look_at([12, -7 + k, 1.6], [0, 0, 4]) for k in range(3)])


def points_seen(cad_from_cam: Array) -> Array:
    """Points (N, 3), one per cell, all over the depths."""
    depth_m = np.random.default_rng(3).uniform(5, 15, len(PIXELS))
    return transform_points(cad_from_cam, unproject(PIXELS, depth_m, K))


def guess(points: Array, wrong: float = 0.0) -> Guess:
    """The points, a share of them anywhere."""
    generator = np.random.default_rng(4)
    lost = generator.random(len(points)) < wrong
    anywhere = generator.uniform(-20, 20, points.shape)
    return Guess(torch.from_numpy(np.where(lost[:, None], anywhere, points).astype(np.float32)))


def best(guesses: Sequence[Guess]) -> tuple[Array, Array, int]:
    """Points and pose chosen, and its inliers."""
    points, estimate = localize_guesses(guesses, PIXELS, K, *SIZE_PX, CONFIG, 0)
    assert estimate.cad_from_cam is not None
    return points.astype(np.float64), estimate.cad_from_cam, estimate.inliers


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_the_guess_with_most_inliers_wins(order: tuple[int, ...]) -> None:
    """Of three views, each supported by other shares of the cells, the best supported one, wherever it stands."""
    guesses = [guess(points_seen(pose), wrong) for pose, wrong in zip(POSES, (0.6, 0.2, 0.5), strict=True)]
    points, pose, inliers = best([guesses[k] for k in order])
    assert translation_error_m(pose, POSES[1]) < 1e-2
    assert inliers == pytest.approx(0.8 * len(PIXELS), rel=0.1)
    assert np.array_equal(points, guesses[1].coordinates.double().numpy())


def test_of_equal_guesses_the_first_wins() -> None:
    """So what is retrieved first is believed first."""
    guesses = [guess(points_seen(pose)) for pose in POSES[:2]]
    for first, pose in ((0, POSES[0]), (1, POSES[1])):
        _, found, inliers = best([guesses[first], guesses[1 - first]])
        assert inliers == len(PIXELS)
        assert translation_error_m(found, pose) < 1e-3


def test_where_no_guess_has_a_pose_there_is_none() -> None:
    """A failure is a value, and the points are those of the first guess."""
    lost = Guess(torch.full((len(PIXELS), 3), torch.nan))
    points, estimate = localize_guesses([lost, lost], PIXELS, K, *SIZE_PX, CONFIG, 0)
    assert estimate.cad_from_cam is None
    assert estimate.inliers == 0
    assert points.shape == (len(PIXELS), 3)


class Scaled(Head):
    """Says the cell's feature, a point, times the image's global feature, axis by axis."""

    def __init__(self) -> None:
        super().__init__()
        self.dimensions = 3
        self.nothing = nn.Parameter(torch.zeros(1))

    def forward(self, features: Tensor, global_features: Tensor | None = None) -> HeadOutput:
        """(1, 1, 1) is right, all else tells of a scene that was not seen."""
        return HeadOutput(features if global_features is None else features * global_features)

    def training_output(self, batch: Batch, evidence: Evidence) -> TrainingOutput:
        """Never trained."""
        raise NotImplementedError

    def fit(self, samples: Samples, seed: int, evidence: Evidence = "rays") -> None:
        """Never fitted."""


@pytest.fixture(scope="module")
def three() -> Queries:
    """Three queries whose features are the points that they see."""
    points = np.concatenate([points_seen(pose) for pose in POSES])
    return Queries(
        ("a", "b", "c"),
        points.astype(np.float16),
        points.astype(np.float32),
        inverse(POSES),
        np.stack([K] * 3),
        np.array([SIZE_PX] * 3),
    )


WRONG = np.tile(np.array([0.4, -1.7, 1.3], np.float32), (3, 3, 1))


def test_queries_are_read_with_each_of_their_candidates(three: Queries) -> None:
    """Every query has candidates of its own; one right one among wrong ones, in another place each time, suffices, and
    its points are what the coordinate error is measured on. With wrong ones alone, all are lost."""
    right = WRONG.copy()
    right[np.arange(3), [2, 0, 1]] = 1
    found, lost = (
        evaluate(Scaled(), three, CONFIG, diameter_m=20.0, seed=0, candidates=candidates)
        for candidates in (right, WRONG)
    )
    assert found.errors.translation_m.max() < 0.05
    np.testing.assert_allclose(found.scene_coordinates, three.scene_coordinates, atol=0.01)
    assert np.median(lost.errors.translation_m) > 1


def test_solvers_side_by_side_answer_as_one_alone(three: Queries) -> None:
    """Poses, points and metrics come in the order of the queries and to the bit, whoever solved them."""
    candidates = WRONG.copy()
    candidates[np.arange(3), [2, 0, 1]] = 1
    alone, shared = (
        evaluate(Scaled(), three, CONFIG, diameter_m=20.0, seed=0, candidates=candidates, solvers=solvers)
        for solvers in (1, 2)
    )
    for one, other, pose in zip(alone.estimates, shared.estimates, POSES, strict=True):
        assert one.cad_from_cam is not None
        assert other.cad_from_cam is not None
        np.testing.assert_array_equal(one.cad_from_cam, other.cad_from_cam)
        assert translation_error_m(other.cad_from_cam, pose) < 0.05
    np.testing.assert_array_equal(alone.scene_coordinates, shared.scene_coordinates)
    assert alone.metrics == shared.metrics


def test_what_a_solver_raises_reaches_the_caller_and_the_next_query_is_solved() -> None:
    """A query that cannot be solved leaves no process behind that answers the wrong question."""
    points = points_seen(POSES[0]).astype(np.float32)
    sure_of_nothing = Query([(points, None)], PIXELS, K, *SIZE_PX, LocalizationConfig(sampling="prosac"), 0)
    solvers = pose_solvers(2)
    refused = [solvers.submit(sure_of_nothing) for _ in range(3)]
    solved = solvers.submit(sure_of_nothing._replace(config=CONFIG))
    for answer in refused:
        with pytest.raises(ValueError, match="confidence"):
            answer()
    assert solved().estimate.inliers == len(PIXELS)
