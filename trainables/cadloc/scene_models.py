"""A scene's CAD models, all in the scene's `cad` frame: its own, its weathered twin, those of its query sets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from cadloc.cad import CadModel, load_cad, model_from_meshes
from cadloc.config import QuerySetConfig, SceneConfig
from cadloc.contract import Fault, InputError
from cadloc.geometry import Array, Similarity


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
    return moved(other, scene_from_own @ registration(query_set, source) @ np.linalg.inv(own_axes(other)))


def own_axes(model: CadModel) -> Array:
    """`cad_from_own` (4, 4), rigid: from the file's own axes, in metres, to `cad`: turned upright, origin taken off."""
    cad_from_own = model.cad_from_file.copy()
    cad_from_own[:3, :3] /= np.cbrt(np.linalg.det(cad_from_own[:3, :3]))
    return cad_from_own


def registration(query_set: QuerySetConfig, name: str) -> Array:
    """`scene_from_this` (4, 4), a similarity between both files' own axes in metres; InputError when it is none."""
    if query_set.registration is None:
        return np.eye(4)
    path = Path(query_set.registration)
    try:
        lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
        matrix = np.array([[float(word) for word in line] for line in lines])
        if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or not np.array_equal(matrix[3], [0, 0, 0, 1]):
            raise ValueError("not a 4×4 matrix of finite numbers with the last row 0 0 0 1")
        return Similarity.from_matrix(matrix).matrix
    except (OSError, ValueError) as error:
        allowed = "a text file with a 4×4 similarity: x_scene = M · x_this"
        raise InputError(Fault(str(path), f"query_sets.{name}.registration", str(error), allowed)) from error


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
