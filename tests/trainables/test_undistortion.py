"""Lenses: undistorted photos show things where their intrinsics say, whole, and pinholes are left alone."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pycolmap
import pytest

from cadloc.datasets.colmap import colmap_camera, parameter_counts
from cadloc.datasets.reconstruction import Camera
from cadloc.datasets.undistortion import _sampled_at, intrinsics_of, is_one_to_one, undistorted, undistorted_camera
from cadloc.geometry import Array

WIDTH_PX, HEIGHT_PX = 64, 48
SIDES = (320, 240)
LENSES = {
    "SIMPLE_RADIAL": (210, 161, 119, -0.15),
    "RADIAL": (210, 161, 119, -0.2, 0.05),
    "OPENCV": (210, 213, 161, 119, -0.25, 0.08, 0.002, -0.003),
    "FULL_OPENCV": (210, 213, 161, 119, -0.25, 0.08, 0.002, -0.003, 0.01, 0.02, -0.01, 0.005),
    "OPENCV_FISHEYE": (210, 213, 161, 119, -0.05, 0.02, -0.01, 0.003),
    "SIMPLE_RADIAL_FISHEYE": (210, 161, 119, -0.04),
    "FISHEYE": (210, 213, 161, 119),
    "FOV": (210, 210, 161, 119, 0.9),
}


def lens(model: str) -> Camera:
    return Camera(model, *SIDES, tuple(map(float, LENSES[model])))


def spots(image_shape: tuple[int, ...], centres: Array, sigma_px: float = 2.2) -> Array:
    """Bright spots about these pixels on black, (H, W)."""
    v, u = np.mgrid[: image_shape[0], : image_shape[1]] + 0.5
    squares = (u[..., None] - centres[:, 0]) ** 2 + (v[..., None] - centres[:, 1]) ** 2
    return np.asarray(200 * np.exp(-squares / (2 * sigma_px**2)).sum(-1))


def centroid(image: Array, near: Array, radius_px: float = 8.0) -> Array:
    v, u = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
    weights = image * ((u - near[0]) ** 2 + (v - near[1]) ** 2 < radius_px**2)
    return np.array([(weights * u).sum(), (weights * v).sum()]) / weights.sum()


@pytest.mark.parametrize("model", LENSES)
def test_undistorted_images_show_points_where_intrinsics_say(model: str) -> None:
    """Spots drawn where the lens shows points are found, undistorted, within 0.1 px of where `K` projects them."""
    camera = lens(model)
    straight, K = undistorted_camera(camera), intrinsics_of(camera)
    u, v = (np.linspace(24, side - 24, 6) for side in (straight.width_px, straight.height_px))
    expected = np.stack(np.meshgrid(u, v), axis=-1).reshape(-1, 2)
    rays = np.column_stack([expected, np.ones(len(expected))]) @ np.linalg.inv(K).T
    shown = colmap_camera(camera).img_from_cam(rays)
    assert np.abs(shown - expected).max() > 3
    drawn = spots((SIDES[1], SIDES[0]), shown).clip(0, 255).astype(np.uint8)
    image, intrinsics = undistorted(np.repeat(drawn[..., None], 3, axis=2), camera)
    assert np.array_equal(intrinsics, K)
    assert image.shape == (straight.height_px, straight.width_px, 3)
    found = np.array([centroid(image[..., 0].astype(float), centre) for centre in expected])
    assert np.linalg.norm(found - expected, axis=1).max() < 0.1


@pytest.mark.parametrize("model", LENSES)
def test_undistorted_images_have_no_blank_border(model: str) -> None:
    """Every pixel of the undistorted image comes from the photo, and both focal lengths are the photo's own."""
    camera = lens(model)
    image, K = undistorted(np.full((SIDES[1], SIDES[0], 3), 255, np.uint8), camera)
    assert image[1:-1, 1:-1].min() == 255
    assert image.min() > 100
    focal = colmap_camera(camera)
    assert (K[0, 0], K[1, 1]) == (focal.focal_length_x, focal.focal_length_y)
    assert is_one_to_one(camera)


def test_pinholes_pass_untouched() -> None:
    """A pinhole's image is returned byte by byte with its full intrinsics; a lens without coefficients is a pinhole."""
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT_PX, WIDTH_PX, 3), dtype=np.uint8)
    cameras = {
        "SIMPLE_PINHOLE": ((60.0, 30.0, 25.0), (60, 60, 30, 25)),
        "PINHOLE": ((60.0, 62.0, 30.0, 25.0), (60, 62, 30, 25)),
        "OPENCV": ((60.0, 62.0, 30.0, 25.0, 0.0, 0.0, 0.0, 0.0), (60, 62, 30, 25)),
    }
    for model, (params, (fx, fy, cx, cy)) in cameras.items():
        same, K = undistorted(image, Camera(model, WIDTH_PX, HEIGHT_PX, params))
        assert same is image
        assert K.tolist() == [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]
    with pytest.raises(ValueError, match="pixels by a camera"):
        undistorted(image[1:], Camera("PINHOLE", WIDTH_PX, HEIGHT_PX, (60.0, 62.0, 30.0, 25.0)))


def test_large_photos_are_looked_up_in_blocks() -> None:
    """Where a photo's pixels come from is one smooth map across blocks, found in little more memory than it fills."""
    camera = Camera("OPENCV", 2000, 1500, (1800.0, 1800.0, 1000.0, 750.0, -0.1, 0.02, 0.0, 0.0))
    tracemalloc.start()
    columns, rows = _sampled_at(camera)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < columns.nbytes + rows.nbytes + 60e6
    assert np.abs(np.diff(rows, n=2, axis=0)).max() < 1e-2
    assert np.abs(np.diff(columns, n=2, axis=0)).max() < 1e-2
    assert (rows[0].min() < 5, rows[-1].max() > 1490) == (True, True)


def test_every_camera_model_of_colmap_s_is_known() -> None:
    """All models that pycolmap has are read; those with an image plane have an undistorted twin."""
    assert set(LENSES) | {"PINHOLE", "EUCM", "THIN_PRISM_FISHEYE"} <= set(parameter_counts())
    for model in parameter_counts():
        known = pycolmap.Camera.create_from_model_name(1, model, 300.0, *SIDES)
        if not known.is_spherical():
            assert undistorted_camera(Camera(model, *SIDES, tuple(known.params))).model == "PINHOLE"
