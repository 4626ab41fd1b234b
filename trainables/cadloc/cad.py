"""A CAD file becomes surfaces in the `cad` frame: metres, z up, near the origin, one surface per appearance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import trimesh

from cadloc.cad_files import missing_files
from cadloc.cad_reading import (
    METRES_PER_UNIT,
    Z_FROM_UP,
    baked,
    checked_path,
    missing_units,
    read_scene,
    scene_meshes,
    stated_metres_per_unit,
)
from cadloc.contract import Fault, InputError
from cadloc.geometry import Array
from cadloc.scene_config import CadConfig
from cadloc.surfaces import Cleaning, has_texture, surfaces_from_meshes

_PLAUSIBLE_DIAMETER_M = (1.0, 5000.0)
_BUILDING_DIAMETER_M = (4.0, 500.0)
_TYPICAL_DIAMETER_M = 40.0
_LARGEST_OFFSET_M = 5000.0
_LARGEST_OFFSET_IN_DIAMETERS = 10.0


@dataclass(frozen=True, eq=False)
class CadModel:
    """Surfaces in `cad` (see `cadloc.surfaces`) and where that frame lies in the file's own.

    `origin_m` (3,) float64 was subtracted after scaling and turning (zero unless the model lies farther from zero
    than 10 times its size, or than 5 km); `cad_from_file` (4, 4) is the whole way: scale, axes, origin.
    """

    name: str
    surfaces: tuple[trimesh.Trimesh, ...]
    origin_m: Array
    cad_from_file: Array
    cleaning: Cleaning
    warnings: tuple[str, ...] = ()

    @cached_property
    def mesh(self) -> trimesh.Trimesh:
        """All faces, surface after surface, without looks: what rays are cast against."""
        starts = np.cumsum([0, *(len(surface.vertices) for surface in self.surfaces)])
        faces = [surface.faces + start for surface, start in zip(self.surfaces, starts[:-1], strict=True)]
        vertices = np.concatenate([surface.vertices for surface in self.surfaces])
        return trimesh.Trimesh(vertices, np.concatenate(faces), process=False)

    @cached_property
    def bounds(self) -> Array:
        """Lowest and highest corner (2, 3) in metres."""
        return np.array(self.mesh.bounds, dtype=np.float64)

    @property
    def centre(self) -> Array:
        """Middle (3,) of the bounds."""
        return np.asarray(self.bounds.mean(axis=0))

    @property
    def diameter_m(self) -> float:
        """Diagonal of the bounds."""
        return float(np.linalg.norm(self.bounds[1] - self.bounds[0]))

    @cached_property
    def ground_height_m(self) -> float:
        """z of the ground: the highest level, near the bottom, that holds much horizontal surface.

        Levels are 0.25 m bins within the lowest metre or tenth of the height; one counts when it holds half as
        much area as the largest. So a slab's top wins over its underside. A model without such levels stands on
        its lowest point.
        """
        lowest, height = self.bounds[0, 2], self.bounds[1, 2] - self.bounds[0, 2]
        z = self.mesh.triangles_center[:, 2] - lowest
        level = (np.abs(self.mesh.face_normals[:, 2]) > 0.95) & (z <= max(1.0, 0.1 * height))
        if not level.any():
            return float(lowest)
        area, z = self.mesh.area_faces[level], z[level]
        bins = (z / 0.25 + 1e-6).astype(int)
        areas = np.bincount(bins, weights=area)
        chosen = bins == np.flatnonzero(areas >= 0.5 * areas.max()).max()
        return float(lowest + np.average(z[chosen], weights=area[chosen]))


@dataclass(frozen=True)
class CadReport:
    """What `inspect_cad` found; lengths in metres, `bounds_m` (2, 3) in `cad`."""

    file: str
    units: str
    """The unit and who says so: `m (stated)`, `in (file)`, `mm (guess)`."""
    bounds_m: Array
    origin_m: Array
    ground_height_m: float
    faces: int
    surfaces: int
    textures_found: int
    textures_missing: tuple[str, ...]
    degenerate_faces: int
    duplicate_faces: int
    open_edges: int
    """Edges with a face on one side only: the rims of holes. Rendering does not mind them."""
    warnings: tuple[str, ...]


def load_cad(config: CadConfig) -> CadModel:
    """The model a configuration names.

    Raises InputError, naming file and key, for a file that is missing, unreadable, empty, of an unknown format,
    has non-finite vertices, or does not say its unit (`cad.units`). What can be lived with is in `.warnings`.
    """
    path = checked_path(config)
    scene = read_scene(path)
    metres_per_unit = stated_metres_per_unit(config, scene)
    if metres_per_unit is None:
        raise InputError(missing_units(path))
    return _model_from_scene(scene, config, metres_per_unit)


def model_from_meshes(meshes: Sequence[trimesh.Trimesh], name: str) -> CadModel:
    """Model of meshes that are in metres and z up already; raises ValueError when they hold no finite triangle."""
    if any(not np.isfinite(mesh.vertices).all() for mesh in meshes):
        raise ValueError(f"{name}: non-finite vertices")
    model = _model(name, meshes, np.eye(4), ())
    if not model.surfaces:
        raise ValueError(f"{name}: no triangle with an area")
    return model


def inspect_cad(config: CadConfig) -> CadReport:
    """What a CAD file holds and what is doubtful about it; a missing unit is guessed, and the guess named.

    Raises InputError as `load_cad` does, except for missing units.
    """
    scene = read_scene(checked_path(config))
    metres_per_unit, units = _units(config, scene)
    model = _model_from_scene(scene, config, metres_per_unit)
    return CadReport(
        file=config.path,
        units=units,
        bounds_m=model.bounds,
        origin_m=model.origin_m,
        ground_height_m=model.ground_height_m,
        faces=len(model.mesh.faces),
        surfaces=len(model.surfaces),
        textures_found=sum(has_texture(surface) for surface in model.surfaces),
        textures_missing=missing_files(Path(config.path)),
        degenerate_faces=model.cleaning.degenerate_faces,
        duplicate_faces=model.cleaning.duplicate_faces,
        open_edges=_open_edges(model.mesh),
        warnings=model.warnings,
    )


def _model_from_scene(scene: trimesh.Scene, config: CadConfig, metres_per_unit: float) -> CadModel:
    path = Path(config.path)
    cad_from_file = np.eye(4)
    cad_from_file[:3, :3] = metres_per_unit * Z_FROM_UP[config.up]
    warnings = [f"{name}: named by the model but missing; drawn without it" for name in missing_files(path)]
    model = _model(path.stem, scene_meshes(scene), cad_from_file, warnings)
    if not model.surfaces:
        found = "only faces without area, or see-through ones"
        raise InputError(Fault(str(path), "cad.path", found, "a model with surfaces", "export it again"))
    return model


def _model(name: str, meshes: Sequence[trimesh.Trimesh], cad_from_file: Array, warnings: Sequence[str]) -> CadModel:
    meshes = [baked(mesh, cad_from_file) for mesh in meshes if len(mesh.faces)]
    origin_m = _far_origin(meshes)
    cad_from_scaled = np.eye(4)
    cad_from_scaled[:3, 3] = -origin_m
    if origin_m.any():
        meshes = [baked(mesh, cad_from_scaled) for mesh in meshes]
    surfaces, cleaning = surfaces_from_meshes(meshes)
    told = (*warnings, *cleaning.warnings)
    model = CadModel(name, surfaces, origin_m, cad_from_scaled @ cad_from_file, cleaning, told)
    return replace(model, warnings=(*told, *_size_warnings(model))) if surfaces else model


def _size_warnings(model: CadModel) -> list[str]:
    least, most = _PLAUSIBLE_DIAMETER_M
    if least <= model.diameter_m <= most:
        return []
    return [f"diameter {model.diameter_m:.4g} m is not between {least:g} m and {most:g} m: check `units`"]


def _far_origin(meshes: Sequence[trimesh.Trimesh]) -> Array:
    """Whole metres (3,) to subtract from a model that lies far from zero, where float32 is coarse; else zeros."""
    corners = np.concatenate([mesh.bounds for mesh in meshes] or [np.zeros((2, 3))])
    lowest, highest = corners.min(axis=0), corners.max(axis=0)
    offset_m = float(np.linalg.norm((lowest + highest) / 2))
    diameter_m = float(np.linalg.norm(highest - lowest))
    far = offset_m > _LARGEST_OFFSET_M or offset_m > _LARGEST_OFFSET_IN_DIAMETERS * diameter_m
    return np.round((lowest + highest) / 2) if far else np.zeros(3)


def _units(config: CadConfig, scene: trimesh.Scene) -> tuple[float, str]:
    metres_per_unit = stated_metres_per_unit(config, scene)
    if metres_per_unit is None:
        guess = _guessed_unit(float(np.linalg.norm(scene.extents)))
        return METRES_PER_UNIT[guess], f"{guess} (guess)"
    source = "file" if config.units is None else "stated"
    known = {metres: name for name, metres in METRES_PER_UNIT.items()}
    return metres_per_unit, f"{known.get(metres_per_unit, f'{metres_per_unit:g} m')} ({source})"


def _guessed_unit(diameter: float) -> str:
    """Metres when that makes a building of it, else the unit that comes closest to a 40 m one, in ratio."""
    least, most = _BUILDING_DIAMETER_M
    if least <= diameter <= most or diameter <= 0:
        return "m"
    return min(METRES_PER_UNIT, key=lambda unit: abs(np.log(diameter * METRES_PER_UNIT[unit] / _TYPICAL_DIAMETER_M)))


def _open_edges(mesh: trimesh.Trimesh) -> int:
    """Edges used by one face only, vertices in the same place taken as one."""
    welded = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    welded.merge_vertices(merge_tex=True, merge_norm=True)
    _, counts = np.unique(welded.edges_sorted, axis=0, return_counts=True)
    return int((counts == 1).sum())
