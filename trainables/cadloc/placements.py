"""Draws of directions, places and points to look at for virtual cameras, all evenly spread."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import numpy as np
import trimesh
from numpy.typing import NDArray

from cadloc.geometry import Array

_GOLDEN_RATIO = (np.sqrt(5) - 1) / 2
# Roberts 2018, "The unreasonable effectiveness of quasirandom sequences": the plane's counterpart of the golden ratio.
_PLASTIC_RATIOS = 1.32471795724474602596 ** np.array([-1.0, -2.0])


def azimuths_deg(low_deg: float, high_deg: float, rng: np.random.Generator) -> Iterator[float]:
    """Azimuths of a sector without end, going round it by the golden ratio from a random start."""
    start = rng.uniform()
    return (low_deg + (start + index * _GOLDEN_RATIO) % 1.0 * (high_deg - low_deg) for index in count())


def places(low: Array, high: Array, rng: np.random.Generator) -> Iterator[Array]:
    """Places (2,) of the rectangle between two corners (2,) without end, from a random start."""
    start = rng.uniform(size=2)
    return (low + (start + index * _PLASTIC_RATIOS) % 1.0 * (high - low) for index in count())


def in_sector(azimuth_deg: float, low_deg: float, high_deg: float) -> bool:
    """Whether an azimuth lies in the sector that runs counter-clockwise from `low_deg` to `high_deg`."""
    return (azimuth_deg - low_deg) % 360.0 <= high_deg - low_deg


def direction(azimuth_deg: float, elevation_deg: float) -> Array:
    """Unit vector (3,); azimuth counter-clockwise from +x, elevation from the horizon."""
    azimuth, elevation = np.deg2rad([azimuth_deg, elevation_deg])
    return np.array([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)])


def elevations_deg(directions: Array) -> Array:
    """Angles (N,) of directions (N, 3) above the horizon."""
    return np.asarray(np.rad2deg(np.arctan2(directions[:, 2], np.linalg.norm(directions[:, :2], axis=1))))


def in_unit_ball(rng: np.random.Generator) -> Array:
    """A point (3,) of the unit ball, evenly over its volume."""
    drawn = rng.standard_normal(3)
    return np.asarray(drawn / np.linalg.norm(drawn) * np.cbrt(rng.uniform()))


def surface_points(
    mesh: trimesh.Trimesh, faces: NDArray[np.bool_], rng: np.random.Generator, number: int = 4096
) -> Array:
    """Points (number, 3) on the faces of a mesh that are marked (F,), evenly over their area."""
    triangles, areas = np.asarray(mesh.triangles)[faces], mesh.area_faces[faces]
    chosen = triangles[rng.choice(len(triangles), size=number, p=areas / areas.sum())]
    u, v = rng.uniform(size=(2, number, 1))
    # Osada et al. 2002, section 3.2: the square root makes the points even over the triangle.
    u = np.sqrt(u)
    return np.asarray((1 - u) * chosen[:, 0] + u * (1 - v) * chosen[:, 1] + u * v * chosen[:, 2])
