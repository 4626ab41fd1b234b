"""CAD files as trimesh reads them, with every fault a file can have turned into an `InputError`."""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import trimesh
from collada.common import DaeError

from cadloc.contract import Fault, InputError
from cadloc.geometry import Array, transform_points
from cadloc.scene_config import CadConfig

FORMATS = (".glb", ".gltf", ".obj", ".ply", ".stl", ".off", ".3mf", ".dae")
UNITLESS_FORMATS = (".obj", ".ply", ".stl", ".off")
METRES_PER_UNIT = {"m": 1.0, "cm": 0.01, "mm": 0.001, "in": 0.0254, "ft": 0.3048}

Z_FROM_UP = {
    "x": np.array([[0.0, 0, -1], [0, 1, 0], [1, 0, 0]]),
    "y": np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]),
    "z": np.eye(3),
    "-x": np.array([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]]),
    "-y": np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]),
    "-z": np.array([[1.0, 0, 0], [0, -1, 0], [0, 0, -1]]),
}

# What trimesh and the parsers below it raise on malformed files: found by cutting and scrambling files of each format.
_PARSE_ERRORS = (
    OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError, ArithmeticError, RuntimeError,
    EOFError, SyntaxError, MemoryError, struct.error, zipfile.BadZipFile, zlib.error, DaeError,
)  # fmt: skip


def checked_path(config: CadConfig) -> Path:
    """The configured file; raises InputError when it is missing, no file, empty or of an unknown format."""
    path = Path(config.path)
    if path.suffix.lower() not in FORMATS:
        found = f"suffix {path.suffix!r}" if path.suffix else "no suffix"
        raise InputError(Fault(str(path), "cad.path", found, " ".join(FORMATS), "export the model to .glb or .obj"))
    if not path.is_file():
        raise InputError(Fault(str(path), "cad.path", "no such file", "an existing CAD file"))
    if path.stat().st_size == 0:
        raise InputError(Fault(str(path), "cad.path", "an empty file", "a CAD file"))
    return path


def read_scene(path: Path) -> trimesh.Scene:
    """The file as trimesh reads it, nothing merged; raises InputError when it cannot, or finds no finite triangle."""
    try:
        scene = trimesh.load_scene(str(path), process=False)
        meshes = scene_meshes(scene)
    except _PARSE_ERRORS as error:
        reason = f"unreadable ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        fault = Fault(str(path), "cad.path", reason, f"a complete {path.suffix} file", "export it again")
        raise InputError(fault) from error
    if not sum(len(mesh.faces) for mesh in meshes):
        raise InputError(Fault(str(path), "cad.path", "no triangles", "a model with surfaces", "export it again"))
    bad = sum(int((~np.isfinite(mesh.vertices)).any(axis=1).sum()) for mesh in meshes)
    if bad:
        found = f"{bad} vertices that are not finite numbers"
        raise InputError(Fault(str(path), "cad.path", found, "finite coordinates", "repair the model"))
    return scene


def scene_meshes(scene: trimesh.Scene) -> list[trimesh.Trimesh]:
    """Every placed mesh with its node's transform baked into the vertices, mirrors and shears included.

    Points and paths are left out. Raises IndexError for faces whose vertices do not exist.
    """
    # In the file's order of geometries: trimesh ends the names of nodes with random letters where they repeat.
    place = {name: index for index, name in enumerate(scene.geometry)}
    nodes = [scene.graph[node] for node in scene.graph.nodes_geometry]
    meshes = []
    for scene_from_mesh, name in sorted(nodes, key=lambda node: (place[node[1]], node[0].tobytes())):
        geometry = scene.geometry[name]
        if not isinstance(geometry, trimesh.Trimesh) or not len(geometry.faces):
            continue
        if geometry.faces.min() < 0 or geometry.faces.max() >= len(geometry.vertices):
            raise IndexError(f"faces of {name!r} name vertices that do not exist")
        meshes.append(baked(geometry, scene_from_mesh))
    return meshes


def stated_metres_per_unit(config: CadConfig, scene: trimesh.Scene) -> float | None:
    """Metres per unit: the configuration's word, else the file's; None when neither says it.

    Raises InputError when the file states a unit that is none.
    """
    if config.units is not None:
        return METRES_PER_UNIT[config.units] if isinstance(config.units, str) else config.units
    if Path(config.path).suffix.lower() in UNITLESS_FORMATS or scene.units is None:
        return None
    try:
        metres = float(trimesh.units.unit_conversion(scene.units, "meters"))
    except (ValueError, KeyError):
        metres = math.nan
    if not (math.isfinite(metres) and metres > 0):
        fault = missing_units(Path(config.path))
        raise InputError(replace(fault, found=f"the file's own unit {scene.units!r}", action="state it in `units`"))
    return metres


def missing_units(path: Path) -> Fault:
    """The fault of a model whose unit nobody states."""
    allowed = " ".join([*METRES_PER_UNIT, "or metres per unit"])
    action = f"{path.suffix} files carry no unit; `cadloc-sweep cad inspect` guesses it"
    return Fault(str(path), "cad.units", "nothing", allowed, action)


def baked(mesh: trimesh.Trimesh, dst_from_src: Array) -> trimesh.Trimesh:
    """A copy with the 4×4 applied to vertices and normals; winding follows a mirror, so that outside stays outside."""
    moved = mesh.copy()
    normals = mesh.vertex_normals if "vertex_normals" in mesh._cache.cache else None
    linear = np.asarray(dst_from_src, dtype=np.float64)[:3, :3]
    moved.vertices = transform_points(dst_from_src, mesh.vertices)
    if np.linalg.det(linear) < 0:
        moved.faces = moved.faces[:, ::-1]
    if normals is not None:
        moved.vertex_normals = _unit(normals @ np.linalg.pinv(linear))  # type: ignore[method-assign]
    return moved


def _unit(vectors: Array) -> Array:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1.0))
