"""Solids the built-in scenes are made of: triangles in a part's own frame (x right, y into the wall, z up, metres).

A facade is designed flat: its wall is the plane y = 0, seen from y < 0. Triangles share no
vertices, so that every face keeps its own normal and its own place in the texture.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats: TypeAlias = NDArray[np.float64]
Point: TypeAlias = tuple[float, float, float]


@dataclass(frozen=True)
class Surface:
    """Triangles (F, 3, 3) of one material and their places (F, 3, 2) in its texture, both in metres."""

    material: str
    triangles_m: Floats
    uv_m: Floats


Part: TypeAlias = list[Surface]


def surface(material: str, triangles: ArrayLike, uv_m: Floats | None = None) -> Surface:
    """A surface of triangles (F, 3, 3); its texture lies flat on each, unless `uv_m` (F, 3, 2) says otherwise."""
    triangles_m = np.asarray(triangles, dtype=np.float64).reshape(-1, 3, 3)
    return Surface(material, triangles_m, planar_uv(triangles_m) if uv_m is None else uv_m)


def planar_uv(triangles_m: Floats) -> Floats:
    """Texture places (F, 3, 2) in metres: u runs horizontally, v up the slope, continuous over each plane."""
    normals = np.cross(triangles_m[:, 1] - triangles_m[:, 0], triangles_m[:, 2] - triangles_m[:, 0])
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    level = np.hypot(normals[:, 0], normals[:, 1])
    across = np.stack([-normals[:, 1], normals[:, 0], np.zeros(len(normals))], axis=1)
    across = np.where(level[:, None] > 0.05, across / np.maximum(level, 1e-12)[:, None], [1.0, 0.0, 0.0])
    up = np.cross(normals, across)
    return np.stack([(triangles_m * across[:, None]).sum(-1), (triangles_m * up[:, None]).sum(-1)], axis=-1)


def quads(a: ArrayLike, b: ArrayLike, c: ArrayLike, d: ArrayLike) -> Floats:
    """Triangles (2N, 3, 3) of quadrilaterals a, b, c, d (N, 3 each), counter-clockwise seen from outside."""
    corners = [np.asarray(corner, dtype=np.float64).reshape(-1, 3) for corner in (a, b, c, d)]
    halves = [np.stack(corners[:3], axis=1), np.stack([corners[0], *corners[2:]], axis=1)]
    return np.stack(halves, axis=1).reshape(-1, 3, 3)


def box(size_m: Point, foot_m: Point = (0.0, 0.0, 0.0)) -> Floats:
    """A box (12, 3, 3) of a size along x, y, z, standing centred on `foot_m`."""
    half_x, half_y = size_m[0] / 2, size_m[1] / 2
    outline = [(-half_x, -half_y), (half_x, -half_y), (half_x, half_y), (-half_x, half_y)]
    standing: Floats = pillar(outline, 0.0, size_m[2]) + np.asarray(foot_m)
    return standing


def pillar(outline_xy: ArrayLike, z0_m: float, z1_m: float) -> Floats:
    """A convex outline (K, 2), counter-clockwise from above, raised from z0 to z1: (4K - 4, 3, 3)."""
    outline = np.asarray(outline_xy, dtype=np.float64)
    low, high = (np.column_stack([outline, np.full(len(outline), z)]) for z in (z0_m, z1_m))
    sides = quads(low, np.roll(low, -1, axis=0), np.roll(high, -1, axis=0), high)
    return np.concatenate([sides, fan(high), fan(low[::-1])])


def fan(polygon: ArrayLike) -> Floats:
    """A convex polygon (K, 3) as triangles (K - 2, 3, 3) around its first corner."""
    corners = np.asarray(polygon, dtype=np.float64)
    return np.stack([np.broadcast_to(corners[0], corners[1:-1].shape), corners[1:-1], corners[2:]], axis=1)


def slab(polygon_xz: ArrayLike, front_m: float, back_m: float, *, back: bool = True) -> Floats:
    """A convex polygon (K, 2) in x, z, counter-clockwise seen from the front (y < 0), between y = front and y = back.

    `back` false leaves out the rear face, for what leans on a wall.
    """
    outline = np.asarray(polygon_xz, dtype=np.float64)
    near, far = (np.column_stack([outline[:, 0], np.full(len(outline), y), outline[:, 1]]) for y in (front_m, back_m))
    sides = quads(near, far, np.roll(far, -1, axis=0), np.roll(near, -1, axis=0))
    return np.concatenate([sides, fan(near), *([fan(far[::-1])] if back else [])])


def plank(
    x_m: float,
    z_m: float,
    width_m: float,
    height_m: float,
    front_m: float,
    back_m: float,
    *,
    back: bool = False,
) -> Floats:
    """A rectangle on a facade, (x, z) its lower middle, from y = front to y = back: (10 or 12, 3, 3)."""
    half = width_m / 2
    corners = [
        (x_m - half, z_m),
        (x_m + half, z_m),
        (x_m + half, z_m + height_m),
        (x_m - half, z_m + height_m),
    ]
    return slab(corners, front_m, back_m, back=back)


def moulding(profile_yz: ArrayLike, x_cuts_m: Sequence[float] | Floats) -> Floats:
    """A profile (K, 2) of y, z from bottom to top, drawn along x through every cut; its two ends are closed."""
    profile, cuts = np.asarray(profile_yz, dtype=np.float64), np.asarray(x_cuts_m, dtype=np.float64)
    lattice = np.empty((len(cuts), len(profile), 3))
    lattice[..., 0], lattice[..., 1:] = cuts[:, None], profile
    a, b, c, d = lattice[:-1, :-1], lattice[1:, :-1], lattice[1:, 1:], lattice[:-1, 1:]
    ends = [fan(lattice[0, ::-1]), fan(lattice[-1])] if len(profile) > 2 else []
    return np.concatenate([quads(a, b, c, d), *ends])


def lathe(
    profile_rz: ArrayLike,
    sections: int = 24,
    *,
    flutes: int = 0,
    start_deg: float = 0.0,
    end_deg: float = 360.0,
) -> tuple[Floats, Floats]:
    """Triangles (F, 3, 3) and texture places (F, 3, 2) of a profile (K, 2) of radius, height turned about the z axis.

    `flutes` grooves (half as many as sections show them best) are cut into it; with few sections it is a prism.
    """
    profile = np.asarray(profile_rz, dtype=np.float64)
    angles = np.radians(np.linspace(start_deg, end_deg, sections + 1))
    radii = np.repeat(profile[:, :1], sections + 1, axis=1)
    if flutes:
        radii *= 1.0 - 0.07 * np.abs(np.sin(flutes * angles / 2.0))
    heights = np.broadcast_to(profile[:, 1:], radii.shape)
    ring = np.stack([radii * np.cos(angles), radii * np.sin(angles), heights], axis=-1)
    rise = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(profile, axis=0), axis=1))])
    place = np.stack(np.broadcast_arrays(angles * profile[:, 0].max(), rise[:, None] + profile[0, 1]), axis=-1)
    return _lattice(ring), _lattice(place)


def _lattice(points: Floats) -> Floats:
    """Triangles (F, 3, D) of a lattice of points (rows, columns, D)."""
    a, b, c, d = points[:-1, :-1], points[:-1, 1:], points[1:, 1:], points[1:, :-1]
    return np.stack([np.stack([a, b, c], axis=-2), np.stack([a, c, d], axis=-2)], axis=2).reshape(
        -1, 3, points.shape[-1]
    )


def turned(material: str, profile_rz: ArrayLike, sections: int = 24, *, flutes: int = 0) -> Surface:
    """A full turn of a profile (K, 2) of radius, height."""
    return Surface(material, *lathe(profile_rz, sections, flutes=flutes))


def ellipsoid(material: str, radii_m: Point, centre_m: Point = (0.0, 0.0, 0.0), sections: int = 10) -> Surface:
    """An ellipsoid with its axes along x, y, z."""
    polar = np.linspace(-np.pi / 2, np.pi / 2, max(4, sections // 2 + 1))
    ball = turned(material, np.column_stack([np.cos(polar).clip(0.0), np.sin(polar)]), sections)
    return Surface(material, ball.triangles_m * radii_m + np.asarray(centre_m), ball.uv_m * max(radii_m))


def beam(start_m: ArrayLike, end_m: ArrayLike, width_m: float, depth_m: float | None = None) -> Floats:
    """A bar (12, 3, 3) with a rectangular section between two points."""
    start, end = np.asarray(start_m, dtype=np.float64), np.asarray(end_m, dtype=np.float64)
    along = (end - start) / np.linalg.norm(end - start)
    aside = np.cross(along, [0.0, 0.0, 1.0] if abs(along[2]) < 0.9 else [0.0, 1.0, 0.0])
    aside /= np.linalg.norm(aside)
    frame = np.stack([aside, np.cross(along, aside), along])
    bar: Floats = box((width_m, depth_m or width_m, float(np.linalg.norm(end - start)))) @ frame + start
    return bar


def arc(
    radius_m: float,
    from_deg: float,
    to_deg: float,
    segments: int,
    centre_xz: tuple[float, float] = (0.0, 0.0),
) -> Floats:
    """Points (segments + 1, 2) in x, z of an arc, angles counter-clockwise from +x."""
    angles = np.radians(np.linspace(from_deg, to_deg, segments + 1))
    return np.column_stack([np.cos(angles), np.sin(angles)]) * radius_m + centre_xz


def ribbon(outer_xz: Floats, inner_xz: Floats, front_m: float, back_m: float) -> Floats:
    """The band between two polylines (K, 2 each) on a facade: its front, and its outer edge as deep as `back`."""
    out_f, in_f, out_b = (
        np.column_stack([line[:, 0], np.full(len(line), y), line[:, 1]])
        for line, y in ((outer_xz, front_m), (inner_xz, front_m), (outer_xz, back_m))
    )
    return np.concatenate([
        quads(in_f[:-1], out_f[:-1], out_f[1:], in_f[1:]),
        quads(out_f[:-1], out_b[:-1], out_b[1:], out_f[1:]),
    ])  # fmt: skip


def solid_part(part: Iterable[Surface]) -> Part:
    """The part without triangles of no area, which arise where a profile meets its axis or an arch its crown."""
    kept = []
    for s in part:
        normals = np.cross(s.triangles_m[:, 1] - s.triangles_m[:, 0], s.triangles_m[:, 2] - s.triangles_m[:, 0])
        solid = np.linalg.norm(normals, axis=1) > 1e-8
        kept.append(Surface(s.material, s.triangles_m[solid], s.uv_m[solid]))
    return kept


def moved(part: Iterable[Surface], by_m: Point, turn_deg: float = 0.0) -> Part:
    """The part turned about z, then moved; its texture stays on it."""
    cos, sin = np.cos(np.radians(turn_deg)), np.sin(np.radians(turn_deg))
    turn = np.array([[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]])
    return [Surface(s.material, s.triangles_m @ turn + np.asarray(by_m), s.uv_m) for s in part]


def scaled(part: Iterable[Surface], factor: float) -> Part:
    """The part made `factor` times as large, with its texture at the old scale."""
    return [Surface(s.material, s.triangles_m * factor, s.uv_m * factor) for s in part]
