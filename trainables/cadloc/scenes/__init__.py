"""Scenes made in code: three built-in buildings and a campus, as CAD model and as photographed; a training family."""

from __future__ import annotations

from typing import Literal

import trimesh

from cadloc.scenes.assembly import textured_meshes
from cadloc.scenes.campus import campus
from cadloc.scenes.cathedral import cathedral
from cadloc.scenes.gate import gate
from cadloc.scenes.rotunda import rotunda
from cadloc.scenes.training import training_building
from cadloc.scenes.weathering import modelled_skins, photographed_parts, photographed_skins

__all__ = ["built_in_meshes", "training_building"]


def built_in_meshes(
    name: Literal["gate", "rotunda", "cathedral", "campus"], appearance: Literal["cad", "photo"]
) -> list[trimesh.Trimesh]:
    """Textured meshes of a built-in scene, one per material.

    z is up, units are metres, the origin is the plaza's centre on the ground, which is included.
    `cad` is the model, `photo` the weathered and slightly different place in its simulated photographs.
    """
    model = {"gate": gate, "rotunda": rotunda, "cathedral": cathedral, "campus": campus}[name]()
    if appearance == "photo":
        return textured_meshes(photographed_parts(model), photographed_skins(model))
    return textured_meshes(model.assembly.parts, modelled_skins(model))
