"""The pool of rendered views that pre-training draws from: made-up buildings, each dressed in two appearances.

Cameras gather about random points of the walls, near and far, head-on and slanted, so that views overlap under
changes of scale and direction. Every view has its own light and one of its building's appearances.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cadloc.cad import CadModel, model_from_meshes
from cadloc.geometry import Array, inverse, look_at, pinhole, transform_points
from cadloc.pretraining_config import PoolConfig
from cadloc.pretraining_files import publish_folder
from cadloc.pretraining_pairs import PooledBuilding, overlapping_pairs
from cadloc.pretraining_twins import photograph_building
from cadloc.rendering import Light, Rendering, process_renderer
from cadloc.scenes.training import training_building

_MIN_SEEN_SHARE = 0.4
_MIN_DISTANCE_M = 3.0
_TRIES = 12


@dataclass(frozen=True)
class PooledView:
    """One rendered view before it is stored."""

    image: NDArray[np.uint8]
    depth_m: NDArray[np.float16]
    cad_from_cam: Array
    intrinsics: Array
    appearance: int


@dataclass(frozen=True)
class Pool:
    """Where a pool lies: folders of the buildings to learn from, of those held out, and of the latter's photographs.

    Photographs are paired with the held-out buildings by their order.
    """

    training: tuple[Path, ...]
    held_out: tuple[Path, ...]
    photographs: tuple[Path, ...]

    @classmethod
    def below(cls, directory: Path, config: PoolConfig) -> Pool:
        """The pool's folders, rendered or not."""
        places = tuple(directory / f"building_{index:04d}" for index in range(config.buildings))
        first = config.buildings - config.held_out
        photographs = tuple(directory / f"photographs_{index:04d}" for index in range(first, config.buildings))
        return cls(places[:first], places[first:], photographs)

    @property
    def buildings(self) -> tuple[Path, ...]:
        """Folders of all buildings, by index."""
        return self.training + self.held_out

    def has(self, index: int) -> bool:
        """Whether all of building `index` is rendered."""
        held_out = index - len(self.training)
        return self.buildings[index].is_dir() and (held_out < 0 or self.photographs[held_out].is_dir())

    def missing(self) -> list[int]:
        """Indices of the buildings that are not all rendered, in order."""
        return [index for index in range(len(self.buildings)) if not self.has(index)]


def render_pool(config: PoolConfig, directory: Path, on_building: Callable[[int, int], None] | None = None) -> Pool:
    """The pool below `directory`; renders what is missing of it.

    `on_building` hears how many of how many buildings there are, after each that is rendered.
    """
    directory.mkdir(parents=True, exist_ok=True)
    pool = Pool.below(directory, config)
    missing = pool.missing()
    there = config.buildings - len(missing)
    for done, index in enumerate(missing, start=1):
        render_piece(config, pool, index)
        if on_building is not None:
            on_building(there + done, config.buildings)
    return pool


def render_piece(config: PoolConfig, pool: Pool, index: int) -> None:
    """Renders what is missing of building `index`: its views, and its photographs where it is held out."""
    if not pool.buildings[index].is_dir():
        render_building(config, index, pool.buildings[index])
    held_out = index - len(pool.training)
    if held_out >= 0 and not pool.photographs[held_out].is_dir():
        photograph_building(config, index, pool.buildings[index], pool.photographs[held_out])


def render_building(config: PoolConfig, index: int, directory: Path) -> None:
    """Renders building `index` of the pool into `directory`, all or nothing; there may be no view of it."""
    models = [
        model_from_meshes(training_building(config.building_seed(index), appearance), f"building_{index}")
        for appearance in range(config.appearances)
    ]
    generator = np.random.default_rng([config.seed, index, 1])
    views = [view for _ in range(config.targets) for view in _views_of_target(models, config, generator)]
    aside = directory.with_name(directory.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    _store(views, config, aside)
    publish_folder(aside, directory)


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


def _store(views: Sequence[PooledView], config: PoolConfig, directory: Path) -> None:
    count, height, width = len(views), config.height_px, config.width_px
    # The shapes are given for a building without views.
    building = PooledBuilding(
        np.array([view.image for view in views], np.uint8).reshape(count, height, width, 3),
        np.array([view.depth_m for view in views], np.float16).reshape(count, height, width),
        np.array([view.cad_from_cam for view in views], float).reshape(count, 4, 4),
        np.array([view.intrinsics for view in views], float).reshape(count, 3, 3),
        np.array([view.appearance for view in views], int),
        np.zeros((0, 2), int),
    )
    replace(building, pairs=overlapping_pairs(building)).save(directory)
