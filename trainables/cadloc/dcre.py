"""Dense correspondence reprojection error (DCRE): how far an estimated pose moves the image of the CAD model.

Every pixel of the model, as seen from the estimated pose, is lifted by its depth and projected by the true pose; its
displacement is a share of the image diagonal (Wald et al., "Beyond Controlled Environments", ECCV 2020; Brachmann et
al., "On the Limits of Pseudo Ground Truth", ICCV 2021; Panek et al., "Visual Localization using Imperfect 3D Models
from the Internet" (CadLoc), CVPR 2023). Unlike metres and degrees it means the same near and far, in a room and before
a cathedral. `dcre` is the measure; `dcre_cadloc` repeats what CadLoc's published program computes, for comparison with
its tables only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cadloc.geometry import Array, Similarity, cell_pixels, inverse, project, transform_points, unproject
from cadloc.localization import Estimate

if TYPE_CHECKING:
    from cadloc.cad import CadModel
    from cadloc.rendering import ViewRenderer

RenderDepth: TypeAlias = Callable[[Array, Array, int, int], NDArray[np.float32]]
"""(cad_from_cam (4, 4), intrinsics (3, 3), width_px, height_px) -> depth z (H, W) in metres, 0 where nothing is."""

CAP_DIAGONALS = 1.0
"""Most that one pixel counts: as much as a pixel whose point is not in front of the true camera. Without a cap, one
point close to the camera's plane outweighs the whole image, and passing behind the camera would be an improvement."""

RENDERED_SIDE_PX = 320
"""Longer side of the depth maps of `measure_dcre`: its pixels are a sample of the photo's, many enough for a mean."""

FAILED_DCRE_PCT = 1e6
"""What a median over mostly failed queries reads: finite, so that it can be stored, and beyond any real error."""

LIMITS_PCT = (5, 10, 20, 30)
CADLOC_LIMITS_PCT = (10, 20, 30)
"""Limits in percent of the diagonal; CadLoc's tables have the last three."""

DCRE_METRICS: tuple[str, ...] = (
    "dcre_mean_median_pct",
    "dcre_max_median_pct",
    *(f"dcre_recall_{limit}pct" for limit in LIMITS_PCT),
    *(f"dcre_max_recall_{limit}pct" for limit in LIMITS_PCT),
    *(f"dcre_cadloc_recall_{limit}pct" for limit in CADLOC_LIMITS_PCT),
)
"""Metrics of a query set that `dcre_summary` computes."""

_CADLOC_NEAR = 0.01
_CADLOC_FEWEST_PIXELS = 10


@dataclass(frozen=True)
class Dcre:
    """Mean and maximum displacement over the pixels of one query, as shares of the image diagonal."""

    mean_share: float
    max_share: float


FAILED = Dcre(np.inf, np.inf)
"""No estimate, or one that sees nothing of the model."""

CADLOC_VOID = Dcre(-1.0, -1.0)
"""What CadLoc's program writes for an estimate that sees nothing; below every limit, it counts as a success there."""


@dataclass(frozen=True, eq=False)
class DcreErrors:
    """DCRE (N,) of N queries as shares of the diagonal: infinite where failed, else in [0, `CAP_DIAGONALS`].

    `cadloc_mean_share` (N,) is the mean of `dcre_cadloc`: −1 for a look into the void, infinite without an estimate.
    """

    mean_share: Array
    max_share: Array
    cadloc_mean_share: Array

    def __len__(self) -> int:
        return len(self.mean_share)


def dcre(
    depth_m: ArrayLike, cad_from_cam_estimate: ArrayLike, cad_from_cam_true: ArrayLike, intrinsics: ArrayLike
) -> Dcre:
    """DCRE of one estimate, by the depth (H, W) in metres of the model rendered at the estimate; 0 is unknown.

    `intrinsics` (3, 3) are those of the depth map; poses are (4, 4). A pixel counts at most `CAP_DIAGONALS`, one whose
    point is not in front of the true camera exactly that. Only the motion between the two cameras matters, never where
    the world's origin is. `FAILED` where no depth is known.
    """
    depth = np.asarray(depth_m, np.float64)
    known = np.isfinite(depth) & (depth > 0)
    if not known.any():
        return FAILED
    rows, columns = depth.shape
    pixels = cell_pixels(rows, columns, 1)[known]
    true_from_estimate = inverse(cad_from_cam_true) @ np.asarray(cad_from_cam_estimate, np.float64)
    points_true_cam = transform_points(true_from_estimate, unproject(pixels, depth[known], intrinsics))
    moved_px = np.linalg.norm(project(points_true_cam, intrinsics) - pixels, axis=1)
    # NaN: not in front of the true camera.
    share = np.nan_to_num(moved_px / np.hypot(rows, columns), nan=CAP_DIAGONALS).clip(max=CAP_DIAGONALS)
    return Dcre(float(share.mean()), float(share.max()))


