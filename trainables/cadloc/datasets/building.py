"""The stage `views`: a scene's CAD model becomes a dataset of posed images with depth, piece by piece."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from cadloc.appearance import Image, Pixels, draw_light, randomised, view_generator
from cadloc.cad import CadModel
from cadloc.catalog import STAGES
from cadloc.contract import Fault, InputError, Json, canonical, identity
from cadloc.datasets.ace_layout import FOLDERS, Split, depth_step_m, farthest_m, write_card, write_view
from cadloc.geometry import Array
from cadloc.photographs import draw_weather, photograph
from cadloc.rendering import Light, ViewRenderer, depth_m, process_renderer
from cadloc.scene_config import SceneConfig
from cadloc.scene_models import load_scene_model
from cadloc.viewpoints import Site, Viewpoint, plan_viewpoints
from cadloc.views_config import ViewsConfig

VIEWS_PER_CHUNK = 20

OTHER_MODEL_LENIENCE = 0.5
"""A planned viewpoint stays when another model fills this share of what the plan asks for: no two models agree."""


@dataclass(frozen=True, eq=False)
class Render:
    """A smooth render: `image` (H, W, 3), 0 to 255, premultiplied by `coverage` (H, W); `depth_m` (H, W), 0 = none."""

    image: Pixels
    coverage: Pixels
    depth_m: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Job:
    """Everything the pieces of one dataset share: viewpoints `planned_on` the scene's own CAD, rendered of `site`."""

    scene: SceneConfig
    views: ViewsConfig
    source: str
    planned_on: Site
    site: Site
    plan: tuple[tuple[Split, Viewpoint], ...]
    step_m: float


