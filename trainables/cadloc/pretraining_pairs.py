"""Pairs of images of one building, and which of their cells see the same point: what pre-training learns from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from cadloc.augmentation import Warp, identity_warp, sample_depth_m
from cadloc.contract import Fault, InputError
from cadloc.encoders.images import STRIDE
from cadloc.geometry import Array, cell_pixels, inverse, project, transform_points, unproject
from cadloc.pretraining_photos import photographed, sky

MIN_OVERLAP = 0.12
MAX_SCALE = 2.0
MAX_ANGLE_DEG = 40.0
SAME_DEPTH = 0.03
"""Relative difference up to which a projected point and the surface in the other view are one."""
MOST_FRUITLESS = 200
"""So many buildings in a row without a single pair to keep: there will never be one."""


@dataclass(frozen=True)
class PooledBuilding:
    """Memory-mapped views of one building: images (V, H, W, 3) uint8, depths (V, H, W) in metres (0: nothing),
    `cad_from_cam` (V, 4, 4), intrinsics (V, 3, 3), the appearance (V,) each was rendered in, and `pairs` (P, 2) of
    views that see enough of the same surface."""

    images: NDArray[np.uint8]
    depths_m: NDArray[np.float16]
    cad_from_cam: Array
    intrinsics: Array
    appearance: NDArray[np.int_]
    pairs: NDArray[np.int_]

    @classmethod
    def open(cls, directory: Path) -> PooledBuilding:
        """The building stored in a pool's sub-directory. Raises InputError where its files are missing or cut off."""
        mapped = {"images", "depths_m"}
        try:
            return cls(
                *(
                    np.load(directory / f"{field.name}.npy", mmap_mode="r" if field.name in mapped else None)
                    for field in fields(cls)
                )
            )
        except (OSError, ValueError, EOFError) as error:
            found, allowed = f"files that cannot be read ({error})", "a building of the pool, rendered whole"
            action = "remove this folder: the same command renders it anew"
            raise InputError(Fault(str(directory), "pool", found, allowed, action)) from error

    def save(self, directory: Path) -> None:
        """Writes the arrays to `directory`, one .npy file each."""
        for field in fields(self):
            np.save(directory / f"{field.name}.npy", getattr(self, field.name))

    @property
    def size_px(self) -> tuple[int, int]:
        """Width and height of the images."""
        return self.images.shape[2], self.images.shape[1]


@dataclass(frozen=True)
class Match:
    """Cells of image `a` and where the same points lie in image `b`; N matches.

    `cells_a` (N,) are flat indices into a's grid, `pixels_b` (N, 2), `points_cad` (N, 3); two points farther apart
    than their `reach_m` (N,), about a cell's size on the surface, are different points.
    """

    cells_a: NDArray[np.int_]
    pixels_b: Array
    points_cad: Array
    reach_m: Array


@dataclass(frozen=True)
class Cells:
    """Some cells of one image: flat indices (M,), and the points (M, 3) they see, NaN where that is the sky."""

    cells: NDArray[np.int_]
    points_cad: Array


@dataclass(frozen=True)
class Grid:
    """All cells of one image: the points (cells, 3) they see, NaN where that is the sky or unknown, and which of
    them are `usable` (cells,): those of which one of the two is known."""

    points_cad: Array
    usable: NDArray[np.bool_]


@dataclass(frozen=True)
class Pair:
    """Two pictures (H, W, 3) uint8, their matches, and other cells of each to tell the matches from."""

    image_a: NDArray[np.uint8]
    image_b: NDArray[np.uint8]
    match: Match
    others_a: Cells
    others_b: Cells
    grid_a: Grid
    grid_b: Grid


@dataclass(frozen=True)
class WarpedView:
    """A pooled view under a warp."""

    building: PooledBuilding
    index: int
    warp: Warp

    def image(self) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """The warped picture and where (H, W) it shows no surface."""
        K = self.building.intrinsics[self.index]
        surface = (self.building.depths_m[self.index] > 0).astype(np.uint8)
        picture = self.warp.image(self.building.images[self.index], K, border=cv2.BORDER_CONSTANT)
        return picture, self.warp.image(surface, K, border=cv2.BORDER_CONSTANT) == 0

    def depth_m(self, pixels: Array) -> Array:
        """Depth (N,) at warped pixels (N, 2); NaN where unknown."""
        original = self.warp.original_pixels(pixels, self.building.intrinsics[self.index])
        return sample_depth_m(self.building.depths_m[self.index], original)

    @property
    def warped_from_cad(self) -> Array:
        """Rigid (4, 4) into the warped camera's frame."""
        return self.warp.warped_from_cam @ inverse(self.building.cad_from_cam[self.index])


