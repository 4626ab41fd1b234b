"""A scene's CAD models, all in the scene's `cad` frame: its own, its weathered twin, those of its query sets."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np

from cadloc.cad import CadModel, load_cad, model_from_meshes
from cadloc.contract import canonical, identity
from cadloc.geometry import Array, Similarity
from cadloc.registration import own_axes, read_similarity
from cadloc.scene_config import SceneConfig


def load_scene_model(scene: SceneConfig, source: str) -> CadModel:
    """The model that views of `source` show: `synthetic` the scene's CAD, `photo` a built-in scene's weathered
    twin, else the CAD of the query set of that name, moved into the scene's frame.

    Raises InputError for an unusable file or registration, ValueError for a source the scene does not have.
    """
    if scene.built_in and source in ("synthetic", "photo"):
        # Building them takes the drawing libraries; scenes from files do not need those.
        from cadloc.scenes import built_in_meshes

        meshes = built_in_meshes(scene.name, "cad" if source == "synthetic" else "photo")  # type: ignore[arg-type]
        return model_from_meshes(meshes, scene.name)
    if scene.cad is not None and source == "synthetic":
        return load_cad(scene.cad)
    if source not in scene.query_sets:
        raise ValueError(f"scene {scene.name} has no views {source!r}; its query sets: {', '.join(scene.query_sets)}")
    query_set = scene.query_sets[source]
    other = load_cad(query_set.cad)
    scene_from_own = np.eye(4) if scene.cad is None else own_axes(load_cad(scene.cad))
    registration = read_similarity(query_set.registration, f"query_sets.{source}.registration")
    return moved(other, scene_from_own @ registration.matrix @ np.linalg.inv(own_axes(other)))


def kept_scene_model(scene: SceneConfig) -> CadModel:
    """The scene's own CAD model; kept, as a process runs many trials of few scenes."""
    shown = scene.model_copy(update={"query_sets": {}, "photos": None, "viewpoints": {}})
    dumped = shown.model_dump(mode="json")
    return _kept_model(canonical(dumped), canonical(identity(dumped)))


# The second argument tells a changed file from the one of the same name before.
@lru_cache(maxsize=2)
def _kept_model(scene: str, _identity: str) -> CadModel:
    return load_scene_model(SceneConfig.model_validate_json(scene), "synthetic")


def moved(model: CadModel, dst_from_cad: Array) -> CadModel:
    """The model with a similarity (4, 4) applied to vertices and normals; the new frame has no origin of its own."""
    motion = Similarity.from_matrix(dst_from_cad)
    surfaces = []
    for surface in model.surfaces:
        copy = surface.copy()
        normals = np.asarray(surface.vertex_attributes["normal"])
        copy.vertices = motion.transform_points(surface.vertices)
        copy.vertex_attributes["normal"] = normals @ motion.rotation.T
        surfaces.append(copy)
    return replace(
        model, surfaces=tuple(surfaces), origin_m=np.zeros(3), cad_from_file=motion.matrix @ model.cad_from_file
    )
