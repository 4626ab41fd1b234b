"""Localization: the pose that made the data comes back, and what has no pose is a value."""

from __future__ import annotations

import numpy as np
import pytest

from cadloc.geometry import (
    Array,
    cell_pixels,
    look_at,
    pinhole,
    rotation_error_deg,
    transform_points,
    translation_error_m,
    unproject,
)
from cadloc.localization import coverage, localize
from cadloc.training_config import LocalizationConfig

SIZE = (480, 360)
SOLVERS = ("poselib", "opencv")


def seen(cad_from_cam: Array, K: Array, *, noise_m: float = 0.0, outliers: float = 0.0) -> tuple[Array, Array]:
    """Points (M, 3) that a camera sees at its cells (M, 2), noisy, some replaced by anything."""
    generator = np.random.default_rng(5)
    pixels = cell_pixels(45, 60).reshape(-1, 2)
    depth_m = generator.uniform(5, 15, len(pixels))
    points = transform_points(cad_from_cam, unproject(pixels, depth_m, K))
    points += generator.normal(0, noise_m, points.shape)
    wrong = generator.random(len(points)) < outliers
    points[wrong] = generator.uniform(-10, 10, (wrong.sum(), 3))
    return points, pixels


def camera() -> tuple[Array, Array]:
    """A pose, and intrinsics with unequal focal lengths and an off-centre principal point."""
    K = pinhole(*SIZE, 62.0)
    K[0, 0] *= 1.05
    K[:2, 2] += [11.0, -6.0]
    return look_at([12, -7, 1.6], [0, 0, 4], roll_deg=4), K


@pytest.mark.parametrize("solver", SOLVERS)
def test_exact_points_give_the_exact_pose(solver: str) -> None:
    """Without noise the camera is recovered to a tenth of a millimetre: no half-pixel shift, no swapped axis."""
    cad_from_cam, K = camera()
    estimate = localize(*seen(cad_from_cam, K), K, *SIZE, LocalizationConfig(solver=solver), seed=0)
    assert estimate.cad_from_cam is not None
    assert translation_error_m(estimate.cad_from_cam, cad_from_cam) < 1e-4
    assert rotation_error_deg(estimate.cad_from_cam, cad_from_cam) < 1e-3
    assert estimate.inlier_share == 1.0
    assert estimate.coverage == 1.0


@pytest.mark.parametrize("solver", SOLVERS)
def test_half_of_the_points_may_be_anywhere(solver: str) -> None:
    """With 50 % outliers and 3 cm noise the pose is right to 2 cm, and the inliers are about the right half."""
    cad_from_cam, K = camera()
    points, pixels = seen(cad_from_cam, K, noise_m=0.03, outliers=0.5)
    estimate = localize(points, pixels, K, *SIZE, LocalizationConfig(solver=solver), seed=0)
    assert estimate.cad_from_cam is not None
    assert translation_error_m(estimate.cad_from_cam, cad_from_cam) < 0.02
    assert estimate.inlier_share == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("points", [np.full((50, 3), np.nan), np.zeros((0, 3)), np.ones((3, 3)), np.zeros((50, 3))])
@pytest.mark.parametrize("solver", SOLVERS)
def test_without_a_pose_there_is_a_failure_not_an_exception(points: Array, solver: str) -> None:
    """Nothing finite, nothing at all, too few points, all points in one: the estimate says None."""
    _, K = camera()
    pixels = np.random.default_rng(0).uniform(0, 360, (len(points), 2))
    estimate = localize(points, pixels, K, *SIZE, LocalizationConfig(solver=solver, max_iterations=50), seed=0)
    assert estimate.cad_from_cam is None


def test_non_finite_points_are_dropped() -> None:
    """A NaN among the points changes nothing but the number used."""
    cad_from_cam, K = camera()
    points, pixels = seen(cad_from_cam, K)
    points[::7] = np.nan
    points[3] = np.inf
    estimate = localize(points, pixels, K, *SIZE, LocalizationConfig(), seed=0)
    assert estimate.cad_from_cam is not None
    assert translation_error_m(estimate.cad_from_cam, cad_from_cam) < 1e-4


def test_same_seed_same_pose_and_the_subset_is_bounded() -> None:
    """Repeating gives the same bits; no more than `max_cells` points are looked at."""
    cad_from_cam, K = camera()
    data = seen(cad_from_cam, K, noise_m=0.1, outliers=0.3)
    config = LocalizationConfig(max_cells=500)
    first, second = (localize(*data, K, *SIZE, config, seed=7) for _ in range(2))
    assert first.cad_from_cam is not None
    assert second.cad_from_cam is not None
    assert np.array_equal(first.cad_from_cam, second.cad_from_cam)
    assert first.inliers <= 500


def test_a_subset_finds_the_pose_and_all_cells_refine_it() -> None:
    """A pose found among 300 of 2,700 cells is, to a tenth of a millimetre, that of all cells, which is not exact."""
    cad_from_cam, K = camera()
    data = seen(cad_from_cam, K, noise_m=0.03, outliers=0.3)
    found = [localize(*data, K, *SIZE, LocalizationConfig(max_cells=cells), 0).cad_from_cam for cells in (300, 5000)]
    assert found[0] is not None
    assert found[1] is not None
    assert translation_error_m(found[0], found[1]) < 1e-4 < 1e-3 < translation_error_m(found[1], cad_from_cam)


