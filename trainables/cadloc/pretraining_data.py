"""The pool of rendered views that pre-training draws from: made-up buildings, each dressed in two appearances.

Cameras gather about random points of the walls, near and far, head-on and slanted, so that views overlap under
changes of scale and direction. Every view has its own light and one of its building's appearances.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from cadloc.cad import CadModel, model_from_meshes
from cadloc.encoders.images import STRIDE
from cadloc.geometry import Array, inverse, look_at, pinhole, transform_points
from cadloc.pretraining_pairs import PooledBuilding, overlapping_pairs
from cadloc.rendering import Light, Rendering, process_renderer
from cadloc.scenes.training import training_building
from cadloc.settings import Count, Seed, Settings

_MIN_SEEN_SHARE = 0.4
_MIN_DISTANCE_M = 3.0
_TRIES = 12


class PoolConfig(Settings):
    """How many buildings are made up, and how many views of each are rendered."""

    buildings: Annotated[int, Field(ge=2)] = 72
    held_out: Count = 4
    """Buildings, of those, that only validation sees."""
    targets: Count = 5
    """Points of a building that views gather about."""
    views_per_target: Count = 4
    appearances: Count = 2
    width_px: Annotated[int, Field(ge=64, le=4096, multiple_of=STRIDE)] = 480
    height_px: Annotated[int, Field(ge=64, le=4096, multiple_of=STRIDE)] = 360
    seed: Seed = 0

    @model_validator(mode="after")
    def _some_to_learn_from(self) -> PoolConfig:
        if self.held_out >= self.buildings:
            raise ValueError(f"held_out = {self.held_out} of {self.buildings} buildings leaves none to learn from")
        return self


@dataclass(frozen=True)
class PooledView:
    """One rendered view before it is stored."""

    image: NDArray[np.uint8]
    depth_m: NDArray[np.float16]
    cad_from_cam: Array
    intrinsics: Array
    appearance: int


def render_pool(config: PoolConfig, directory: Path) -> tuple[list[Path], list[Path]]:
    """Directories of the training and of the held-out buildings below `directory`; renders those that are missing."""
    directory.mkdir(parents=True, exist_ok=True)
    places = [directory / f"building_{index:04d}" for index in range(config.buildings)]
    for index, place in enumerate(places):
        if not place.is_dir():
            render_building(config, index, place)
    training = config.buildings - config.held_out
    return places[:training], places[training:]


def render_building(config: PoolConfig, index: int, directory: Path) -> None:
    """Renders building `index` of the pool into `directory`, all or nothing."""
    models = [
        model_from_meshes(training_building(_building_seed(config, index), appearance), f"building_{index}")
        for appearance in range(config.appearances)
    ]
    generator = np.random.default_rng([config.seed, index, 1])
    views = [view for _ in range(config.targets) for view in _views_of_target(models, config, generator)]
    aside = directory.with_name(directory.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    _store(views, aside)
    aside.replace(directory)


def _building_seed(config: PoolConfig, index: int) -> int:
    return 1_000 * config.seed + index


def _views_of_target(
    models: Sequence[CadModel], config: PoolConfig, generator: np.random.Generator
) -> Iterator[PooledView]:
    """Up to `views_per_target` views about one random wall point, those that see too little left out."""
    point, normal = wall_point(models[0], generator)
    found = 0
    for _ in range(_TRIES):
        if found == config.views_per_target:
            return
        view = _view_of(models, point, normal, config, generator)
        if view is not None:
            found += 1
            yield view


def wall_point(model: CadModel, generator: np.random.Generator) -> tuple[Array, Array]:
    """A point (3,) on a wall, drawn by area, and the wall's outward normal (3,): away from the building's middle."""
    mesh = model.mesh
    centres, normals = np.asarray(mesh.triangles_center), np.asarray(mesh.face_normals)
    walls = (np.abs(normals[:, 2]) < 0.5) & (centres[:, 2] > model.ground_height_m + 0.8)
    weights = np.where(walls, mesh.area_faces, 0.0)
    face = generator.choice(len(weights), p=weights / weights.sum())
    outward = centres[face] - np.average(centres, axis=0, weights=weights)
    normal = normals[face] * (1.0 if normals[face] @ outward >= 0 else -1.0)
    return centres[face], normal


def _view_of(
    models: Sequence[CadModel], point: Array, normal: Array, config: PoolConfig, generator: np.random.Generator
) -> PooledView | None:
    """A view towards a wall point from up to 50° aside, 7 to 38 m away; None when it sees too little of anything."""
    azimuth = np.arctan2(normal[1], normal[0]) + np.deg2rad(generator.uniform(-50, 50))
    distance_m = np.exp(generator.uniform(np.log(7), np.log(38)))
    eye = point + distance_m * np.array([np.cos(azimuth), np.sin(azimuth), 0.0])
    height_m = generator.uniform(1.2, 2.2) if generator.random() < 0.6 else generator.uniform(2, 14)
    eye[2] = models[0].ground_height_m + height_m
    cad_from_cam = look_at(eye, point + generator.normal(0, 1.2, 3), roll_deg=generator.normal(0, 4))
    intrinsics = pinhole(config.width_px, config.height_px, generator.uniform(50, 78))
    appearance, light = int(generator.integers(len(models))), _light(normal, generator)
    model, renderer = models[appearance], process_renderer()
    seen = renderer.render(model, cad_from_cam, intrinsics, config.width_px, config.height_px, light)
    depth_m = _depth(seen, cad_from_cam)
    if seen.mask.mean() < _MIN_SEEN_SHARE or np.percentile(depth_m[seen.mask], 5) < _MIN_DISTANCE_M:
        return None
    return PooledView(seen.image, depth_m.astype(np.float16), cad_from_cam, intrinsics, appearance)


def _light(normal: Array, generator: np.random.Generator) -> Light:
    """A sun anywhere above the horizon, mostly on the wall's side, and a sky of any strength."""
    sun = generator.normal(size=3)
    sun[2] = 0.8 * abs(sun[2]) + 0.15
    if generator.random() < 0.75:
        sun[:2] += 1.2 * normal[:2]
    colour = generator.uniform(0.2, 0.95) * (1 + np.clip(generator.normal(0, 0.08, 3), -0.2, 0.2))
    ambient = np.full(3, generator.uniform(0.25, 0.7))
    return Light(_triple(sun), _triple(colour), _triple(ambient), shadows=bool(generator.random() < 0.7))


def _triple(values: Array) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in values)
    return x, y, z


def _depth(seen: Rendering, cad_from_cam: Array) -> Array:
    points_cam = transform_points(inverse(cad_from_cam), seen.scene_coordinates.reshape(-1, 3))
    return np.where(seen.mask, points_cam[:, 2].reshape(seen.mask.shape), 0.0)


def _store(views: Sequence[PooledView], directory: Path) -> None:
    building = PooledBuilding(
        np.stack([view.image for view in views]),
        np.stack([view.depth_m for view in views]),
        np.stack([view.cad_from_cam for view in views]),
        np.stack([view.intrinsics for view in views]),
        np.array([view.appearance for view in views]),
        np.zeros((0, 2), int),
    )
    replace(building, pairs=overlapping_pairs(building)).save(directory)
