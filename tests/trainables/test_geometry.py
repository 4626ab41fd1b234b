"""Laws of frames, cameras and errors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cadloc.geometry import (
    Array,
    Similarity,
    cell_pixels,
    inverse,
    look_at,
    pinhole,
    project,
    rigid,
    rotation_about_z,
    rotation_error_deg,
    transform_points,
    translation_error_m,
    unproject,
)

metres = st.floats(-1e3, 1e3, allow_nan=False)
vectors = arrays(np.float64, 3, elements=metres)
angles_deg = st.floats(-180, 180, allow_nan=False)
K = np.array([[412.5, 0, 301.2], [0, 419.0, 244.7], [0, 0, 1.0]])


@st.composite
def poses(draw: st.DrawFn) -> Array:
    """Rigid transforms: a rotation from a random unit quaternion, a translation within a kilometre."""
    q = draw(arrays(np.float64, 4, elements=st.floats(-1, 1, allow_nan=False)))
    assume(np.linalg.norm(q) > 1e-2)
    w, x, y, z = q / np.linalg.norm(q)
    rotation = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return rigid(rotation, draw(vectors))


def points_in_front(count: int, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    return np.column_stack([rng.uniform(-20, 20, (count, 2)), rng.uniform(0.5, 90, count)])


@given(poses())
def test_inverse_undoes_a_transform(a_from_b: Array) -> None:
    """A transform and its inverse cancel, on either side."""
    np.testing.assert_allclose(a_from_b @ inverse(a_from_b), np.eye(4), atol=1e-9)
    np.testing.assert_allclose(inverse(inverse(a_from_b)), a_from_b, atol=1e-9)


@given(poses(), poses(), vectors)
def test_neighbouring_frames_cancel(a_from_b: Array, b_from_c: Array, point_c: Array) -> None:
    """Going c → b → a is going c → a by the product."""
    by_steps = transform_points(a_from_b, transform_points(b_from_c, point_c[None]))
    np.testing.assert_allclose(by_steps, transform_points(a_from_b @ b_from_c, point_c[None]), atol=1e-6)


@given(st.integers(0, 10_000))
def test_project_undoes_unproject(seed: int) -> None:
    """A pixel with a depth is the point that projects to this pixel at this depth."""
    points_cam = points_in_front(50, seed)
    pixels = project(points_cam, K)
    np.testing.assert_allclose(unproject(pixels, points_cam[:, 2], K), points_cam, rtol=1e-9, atol=1e-9)


def test_points_behind_the_camera_have_no_pixel() -> None:
    """A point behind the camera or in its plane projects to NaN rather than to a mirrored pixel."""
    assert np.isnan(project([[1.0, 2.0, -3.0], [1.0, 1.0, 0.0]], K)).all()


@given(poses(), poses())
def test_moving_the_whole_scene_changes_no_pixel_and_no_error(world: Array, cad_from_cam: Array) -> None:
    """Projection and pose errors are equivariant under a rigid motion of cameras and points together."""
    points_cam = points_in_front(20, 3)
    points_cad = transform_points(cad_from_cam, points_cam)
    moved_pose = world @ cad_from_cam
    moved_cam = transform_points(inverse(moved_pose), transform_points(world, points_cad))
    np.testing.assert_allclose(project(moved_cam, K), project(points_cam, K), atol=1e-5)
    estimate = cad_from_cam @ rigid(rotation_about_z(3.0)[:3, :3], [0.1, -0.2, 0.3])
    np.testing.assert_allclose(
        translation_error_m(world @ estimate, moved_pose),
        translation_error_m(estimate, cad_from_cam),
        atol=1e-9,
    )
    np.testing.assert_allclose(
        rotation_error_deg(world @ estimate, moved_pose),
        rotation_error_deg(estimate, cad_from_cam),
        atol=1e-9,
    )


@given(poses(), st.floats(1e-7, 180, allow_nan=False))
def test_rotation_error_is_the_angle_put_in(a_from_b: Array, angle_deg: float) -> None:
    """A rotation by an angle, however small, is measured as that angle; and the error is symmetric."""
    turned = a_from_b @ rotation_about_z(angle_deg)
    assert rotation_error_deg(turned, a_from_b) == pytest.approx(angle_deg, rel=1e-6, abs=1e-9)
    assert rotation_error_deg(a_from_b, turned) == pytest.approx(angle_deg, rel=1e-6, abs=1e-9)


@given(vectors, vectors, st.floats(-30, 30, allow_nan=False))
def test_look_at_puts_the_target_in_the_middle(eye: Array, target: Array, roll_deg: float) -> None:
    """The target lies on the optical axis whatever the roll, and the pose is rigid and right-handed."""
    assume(np.linalg.norm(target - eye) > 1e-3)
    cad_from_cam = look_at(eye, target, roll_deg=roll_deg)
    target_cam = transform_points(inverse(cad_from_cam), target[None])[0]
    np.testing.assert_allclose(target_cam, [0, 0, np.linalg.norm(target - eye)], atol=1e-6)
    assert np.linalg.det(cad_from_cam[:3, :3]) == pytest.approx(1, abs=1e-9)


def test_look_at_keeps_the_sky_up() -> None:
    """Without roll, the image's downward axis never points upward in the world."""
    for azimuth in np.linspace(0, 6, 13):
        cad_from_cam = look_at([10 * np.cos(azimuth), 10 * np.sin(azimuth), 1.6], [0, 0, 5])
        assert cad_from_cam[2, 1] < 0
        assert cad_from_cam[2, 0] == pytest.approx(0, abs=1e-12)


