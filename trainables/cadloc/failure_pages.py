"""A page of the worst queries: what was seen, what the estimate would see, and which pixels spoke for it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from cadloc.cad import CadModel
from cadloc.geometry import Array, inverse, project, rotation_error_deg, transform_points, translation_error_m
from cadloc.localization import REFERENCE_SIDE_PX, Estimate
from cadloc.rendering import Light, Rendering, ViewRenderer, depth_m
from cadloc.whole_files import write_bytes

SHOWN_QUERIES = 10
PICTURE_SIDE_PX = 320
"""Longer side of each picture on the page."""

MOST_BYTES = 3_000_000
BEND_SHARE = 0.05
"""Bend of the inverse depth from pixel to pixel, as a share of it, that is an edge. A plane's has none, however steep
it is seen: inverse depth is linear over the image there."""

CANNY_LIMITS = (100, 220)
AT_TRUE, AT_ESTIMATE, AT_BOTH = (0, 200, 0), (255, 0, 0), (255, 230, 0)
INLIER = (0, 216, 255)
PANEL_IN = 3.25


@dataclass(frozen=True, eq=False)
class FailureRow:
    """One query as the page shows it.

    `image` (H, W, 3) uint8 RGB with `intrinsics` (3, 3); `cad_from_cam_true` (4, 4); `inlier_pixels` (M, 2) are
    pixels of `image`: cells of a head or matches with renders (`explained_pixels` finds them); `dcre_mean_share` is
    the mean DCRE as a share of the image diagonal, infinite where there is none.
    """

    name: str
    image: NDArray[np.uint8]
    intrinsics: Array
    cad_from_cam_true: Array
    estimate: Estimate
    inlier_pixels: Array
    dcre_mean_share: float


def worst_queries(dcre_mean_share: Array, translation_m: Array, count: int = SHOWN_QUERIES) -> list[int]:
    """Indices of the `count` worst of N queries, worst first: by mean DCRE (N,), then by translation error (N,)."""
    return [int(i) for i in np.lexsort((-np.asarray(translation_m), -np.asarray(dcre_mean_share)))[:count]]


def explained_pixels(
    estimate: Estimate,
    points_cad: ArrayLike,
    pixels: ArrayLike,
    intrinsics: ArrayLike,
    size_px: tuple[int, int],
    threshold_px: float,
) -> Array:
    """Those of the pixels (M, 2) onto which the estimate projects their points (M, 3) of `cad`: (K, 2).

    `threshold_px` is `LocalizationConfig.threshold_px`, scaled to the image of (width, height) `size_px` as `localize`
    does, so that these are the inliers it counts. No pixels where there is no estimate.
    """
    seen = np.asarray(pixels, np.float64)
    if estimate.cad_from_cam is None:
        return np.empty((0, 2))
    points_cam = transform_points(inverse(estimate.cad_from_cam), points_cad)
    error_px = np.linalg.norm(project(points_cam, intrinsics) - seen, axis=1)
    return np.asarray(seen[error_px < threshold_px * min(size_px) / REFERENCE_SIDE_PX])


def draw_failures(
    path: Path, rows: Sequence[FailureRow], model: CadModel, renderer: ViewRenderer, *, title: str = ""
) -> None:
    """Writes a PNG of under 3 MB with a line of four pictures per query, in the order of `rows`, at most ten.

    The query; the model at the estimate; edges of the model over the query, green at the true pose, red at the
    estimate, yellow where both agree; the pixels that agree with the estimate. Without an estimate the second picture
    says so. Raises ValueError for no rows, or more than ten (`worst_queries` chooses).
    """
    if not 1 <= len(rows) <= SHOWN_QUERIES:
        raise ValueError(f"{len(rows)} queries to draw; 1 to {SHOWN_QUERIES} fit on a page")
    shapes = [row.image.shape[0] / row.image.shape[1] for row in rows]
    size_in = (4 * PANEL_IN, sum(shapes) * PANEL_IN + 0.35 * len(rows) + 0.6)
    figure = Figure(figsize=size_in, layout="constrained", dpi=100)
    legend = "edges of the model: green at the true pose, red at the estimate, yellow both"
    figure.suptitle(f"{title}\n{legend}" if title else legend, fontsize=9, parse_math=False)
    grid = figure.subplots(len(rows), 4, squeeze=False, height_ratios=shapes)
    for axes, row in zip(grid, rows, strict=True):
        _draw_row(axes, row, model, renderer)
    write_bytes(path, _png(figure))


def edges(rendering: Rendering, cad_from_cam: Array) -> NDArray[np.bool_]:
    """Where (H, W) a render shows an edge: in its colours, of its silhouette, or where depth jumps."""
    grey = cv2.GaussianBlur(cv2.cvtColor(rendering.image, cv2.COLOR_RGB2GRAY), (3, 3), 0)
    nearness = np.divide(1, depth_m(rendering, cad_from_cam), where=rendering.mask, out=np.zeros(grey.shape))
    padded = np.pad(nearness, 1, mode="reflect", reflect_type="odd")  # a plane goes on beyond the border
    bend = np.maximum(
        abs(padded[1:-1, :-2] + padded[1:-1, 2:] - 2 * nearness),
        abs(padded[:-2, 1:-1] + padded[2:, 1:-1] - 2 * nearness),
    )
    return np.asarray(rendering.mask & ((cv2.Canny(grey, *CANNY_LIMITS) > 0) | (bend > BEND_SHARE * nearness)))


# --- one line ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Picture:
    """A query's image as small as the page shows it, with the intrinsics that belong to it."""

    image: NDArray[np.uint8]
    intrinsics: Array
    scale: Array

    @classmethod
    def of(cls, row: FailureRow) -> _Picture:
        height, width = row.image.shape[:2]
        factor = min(1.0, PICTURE_SIDE_PX / max(height, width))
        size = max(1, round(width * factor)), max(1, round(height * factor))
        scale = np.array([size[0] / width, size[1] / height])
        image = np.asarray(cv2.resize(row.image, size, interpolation=cv2.INTER_AREA), np.uint8)
        return cls(image, np.diag([*scale, 1.0]) @ row.intrinsics, scale)

    def render(self, model: CadModel, cad_from_cam: Array, renderer: ViewRenderer) -> Rendering:
        height, width = self.image.shape[:2]
        return renderer.render(model, cad_from_cam, self.intrinsics, width, height, Light(), colour_samples=4)


