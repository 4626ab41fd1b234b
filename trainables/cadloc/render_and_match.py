"""Localization by matching with renders, as in MeshLoc (Panek et al., ECCV 2022) and CadLoc (CVPR 2023): no learning.

A query is matched with the renders that look most like it, the matches are lifted by the renders' depth, and a robust
solver finds the pose. Then the model is rendered at that pose and matched again, which repairs what a far viewpoint
made of the matches.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from cadloc.cad import CadModel
from cadloc.catalog import test_sets, validation_domains
from cadloc.config import EncoderFeatures, LocalizationConfig, PluginFeatures, TrialConfig
from cadloc.contract import Fault, InputError, Progress, TrialContext
from cadloc.datasets.ace_layout import Dataset, Split, View
from cadloc.geometry import Array, inverse, project, transform_points, unproject
from cadloc.localization import REFERENCE_SIDE_PX, Estimate, localize
from cadloc.matching import Matcher, build
from cadloc.matching.database import Database
from cadloc.matching.local_features import LocalFeatures
from cadloc.metrics import PoseErrors, coordinate_error_median_m, summary
from cadloc.rendering import Light, ViewRenderer, depth_m, process_renderer
from cadloc.scene_models import kept_scene_model
from cadloc.testing import keep_poses

_COLOUR_SAMPLES = 4


@dataclass(frozen=True, eq=False)
class MatchedPose:
    """A query's pose and the matches it rests on: pixels (M, 2), points (M, 3) of `cad`, which of them agree (M,)."""

    estimate: Estimate
    pixels: Array
    points: Array
    inlier: np.ndarray

    @property
    def supporters(self) -> int:
        """Places of the query with an inlier: renders that agree with each other about one pixel count once."""
        return len(np.unique(np.round(self.pixels[self.inlier]), axis=0))


def train(config: TrialConfig, context: TrialContext) -> Iterator[Progress]:
    """Describes the mapping views of the domains in `train_on`, then localizes every query set against them.

    Yields the validation's metrics, then the test's, under the names that `cadloc.ace` reports. Leaves poses in
    `context.directory`. Raises InputError for a plug-in that is not installed and for a database without depth.
    """
    torch.set_num_threads(1)  # the same bits whoever runs it; more cores run more trials
    start_s = time.perf_counter()
    localizer = Localizer.of(config, context)
    times = {"time/training_s": time.perf_counter() - start_s}
    metrics: dict[str, float] = dict(times)
    for name in validation_domains(config):
        found = localizer.localize_all(_views(context, name, "validation"))
        metrics |= _named(f"validation/{name}", found.metrics)
    yield Progress(0, len(localizer.database), metrics)

    metrics = dict(times)
    for name in test_sets(config):
        found = localizer.localize_all(_views(context, name, "query"))
        metrics |= _named(f"test/{name}", found.metrics)
        metrics |= _named(f"test/{name}", keep_poses(config, context, name, found.estimates))
        metrics[f"time/{name}/localization_median_s"] = float(np.median([e.runtime_s for e in found.estimates]))
    yield Progress(1, len(localizer.database), metrics, finished=True)


@dataclass(frozen=True, eq=False)
class Localized:
    """What became of V queries: their poses with the matches, and the metrics of the set."""

    poses: tuple[MatchedPose, ...]
    metrics: dict[str, float]

    @property
    def estimates(self) -> tuple[Estimate, ...]:
        """The poses alone."""
        return tuple(pose.estimate for pose in self.poses)


