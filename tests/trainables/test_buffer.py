"""Buffer and queries: exact geometry under augmentation, fair shares, and independence of who makes what."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cadloc import buffer, queries
from cadloc.augmentation import Warp, draw_warp, identity_warp, jitter, sample_depth_m
from cadloc.buffer import Buffer, passes_of
from cadloc.config import AugmentationConfig, BufferConfig, DenseHog
from cadloc.contract import InputError
from cadloc.datasets.ace_layout import Dataset, Split, write_card, write_view
from cadloc.encoders import build
from cadloc.encoding import encode_image
from cadloc.geometry import Array, cell_pixels, look_at, project, rotation_error_deg, transform_points, unproject
from cadloc.samples import Samples

WIDTH, HEIGHT = 96, 64
STEP_M = 0.001
INTRINSICS = np.array([[80.0, 0, 41.0], [0, 84.0, 35.5], [0, 0, 1]])


def plane_depth_m(cad_from_cam: Array) -> Array:
    """Depth (H, W) of the plane y = 0, 0 above z = 3: a wall under the sky."""
    pixels = cell_pixels(HEIGHT, WIDTH, 1).reshape(-1, 2)
    directions = unproject(pixels, np.ones(len(pixels)), INTRINSICS) @ cad_from_cam[:3, :3].T
    depth_m = -cad_from_cam[1, 3] / directions[:, 1]
    height_m = cad_from_cam[2, 3] + depth_m * directions[:, 2]
    return np.where((depth_m > 0) & (height_m < 3), depth_m, 0.0).reshape(HEIGHT, WIDTH)


def picture(seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def write_wall(directory: Path, split: Split, count: int) -> None:
    """`count` views of the wall from different places."""
    for k in range(count):
        eye = [3 * np.sin(k), -6 - k % 3, 1.5]
        cad_from_cam = look_at(eye, [0.4 * k % 2, 0, 1.5], roll_deg=2.0 * k)
        write_view(
            directory, split, f"{split}_{k:06d}", image=picture(k), depth_m=plane_depth_m(cad_from_cam),
            cad_from_cam=cad_from_cam, intrinsics=INTRINSICS, step_m=STEP_M,
        )  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """27 mapping and 3 query views: two chunks of the one, one of the other."""
    directory = tmp_path_factory.mktemp("wall")
    write_wall(directory, "mapping", 27)
    write_wall(directory, "query", 3)
    write_card(directory, {"depth_step_m": STEP_M})
    return directory


def settings(samples: int = 1500, passes: int = 2) -> dict[str, object]:
    augmentation = AugmentationConfig(scale=(0.667, 1.5), rotation_deg=15)
    config = BufferConfig(samples=samples, passes=passes, augmentation=augmentation)
    return {"encoder": DenseHog().model_dump(mode="json"), "buffer": config.model_dump(mode="json")}


def made(dataset: Path, directory: Path, config: dict[str, object], order: tuple[int, ...] = (0, 1)) -> Buffer:
    inputs = {"views": dataset}
    assert buffer.chunks(config, inputs) == len(order)
    for chunk in order:
        buffer.build_chunk(config, inputs, directory, chunk)
    buffer.finish(config, inputs, directory)
    return Buffer.open(directory)


@pytest.fixture(scope="module")
def wall_buffer(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Buffer:
    """Two passes, the second augmented."""
    return made(dataset, tmp_path_factory.mktemp("buffer"), settings())


def test_scene_coordinates_reproject_to_their_pixels(wall_buffer: Buffer) -> None:
    """Under the augmented view's pose and intrinsics every scene coordinate lands on the pixel stored with it."""
    points_cad = np.asarray(wall_buffer.scene_coordinates, np.float64)
    cam_from_cad, K = wall_buffer.cam_from_cad[wall_buffer.view], wall_buffer.intrinsics[wall_buffer.view]
    pixels = project(transform_points(cam_from_cad, points_cad[:, None]), K)[:, 0]
    assert np.abs(pixels - wall_buffer.pixels).max() < 1e-3


def test_scene_coordinates_lie_on_the_model(wall_buffer: Buffer) -> None:
    """On a plane, interpolated depth is exact: nothing is off by more than the stored depth's step."""
    points_cad = np.asarray(wall_buffer.scene_coordinates, np.float64)
    assert np.abs(points_cad[:, 1]).max() < 2 * STEP_M
    assert points_cad[:, 2].max() < 3