def grid_of(view: WarpedView) -> Array:
    """Pixels (cells, 2) that the view's cells look at, row by row."""
    return cell_pixels(view.warp.height_px // STRIDE, view.warp.width_px // STRIDE).reshape(-1, 2)


def points_of(view: WarpedView, pixels: Array) -> tuple[Array, Array]:
    """Points in `cad` (N, 3) and depths (N,) behind warped pixels (N, 2); NaN where unknown."""
    depth_m = view.depth_m(pixels)
    points_warped = unproject(pixels, depth_m, view.warp.intrinsics)
    return transform_points(inverse(view.warped_from_cad), points_warped), depth_m


def match_cells(a: WarpedView, b: WarpedView) -> Match:
    """All cells of `a` whose point `b` sees too."""
    points_cad, depth_a_m = points_of(a, grid_of(a))
    points_b = transform_points(b.warped_from_cad, points_cad)
    pixels_b = project(points_b, b.warp.intrinsics)
    with np.errstate(invalid="ignore"):
        inside = ((pixels_b >= 0) & (pixels_b < [b.warp.width_px, b.warp.height_px])).all(axis=1)
        seen = inside & (np.abs(b.depth_m(pixels_b) / points_b[:, 2] - 1) < SAME_DEPTH)
    reach_m = STRIDE * np.maximum(depth_a_m / a.warp.intrinsics[0, 0], points_b[:, 2] / b.warp.intrinsics[0, 0])
    chosen = np.flatnonzero(seen)
    return Match(chosen, pixels_b[chosen], points_cad[chosen], reach_m[chosen])


def overlapping_pairs(building: PooledBuilding) -> NDArray[np.int_]:
    """Pairs (P, 2) of views of which the first sees at least 12 % of its cells in the second, much alike.

    Alike: on the median point the two differ by at most 2 in scale and 40° in direction. Beyond that even the
    right match looks like another point, and mapping views are denser than that.
    """
    views = plain_views(building)
    pairs = [(i, j) for i in range(len(views)) for j in range(len(views)) if i != j]
    found = [(i, j) for i, j in pairs if _alike(views[i], views[j], match_cells(views[i], views[j]))]
    return np.array(found, int).reshape(-1, 2)


def _alike(a: WarpedView, b: WarpedView, match: Match) -> bool:
    if len(match.cells_a) < MIN_OVERLAP * len(grid_of(a)):
        return False
    towards = [inverse(view.warped_from_cad)[:3, 3] - match.points_cad for view in (a, b)]
    distances_m = [np.linalg.norm(ray, axis=1) for ray in towards]
    scales = [m / view.warp.intrinsics[0, 0] for m, view in zip(distances_m, (a, b), strict=True)]
    cosine = np.median((towards[0] * towards[1]).sum(axis=1) / (distances_m[0] * distances_m[1]))
    log_scale = abs(float(np.log(np.median(scales[0] / scales[1]))))
    return bool(log_scale <= np.log(MAX_SCALE) and cosine >= np.cos(np.deg2rad(MAX_ANGLE_DEG)))


def draw_pair(
    building: PooledBuilding, size_px: tuple[int, int], matches: int, generator: np.random.Generator
) -> Pair | None:
    """A random overlapping pair, each view scaled, turned and cropped to `size_px` about a point both see.

    It holds exactly `matches` matches. None when the draw left fewer: nothing of the pair can be kept then.
    """
    views = plain_views(building)
    plain = [views[i] for i in building.pairs[generator.integers(len(building.pairs))]]
    common = match_cells(*plain)
    focus_cad = common.points_cad[generator.integers(len(common.points_cad))]
    a, b = (drawn_about(view, focus_cad, size_px, generator) for view in plain)
    (shown_a, sky_a), (shown_b, sky_b) = a.image(), b.image()
    image_a, hidden_a = photographed(shown_a, sky_a, generator)
    image_b, hidden_b = photographed(shown_b, sky_b, generator)
    match = _visible(match_cells(a, b), hidden_a, hidden_b)
    if len(match.cells_a) < matches:
        return None
    kept = _subset(match, generator.choice(len(match.cells_a), matches, replace=False))
    grid_a, grid_b = _grid(a, sky_a), _grid(b, sky_b)
    others_a, others_b = (_others(grid, matches, generator) for grid in (grid_a, grid_b))
    return Pair(image_a, image_b, kept, others_a, others_b, grid_a, grid_b)


def plain_views(building: PooledBuilding) -> list[WarpedView]:
    """The building's views as rendered."""
    width, height = building.size_px
    return [WarpedView(building, i, identity_warp(K, width, height)) for i, K in enumerate(building.intrinsics)]


def under_sky(view: WarpedView, generator: np.random.Generator) -> NDArray[np.uint8]:
    """The view's image (H, W, 3) with a random sky where it shows no surface."""
    image, background = view.image()
    drawn = np.clip(sky((image.shape[0], image.shape[1]), generator) * 255, 0, 255).astype(np.uint8)
    return np.where(background[..., None], drawn, image)


def draw_batch(
    buildings: Sequence[PooledBuilding],
    size_px: tuple[int, int],
    pairs: int,
    pairs_per_building: int,
    matches: int,
    generator: np.random.Generator,
) -> tuple[list[Pair], NDArray[np.int_]]:
    """`pairs` pairs, `pairs_per_building` at a time from one building, and each one's building (pairs,).

    Every building must have views that overlap. Raises InputError when hardly any crops of them share `matches` cells.
    """
    drawn: list[Pair] = []
    owners: list[int] = []
    fruitless = 0
    while len(drawn) < pairs:
        if fruitless == MOST_FRUITLESS:
            raise InputError(_too_many(matches))
        owner = int(generator.integers(len(buildings)))
        wanted = min(pairs_per_building, pairs - len(drawn))
        candidates = (draw_pair(buildings[owner], size_px, matches, generator) for _ in range(4 * wanted))
        found = list(islice((pair for pair in candidates if pair is not None), wanted))
        drawn += found
        owners += [owner] * len(found)
        fruitless = 0 if found else fruitless + 1
    return drawn, np.array(owners)


def _too_many(matches: int) -> Fault:
    found = f"{matches}, and no pair of crops with as many in {MOST_FRUITLESS} draws of a building"
    action = "ask for fewer, or for larger crops (width_px, height_px)"
    return Fault("configuration", "method.matches", found, "what crops have in common", action)


def drawn_about(
    view: WarpedView, focus_cad: Array, size_px: tuple[int, int], generator: np.random.Generator
) -> WarpedView:
    """The view scaled by 0.8 to 1.25, turned by up to 10°, cropped so that the focus lands near the middle."""
    scale = float(np.exp(generator.uniform(np.log(0.8), np.log(1.25))))
    K = view.building.intrinsics[view.index].copy()
    K[:2] *= scale
    turned = Warp(K, float(generator.uniform(-10, 10)), *size_px)
    turned_from_cad = turned.warped_from_cam @ inverse(view.building.cad_from_cam[view.index])
    focus_px = project(transform_points(turned_from_cad, focus_cad[None]), K)[0]
    K[:2, 2] += generator.uniform(0.3, 0.7, 2) * size_px - focus_px
    return WarpedView(view.building, view.index, turned)


def _visible(match: Match, hidden_a: NDArray[np.bool_], hidden_b: NDArray[np.bool_]) -> Match:
    columns = hidden_a.shape[1] // STRIDE
    row, column = np.divmod(match.cells_a, columns)
    in_a = ~hidden_a[row * STRIDE + STRIDE // 2, column * STRIDE + STRIDE // 2]
    u, v = match.pixels_b.astype(int).T
    return _subset(match, np.flatnonzero(in_a & ~hidden_b[v, u]))


def _subset(match: Match, kept: NDArray[np.int_]) -> Match:
    return Match(match.cells_a[kept], match.pixels_b[kept], match.points_cad[kept], match.reach_m[kept])


def _grid(view: WarpedView, sky_where: NDArray[np.bool_]) -> Grid:
    pixels = grid_of(view)
    points_cad, depth_m = points_of(view, pixels)
    column, row = pixels.astype(int).T
    return Grid(points_cad, np.isfinite(depth_m) | sky_where[row, column])


def _others(grid: Grid, count: int, generator: np.random.Generator) -> Cells:
    """`count` random cells (with repetition) that see a known point or plain sky."""
    chosen = generator.choice(np.flatnonzero(grid.usable), count)
    return Cells(chosen, grid.points_cad[chosen])