def dcre_cadloc(
    depth_m: ArrayLike,
    cad_from_cam_estimate: ArrayLike,
    cad_from_cam_true: ArrayLike,
    intrinsics: ArrayLike,
    *,
    rec_from_cad: Similarity | None = None,
    width_px: int | None = None,
) -> Dcre:
    """What CadLoc's `evaluate_dcre.py` computes (global alignment), its oddities included; arguments as in `dcre`.

    * Its formula is for camera-to-world poses but gets world-to-camera ones: the value depends on the origin and the
      axes of the world, which is the reconstruction (`rec_from_cad`; `cad` itself where None).
    * One focal length, fx, and a principal point in the middle; the first pixel's centre is (0, 0).
    * Points behind the true camera are projected through it; nothing is capped.
    * Fewer than ten pixels deeper than 0.01 (of a photo `width_px` wide): `CADLOC_VOID`.
    """
    rec = rec_from_cad or Similarity.from_matrix(np.eye(4))
    depth = np.asarray(depth_m, np.float64) * rec.scale
    rows, columns = depth.shape
    known = depth > _CADLOC_NEAR
    if known.sum() < max(1.0, _CADLOC_FEWEST_PIXELS * (columns / (width_px or columns)) ** 2):
        return CADLOC_VOID
    fx = float(np.asarray(intrinsics)[0, 0])
    offsets_px = cell_pixels(rows, columns, 1)[known] - 0.5 - (columns / 2, rows / 2)
    points = np.concatenate([offsets_px * (depth[known] / fx)[:, None], depth[known][:, None]], axis=1)
    mistaken = rec.transform_pose(cad_from_cam_true) @ inverse(rec.transform_pose(cad_from_cam_estimate))
    points = transform_points(mistaken, points)
    with np.errstate(divide="ignore", invalid="ignore"):
        moved_px = np.linalg.norm(points[:, :2] * (fx / points[:, 2:]) - offsets_px, axis=1)
    share = np.nan_to_num(moved_px, nan=np.inf, posinf=np.inf) / np.hypot(rows, columns)
    return Dcre(float(share.mean()), float(share.max()))


def measure_dcre(
    estimates: Sequence[Estimate],
    cam_from_cad: Array,
    intrinsics: Array,
    sizes_px: Sequence[tuple[int, int]],
    render_depth: RenderDepth,
    *,
    rec_from_cad: Similarity | None = None,
) -> DcreErrors:
    """DCRE of estimates against the true `cam_from_cad` (N, 4, 4), in the same order.

    `intrinsics` (N, 3, 3) and `sizes_px` (width, height) are the photos'; the model is rendered once per estimate, at
    `RENDERED_SIDE_PX`. `rec_from_cad` is for `dcre_cadloc` alone. Raises ValueError for lengths that differ.
    """
    found, published = [], []
    for estimate, true, K, size in zip(estimates, inverse(cam_from_cad), intrinsics, sizes_px, strict=True):
        pose = estimate.cad_from_cam
        if pose is None:
            found.append(FAILED)
            published.append(FAILED)
            continue
        reduced_K, width, height = reduced(K, *size)
        depth = render_depth(pose, reduced_K, width, height)
        found.append(dcre(depth, pose, true, reduced_K))
        published.append(dcre_cadloc(depth, pose, true, reduced_K, rec_from_cad=rec_from_cad, width_px=size[0]))
    return DcreErrors(
        np.array([each.mean_share for each in found]),
        np.array([each.max_share for each in found]),
        np.array([each.mean_share for each in published]),
    )


def dcre_summary(errors: DcreErrors) -> dict[str, float]:
    """The `DCRE_METRICS` of a query set, every one finite; recalls are shares of all queries, failures included.

    Medians are percent of the diagonal, `FAILED_DCRE_PCT` where half of the queries failed. An error is recalled
    strictly below its limit, in CadLoc's variant also at it (and below zero).
    """
    if not len(errors):
        raise ValueError("no queries: their DCRE has no summary")
    values = [
        _median_pct(errors.mean_share),
        _median_pct(errors.max_share),
        *(float(np.mean(errors.mean_share < limit / 100)) for limit in LIMITS_PCT),
        *(float(np.mean(errors.max_share < limit / 100)) for limit in LIMITS_PCT),
        *(float(np.mean(errors.cadloc_mean_share <= limit / 100)) for limit in CADLOC_LIMITS_PCT),
    ]
    return dict(zip(DCRE_METRICS, values, strict=True))


def depth_of(model: CadModel, renderer: ViewRenderer) -> RenderDepth:
    """The `render_depth` of a CAD model."""
    from cadloc.rendering import Light, depth_m

    def render_depth(cad_from_cam: Array, intrinsics: Array, width_px: int, height_px: int) -> NDArray[np.float32]:
        return depth_m(renderer.render(model, cad_from_cam, intrinsics, width_px, height_px, Light()), cad_from_cam)

    return render_depth


def reduced(intrinsics: ArrayLike, width_px: int, height_px: int) -> tuple[Array, int, int]:
    """Intrinsics (3, 3), width and height of the same camera with a longer side of at most `RENDERED_SIDE_PX`."""
    scale = min(1.0, RENDERED_SIDE_PX / max(width_px, height_px))
    width, height = max(1, round(width_px * scale)), max(1, round(height_px * scale))
    return np.diag([width / width_px, height / height_px, 1.0]) @ np.asarray(intrinsics, np.float64), width, height


def _median_pct(shares: Array) -> float:
    median = float(np.median(shares))
    return 100 * median if np.isfinite(median) else FAILED_DCRE_PCT
