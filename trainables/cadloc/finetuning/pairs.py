"""Pairs to learn from: a photo and a render of the same name, and synthetic views that see the same points.

Photo and render share pose and intrinsics, but each is scaled, turned and cropped by itself: were the partner of a
cell always at the same place of the other picture, features could tell the place, which borders and padding betray,
and meet the loss without looking. Their appearance is drawn apart, too: the render is developed anew under another
sky, light and camera, the photo is only made brighter or darker.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from cadloc.augmentation import Warp, jitter
from cadloc.config import AugmentationConfig
from cadloc.contract import Fault, InputError
from cadloc.datasets.ace_layout import Dataset, Split, View
from cadloc.encoders.images import STRIDE
from cadloc.finetuning.cells import CellBatch
from cadloc.finetuning.settings import CropSettings
from cadloc.geometry import Array, inverse, project, transform_points, unproject
from cadloc.pretraining_pairs import (
    MAX_ANGLE_DEG,
    MAX_SCALE,
    PooledBuilding,
    WarpedView,
    grid_of,
    match_cells,
    points_of,
)
from cadloc.pretraining_photos import photographed

TRIES = 50
PARTNERS = 3
KEPT_VIEWS = 512
"""Images and depths in memory, of 2 MB each at 640 × 480."""
SAME_POSE = 1e-6
"""Largest difference of the entries of two poses, or of two intrinsics by focal length, that are the same."""


@dataclass(frozen=True, eq=False)
class PairedView:
    """A photo and the render at its pose."""

    photo: View
    render: View


def paired_views(photos: Dataset, renders: Dataset, split: Split) -> tuple[PairedView, ...]:
    """Pairs of the split, by name; photos without a render, and renders without a photo, have no part in it.

    Raises InputError when no name is in both, and, one fault per pair, for poses, intrinsics or sizes that differ.
    """
    by_name = {view.name: view for view in renders.views(split)}
    pairs = tuple(PairedView(view, by_name[view.name]) for view in photos.views(split) if view.name in by_name)
    if not pairs:
        found = f"no {split} photo with a render of its name in {renders.directory}"
        raise InputError(Fault(str(photos.directory), split, found, "renders at the photos' poses, of their names"))
    faults = [
        Fault(str(pair.render.image_path), pair.render.name, f"another {what} than its photo's", "renders at its pose")
        for pair in pairs
        for what in _differences(pair)
    ]
    if faults:
        raise InputError(faults)
    return pairs


def _differences(pair: PairedView) -> list[str]:
    photo, render = pair.photo, pair.render
    scale = photo.intrinsics[0, 0]
    same = {
        "pose": np.allclose(photo.cad_from_cam, render.cad_from_cam, rtol=SAME_POSE, atol=SAME_POSE),
        "calibration": np.allclose(photo.intrinsics / scale, render.intrinsics / scale, rtol=0, atol=SAME_POSE),
        "size": photo.image_size_px == render.image_size_px,
    }
    return [what for what, holds in same.items() if not holds]


@dataclass(frozen=True, eq=False)
class SyntheticViews:
    """Views of one scene, and which of them see a point from much the same side at much the same scale."""

    views: tuple[View, ...]

    @cached_property
    def _cam_from_cad(self) -> Array:
        return inverse(np.stack([view.cad_from_cam for view in self.views]))

    @cached_property
    def _intrinsics(self) -> Array:
        return np.stack([view.intrinsics for view in self.views])

    @cached_property
    def _sizes_px(self) -> NDArray[np.int_]:
        return np.array([view.image_size_px for view in self.views])

    def partners(self, index: int, point_cad: Array) -> NDArray[np.int_]:
        """Other views whose image holds the point (3,), alike in direction and scale; it may be hidden in them."""
        points_cam = transform_points(self._cam_from_cad, point_cad[None])[:, 0]
        with np.errstate(divide="ignore", invalid="ignore"):
            pixels = project(points_cam[:, None], self._intrinsics)[:, 0]
            towards = inverse(self._cam_from_cad)[:, :3, 3] - point_cad
            distances_m = np.linalg.norm(towards, axis=1)
            cosine = towards @ towards[index] / (distances_m * distances_m[index])
            scales = distances_m / self._intrinsics[:, 0, 0]
            alike = np.abs(np.log(scales / scales[index])) <= np.log(MAX_SCALE)
        inside = ((pixels >= 0) & (pixels < self._sizes_px)).all(axis=1) & (points_cam[:, 2] > 0)
        found = inside & alike & (cosine >= np.cos(np.deg2rad(MAX_ANGLE_DEG)))
        found[index] = False
        return np.flatnonzero(found)


def draw_pairs(
    pairs: Sequence[PairedView], crops: CropSettings, count: int, matches: int, generator: np.random.Generator
) -> tuple[CellBatch, CellBatch]:
    """`count` photo crops and crops of their renders, with `matches` cells each that see the same points.

    Raises InputError when crops of that size hardly ever hold so many cells that see the model.
    """

    def one() -> tuple[CellBatch, CellBatch] | None:
        return draw_pair(pairs[int(generator.integers(len(pairs)))], crops, matches, generator)

    return _drawn(one, count, matches)


def draw_replay(
    synthetic: SyntheticViews, crops: CropSettings, count: int, matches: int, generator: np.random.Generator
) -> tuple[CellBatch, CellBatch]:
    """`count` pairs of crops of two synthetic views, or of one view twice, whose cells see the same points.

    Each picture is developed by itself. Raises InputError as `draw_pairs`.
    """
    return _drawn(lambda: draw_replay_pair(synthetic, crops, matches, generator), count, matches)


def _drawn(
    one: Callable[[], tuple[CellBatch, CellBatch] | None], count: int, matches: int
) -> tuple[CellBatch, CellBatch]:
    found: list[tuple[CellBatch, CellBatch]] = []
    for _ in range(count):
        drawn = next((pair for pair in (one() for _ in range(TRIES)) if pair is not None), None)
        if drawn is None:
            told = f"{matches}: {TRIES} crops in a row hold fewer cells that see the model"
            raise InputError(Fault("configuration", "finetuning.matches", told, "fewer matches, or larger crops"))
        found.append(drawn)
    return CellBatch.stacked([pair[0] for pair in found]), CellBatch.stacked([pair[1] for pair in found])


def draw_pair(
    pair: PairedView, crops: CropSettings, matches: int, generator: np.random.Generator
) -> tuple[CellBatch, CellBatch] | None:
    """A crop of the photo and another of the render; None when fewer cells than `matches` see the same of the model.

    Photos of another model than the render's (a twin, another author's) must show it at much the same depth; the
    points are the render's, on the ray that both pixels share.
    """
    photo, render = stored(pair.photo), stored(pair.render)
    focus_px = _known_pixel((photo.depths_m[0] > 0) & (render.depths_m[0] > 0), generator)
    if focus_px is None:
        return None
    a, b = (WarpedView(view, 0, crop_about(view.intrinsics[0], focus_px, crops, generator)) for view in (photo, render))
    match = match_cells(a, b)
    points_cad = points_of(b, match.pixels_b)[0]
    render_image, hidden = _developed(b, crops, generator)
    visible = np.isfinite(points_cad).all(axis=1) & ~_at(hidden, match.pixels_b)
    light = AugmentationConfig(brightness=crops.photo_brightness, contrast=crops.photo_contrast)
    photo_image = jitter(a.warp.image(photo.images[0], photo.intrinsics[0]), light, generator)
    chosen = _chosen(np.flatnonzero(visible), matches, generator)
    if chosen is None:
        return None
    pixels_a, seen = grid_of(a)[match.cells_a[chosen]], points_cad[chosen]
    return _cell_batch(a, photo_image, pixels_a, seen), _cell_batch(b, render_image, match.pixels_b[chosen], seen)


def draw_replay_pair(
    synthetic: SyntheticViews, crops: CropSettings, matches: int, generator: np.random.Generator
) -> tuple[CellBatch, CellBatch] | None:
    """Crops of two views about a point that both see; None when none of a few partners sees enough of the same."""
    index = int(generator.integers(len(synthetic.views)))
    view = stored(synthetic.views[index])
    focus_px = _known_pixel(view.depths_m[0] > 0, generator)
    if focus_px is None:
        return None
    column, row = focus_px.astype(int)
    point_cam = unproject(focus_px[None], view.depths_m[0, row, column][None], view.intrinsics[0])
    point_cad = transform_points(view.cad_from_cam[0], point_cam)[0]
    a = WarpedView(view, 0, crop_about(view.intrinsics[0], focus_px, crops, generator))
    # Last of all the view itself, under another warp: a lonely view has no other partner.
    for partner in (*generator.permutation(synthetic.partners(index, point_cad))[:PARTNERS], index):
        other = stored(synthetic.views[partner])
        point_other = transform_points(inverse(other.cad_from_cam[0]), point_cad[None])
        focus_other_px = project(point_other, other.intrinsics[0])[0]
        b = WarpedView(other, 0, crop_about(other.intrinsics[0], focus_other_px, crops, generator))
        found = _matched(a, b, matches, generator)
        if found is not None:
            return found
    return None


def _matched(
    a: WarpedView, b: WarpedView, matches: int, generator: np.random.Generator
) -> tuple[CellBatch, CellBatch] | None:
    match = match_cells(a, b)
    if len(match.cells_a) < matches:
        return None  # before the costly part
    image_a, hidden_a = photographed(*a.image(), generator)
    image_b, hidden_b = photographed(*b.image(), generator)
    pixels_a = grid_of(a)[match.cells_a]
    visible = ~_at(hidden_a, pixels_a) & ~_at(hidden_b, match.pixels_b)
    chosen = _chosen(np.flatnonzero(visible), matches, generator)
    if chosen is None:
        return None
    points_cad = match.points_cad[chosen]
    first = _cell_batch(a, image_a, pixels_a[chosen], points_cad)
    return first, _cell_batch(b, image_b, match.pixels_b[chosen], points_cad)


def crop_about(intrinsics: Array, focus_px: Array, crops: CropSettings, generator: np.random.Generator) -> Warp:
    """A random scale and turn, and a crop in which the focus (2,) of the image lands near the middle."""
    size_px = (crops.width_px, crops.height_px)
    scale = float(np.exp(generator.uniform(*np.log(crops.scale))))
    K = np.array(intrinsics, np.float64)
    K[:2] *= scale
    rotation_deg = float(generator.uniform(-1, 1) * crops.rotation_deg)
    turned = Warp(K, rotation_deg, *size_px).warped_from_pixels(intrinsics) @ [*focus_px, 1.0]
    K[:2, 2] += generator.uniform(0.3, 0.7, 2) * size_px - turned[:2]
    return Warp(K, rotation_deg, *size_px)


@lru_cache(maxsize=KEPT_VIEWS)
def stored(view: View) -> PooledBuilding:
    """The view's image and depth, read once, as a building of one view; InputError for depth of another size."""
    image, depth_m = view.read_image(), view.read_depth_m()
    if depth_m.shape != image.shape[:2]:
        found = f"{depth_m.shape[1]} x {depth_m.shape[0]} px"
        allowed = f"the image's {image.shape[1]} x {image.shape[0]} px"
        raise InputError(Fault(str(view.depth_path), "depth", found, allowed, "prepare the dataset with this program"))
    nothing = np.zeros(1, int), np.zeros((0, 2), int)
    return PooledBuilding(image[None], depth_m[None], view.cad_from_cam[None], view.intrinsics[None], *nothing)  # type: ignore[arg-type]