def test_first_pixel_centre_is_at_half() -> None:
    """A cell of stride 8 looks at the middle of its square: pixel 4.0, between the 4th and 5th pixel centre."""
    cells = cell_pixels(3, 5)
    assert cells.shape == (3, 5, 2)
    np.testing.assert_array_equal(cells[0, 0], [4, 4])
    np.testing.assert_array_equal(cells[2, 4], [36, 20])
    np.testing.assert_allclose(project([[0, 0, 7.0]], pinhole(640, 480, 60))[0], [320, 240])


def test_field_of_view_spans_the_longer_side() -> None:
    """The longer side subtends the stated angle, in landscape and in portrait."""
    for width, height in ((640, 480), (480, 640)):
        focal_px = pinhole(width, height, 70)[0, 0]
        assert 2 * np.rad2deg(np.arctan(320 / focal_px)) == pytest.approx(70)


@given(poses(), poses(), st.floats(0.01, 100), st.floats(0.01, 100))
def test_similarities_form_a_group(one: Array, two: Array, scale_one: float, scale_two: float) -> None:
    """Composition is the matrix product, the inverse undoes, and the matrix form loses nothing."""
    a = Similarity(scale_one, one[:3, :3], one[:3, 3])
    b = Similarity(scale_two, two[:3, :3], two[:3, 3])
    np.testing.assert_allclose((a @ b).matrix, a.matrix @ b.matrix, rtol=1e-9, atol=1e-6)
    np.testing.assert_allclose((a @ a.inverse()).matrix, np.eye(4), atol=1e-7)
    again = Similarity.from_matrix(a.matrix)
    assert again.scale == pytest.approx(a.scale)
    np.testing.assert_allclose(again.rotation, a.rotation, atol=1e-9)


@given(poses(), poses(), st.floats(0.01, 100))
def test_similarity_keeps_pixels(world: Array, src_from_cam: Array, scale: float) -> None:
    """A scene and its cameras scaled together show the same pixels."""
    dst_from_src = Similarity(scale, world[:3, :3], world[:3, 3])
    points_src = transform_points(src_from_cam, points_in_front(20, 5))
    dst_from_cam = dst_from_src.transform_pose(src_from_cam)
    points_cam = transform_points(inverse(dst_from_cam), dst_from_src.transform_points(points_src))
    np.testing.assert_allclose(project(points_cam, K), project(points_in_front(20, 5), K), atol=1e-4)


def test_a_mirror_is_no_similarity() -> None:
    """A matrix that mirrors or shears is refused: as a registration it would be silently wrong."""
    with pytest.raises(ValueError, match="mirrors"):
        Similarity.from_matrix(np.diag([1, -1, 1, 1]))
    with pytest.raises(ValueError, match="scaled"):
        Similarity.from_matrix(np.diag([1, 1.2, 1, 1]))