def test_samples_are_shared_out_evenly_without_repetition(wall_buffer: Buffer) -> None:
    """Each augmented view gives its equal share, or all cells it has; no cell of a view comes twice."""
    counts = np.bincount(wall_buffer.view, minlength=len(wall_buffer.intrinsics))
    assert len(wall_buffer.intrinsics) == 54
    assert counts.max() <= 1500 / 54 + 1
    cells = np.column_stack([wall_buffer.view, wall_buffer.pixels])
    assert len(np.unique(cells, axis=0)) == len(wall_buffer)
    assert sum(buffer.quota(1501, k, 54) for k in range(54)) == 1501


def test_the_first_pass_is_the_view_itself(dataset: Path, wall_buffer: Buffer) -> None:
    """Even augmented views are the plain ones: their pose, intrinsics and features are the dataset's own."""
    view = Dataset.open(dataset).views("mapping")[4]
    np.testing.assert_allclose(wall_buffer.cam_from_cad[8] @ view.cad_from_cam, np.eye(4), atol=1e-12)
    np.testing.assert_array_equal(wall_buffer.intrinsics[8], view.intrinsics)
    features = encode_image(build(DenseHog()), view.read_image())
    mine = wall_buffer.view == 8
    column, row = np.asarray(wall_buffer.pixels[mine]).astype(int).T // 8
    np.testing.assert_array_equal(wall_buffer.features[mine], features[row, column].astype(np.float16))


def test_augmented_cameras_stay_where_they_are(wall_buffer: Buffer) -> None:
    """Augmentation turns and scales: centres do not move, directions turn about the optical axis alone."""
    plain, turned = wall_buffer.cam_from_cad[0::2], wall_buffer.cam_from_cad[1::2]
    warped_from_cam = turned @ np.linalg.inv(plain)
    np.testing.assert_allclose(warped_from_cam[:, :3, 3], 0, atol=1e-9)
    np.testing.assert_allclose(warped_from_cam[:, 2, :3], np.tile([0, 0, 1], (27, 1)), atol=1e-9)
    angles_deg = rotation_error_deg(turned, plain)
    assert 1 < angles_deg.max() <= 15
    assert len(np.unique(angles_deg.round(6))) == 27


def test_chunks_may_come_in_any_order(dataset: Path, wall_buffer: Buffer, tmp_path: Path) -> None:
    """Who makes which chunk first changes nothing, to the last bit."""
    again = made(dataset, tmp_path, settings(), order=(1, 0))
    for name in ("features", "pixels", "view", "scene_coordinates", "cam_from_cad", "intrinsics"):
        np.testing.assert_array_equal(getattr(again, name), getattr(wall_buffer, name))


def test_a_model_nobody_sees_is_an_input_error(tmp_path: Path) -> None:
    """A buffer without a single sample is refused, and says where the depths are missing."""
    write_view(
        tmp_path / "empty", "mapping", "sky", image=picture(0), depth_m=np.zeros((HEIGHT, WIDTH)),
        cad_from_cam=np.eye(4), intrinsics=INTRINSICS, step_m=STEP_M,
    )  # fmt: skip
    write_card(tmp_path / "empty", {"depth_step_m": STEP_M})
    with pytest.raises(InputError, match="no cell with a known depth"):
        made(tmp_path / "empty", tmp_path / "out", settings(), order=(0,))


warps = st.builds(
    lambda scale, angle, shift: Warp(
        np.array([[80 * scale, 0, 41 * scale + shift], [0, 84 * scale, 35.5], [0, 0, 1]]), angle, 104, 72
    ),
    st.floats(0.5, 2), st.floats(-40, 40), st.floats(-20, 20),
)  # fmt: skip


@given(warps, st.floats(0.5, 50))
def test_warped_pixels_are_the_warped_cameras_projection(warp: Warp, depth_m: float) -> None:
    """Warping a pixel, and projecting its point into the warped camera, are one: also off the principal point."""
    pixels = np.array([[0.5, 0.5], [41.0, 35.5], [90.0, 12.0], [30.0, 63.0]])
    points_cam = unproject(pixels, np.full(4, depth_m), INTRINSICS)
    warped = project(transform_points(warp.warped_from_cam, points_cam), warp.intrinsics)
    np.testing.assert_allclose(warp.original_pixels(warped, INTRINSICS), pixels, atol=1e-8)
    np.testing.assert_allclose(transform_points(warp.warped_from_cam, points_cam)[:, 2], depth_m)


