"""DCRE: what a pose error does to the image of the model, and how the published program's value differs from it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cadloc import metric_names
from cadloc.cad import CadModel, model_from_meshes
from cadloc.dcre import (
    CADLOC_VOID,
    CAP_DIAGONALS,
    DCRE_METRICS,
    FAILED,
    FAILED_DCRE_PCT,
    DcreErrors,
    dcre,
    dcre_cadloc,
    dcre_summary,
    depth_of,
    measure_dcre,
    reduced,
)
from cadloc.geometry import Array, Similarity, inverse, look_at, pinhole, rigid, rotation_about_z
from cadloc.localization import Estimate
from cadloc.rendering import process_renderer
from cadloc.scenes import built_in_meshes

WIDTH, HEIGHT = 160, 120
K = np.array([[150.0, 0, 70.0], [0, 140.0, 65.0], [0, 0, 1]])
DIAGONAL = float(np.hypot(WIDTH, HEIGHT))
TRUE = look_at([30, 10, 2], [0, 0, 5])
WALL = np.full((HEIGHT, WIDTH), 20.0)
"""A wall 20 m in front of whatever camera it is seen by, square to its axis."""
VOID = np.zeros((HEIGHT, WIDTH))


def shifted(pose: Array, *translation_cam_m: float) -> Array:
    """The camera moved along its own axes."""
    return pose @ rigid(np.eye(3), translation_cam_m)


def about(axis: int, angle_deg: float) -> Array:
    """Rotation about one of the camera's axes: 0 x, 1 y, 2 z."""
    order = np.roll(np.arange(3), axis - 2)
    turn = np.eye(4)
    turn[np.ix_(order, order)] = rotation_about_z(angle_deg)[:3, :3]
    return turn


def moved_origin(pose: Array, *by_m: float) -> Array:
    """The same camera in a world whose origin lies elsewhere."""
    return rigid(np.eye(3), by_m) @ pose


def estimate(pose: Array | None) -> Estimate:
    """An estimate with this pose."""
    return Estimate(pose, 0 if pose is None else 100, 0.5, 0.5, 0.01)


def errors_of(*mean_shares: float, cadloc: tuple[float, ...] = ()) -> DcreErrors:
    """Errors whose maximum is twice the mean."""
    mean = np.array(mean_shares)
    return DcreErrors(mean, 2 * mean, np.array(cadloc or mean_shares))


@pytest.fixture(scope="module")
def gate() -> CadModel:
    return model_from_meshes(built_in_meshes("gate", "cad"), "gate")


def test_the_right_pose_has_no_error() -> None:
    """Both variants are zero at the true pose, up to rounding."""
    for measure in (dcre, dcre_cadloc):
        assert measure(WALL, TRUE, TRUE, K).max_share == pytest.approx(0, abs=1e-9)


@given(st.floats(-2, 2), st.floats(-2, 2))
def test_a_slip_before_a_wall_moves_every_pixel_alike(x_m: float, y_m: float) -> None:
    """By hand: a camera that slips sideways sees a wall square to it move by f · slip / depth, fx and fy apart."""
    found = dcre(WALL, shifted(TRUE, x_m, y_m, 0), TRUE, K)
    by_hand = np.hypot(150 * x_m / 20, 140 * y_m / 20) / DIAGONAL
    assert found.mean_share == pytest.approx(by_hand, abs=1e-9)
    assert found.max_share == pytest.approx(by_hand, abs=1e-9)


def test_a_slip_along_the_axis_grows_with_the_distance_from_the_principal_point() -> None:
    """By hand: 5 m further back from a wall at 20 m, pixels move by a third of their offset from (cx, cy)."""
    found = dcre(WALL, shifted(TRUE, 0, 0, -5), TRUE, K)
    corner = np.hypot(159.5 - 70, 0.5 - 65)  # the pixel farthest from (70, 65)
    assert found.max_share == pytest.approx((20 / 15 - 1) * corner / DIAGONAL)
    assert 0 < found.mean_share < found.max_share


def test_depth_does_not_matter_to_a_rotation() -> None:
    """A camera that only turns sees near and far points move alike."""
    near = np.random.default_rng(0).uniform(1, 100, WALL.shape)
    turned = TRUE @ about(1, 3.0)
    assert dcre(near, turned, TRUE, K).mean_share == pytest.approx(dcre(WALL, turned, TRUE, K).mean_share)


@given(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4), st.floats(-1e4, 1e4))
def test_the_origin_of_the_world_does_not_matter(x_m: float, y_m: float, z_m: float) -> None:
    """Moving model and cameras together by up to 10 km per axis changes nothing."""
    slipped = shifted(TRUE @ about(0, 2.0), 0.3, -0.2, 0.5)
    here = dcre(WALL, slipped, TRUE, K)
    there = dcre(WALL, moved_origin(slipped, x_m, y_m, z_m), moved_origin(TRUE, x_m, y_m, z_m), K)
    assert there.mean_share == pytest.approx(here.mean_share, rel=1e-6)
    assert there.max_share == pytest.approx(here.max_share, rel=1e-6)


