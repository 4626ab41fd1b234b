"""Matchers that others install: entry points of the group `cadloc.matchers`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cadloc.config import PluginFeatures
from cadloc.contract import Fault, InputError
from cadloc.localization import REFERENCE_SIDE_PX
from cadloc.matching.local_features import LocalFeatures, Matches
from cadloc.plugins import installed_plugin

GROUP = "cadloc.matchers"

ImageMatcher: TypeAlias = Callable[..., tuple[Any, Any]]
"""`matcher(query_rgb, render_rgb, **settings)`: pixels (M, 2) of the query and (M, 2) of the render, as arrays.

Images are (H, W, 3) uint8 RGB; the centre of the first pixel is (0.5, 0.5).
"""


class PluginMatcher:
    """Hands pairs of images to an installed matcher; finds no features of its own."""

    def __init__(self, config: PluginFeatures) -> None:
        self._config = config
        self._matcher: ImageMatcher = installed_plugin(GROUP, config.entry_point, "matching.features")

    def describe(self, image: NDArray[np.uint8], known: NDArray[np.bool_] | None = None) -> LocalFeatures:
        """The image alone: matches on what is not known are dropped later, when they are lifted."""
        return LocalFeatures(image, np.zeros((0, 2)), np.zeros((0, 0), np.float32))

    def match(self, query: LocalFeatures, render: LocalFeatures, near_px: float | None = None) -> Matches:
        """What the matcher says, within `near_px`. Raises InputError for an answer that is no pair of (M, 2) arrays."""
        found = self._matcher(query.image, render.image, **self._config.settings)
        pixels = [np.asarray(side, dtype=np.float64) for side in found]
        shapes = [side.shape for side in pixels]
        if len(shapes) != 2 or shapes[0] != shapes[1] or shapes[0][1:] != (2,):
            allowed = "two arrays (M, 2): pixels of the query, pixels of the render"
            raise InputError(Fault(self._config.entry_point, "matching.features", f"arrays {shapes}", allowed))
        near = np.isfinite(pixels[0]).all(axis=1) & np.isfinite(pixels[1]).all(axis=1)
        if near_px is not None:
            limit_px = near_px * query.short_side_px / REFERENCE_SIDE_PX
            near &= np.linalg.norm(pixels[0] - pixels[1], axis=1) <= limit_px
        return Matches(pixels[0][near], pixels[1][near])