def _developed(
    view: WarpedView, crops: CropSettings, generator: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    if crops.develop_renders:
        return photographed(*view.image(), generator)
    image = view.warp.image(view.building.images[view.index], view.building.intrinsics[view.index])
    return image, np.zeros(image.shape[:2], bool)


def _known_pixel(known: NDArray[np.bool_], generator: np.random.Generator) -> Array | None:
    """Centre (2,) of a random pixel of the mask (H, W); None of an empty one."""
    places = np.flatnonzero(known)
    if not len(places):
        return None
    row, column = divmod(int(places[generator.integers(len(places))]), known.shape[1])
    return np.array([column + 0.5, row + 0.5])


def _at(mask: NDArray[np.bool_], pixels: Array) -> NDArray[np.bool_]:
    column, row = pixels.astype(int).T
    return np.asarray(mask[row, column])


def _chosen(candidates: NDArray[np.int_], count: int, generator: np.random.Generator) -> NDArray[np.int_] | None:
    if len(candidates) < count:
        return None
    return np.sort(generator.choice(candidates, count, replace=False))


def _cell_batch(view: WarpedView, image: NDArray[np.uint8], pixels: Array, points_cad: Array) -> CellBatch:
    assert image.shape[0] % STRIDE == 0
    arrays = (pixels, points_cad, view.warped_from_cad, view.warp.intrinsics)
    rest = (torch.from_numpy(array.astype(np.float32))[None] for array in arrays)
    return CellBatch(torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None], *rest)