def test_the_image_follows_the_geometry() -> None:
    """In a warped linear ramp, each pixel shows the ramp's value at the place `original_pixels` says."""
    u, v = cell_pixels(HEIGHT, WIDTH, 1).transpose(2, 0, 1)
    ramp = np.stack([2 * u, 3 * v, 120 + 0 * u], -1).astype(np.uint8)
    warp = draw_warp(AugmentationConfig(), INTRINSICS, WIDTH, HEIGHT, np.random.default_rng(5))
    shown = warp.image(ramp, INTRINSICS)
    pixels = cell_pixels(warp.height_px, warp.width_px, 1)
    original = warp.original_pixels(pixels, INTRINSICS)
    inside = ((original > 2) & (original < [WIDTH - 2, HEIGHT - 2])).all(-1)
    assert inside.mean() > 0.5
    # OpenCV interpolates at 1/32 px and the ramp is stored in whole steps.
    assert np.abs(shown[inside][:, :2] - original[inside] * [2, 3] + 0.5).max() < 1.2


@given(st.integers(0, 1000))
def test_drawn_warps_keep_to_their_bounds(seed: int) -> None:
    """Scale, rotation and size stay within the configuration; sizes are multiples of 8."""
    config = AugmentationConfig(scale=(0.5, 2.0), rotation_deg=10)
    warp = draw_warp(config, INTRINSICS, WIDTH, HEIGHT, np.random.default_rng(seed))
    assert 0.5 <= warp.intrinsics[0, 0] / 80 <= 2
    assert abs(warp.rotation_deg) <= 10
    assert warp.width_px % 8 == warp.height_px % 8 == 0


def test_no_jitter_is_no_change() -> None:
    """With zero brightness and contrast ranges an image stays as it is."""
    config = AugmentationConfig(brightness=0, contrast=0)
    np.testing.assert_array_equal(jitter(picture(0), config, np.random.default_rng(0)), picture(0))


def test_depth_is_not_read_across_edges() -> None:
    """Next to a jump, to unknown pixels or to the border there is no depth; on a slanted plane it is exact."""
    inverse = 0.05 + 0.0003 * np.arange(40.0) + np.zeros((30, 1))
    depth_m = 1 / inverse
    depth_m[:, 20:] /= 2
    depth_m[10:14, 5] = 0
    pixels = np.array([[8.2, 20.7], [19.5, 15.0], [20.5, 15.0], [6.2, 12.0], [0.2, 9.0], [50.0, 9.0]])
    found = sample_depth_m(depth_m, pixels)
    np.testing.assert_array_equal(np.isfinite(found), [True, False, False, False, False, False])
    np.testing.assert_allclose(1 / found[0], 0.05 + 0.0003 * 7.7, rtol=1e-12)


def test_images_of_odd_size_are_cropped_on_the_far_sides() -> None:
    """The crop to whole cells leaves intrinsics, and the kept cells' features, untouched."""
    warp = identity_warp(INTRINSICS, 101, 70)
    assert (warp.width_px, warp.height_px) == (96, 64)
    np.testing.assert_array_equal(warp.intrinsics, INTRINSICS)
    image = np.pad(picture(1), ((0, 6), (0, 5), (0, 0)))
    encoder = build(DenseHog())
    np.testing.assert_array_equal(encode_image(encoder, image), encode_image(encoder, picture(1)))


def test_queries_hold_every_cell_of_every_image(tmp_path: Path) -> None:
    """Features are the images' own whatever their sizes, scene coordinates reproject to the cells or are NaN (sky)."""
    write_wall(tmp_path, "query", 2)
    rows = np.random.default_rng(0).integers(0, 255, (90, 131, 3)).astype(np.uint8)
    write_view(
        tmp_path, "query", "wide", image=rows, depth_m=np.full((90, 131), 2.0),
        cad_from_cam=np.eye(4), intrinsics=INTRINSICS, step_m=STEP_M,
    )  # fmt: skip
    write_card(tmp_path, {"depth_step_m": STEP_M})
    config = {"encoder": DenseHog().model_dump(mode="json"), "split": "query"}
    assert queries.build_chunk(config, {"views": tmp_path}, tmp_path, 0) == 3
    queries.finish(config, {"views": tmp_path}, tmp_path)
    stored, views = queries.Queries.open(tmp_path), Dataset.open(tmp_path).views("query")
    assert stored.names == tuple(view.name for view in views)
    assert stored.sizes_px.tolist() == [[WIDTH, HEIGHT], [WIDTH, HEIGHT], [131, 90]]
    for image, view in enumerate(views):
        features = encode_image(build(DenseHog()), view.read_image())
        mine = stored.cells(image)
        np.testing.assert_array_equal(stored.on_grid(image, stored.features[mine]), features.astype(np.float16))
        known = np.isfinite(stored.scene_coordinates[mine]).all(-1)
        assert known.mean() > 0.2
        points_cam = transform_points(stored.cam_from_cad[image], stored.scene_coordinates[mine][known])
        seen = project(points_cam, stored.intrinsics[image])
        np.testing.assert_allclose(seen, stored.pixels(image)[known], atol=1e-3)