def test_moving_the_world_moves_the_pose() -> None:
    """Under a rigid motion of the whole scene the estimate moves along with it."""
    cad_from_cam, K = camera()
    points, pixels = seen(cad_from_cam, K, noise_m=0.02)
    moved_from_cad = look_at([100, 50, -3], [4, 4, 4])
    there = localize(transform_points(moved_from_cad, points), pixels, K, *SIZE, LocalizationConfig(), seed=0)
    here = localize(points, pixels, K, *SIZE, LocalizationConfig(), seed=0)
    assert here.cad_from_cam is not None
    assert there.cad_from_cam is not None
    np.testing.assert_allclose(there.cad_from_cam, moved_from_cad @ here.cad_from_cam, atol=1e-3)


def test_threshold_scales_with_the_image() -> None:
    """The same view at twice the size, and twice the error in pixels, has the same inliers."""
    cad_from_cam, K = camera()
    points, pixels = seen(cad_from_cam, K, noise_m=0.15)
    twice = np.diag([2.0, 2.0, 1.0])
    small = localize(points, pixels, K, *SIZE, LocalizationConfig(), seed=0)
    large = localize(points, 2 * pixels, twice @ K, 2 * SIZE[0], 2 * SIZE[1], LocalizationConfig(), seed=0)
    assert small.inliers == pytest.approx(large.inliers, rel=0.02)


def test_coverage_tells_a_cluster_from_a_spread() -> None:
    """All pixels in one grid cell cover a 48th of the image; a pixel on the far corner counts."""
    assert coverage(np.full((100, 2), 10.0), *SIZE) == pytest.approx(1 / 48)
    assert coverage(np.array([[480.0, 360.0]]), *SIZE) == pytest.approx(1 / 48)
    assert coverage(np.zeros((0, 2)), *SIZE) == 0.0


def half_sure(cad_from_cam: Array, K: Array, outliers: float) -> tuple[Array, Array, Array]:
    """Points and pixels with outliers, and a confidence (M,) that is higher for the right ones, on average only."""
    points, pixels = seen(cad_from_cam, K, noise_m=0.02, outliers=outliers)
    wrong = np.linalg.norm(points - seen(cad_from_cam, K)[0], axis=1) > 0.5
    return points, pixels, np.random.default_rng(1).normal(0, 1, len(points)) + 2 * ~wrong


def errors_m(sampling: str, iterations: int, outliers: float, seeds: int) -> Array:
    """Position errors of a camera whose cells are partly right, infinite without a pose."""
    cad_from_cam, K = camera()
    points, pixels, confidence = half_sure(cad_from_cam, K, outliers)
    config = LocalizationConfig.model_validate({"sampling": sampling, "max_iterations": iterations})
    found = [localize(points, pixels, K, *SIZE, config, seed, confidence) for seed in range(seeds)]
    poses = [estimate.cad_from_cam for estimate in found]
    return np.array([np.inf if pose is None else translation_error_m(pose, cad_from_cam) for pose in poses])


def test_prosac_needs_a_fraction_of_the_iterations() -> None:
    """With 95 % outliers and an informative confidence, 50 iterations find the pose that 20,000 uniform ones do; 50
    uniform ones never do."""
    progressive = errors_m("prosac", 50, 0.95, seeds=5)
    assert progressive.max() < 0.03
    assert progressive.max() < 1.2 * errors_m("uniform", 20_000, 0.95, seeds=1).max()
    assert errors_m("uniform", 50, 0.95, seeds=5).min() > 1


def test_prosac_is_as_good_where_uniform_sampling_suffices() -> None:
    """With a third of outliers both find the same pose, to a millimetre."""
    np.testing.assert_allclose(errors_m("prosac", 1000, 0.3, 2), errors_m("uniform", 1000, 0.3, 2), atol=1e-3)


def test_confidence_stays_with_its_cell() -> None:
    """Where some points are dropped and of the others a subset is used: a confidence that is right still helps, and the
    same values in another order do not."""
    cad_from_cam, K = camera()
    points, pixels, confidence = half_sure(cad_from_cam, K, 0.9)
    points[::9] = np.nan
    config = LocalizationConfig(sampling="prosac", max_iterations=20, max_cells=1200)
    good, shuffled = (
        [localize(points, pixels, K, *SIZE, config, seed, each).inliers for seed in range(3)]
        for each in (confidence, np.random.default_rng(0).permutation(confidence))
    )
    assert min(good) > 80
    assert max(shuffled) < 60


def test_prosac_without_a_confidence_is_refused() -> None:
    """It has no order to try the cells in."""
    cad_from_cam, K = camera()
    with pytest.raises(ValueError, match="confidence"):
        localize(*seen(cad_from_cam, K), K, *SIZE, LocalizationConfig(sampling="prosac"), seed=0)