def test_unknown_pixels_are_left_out() -> None:
    """Depth of zero, NaN or infinity is unknown; the error is that of the other pixels."""
    depth = np.random.default_rng(0).uniform(5, 50, WALL.shape)
    slipped = shifted(TRUE, 0.5, 0, 0)
    left = dcre(np.where(np.arange(WIDTH) < 80, depth, 0), slipped, TRUE, K)
    holes = depth.copy()
    holes[:, 80:] = np.where(np.arange(80) % 2, np.nan, np.inf)
    assert dcre(holes, slipped, TRUE, K) == left
    assert dcre(depth, slipped, TRUE, K) != left


def test_nothing_in_view_is_a_failure() -> None:
    """An estimate that sees no geometry is infinitely wrong, at the true pose as well."""
    assert dcre(VOID, TRUE, TRUE, K) == FAILED
    assert np.isinf(FAILED.mean_share)


def test_points_behind_the_true_camera_count_as_one_diagonal() -> None:
    """A camera turned round sees only what the true one has behind it: the cap, as mean and as maximum."""
    found = dcre(WALL, TRUE @ about(1, 180.0), TRUE, K)
    assert (found.mean_share, found.max_share) == (CAP_DIAGONALS, CAP_DIAGONALS)


def test_a_worse_rotation_is_never_a_smaller_error() -> None:
    """Turning further away, past the camera's plane, the mean never falls: behind is no better than beside."""
    shares = [dcre(WALL, TRUE @ about(1, angle), TRUE, K).mean_share for angle in range(0, 181, 5)]
    assert all(one <= next_ + 1e-12 for one, next_ in itertools.pairwise(shares))
    assert shares[-1] == CAP_DIAGONALS


def test_pitfall_the_published_value_depends_on_the_origin() -> None:
    """World-to-camera matrices taken for camera-to-world: a turn of 1° costs more 300 m from the origin."""
    turned = TRUE @ about(1, 1.0)
    near = dcre_cadloc(WALL, turned, TRUE, K).mean_share
    far = dcre_cadloc(WALL, moved_origin(turned, 300, 0, 0), moved_origin(TRUE, 300, 0, 0), K).mean_share
    assert far > 3 * near
    assert near == pytest.approx(dcre(WALL, turned, TRUE, K).mean_share, rel=0.5)


def test_pitfall_the_published_value_of_a_look_into_the_void_is_a_success() -> None:
    """Nothing in view is −1, which every limit recalls; the right measure recalls it at none."""
    assert dcre_cadloc(VOID, TRUE, TRUE, K) == CADLOC_VOID
    metrics = dcre_summary(errors_of(np.inf, cadloc=(-1.0,)))
    assert [metrics[f"dcre_cadloc_recall_{limit}pct"] for limit in (10, 20, 30)] == [1, 1, 1]
    assert [metrics[f"dcre_recall_{limit}pct"] for limit in (5, 10, 20, 30)] == [0, 0, 0, 0]


def test_pitfall_the_published_value_knows_one_focal_length_and_a_centred_principal_point() -> None:
    """fy, cx and cy change nothing there; they change the right value."""
    slipped = shifted(TRUE, 0.2, 0.4, 1.0)
    other = np.array([[150.0, 0, 90.0], [0, 180.0, 50.0], [0, 0, 1]])
    assert dcre_cadloc(WALL, slipped, TRUE, other) == dcre_cadloc(WALL, slipped, TRUE, K)
    assert dcre(WALL, slipped, TRUE, other) != dcre(WALL, slipped, TRUE, K)


def test_the_published_value_is_its_formula_pixel_by_pixel() -> None:
    """A loop over pixels: lift by fx and the image's middle, cam_from_rec as if rec_from_cam, project back."""
    rng = np.random.default_rng(1)
    depth = rng.uniform(5, 30, (12, 16))
    rec = Similarity(0.25, rotation_about_z(40)[:3, :3], np.array([3.0, -7.0, 2.0]))
    guess = shifted(TRUE @ about(0, 2.0), 0.3, 0.1, -0.4)
    cam_from_rec, cam_from_rec_true = (inverse(rec.transform_pose(pose)) for pose in (guess, TRUE))
    moved = []
    for v, u in itertools.product(range(12), range(16)):
        z = depth[v, u] * 0.25
        eye = np.array([(u - 8) * z / 150, (v - 6) * z / 150, z, 1.0])
        x, y, z = (np.linalg.inv(cam_from_rec_true) @ cam_from_rec @ eye)[:3]
        moved.append(np.hypot(150 * x / z + 8 - u, 150 * y / z + 6 - v) / 20)
    found = dcre_cadloc(depth, guess, TRUE, K, rec_from_cad=rec)
    assert found.mean_share == pytest.approx(np.mean(moved))
    assert found.max_share == pytest.approx(np.max(moved))