def chunks(config: Mapping[str, Json], inputs: Mapping[str, Path]) -> int:
    """Pieces of about 20 views; known from the counts alone, nothing is loaded."""
    counts = ViewsConfig.model_validate(config["views"]).counts
    number = sum(_most(config, split, getattr(counts, split)) for split in FOLDERS)
    return -(-number // VIEWS_PER_CHUNK)


def build_chunk(config: Mapping[str, Json], inputs: Mapping[str, Path], directory: Path, chunk: int) -> int:
    """Renders piece `chunk` into the dataset below `directory`; returns the number of views written.

    Views of other models than the scene's own CAD are left out where the planned camera would stand inside that
    model or see too little of it. Raises InputError for an unusable scene or settings that leave no viewpoints.
    """
    job = _job(config)
    piece = job.plan[chunk * VIEWS_PER_CHUNK : (chunk + 1) * VIEWS_PER_CHUNK]
    return sum(make_view(job, split, viewpoint, directory) for split, viewpoint in piece)


def finish(config: Mapping[str, Json], inputs: Mapping[str, Path], directory: Path) -> None:
    """Writes `dataset.json`. Raises InputError when no view was left of another model than the scene's own."""
    job = _job(config)
    planned = {split: sum(split == other for other, _ in job.plan) for split, _ in job.plan}
    written = {split: len(list((directory / FOLDERS[split] / "rgb").glob("*"))) for split in planned}
    empty = [split for split in planned if not written[split]]
    if empty:
        found = f"none of the {planned[empty[0]]} {empty[0]} viewpoints sees enough of it"
        allowed, action = "a model in the scene's place", "check its registration, units and up axis"
        raise InputError(Fault(job.scene.name, f"query_sets.{job.source}", found, allowed, action))
    write_card(
        directory,
        {
            "scene": job.scene.name,
            "domain": job.source,
            "image_size_px": [job.views.image.width_px, job.views.image.height_px],
            "depth_step_m": job.step_m,
            "origin_m": job.planned_on.model.origin_m.tolist(),
            "building_diameter_m": 2 * job.planned_on.radius_m,
            "ground_z_m": job.planned_on.ground_z_m,
            "dropped": {split: planned[split] - written[split] for split in planned},
            "provenance": {"config": identity(config), "code_version": STAGES["views"][1]},
        },
    )


def smooth_render(
    renderer: ViewRenderer,
    model: CadModel,
    cad_from_cam: Array,
    intrinsics: Array,
    size_px: tuple[int, int],
    light: Light,
) -> Render:
    """A render (`size_px`: width, height) without jagged edges whose depth is exact at pixel centres, in one pass.

    It is drawn at twice the size, half a pixel of its own larger on each side, so that every second of its pixels has
    the centre of a pixel of the small one: depth is read there, colour and coverage are averaged about it with
    weights 1 2 1.
    """
    big_from_image = np.array([[2.0, 0.0, 0.5], [0.0, 2.0, 0.5], [0.0, 0.0, 1.0]])
    big_size = (2 * size_px[0] + 1, 2 * size_px[1] + 1)
    big = renderer.render(model, cad_from_cam, big_from_image @ intrinsics, *big_size, light)
    centres_m = depth_m(big.every_second(), cad_from_cam)
    return Render(_halved(big.image), _halved(big.mask.view(np.uint8)), centres_m)


def _rendered(job: Job, viewpoint: Viewpoint, light: Light) -> Render:
    size_px = (job.views.image.width_px, job.views.image.height_px)
    renderer = process_renderer(job.views.backend)
    return smooth_render(renderer, job.site.model, viewpoint.cad_from_cam, viewpoint.intrinsics, size_px, light)


def _halved(big: Image) -> Pixels:
    tent = np.array([0.25, 0.5, 0.25], np.float32)
    return np.ascontiguousarray(cv2.sepFilter2D(big, cv2.CV_32F, tent, tent)[1::2, 1::2])


def make_view(job: Job, split: Split, viewpoint: Viewpoint, directory: Path) -> bool:
    """Renders and writes one view; False when another model than the scene's own has nothing to show there."""
    if job.source != "synthetic" and _turned_down(job, viewpoint):
        return False
    image, depth = _photograph(job, viewpoint) if job.source == "photo" else _synthetic(job, viewpoint)
    write_view(
        directory,
        split,
        viewpoint.name,
        image=image,
        depth_m=depth,
        cad_from_cam=viewpoint.cad_from_cam,
        intrinsics=viewpoint.intrinsics,
        step_m=job.step_m,
    )
    return True


def _turned_down(job: Job, viewpoint: Viewpoint) -> bool:
    asked = job.views.viewpoints
    lenient = asked.model_copy(update={"min_hit_share": OTHER_MODEL_LENIENCE * asked.min_hit_share})
    return job.site.rejection(viewpoint.cad_from_cam, viewpoint.intrinsics, job.views.image, lenient) is not None


def _synthetic(job: Job, viewpoint: Viewpoint) -> tuple[Image, NDArray[np.float32]]:
    views = job.views
    light = draw_light(views.randomisation, view_generator(views.seed, viewpoint.name, "light"))
    render = _rendered(job, viewpoint, light)
    camera = view_generator(views.seed, viewpoint.name, "camera")
    image = randomised(
        render.image, render.coverage, viewpoint.cad_from_cam, viewpoint.intrinsics, views.randomisation, camera
    )
    return image, render.depth_m


def _photograph(job: Job, viewpoint: Viewpoint) -> tuple[Image, NDArray[np.float32]]:
    views = job.views
    weather = draw_weather(view_generator(views.seed, viewpoint.name, "weather"))
    render = _rendered(job, viewpoint, weather.light)
    image, occluded = photograph(
        render.image,
        render.coverage,
        render.depth_m,
        viewpoint.cad_from_cam,
        viewpoint.intrinsics,
        job.site.ground_z_m,
        weather,
        view_generator(views.seed, viewpoint.name, "photograph"),
    )
    return image, np.where(occluded, np.float32(0), render.depth_m)


def _job(config: Mapping[str, Json]) -> Job:
    return _cached_job(canonical(config), canonical(identity(config)))


# The second argument of both tells a changed file from the one of the same name before.
@lru_cache(maxsize=2)
def _cached_job(config_text: str, _identity: str) -> Job:
    config = json.loads(config_text)
    scene, views = SceneConfig.model_validate(config["scene"]), ViewsConfig.model_validate(config["views"])
    source = config["source"]
    planned = {"scene": {**config["scene"], "query_sets": {}}, "views": config["views"]}
    planned_on, plan = _cached_plan(canonical(planned), canonical(identity(planned)))
    site = planned_on
    if source != "synthetic":
        site = Site(load_scene_model(scene, source), planned_on.ground_z_m)
    plan = _part(config, plan)
    poses = np.stack([viewpoint.cad_from_cam for _, viewpoint in plan])
    return Job(scene, views, source, planned_on, site, plan, depth_step_m(farthest_m(site.model.bounds, poses)))


def _most(config: Mapping[str, Json], split: Split, planned: int) -> int:
    """How many of a split's planned viewpoints are rendered.

    Of the scene's own CAD all; of other models the queries or, where `pairs` says how many, so many mapping views
    and the validation views: pairs with the renders of the same names.
    """
    pairs = config.get("pairs")
    if config["source"] == "synthetic":
        return planned
    if pairs is None:
        return planned if split == "query" else 0
    return {"mapping": min(int(pairs), planned), "validation": planned, "query": 0}[split]


def _part(config: Mapping[str, Json], plan: tuple[tuple[Split, Viewpoint], ...]) -> tuple[tuple[Split, Viewpoint], ...]:
    by_split = {split: [viewpoint for other, viewpoint in plan if other == split] for split in FOLDERS}
    return tuple((split, each) for split, all_ in by_split.items() for each in all_[: _most(config, split, len(all_))])


@lru_cache(maxsize=2)
def _cached_plan(config_text: str, _identity: str) -> tuple[Site, tuple[tuple[Split, Viewpoint], ...]]:
    config = json.loads(config_text)
    scene, views = SceneConfig.model_validate(config["scene"]), ViewsConfig.model_validate(config["views"])
    site = Site(load_scene_model(scene, "synthetic"), scene.ground_z_m)
    plan = plan_viewpoints(site, views)
    return site, tuple((split, viewpoint) for split, viewpoints in plan.items() for viewpoint in viewpoints)