def test_few_views_are_encoded_often_enough(dataset: Path) -> None:
    """`enough` passes give the samples asked for, counting on a quarter of the cells; never fewer than two."""
    views = Dataset.open(dataset).views("mapping")
    cells = len(views) * (WIDTH // 8) * (HEIGHT // 8)
    assert passes_of(BufferConfig(samples=cells, passes="enough"), views) == 4
    assert passes_of(BufferConfig(samples=10, passes="enough"), views) == 2
    assert passes_of(BufferConfig(samples=cells, passes=1), views) == 1


def test_joined_samples_keep_their_cameras(wall_buffer: Buffer) -> None:
    """Samples of two buffers are seen by the cameras of their own."""
    one = Samples.from_buffer(wall_buffer)
    both = Samples.joined([one, one])
    whole = both.batch(torch.arange(len(both)))
    points = whole.in_camera(whole.scene_coordinates)
    pixels = points[:, :2] / points[:, 2:] * whole.intrinsics[:, [0, 1], [0, 1]] + whole.intrinsics[:, :2, 2]
    assert len(both) == 2 * len(one)
    assert int(both.view.max()) == 2 * len(one.cam_from_cad) - 1
    assert float((pixels - whole.pixels).abs().max()) < 0.05


@pytest.fixture(scope="module")
def any_cells(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Buffer:
    """A buffer of as many cells as there are, the sky's among them."""
    config = settings(samples=100_000)
    asked = BufferConfig.model_validate({**dict(config["buffer"]), "cells": "any"})  # type: ignore[call-overload]
    return made(dataset, tmp_path_factory.mktemp("any"), {**config, "buffer": asked.model_dump(mode="json")})


def test_background_cells_have_a_pixel_and_no_point(dataset: Path, any_cells: Buffer) -> None:
    """Of every plain view, every cell is a sample: those of the wall with the point behind the pixel, those of the sky
    with NaN in all three coordinates."""
    known = np.isfinite(any_cells.scene_coordinates)
    assert np.array_equal(known.all(axis=1), known.any(axis=1))
    assert 0.2 < known.mean() < 0.95
    for i, view in enumerate(Dataset.open(dataset).views("mapping")):
        mine = any_cells.view == 2 * i
        pixels = any_cells.pixels[mine]
        np.testing.assert_array_equal(pixels, cell_pixels(HEIGHT // 8, WIDTH // 8).reshape(-1, 2))
        depth_m = sample_depth_m(view.read_depth_m(), pixels.astype(np.float64))
        np.testing.assert_array_equal(known[mine, 0], np.isfinite(depth_m))
    of_wall = np.asarray(any_cells.scene_coordinates)[known[:, 0]]
    assert np.abs(of_wall[:, 1]).max() < 2 * STEP_M
    assert np.isfinite(any_cells.features).all()


def test_samples_know_which_of_them_have_a_point(any_cells: Buffer, wall_buffer: Buffer) -> None:
    """Unknown ones have zeros for targets, and neither change the scene's size nor count as complete."""
    some, all_known = Samples.from_buffer(any_cells), Samples.from_buffer(wall_buffer)
    assert all_known.complete
    assert not some.complete
    batch = some.batch(torch.arange(len(some)))
    assert torch.equal(batch.known.nonzero()[:, 0], some.known)
    assert float(batch.targets[~batch.known].abs().max()) == 0
    assert torch.isfinite(batch.depth_m).all()
    assert some.scale == some.subset(some.known).scale
    assert some.scale.diameter_m > 0


def test_every_pass_over_a_view_has_the_global_feature_of_its_image(wall_buffer: Buffer) -> None:
    """Augmented view `2 i + p` is told what the i-th mapping view is; joined buffers keep their own."""
    vectors = np.random.default_rng(0).normal(0, 1, (27, 5)).astype(np.float32)
    told = Samples.from_buffer(wall_buffer, global_features=vectors)
    other = Samples.from_buffer(wall_buffer, global_features=-vectors)
    batch = told.batch(torch.arange(len(told)))
    assert batch.global_features is not None
    np.testing.assert_array_equal(batch.global_features.numpy(), vectors[np.asarray(wall_buffer.view) // 2])
    both = Samples.joined([told, other])
    last = both.batch(torch.arange(len(told), 2 * len(told)))
    assert last.global_features is not None
    assert torch.equal(last.global_features, -batch.global_features)
    subset = told.subset(torch.tensor([3, 700, 12])).batch(torch.arange(3))
    assert subset.global_features is not None
    assert torch.equal(subset.global_features, batch.global_features[[3, 700, 12]])
