"""Camera pose from scene coordinates: perspective-n-point inside RANSAC, with failure as a value."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, assert_never

import cv2
import numpy as np
import poselib
from numpy.typing import ArrayLike, NDArray

from cadloc.geometry import Array, inverse, project, rigid, transform_points
from cadloc.training_config import LocalizationConfig

REFERENCE_SIDE_PX = 480
"""Short image side that `LocalizationConfig.threshold_px` is for."""

FEWEST_INLIERS = 4
"""Three determine a pose, the fourth agrees with it."""

REFINEMENTS = 2
"""Of a pose found among a subset of the cells; each decides anew which of all cells are inliers."""

GRID = (8, 6)
"""Columns and rows of the grid over the image on which the spread of inliers is measured."""


@dataclass(frozen=True, eq=False)
class Estimate:
    """A camera pose, or none, and how far to trust it.

    `cad_from_cam` (4, 4) float64 is None where no pose explains four cells. `inliers` counts cells within the
    threshold, `inlier_share` is their share of the cells used, `coverage` the share of an 8 × 6 grid with one.
    """

    cad_from_cam: Array | None
    inliers: int
    inlier_share: float
    coverage: float
    runtime_s: float


class Answered(NamedTuple):
    """Which of several guesses about an image is believed, and its estimate; the runtime is that of all."""

    guess: int
    estimate: Estimate


def localize_best(
    guesses: Sequence[tuple[ArrayLike, ArrayLike | None]],
    pixels: ArrayLike,
    intrinsics: ArrayLike,
    width_px: int,
    height_px: int,
    config: LocalizationConfig,
    seed: int,
) -> Answered:
    """The guess, points (M, 3) and confidence (M,) or None, whose pose has most inliers; the first of equals.

    All guesses are about the same cells at `pixels` (M, 2), so inliers can be compared.
    """
    estimates = [
        localize(points, pixels, intrinsics, width_px, height_px, config, seed, confidence)
        for points, confidence in guesses
    ]
    best = max(range(len(estimates)), key=lambda guess: estimates[guess].inliers)
    return Answered(best, replace(estimates[best], runtime_s=sum(each.runtime_s for each in estimates)))


def localize(
    scene_coordinates: ArrayLike,
    pixels: ArrayLike,
    intrinsics: ArrayLike,
    width_px: int,
    height_px: int,
    config: LocalizationConfig,
    seed: int,
    confidence: ArrayLike | None = None,
) -> Estimate:
    """Pose of a camera with `intrinsics` (3, 3) that sees points (M, 3) of `cad` at pixels (M, 2).

    Non-finite points are dropped; of more than `max_cells`, a seeded random subset finds the pose, which PoseLib then
    refines on all. The threshold grows with the short image side, since predictions blur with the cells they are made
    of. Same input, same pose.
    Where `sampling` is `prosac`, cells of higher `confidence` (M,) are tried first. Raises ValueError without it.
    """
    start_s = time.perf_counter()
    given = np.asarray(scene_coordinates, np.float64), np.asarray(pixels, np.float64)
    points, seen = _usable(*given, config, seed, confidence)
    K = np.asarray(intrinsics, dtype=np.float64)
    threshold_px = config.threshold_px * min(width_px, height_px) / REFERENCE_SIDE_PX
    cam_from_cad = None
    if len(points) >= FEWEST_INLIERS:
        cam_from_cad = _solve(points, seen, K, (width_px, height_px), threshold_px, config, seed)
    if cam_from_cad is not None and len(points) == config.max_cells < len(given[0]) and config.solver == "poselib":
        for _ in range(REFINEMENTS):
            cam_from_cad = _refined(cam_from_cad, *given, K, (width_px, height_px), threshold_px)
    inlier = np.zeros(len(points), bool)
    if cam_from_cad is not None:
        inlier = _within(cam_from_cad, points, seen, K, threshold_px)
    found = cam_from_cad is not None and inlier.sum() >= FEWEST_INLIERS
    return Estimate(
        inverse(cam_from_cad) if found and cam_from_cad is not None else None,
        int(inlier.sum()),
        float(inlier.mean()) if len(points) else 0.0,
        coverage(seen[inlier], width_px, height_px),
        time.perf_counter() - start_s,
    )


def coverage(pixels: Array, width_px: int, height_px: int) -> float:
    """Share of the cells of an 8 × 6 grid over the image that hold one of the pixels (N, 2)."""
    column, row = np.floor(pixels / (width_px, height_px) * GRID).astype(int).clip(0, (GRID[0] - 1, GRID[1] - 1)).T
    return len(np.unique(row * GRID[0] + column)) / (GRID[0] * GRID[1])


def _usable(
    points: Array, pixels: Array, config: LocalizationConfig, seed: int, confidence: ArrayLike | None
) -> tuple[Array, Array]:
    """Finite ones, at most `max_cells`; the surest first, where that is how they are sampled."""
    if points.shape != (len(pixels), 3) or pixels.shape != (len(points), 2):
        raise ValueError(f"points {points.shape} and pixels {pixels.shape} are not (M, 3) and (M, 2)")
    finite = np.flatnonzero(np.isfinite(points).all(axis=1))
    if len(finite) > config.max_cells:
        finite = np.sort(np.random.default_rng(seed).choice(finite, config.max_cells, replace=False))
    if config.sampling == "prosac":
        if confidence is None:
            raise ValueError("PROSAC needs the confidence of every cell")
        finite = finite[np.argsort(-np.asarray(confidence)[finite], kind="stable")]
    return points[finite], pixels[finite]


def _within(cam_from_cad: Array, points: Array, pixels: Array, K: Array, threshold_px: float) -> NDArray[np.bool_]:
    error_px = np.linalg.norm(project(transform_points(cam_from_cad, points), K) - pixels, axis=1)
    return np.asarray(error_px < threshold_px)  # NaN behind the camera: not an inlier


def _refined(
    cam_from_cad: Array, points: Array, pixels: Array, K: Array, size_px: tuple[int, int], threshold_px: float
) -> Array:
    """The pose that fits all cells within the threshold best, by the robust cost PoseLib ends its own search with."""
    inlier = _within(cam_from_cad, points, pixels, K, threshold_px)
    start = poselib.CameraPose()
    start.R, start.t = cam_from_cad[:3, :3], cam_from_cad[:3, 3]
    cost = {"loss_type": "CAUCHY", "loss_scale": 0.5 * threshold_px}
    pose, _ = poselib.refine_absolute_pose(pixels[inlier], points[inlier], start, _pinhole(K, size_px), cost)
    refined = rigid(np.asarray(pose.R), np.asarray(pose.t))
    return refined if np.isfinite(refined).all() else cam_from_cad


def _pinhole(K: Array, size_px: tuple[int, int]) -> dict[str, object]:
    params = [K[0, 0], K[1, 1], K[0, 2], K[1, 2]]
    return {"model": "PINHOLE", "width": size_px[0], "height": size_px[1], "params": params}


def _solve(
    points: Array,
    pixels: Array,
    K: Array,
    size_px: tuple[int, int],
    threshold_px: float,
    config: LocalizationConfig,
    seed: int,
) -> Array | None:
    """`cam_from_cad`, or None where the solver finds nothing finite."""
    match config.solver:
        case "poselib":
            cam_from_cad = _solve_poselib(points, pixels, K, size_px, threshold_px, config, seed)
        case "opencv":
            cam_from_cad = _solve_opencv(points, pixels, K, threshold_px, config)
        case _:
            assert_never(config.solver)
    return cam_from_cad if cam_from_cad is not None and np.isfinite(cam_from_cad).all() else None


def _solve_poselib(
    points: Array,
    pixels: Array,
    K: Array,
    size_px: tuple[int, int],
    threshold_px: float,
    config: LocalizationConfig,
    seed: int,
) -> Array | None:
    ransac = {
        "max_reproj_error": threshold_px,
        "max_iterations": config.max_iterations,
        "min_iterations": min(config.min_iterations, config.max_iterations),
        "seed": seed,
        "progressive_sampling": config.sampling == "prosac",
    }
    pose, _ = poselib.estimate_absolute_pose(pixels, points, _pinhole(K, size_px), ransac, {})
    return rigid(np.asarray(pose.R), np.asarray(pose.t))


def _solve_opencv(
    points: Array, pixels: Array, K: Array, threshold_px: float, config: LocalizationConfig
) -> Array | None:
    found, rotation, translation, inliers = cv2.solvePnPRansac(
        points,
        pixels,
        K,
        None,
        iterationsCount=config.max_iterations,
        reprojectionError=threshold_px,
        confidence=0.9999,
        flags=cv2.USAC_MAGSAC,
    )
    if not found or inliers is None or len(inliers) < FEWEST_INLIERS:
        return None
    kept = inliers.ravel()
    rotation, translation = cv2.solvePnPRefineLM(points[kept], pixels[kept], K, None, rotation, translation)
    return rigid(cv2.Rodrigues(rotation)[0], translation.ravel())