def test_the_published_value_needs_ten_pixels_of_the_photo() -> None:
    """Nine pixels are void, ten are not; one pixel of a map at a quarter of the photo's size stands for sixteen."""
    few = VOID.copy()
    few[0, :9] = 20.0
    assert dcre_cadloc(few, TRUE, TRUE, K) == CADLOC_VOID
    assert dcre_cadloc(few, TRUE, TRUE, K, width_px=4 * WIDTH) != CADLOC_VOID
    few[0, 9] = 20.0
    assert dcre_cadloc(few, TRUE, TRUE, K) != CADLOC_VOID


def test_queries_without_an_estimate_fail_without_rendering() -> None:
    """The right value and the published one are infinite; the model is rendered for the others only."""
    rendered: list[tuple[int, int]] = []

    def wall(_pose: Array, _K: Array, width_px: int, height_px: int) -> NDArray[np.float32]:
        rendered.append((width_px, height_px))
        return np.full((height_px, width_px), 20.0, np.float32)

    cameras = np.stack([inverse(TRUE)] * 2), np.stack([K] * 2)
    found = measure_dcre([estimate(None), estimate(TRUE)], *cameras, [(640, 480)] * 2, wall)
    assert np.isinf([found.mean_share[0], found.max_share[0], found.cadloc_mean_share[0]]).all()
    assert found.mean_share[1] == pytest.approx(0, abs=1e-9)
    assert rendered == [(320, 240)]


def test_a_small_render_measures_what_the_full_one_does(gate: CadModel) -> None:
    """Mean within 1 %, maximum within 3 %, of the value over every pixel of a photo of 1 000 × 750."""
    width, height = 1000, 750
    intrinsics = pinhole(width, height, 60) + np.array([[0, 0, 30], [0, 40, -20], [0, 0, 0]])
    render_depth = depth_of(gate, process_renderer("gl"))
    for motion in ((0.5, 0, 0, 1.0), (0, 0.2, 1.5, -2.0), (3.0, 0, -2.0, 8.0)):
        pose = shifted(TRUE @ about(1, motion[3]), *motion[:3])
        whole = dcre(render_depth(pose, intrinsics, width, height), pose, TRUE, intrinsics)
        small = measure_dcre([estimate(pose)], inverse(TRUE)[None], intrinsics[None], [(width, height)], render_depth)
        assert small.mean_share[0] == pytest.approx(whole.mean_share, rel=0.01)
        assert small.max_share[0] == pytest.approx(whole.max_share, rel=0.03)


@given(st.integers(100, 6000), st.integers(100, 6000))
def test_a_reduced_camera_looks_the_same_way(width: int, height: int) -> None:
    """The image's corners and principal point stay on the same rays; the longer side is at most 320 px."""
    intrinsics = pinhole(width, height, 60)
    small, small_width, small_height = reduced(intrinsics, width, height)
    assert max(small_width, small_height) <= 320
    corner = np.linalg.inv(intrinsics) @ [width, height, 1]
    assert small @ corner == pytest.approx([small_width, small_height, 1])


def test_the_summary_has_the_metrics_of_the_catalogue() -> None:
    """Names and order are those the platform knows; every value is a finite number, for failures as well."""
    metrics = dcre_summary(errors_of(np.inf, np.inf, 0.01))
    assert tuple(metrics) == DCRE_METRICS == metric_names.DCRE_METRICS
    assert all(np.isfinite(value) for value in metrics.values())
    assert metrics["dcre_mean_median_pct"] == metrics["dcre_max_median_pct"] == FAILED_DCRE_PCT


def test_recalls_are_shares_of_all_queries() -> None:
    """Of four queries with means 4, 8, 15 % and none, the maxima twice that: shares of four, limits strict."""
    metrics = dcre_summary(errors_of(0.04, 0.08, 0.15, np.inf))
    assert [metrics[f"dcre_recall_{limit}pct"] for limit in (5, 10, 20, 30)] == [0.25, 0.5, 0.75, 0.75]
    assert [metrics[f"dcre_max_recall_{limit}pct"] for limit in (5, 10, 20, 30)] == [0, 0.25, 0.5, 0.5]
    assert metrics["dcre_mean_median_pct"] == pytest.approx(11.5)


def test_cadloc_recalls_at_its_limit_too() -> None:
    """An error equal to the limit is recalled there, and here it is not."""
    metrics = dcre_summary(errors_of(0.1))
    assert (metrics["dcre_cadloc_recall_10pct"], metrics["dcre_recall_10pct"]) == (1, 0)


def test_no_queries_have_no_summary() -> None:
    """An empty set is refused, not averaged to NaN."""
    with pytest.raises(ValueError, match="no queries"):
        dcre_summary(errors_of())
