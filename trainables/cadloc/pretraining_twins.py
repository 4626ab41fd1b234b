"""Photographs of made-up buildings: the views of the pool once more, years later, on another day, by a camera.

What differs from the renders is what differs between the built-in scenes and their photographs
(`cadloc.scenes.weathering`, `cadloc.photographs`): tints, dirt, glass and pictures, light, sky, haze, passers-by, the
camera. The geometry stays: depth and poses are the renders'. Only validation sees them.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cadloc.cad import CadModel, model_from_meshes
from cadloc.datasets.building import smooth_render
from cadloc.photographs import draw_weather, photograph
from cadloc.pretraining_config import PoolConfig
from cadloc.pretraining_files import publish_folder
from cadloc.pretraining_pairs import PooledBuilding
from cadloc.rendering import process_renderer
from cadloc.scenes.assembly import textured_meshes
from cadloc.scenes.model import SceneModel
from cadloc.scenes.palette import random_finishes
from cadloc.scenes.training import TEXTURE_PX, training_assembly
from cadloc.scenes.weathering import photographed_skins

_PHOTOGRAPHED_APPEARANCE = 0


def weathered_building(seed: int, appearance: int) -> CadModel:
    """The training building of that seed and appearance on the day of its photographs."""
    assembly = training_assembly(seed)
    paint = np.random.default_rng([seed, appearance, 2])  # as `training_building` draws: same materials, other wear
    paint.random(4)
    finishes = random_finishes(paint, TEXTURE_PX)
    scene = SceneModel(assembly, finishes, (), (0.0, 0.0), 0.0, int(paint.integers(2**31)))
    return model_from_meshes(textured_meshes(assembly.parts, photographed_skins(scene)), f"weathered_{seed}")


def photograph_building(config: PoolConfig, index: int, rendered: Path, directory: Path) -> None:
    """Photographs building `index` of the pool at the poses of its views in `rendered`, all or nothing.

    `pairs` of the result are (view, photograph): those of the renders whose first view shows the materials that are
    photographed.
    """
    building = PooledBuilding.open(rendered)
    model = weathered_building(config.building_seed(index), _PHOTOGRAPHED_APPEARANCE)
    taken = [_taken(building, view, model, [config.seed, index, 2, view]) for view in range(len(building.images))]
    shown = building.appearance[building.pairs[:, 0]] == _PHOTOGRAPHED_APPEARANCE
    photographs = replace(
        building,
        images=np.array([image for image, _ in taken], np.uint8).reshape(building.images.shape),
        depths_m=np.array([depth_m for _, depth_m in taken], np.float16).reshape(building.depths_m.shape),
        appearance=np.full(len(taken), _PHOTOGRAPHED_APPEARANCE),
        pairs=building.pairs[shown],
    )
    aside = directory.with_name(directory.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    photographs.save(aside)
    publish_folder(aside, directory)


def _taken(
    building: PooledBuilding, view: int, model: CadModel, seed: list[int]
) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """A photograph (H, W, 3) and its depth (H, W), 0 where something stands before the building."""
    generator = np.random.default_rng(seed)
    weather = draw_weather(generator)
    pose, K = building.cad_from_cam[view], building.intrinsics[view]
    render = smooth_render(process_renderer(), model, pose, K, building.size_px, weather.light)
    image, hidden = photograph(
        render.image, render.coverage, render.depth_m, pose, K, model.ground_height_m, weather, generator
    )
    return image, np.where(hidden, 0, render.depth_m).astype(np.float16)
