"""Photographs without lens distortion: every camera of COLMAP's becomes a pinhole, exactly where it can see as one."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
import pycolmap
from numpy.typing import NDArray

from cadloc.datasets.colmap import colmap_camera
from cadloc.datasets.reconstruction import Camera
from cadloc.geometry import Array

PINHOLES = ("SIMPLE_PINHOLE", "PINHOLE")


def is_pinhole(camera: Camera) -> bool:
    """Whether its images have no distortion to take away. Fisheyes bend lines even with all coefficients 0."""
    known = colmap_camera(camera)
    return camera.model in PINHOLES or bool(
        known.is_undistorted() and known.is_perspective() and not known.is_perspective_fisheye()
    )


def undistorted_camera(camera: Camera) -> Camera:
    """The `PINHOLE` camera of the undistorted image: fx, fy as before, cx, cy and size such that no pixel is blank.

    COLMAP's own rule (`undistort_camera` with `blank_pixels=0`): the largest image of one and the same scale that
    the photo covers. A pinhole stays as it is. Raises ValueError for cameras that no pinhole can stand in for.
    """
    known = colmap_camera(camera)
    if is_pinhole(camera):
        sides = (camera.width_px, camera.height_px)
    elif known.is_spherical():
        raise ValueError(f"a {camera.model} camera sees all around: no pinhole image shows that")
    else:
        known = pycolmap.undistort_camera(pycolmap.UndistortCameraOptions(), known)
        sides = (known.width, known.height)
    K = known.calibration_matrix()
    return Camera("PINHOLE", *sides, (float(K[0, 0]), float(K[1, 1]), float(K[0, 2]), float(K[1, 2])))


def intrinsics_of(camera: Camera) -> Array:
    """The pinhole matrix (3, 3) of an undistorted camera, in pixels."""
    fx, fy, cx, cy = undistorted_camera(camera).params
    return np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])


def undistorted(image: NDArray[np.uint8], camera: Camera) -> tuple[NDArray[np.uint8], Array]:
    """The image (H, W, 3) that `undistorted_camera` would have taken, and its intrinsics (3, 3) in pixels.

    A pinhole's image is returned as it is. Raises ValueError when image and camera differ in size.
    """
    if image.shape[1::-1] != (camera.width_px, camera.height_px):
        raise ValueError(f"an image of {image.shape[1::-1]} pixels by a camera of {camera.width_px, camera.height_px}")
    if is_pinhole(camera):
        return image, intrinsics_of(camera)
    columns, rows = _sampled_at(camera)
    straight = cv2.remap(image, columns, rows, cv2.INTER_CUBIC, borderMode=cv2.BORDER_CONSTANT)
    return np.asarray(straight, np.uint8), intrinsics_of(camera)


def is_one_to_one(camera: Camera) -> bool:
    """Whether the undistorted image lies within the photo and no part of the photo shows in it twice or mirrored.

    Polynomials fitted to the middle of an image may turn back towards its corners: what they say there is no lens.
    Looked at on a grid of 33 × 33 places, borders included.
    """
    straight = undistorted_camera(camera)
    u, v = (np.linspace(0.5, side - 0.5, _GRID) for side in (straight.width_px, straight.height_px))
    with np.errstate(over="ignore", invalid="ignore"):  # places without number fail both tests below
        seen_at = _in_photo(camera, np.stack(np.meshgrid(u, v), axis=-1))
        along_u, along_v = np.diff(seen_at, axis=1)[:-1], np.diff(seen_at, axis=0)[:, :-1]
        turned = along_u[..., 0] * along_v[..., 1] - along_u[..., 1] * along_v[..., 0]
    within = (seen_at > -_MARGIN_PX) & (seen_at < np.array([camera.width_px, camera.height_px]) + _MARGIN_PX)
    return bool(within.all() and (turned > 0).all())


_GRID = 33
_MARGIN_PX = 1.0
_BLOCK_PX = 1 << 18  # looked up at once: a dozen numbers of 8 bytes each are held per pixel


# Photos of one camera mostly come one after another, and the maps of a large photo fill 100 MB.
@lru_cache(maxsize=1)
def _sampled_at(camera: Camera) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Where each undistorted pixel's centre lies in the photo: columns and rows (H, W), counted as OpenCV does."""
    straight = undistorted_camera(camera)
    columns, rows = (np.empty((straight.height_px, straight.width_px), np.float32) for _ in range(2))
    across = np.arange(straight.width_px) + 0.5
    step = max(1, _BLOCK_PX // straight.width_px)
    for start in range(0, straight.height_px, step):
        down = np.arange(start, min(start + step, straight.height_px)) + 0.5
        # OpenCV counts from the first pixel's centre, everybody else here from its corner.
        indices = _in_photo(camera, np.stack(np.meshgrid(across, down), axis=-1)) - 0.5
        np.nan_to_num(indices, copy=False, nan=-2.0)
        columns[start : start + step], rows[start : start + step] = indices[..., 0], indices[..., 1]
    return columns, rows


def _in_photo(camera: Camera, pixels: Array) -> Array:
    """Where in the photo the pixels (H, W, 2) of the undistorted image lie, (H, W, 2)."""
    homogeneous = np.concatenate([pixels, np.ones_like(pixels[..., :1])], axis=-1).reshape(-1, 3)
    rays = homogeneous @ np.linalg.inv(intrinsics_of(camera)).T
    return np.asarray(colmap_camera(camera).img_from_cam(rays), np.float64).reshape(pixels.shape)
