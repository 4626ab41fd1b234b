"""Frames, cameras and errors. The conventions of the whole project are these, YAML and files included.

* A rigid transform is `dst_from_src`: 4×4 float64; neighbours cancel: `cad_from_cam @ cam_from_part`.
  `cad` is the world: the CAD model's own axes, z up, in metres. Translations are metres.
* `cam` is OpenCV: x right, y down, z forward. OpenGL's camera axes exist only in `cadloc.rendering`.
* A pixel is `(u, v)`; the centre of the first pixel is (0.5, 0.5). Feature cell `(i, j)` (row, column) of
  stride 8 looks at `(8(j + .5), 8(i + .5))`.
* Intrinsics are a full pinhole matrix [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] in pixels, one per image.
* Leading axes broadcast: points are (..., 3), pixels (..., 2), transforms (..., 4, 4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array: TypeAlias = NDArray[np.float64]


def rigid(rotation: ArrayLike, translation_m: ArrayLike) -> Array:
    """`dst_from_src` (..., 4, 4) from rotations (..., 3, 3) and translations (..., 3)."""
    rotation_33 = np.asarray(rotation, dtype=np.float64)
    dst_from_src = np.zeros((*rotation_33.shape[:-2], 4, 4))
    dst_from_src[..., :3, :3] = rotation_33
    dst_from_src[..., :3, 3] = translation_m
    dst_from_src[..., 3, 3] = 1.0
    return dst_from_src


def inverse(dst_from_src: ArrayLike) -> Array:
    """`src_from_dst` of a rigid transform, by transposing the rotation: exact where a 4×4 solve is not."""
    transform = np.asarray(dst_from_src, dtype=np.float64)
    src_from_dst_33 = np.swapaxes(transform[..., :3, :3], -1, -2)
    return rigid(src_from_dst_33, -np.einsum("...ij,...j->...i", src_from_dst_33, transform[..., :3, 3]))


def transform_points(dst_from_src: ArrayLike, points_src: ArrayLike) -> Array:
    """`points_dst` (..., N, 3): the points (..., N, 3) seen from the other frame; any affine 4×4 works."""
    transform = np.asarray(dst_from_src, dtype=np.float64)
    points = np.asarray(points_src, dtype=np.float64)
    return points @ np.swapaxes(transform[..., :3, :3], -1, -2) + transform[..., None, :3, 3]


def project(points_cam: ArrayLike, intrinsics: ArrayLike) -> Array:
    """Pixels (..., N, 2) of points (..., N, 3); NaN for points that are not in front of the camera."""
    points = np.asarray(points_cam, dtype=np.float64)
    depth_m = np.where(points[..., 2:] > 0, points[..., 2:], np.nan)
    rays = points / depth_m
    return np.asarray(rays @ np.swapaxes(np.asarray(intrinsics, dtype=np.float64), -1, -2))[..., :2]


def unproject(pixels: ArrayLike, depth_m: ArrayLike, intrinsics: ArrayLike) -> Array:
    """`points_cam` (..., N, 3) at depth z (..., N) along the optical axis behind pixels (..., N, 2)."""
    pixels_2 = np.asarray(pixels, dtype=np.float64)
    K = np.asarray(intrinsics, dtype=np.float64)
    homogeneous = np.concatenate([pixels_2, np.ones_like(pixels_2[..., :1])], axis=-1)
    rays = homogeneous @ np.swapaxes(np.linalg.inv(K), -1, -2)
    return np.asarray(rays * np.asarray(depth_m, dtype=np.float64)[..., None])


def look_at(eye_cad: ArrayLike, target_cad: ArrayLike, *, roll_deg: float = 0.0) -> Array:
    """`cad_from_cam` of a camera at `eye_cad` that looks at `target_cad`, its image upright against +z.

    Where the view direction is vertical, +y takes the place of +z. `roll_deg` turns the camera clockwise
    about its optical axis. Raises ValueError when eye and target coincide.
    """
    eye, target = np.asarray(eye_cad, dtype=np.float64), np.asarray(target_cad, dtype=np.float64)
    distance_m = np.linalg.norm(target - eye)
    if distance_m == 0:
        raise ValueError("eye and target coincide: no view direction")
    forward = (target - eye) / distance_m
    up = np.array([0.0, 1.0, 0.0]) if abs(forward[2]) > 1 - 1e-9 else np.array([0.0, 0.0, 1.0])
    right = np.cross(forward, up)
    right /= np.linalg.norm(right)
    upright = np.stack([right, np.cross(forward, right), forward], axis=-1)
    return rigid(upright @ rotation_about_z(roll_deg)[:3, :3], eye)


def rotation_about_z(angle_deg: float) -> Array:
    """Rotation by `angle_deg` about the third axis, 4×4."""
    c, s = np.cos(np.deg2rad(angle_deg)), np.sin(np.deg2rad(angle_deg))
    return rigid([[c, -s, 0], [s, c, 0], [0, 0, 1]], np.zeros(3))


def pinhole(width_px: int, height_px: int, field_of_view_deg: float) -> Array:
    """Intrinsics (3, 3) of a centred camera whose *longer* side spans `field_of_view_deg`."""
    focal_px = 0.5 * max(width_px, height_px) / np.tan(np.deg2rad(field_of_view_deg) / 2)
    return np.array([[focal_px, 0, width_px / 2], [0, focal_px, height_px / 2], [0, 0, 1.0]])


def cell_pixels(rows: int, columns: int, stride: int = 8) -> Array:
    """Pixel (u, v) that each feature cell looks at, (rows, columns, 2): the middle of its stride square."""
    u, v = np.meshgrid(np.arange(columns) + 0.5, np.arange(rows) + 0.5)
    return np.stack([u, v], axis=-1) * stride


def rotation_error_deg(a_from_b: ArrayLike, a_from_b_true: ArrayLike) -> Array:
    """Angle (...) of the rotation left between two poses (..., 4, 4), in [0, 180] degrees.

    atan2 of sine and cosine rather than acos of the trace: acos is blind to angles below ~1e-6 degrees in
    float64 (0.02 degrees in float32).
    """
    estimate = np.asarray(a_from_b, dtype=np.float64)[..., :3, :3]
    true = np.asarray(a_from_b_true, dtype=np.float64)[..., :3, :3]
    rest = estimate @ np.swapaxes(true, -1, -2)
    axis = np.stack(
        [
            rest[..., 2, 1] - rest[..., 1, 2],
            rest[..., 0, 2] - rest[..., 2, 0],
            rest[..., 1, 0] - rest[..., 0, 1],
        ],
        -1,
    )
    sine = np.linalg.norm(axis, axis=-1) / 2
    cosine = (np.trace(rest, axis1=-2, axis2=-1) - 1) / 2
    return np.asarray(np.rad2deg(np.arctan2(sine, cosine)))


def translation_error_m(cad_from_cam: ArrayLike, cad_from_cam_true: ArrayLike) -> Array:
    """Distance (...) between two camera centres in metres; poses are (..., 4, 4)."""
    estimate, true = np.asarray(cad_from_cam, np.float64), np.asarray(cad_from_cam_true, np.float64)
    return np.asarray(np.linalg.norm(estimate[..., :3, 3] - true[..., :3, 3], axis=-1))


@dataclass(frozen=True)
class Similarity:
    """Sim(3) `dst_from_src`: x_dst = scale · rotation · x_src + translation."""

    scale: float
    rotation: Array
    translation: Array

    @classmethod
    def from_matrix(cls, dst_from_src: ArrayLike) -> Similarity:
        """From a 4×4 with scaled rotation; the rotation is the nearest orthonormal one.

        Raises ValueError for a mirrored, singular or strongly sheared matrix: none of those is a similarity.
        """
        matrix = np.asarray(dst_from_src, dtype=np.float64)
        left, singular, right = np.linalg.svd(matrix[:3, :3])
        if np.linalg.det(matrix[:3, :3]) <= 0:
            raise ValueError("not a similarity: the matrix mirrors or is singular")
        if singular[0] > 1.02 * singular[-1]:
            raise ValueError(f"not a similarity: axes are scaled by {singular.round(4).tolist()}")
        return cls(float(np.cbrt(np.prod(singular))), left @ right, matrix[:3, 3].copy())

    @property
    def matrix(self) -> Array:
        """The 4×4 matrix with scale in its upper left block."""
        return rigid(self.scale * self.rotation, self.translation)

    def inverse(self) -> Similarity:
        """`src_from_dst`."""
        rotation = self.rotation.T
        return Similarity(1 / self.scale, rotation, -(rotation @ self.translation) / self.scale)

    def __matmul__(self, other: Similarity) -> Similarity:
        return Similarity(
            self.scale * other.scale,
            self.rotation @ other.rotation,
            self.scale * self.rotation @ other.translation + self.translation,
        )

    def transform_points(self, points_src: ArrayLike) -> Array:
        """Points (..., 3) in the destination frame."""
        return self.scale * np.asarray(points_src, np.float64) @ self.rotation.T + self.translation

    def transform_pose(self, src_from_cam: ArrayLike) -> Array:
        """`dst_from_cam`, rigid: the camera moves with the world, its own axes keep their unit length."""
        pose = np.asarray(src_from_cam, dtype=np.float64)
        return rigid(self.rotation @ pose[..., :3, :3], self.transform_points(pose[..., :3, 3]))