def _draw_row(axes: Sequence[Axes], row: FailureRow, model: CadModel, renderer: ViewRenderer) -> None:
    picture = _Picture.of(row)
    pose = row.estimate.cad_from_cam
    at_true = edges(picture.render(model, row.cad_from_cam_true, renderer), row.cad_from_cam_true)
    at_estimate, shown, remark = np.zeros_like(at_true), np.full_like(picture.image, 225), "no estimate"
    if pose is not None:
        render = picture.render(model, pose, renderer)
        at_estimate, shown = edges(render, pose), render.image
        remark = "" if render.mask.any() else "sees nothing of the model"
    overlay = _overlay(picture.image, at_true, at_estimate)
    pictures = (picture.image, shown, overlay, picture.image)
    for place, content, title in zip(axes, pictures, _titles(row), strict=True):
        place.imshow(content)
        place.set_title(title, fontsize=8, parse_math=False)
        place.set_axis_off()
    axes[1].text(0.5, 0.5, remark, ha="center", va="center", transform=axes[1].transAxes)
    inliers = np.asarray(row.inlier_pixels, np.float64).reshape(-1, 2) * picture.scale - 0.5  # imshow: centre at 0
    axes[3].scatter(inliers[:, 0], inliers[:, 1], s=5, color=np.array(INLIER) / 255, linewidths=0, antialiased=False)


def _titles(row: FailureRow) -> tuple[str, str, str, str]:
    name = row.name if len(row.name) <= 48 else f"{row.name[:22]} … {row.name[-22:]}"
    inliers = f"{row.estimate.inliers} inliers, coverage {100 * row.estimate.coverage:.0f} %"
    if row.estimate.cad_from_cam is None:
        return name, "not localized", "no DCRE", inliers
    translation_m = float(translation_error_m(row.estimate.cad_from_cam, row.cad_from_cam_true))
    rotation_deg = float(rotation_error_deg(row.estimate.cad_from_cam, row.cad_from_cam_true))
    share = row.dcre_mean_share
    measured = f"mean DCRE {100 * share:.1f} %" if np.isfinite(share) else "no DCRE"
    return name, f"off by {translation_m:.3g} m, {rotation_deg:.3g}°", measured, inliers


def _overlay(image: NDArray[np.uint8], at_true: NDArray[np.bool_], at_estimate: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The edges on the image (H, W, 3), which is grey and pale so that they stand out."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    pale = np.repeat((110 + 0.55 * grey)[..., None], 3, axis=2)
    pale[at_true] = AT_TRUE
    pale[at_estimate] = AT_ESTIMATE
    pale[at_true & at_estimate] = AT_BOTH
    return pale.clip(0, 255).astype(np.uint8)


def _png(figure: Figure) -> bytes:
    """The figure in 256 colours, enough for small photos, and made smaller until it is under 3 MB."""
    FigureCanvasAgg(figure)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    page = Image.open(drawn).convert("RGB")
    while True:
        content = io.BytesIO()
        page.quantize(palette=_palette(page), dither=Image.Dither.NONE).save(content, format="png", optimize=True)
        if content.tell() < MOST_BYTES:
            return content.getvalue()
        factor = min(0.9, 0.95 * float(np.sqrt(MOST_BYTES / content.tell())))
        page = page.resize((int(factor * page.width), int(factor * page.height)))


def _palette(page: Image.Image) -> Image.Image:
    """The page's 252 leading colours and the four of the marks, which cover too few pixels to lead."""
    marks = (*AT_TRUE, *AT_ESTIMATE, *AT_BOTH, *INLIER)
    leading = page.quantize(256 - len(marks) // 3).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette([*leading[: 768 - len(marks)], *marks])
    return palette