@dataclass(frozen=True, eq=False)
class Localizer:
    """A database of renders, the model they show, and how queries are matched with both."""

    config: TrialConfig
    matcher: Matcher
    database: Database
    model: CadModel
    renderer: ViewRenderer
    diameter_m: float

    @classmethod
    def of(cls, config: TrialConfig, context: TrialContext) -> Localizer:
        """Over the mapping views of the domains in `train_on`."""
        matcher = build(config.matching.features, config.encoder)
        whole = build(EncoderFeatures(), config.encoder) if _looks_at_images(config) else matcher
        views = [view for name in config.train_on for view in _views(context, name, "mapping")]
        return cls(
            config,
            matcher,
            Database(views, matcher, whole),
            kept_scene_model(config.scene),
            process_renderer(config.views.backend),
            float(Dataset.open(context.stages["views/synthetic"]).card["building_diameter_m"]),
        )

    def localize_all(self, queries: Sequence[View]) -> Localized:
        """Poses of all queries, and their metrics: those of `cadloc.metrics`, scene coordinates being the matches'."""
        poses = tuple(self.localize(query.read_image(), query.intrinsics) for query in queries)
        estimates = [pose.estimate for pose in poses]
        errors = PoseErrors.of(estimates, inverse(np.stack([query.cad_from_cam for query in queries])))
        true = [query.scene_coordinates(pose.pixels) for query, pose in zip(queries, poses, strict=True)]
        matched = np.concatenate([pose.points for pose in poses])
        coordinate_error_m = coordinate_error_median_m(matched, np.concatenate(true))
        return Localized(poses, summary(errors, estimates, coordinate_error_m, self.diameter_m))

    def localize(self, image: np.ndarray, intrinsics: Array) -> MatchedPose:
        """Pose of an RGB image (H, W, 3) with `intrinsics` (3, 3): from the database, then refined."""
        start_s = time.perf_counter()
        query = self.matcher.describe(image)
        retrieved = self.database.retrieve(query, self.config.matching.retrieved)
        found = [self.database.correspondences(query, index) for index in retrieved]
        pixels, points = (np.concatenate(parts) for parts in zip(*found, strict=True))
        best = self._solved(pixels, points, query, intrinsics)
        for _ in range(self.config.matching.refinements):
            refined = self._refined(best, query, intrinsics)
            if refined is None or refined.estimate.cad_from_cam is None:
                break
            best = refined
        runtime_s = time.perf_counter() - start_s
        return replace(best, estimate=replace(best.estimate, runtime_s=runtime_s))

    def _refined(self, pose: MatchedPose, query: LocalFeatures, intrinsics: Array) -> MatchedPose | None:
        """The pose from matches with the model rendered at `pose`; None where there is nothing to render."""
        cad_from_cam = pose.estimate.cad_from_cam
        if cad_from_cam is None:
            return None
        height_px, width_px = query.image.shape[:2]
        render = self.renderer.render(
            self.model, cad_from_cam, intrinsics, width_px, height_px, Light(), colour_samples=_COLOUR_SAMPLES
        )
        described = self.matcher.describe(render.image, render.mask)
        matches = self.matcher.match(query, described, self.config.matching.near_px)
        depths_m = _depths_at(depth_m(render, cad_from_cam), matches.render_pixels)
        known = np.isfinite(depths_m)
        points_cam = unproject(matches.render_pixels[known], depths_m[known], intrinsics)
        points = transform_points(cad_from_cam, points_cam)
        return self._solved(matches.query_pixels[known], points, query, intrinsics)

    def _solved(self, pixels: Array, points: Array, query: LocalFeatures, intrinsics: Array) -> MatchedPose:
        height_px, width_px = query.image.shape[:2]
        solving = _solving(self.config)
        estimate = localize(points, pixels, intrinsics, width_px, height_px, solving, self.config.seed)
        inlier = np.zeros(len(pixels), bool)
        if estimate.cad_from_cam is not None:
            seen = project(transform_points(inverse(estimate.cad_from_cam), points), intrinsics)
            limit_px = solving.threshold_px * query.short_side_px / REFERENCE_SIDE_PX
            inlier = np.linalg.norm(seen - pixels, axis=1) < limit_px
        return MatchedPose(estimate, pixels, points, inlier)


def _solving(config: TrialConfig) -> LocalizationConfig:
    """The trial's solver, with the settings that matches need."""
    matching = config.matching
    update = {"threshold_px": matching.threshold_px, "max_iterations": matching.max_iterations}
    return config.localization.model_copy(update=update)


def _depths_at(depths_m: np.ndarray, pixels: Array) -> Array:
    """Depth (M,) of the pixels (M, 2) that positions lie in; NaN where unknown or outside."""
    column, row = np.floor(pixels).astype(int).T
    inside = (row >= 0) & (row < depths_m.shape[0]) & (column >= 0) & (column < depths_m.shape[1])
    found = depths_m[np.where(inside, row, 0), np.where(inside, column, 0)]
    return np.where(inside & (found > 0), found, np.nan).astype(np.float64)


def _views(context: TrialContext, name: str, split: Split) -> tuple[View, ...]:
    place = context.stages[f"views/{name}"]
    views = Dataset.open(place).views(split)
    if not views:
        raise InputError(Fault(str(place), split, "no views", "at least one"))
    return views


def _looks_at_images(config: TrialConfig) -> bool:
    """Whether the matcher has no descriptors of its own to retrieve with."""
    return isinstance(config.matching.features, PluginFeatures)


def _named(prefix: str, metrics: Mapping[str, float]) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in metrics.items()}
