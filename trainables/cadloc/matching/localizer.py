"""Where a query was taken: matched with renders of a database, then with renders at the estimate itself."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cadloc.cad import CadModel
from cadloc.config import MatchingConfig, TrialConfig
from cadloc.geometry import Array, inverse, project, transform_points, unproject
from cadloc.localization import REFERENCE_SIDE_PX, localize
from cadloc.matching import build
from cadloc.matching.database import Database
from cadloc.matching.local_features import LocalFeatures
from cadloc.rendering import Light, ViewRenderer, depth_m
from cadloc.testing import Answer

FEWEST_SUPPORTERS = 15
"""Inliers that a refined pose needs. By chance, a few percent of the matches agree with any pose near the old one."""

_COLOUR_SAMPLES = 4


class Localizer:
    """A database of images of known depth, and the model that is rendered at the poses found with it."""

    def __init__(self, config: TrialConfig, database: Database, model: CadModel, renderer: ViewRenderer) -> None:
        self._config = config
        self._matching = config.matching or MatchingConfig()
        self._database = database
        self._model = model
        self._renderer = renderer
        self._refiner = build(self._matching.refined_by or self._matching.features, config.encoder)

    def localize(self, image: NDArray[np.uint8], intrinsics: Array) -> Answer:
        """Pose of an RGB image (H, W, 3) with `intrinsics` (3, 3), and the matches it was solved from.

        The same image gives the same pose. Its run time is that of everything: features, matching, rendering, solver.
        """
        start_s = time.perf_counter()
        best = self._from_database(image, intrinsics)
        query = self._refiner.describe(image) if self._matching.refinements else None
        refined_before = False
        for _ in range(self._matching.refinements):
            assert query is not None
            refined = self._refined(best, query, intrinsics)
            if refined is None or (refined_before and refined.estimate.inliers < best.estimate.inliers):
                break
            best, refined_before = refined, True
        return replace(best, estimate=replace(best.estimate, runtime_s=time.perf_counter() - start_s))

    def _from_database(self, image: NDArray[np.uint8], intrinsics: Array) -> Answer:
        query = self._database.describe(image)
        retrieved = self._database.retrieve(query, self._matching.retrieved)
        found = [self._database.correspondences(query, index) for index in retrieved]
        pixels, points = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return self._solved(pixels, points, intrinsics, image, self._matching.threshold_px)

    def _refined(self, answer: Answer, query: LocalFeatures, intrinsics: Array) -> Answer | None:
        """The pose by matches with a render at the answer's; None where that is not to be trusted."""
        cad_from_cam = answer.estimate.cad_from_cam
        if cad_from_cam is None:
            return None
        height_px, width_px = query.image.shape[:2]
        render = self._renderer.render(
            self._model, cad_from_cam, intrinsics, width_px, height_px, Light(), colour_samples=_COLOUR_SAMPLES
        )
        matches = self._refiner.match(query, self._refiner.describe(render.image, render.mask), self._matching.near_px)
        depths_m = _depths_at(depth_m(render, cad_from_cam), matches.render_pixels)
        known = np.isfinite(depths_m)
        seen = matches.render_pixels[known]
        points = transform_points(cad_from_cam, unproject(seen, depths_m[known], intrinsics))
        refined = self._solved(
            matches.query_pixels[known], points, intrinsics, query.image, self._matching.refined_threshold_px
        )
        return refined if self._trusted(refined, seen, intrinsics, query.short_side_px) else None

    def _trusted(self, refined: Answer, seen: Array, intrinsics: Array, short_side_px: int) -> bool:
        """Whether enough matches agree, and the pose moves what they see (M, 2) no farther than was looked for."""
        estimate = refined.estimate
        if estimate.cad_from_cam is None or estimate.inliers < FEWEST_SUPPORTERS:
            return False
        now = project(transform_points(inverse(estimate.cad_from_cam), refined.points_cad), intrinsics)
        limit_px = self._matching.near_px * short_side_px / REFERENCE_SIDE_PX
        return bool(np.median(np.nan_to_num(np.linalg.norm(now - seen, axis=1), nan=np.inf)) < limit_px)

    def _solved(
        self, pixels: Array, points: Array, intrinsics: Array, image: NDArray[np.uint8], threshold_px: float
    ) -> Answer:
        update = {"threshold_px": threshold_px, "max_iterations": self._matching.max_iterations}
        solving = self._config.localization.model_copy(update=update)
        height_px, width_px = image.shape[:2]
        estimate = localize(points, pixels, intrinsics, width_px, height_px, solving, self._config.seed)
        return Answer(estimate, pixels, points, threshold_px)


def _depths_at(depths_m: NDArray[np.float32], pixels: Array) -> Array:
    """Depth (M,) of the pixels (M, 2) that positions lie in; NaN where unknown or outside."""
    column, row = np.floor(pixels).astype(int).T
    inside = (row >= 0) & (row < depths_m.shape[0]) & (column >= 0) & (column < depths_m.shape[1])
    found = depths_m[np.where(inside, row, 0), np.where(inside, column, 0)]
    return np.where(inside & (found > 0), found, np.nan).astype(np.float64)
