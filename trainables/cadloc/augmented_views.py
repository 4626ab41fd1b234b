"""A mapping view as each pass over the views sees it: under which camera, in which light, and by which of its cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cadloc.augmentation import Jitter, Warp, draw_jitter, draw_warp, identity_warp
from cadloc.config import BufferConfig
from cadloc.datasets.ace_layout import View
from cadloc.encoders.images import STRIDE
from cadloc.encoding import depth_at_m
from cadloc.geometry import Array, cell_pixels, inverse, transform_points, unproject


@dataclass(frozen=True, eq=False)
class AugmentedView:
    """A view in one pass. Its N chosen `cells` count row by row, with `pixels` (N, 2) and `scene_coordinates` (N, 3).

    `original` is the view's own image (H, W, 3) uint8, taken with `original_intrinsics` (3, 3); where it is `plain`,
    the warp is a crop and the light its own.
    """

    plain: bool
    original: NDArray[np.uint8]
    original_intrinsics: Array
    warp: Warp
    jitter: Jitter
    cells: NDArray[np.intp]
    pixels: NDArray[np.float32]
    scene_coordinates: NDArray[np.float32]
    cam_from_cad: Array

    def image(self) -> NDArray[np.uint8]:
        """The image to encode, (height, width, 3): one affine interpolation of the original, then the light."""
        if self.plain:
            return np.ascontiguousarray(self.original[: self.warp.height_px, : self.warp.width_px])
        return self.jitter.image(self.warp.image(self.original, self.original_intrinsics))


def augmented_views(view: View, settings: BufferConfig, wanted: Sequence[int]) -> list[AugmentedView]:
    """The view in every pass, decoded once for all; pass `p` gives at most `wanted[p]` cells, each at most once.

    What is drawn depends on seed, view name and pass only: neither on other views nor on who makes which chunk.
    """
    image, depth_m = view.read_image(), view.read_depth_m()
    return [_augmented(view, image, depth_m, settings, pass_, most) for pass_, most in enumerate(wanted)]


def _augmented(
    view: View,
    image: NDArray[np.uint8],
    depth_m: NDArray[np.float32],
    settings: BufferConfig,
    pass_: int,
    most: int,
) -> AugmentedView:
    generator = np.random.default_rng([settings.seed, pass_, *view.name.encode()])
    height, width = image.shape[:2]
    warp, light = identity_warp(view.intrinsics, width, height), Jitter()
    if pass_ > 0:
        warp = draw_warp(settings.augmentation, view.intrinsics, width, height, generator)
        light = draw_jitter(settings.augmentation, generator)
    pixels = cell_pixels(warp.height_px // STRIDE, warp.width_px // STRIDE).reshape(-1, 2)
    depths_m = depth_at_m(depth_m, (width, height), warp.original_pixels(pixels, view.intrinsics))
    usable = np.flatnonzero(np.isfinite(depths_m) | (settings.cells == "any"))
    chosen = np.sort(generator.choice(usable, min(len(usable), most), replace=False))
    cam_from_cad = warp.warped_from_cam @ inverse(view.cad_from_cam)
    points_cam = unproject(pixels[chosen], depths_m[chosen], warp.intrinsics)
    points_cad = transform_points(inverse(cam_from_cad), points_cam)
    return AugmentedView(
        pass_ == 0,
        image,
        view.intrinsics,
        warp,
        light,
        chosen,
        pixels[chosen].astype(np.float32),
        points_cad.astype(np.float32),
        cam_from_cad,
    )
