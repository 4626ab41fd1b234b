"""Stage `distance_field`: how far any place is from the surface of a scene's CAD model.

Stored is, at the nodes of a grid, the way to the nearest surface point rather than its length. Interpolated, ways lead
to the surface to first order, wherever between the nodes it lies; interpolated lengths, having no sign, are up to half
a cell too long there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import trimesh
from numpy.typing import NDArray
from scipy import ndimage

from cadloc.contract import Json
from cadloc.geometry import Array
from cadloc.scene_config import SceneConfig
from cadloc.scene_models import load_scene_model

OFFSETS, CARD = "offsets.npy", "distance_field.json"
SCHEMA_VERSION = 1

MARGIN = 2
"""Cells of the grid around the model's bounds."""

SAMPLES_PER_CELL = 16
"""Surface samples per area of a cell's side: a quarter of a cell apart."""

_FEWEST_SAMPLES, _MOST_SAMPLES = 20_000, 4_000_000
_SWEEPS = 2


@dataclass(frozen=True, eq=False)
class DistanceField:
    """A grid of nodes `spacing_m` apart along the axes of `cad`, the first at `origin_m` (3,) float64.

    `offsets_m` (Z, Y, X, 3) float16 lead from each node to the nearest surface point, as (x, y, z). They end on
    the surface, up to that rounding (1 mm, 2 m away). About the surface they are the shortest but for few nodes at
    edges, which miss it by a tenth of a cell; farther off by a few percent.
    """

    origin_m: Array
    spacing_m: float
    offsets_m: NDArray[np.float16]

    @classmethod
    def open(cls, directory: Path) -> DistanceField:
        """The finished stage below `directory`, memory-mapped."""
        card = json.loads((directory / CARD).read_text())
        return cls(np.array(card["origin_m"]), card["spacing_m"], np.load(directory / OFFSETS, mmap_mode="r"))

    @property
    def nodes(self) -> Array:
        """Places (Z, Y, X, 3) of the nodes in `cad`."""
        index = np.moveaxis(np.indices(self.offsets_m.shape[:3])[::-1], 0, -1)
        return np.asarray(self.origin_m + self.spacing_m * index)


def chunks(config: Mapping[str, Json], inputs: Mapping[str, Path]) -> int:
    """1: it takes seconds."""
    return 1


def build_chunk(config: Mapping[str, Json], inputs: Mapping[str, Path], directory: Path, chunk: int) -> int:
    """Measures the scene's own CAD model, ground and surroundings included as far as it has them.

    Returns the number of nodes. `config` is {scene, resolution}. Raises InputError for an unusable CAD file.
    """
    model = load_scene_model(SceneConfig.model_validate(config["scene"]), "synthetic")
    field = measured_field(model.mesh, config["resolution"])
    np.save(directory / OFFSETS, field.offsets_m)
    card = {
        "schema_version": SCHEMA_VERSION,
        "origin_m": field.origin_m.tolist(),
        "spacing_m": field.spacing_m,
        "nodes": list(field.offsets_m.shape[:3]),
        **config,
    }
    (directory / CARD).write_text(json.dumps(card, indent=2) + "\n")
    return int(np.prod(field.offsets_m.shape[:3]))


def finish(config: Mapping[str, Json], inputs: Mapping[str, Path], directory: Path) -> None:
    """Nothing is left to do: the one piece is the whole."""


def measured_field(mesh: trimesh.Trimesh, resolution: int) -> DistanceField:
    """The field of a triangle mesh in `cad`, `resolution` cells along its longest side, the same on every run.

    Nodes about the surface are measured against its triangles; from there the nearest points are carried outwards,
    which is a hundred times faster than searching them from afar.
    """
    lowest, highest = np.asarray(mesh.bounds, np.float64)
    spacing_m = float((highest - lowest).max() / resolution)
    origin_m = lowest - MARGIN * spacing_m
    cells = np.ceil((highest - lowest) / spacing_m).astype(int) + 2 * MARGIN
    near = _nodes_near(mesh, origin_m, spacing_m, cells + 1)
    places = np.argwhere(near)
    feet = np.zeros((*near.shape, 3), np.float32)
    feet[near] = (_nearest_points(mesh, spacing_m, origin_m + spacing_m * places) - origin_m) / spacing_m
    offsets_m = spacing_m * (_carried_outwards(feet, near) - _indices(near.shape))
    return DistanceField(origin_m, spacing_m, np.ascontiguousarray(offsets_m.transpose(2, 1, 0, 3), np.float16))


def _nodes_near(
    mesh: trimesh.Trimesh, origin_m: Array, spacing_m: float, nodes: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """(X, Y, Z): nodes of cells that hold some of the surface, and the nodes next to those."""
    samples, _ = trimesh.sample.sample_surface(mesh, _sample_count(mesh, spacing_m), seed=0)
    # Centres too, so that no triangle is overlooked.
    points = np.concatenate([samples, mesh.triangles_center])
    cells = np.floor((points - origin_m) / spacing_m).astype(int)
    near = np.zeros(nodes, bool)
    for corner in product((0, 1), repeat=3):
        near[tuple((cells + corner).T)] = True
    return np.asarray(ndimage.binary_dilation(near, np.ones((3, 3, 3), bool)))


def _nearest_points(mesh: trimesh.Trimesh, spacing_m: float, places: Array) -> Array:
    """Nearest surface points (N, 3) of places (N, 3) that are not far from the surface."""
    from cadloc.alignment.surface_fit import SurfaceIndex  # only who makes a field needs what alignment needs

    return SurfaceIndex(mesh, _sample_count(mesh, spacing_m)).closest(places)[0]


def _sample_count(mesh: trimesh.Trimesh, spacing_m: float) -> int:
    return int(np.clip(SAMPLES_PER_CELL * mesh.area / spacing_m**2, _FEWEST_SAMPLES, _MOST_SAMPLES))


def _carried_outwards(feet: NDArray[np.float32], known: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Nearest points (X, Y, Z, 3) of all nodes, in cells, from those of the `known` nodes.

    A node takes over that of the known node nearest to it, then whatever its neighbours know better.
    """
    nearest = ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)
    carried = np.asarray(feet[tuple(nearest)], np.float32)
    here = _indices(known.shape)
    squared = ((carried - here) ** 2).sum(axis=-1)
    for axis, step in list(product(range(3), (1, -1))) * _SWEEPS:
        offered = np.roll(carried, step, axis)  # what comes round the edge is a point of the surface as well
        offered_squared = ((offered - here) ** 2).sum(axis=-1)
        better = offered_squared < squared
        carried[better], squared[better] = offered[better], offered_squared[better]
    return carried


def _indices(shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.ascontiguousarray(np.moveaxis(np.indices(shape, np.float32), 0, -1))
