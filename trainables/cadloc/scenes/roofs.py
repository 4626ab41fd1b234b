"""Roofs, domes and spires, each in its own frame: standing on z = 0 and centred on the origin, in metres."""

from __future__ import annotations

import itertools

import numpy as np

from cadloc.scenes.solids import (
    Part,
    Surface,
    beam,
    fan,
    lathe,
    moved,
    quads,
    surface,
    turned,
)


def gable_roof(
    width_m: float, depth_m: float, rise_m: float, overhang_m: float = 0.5, *, gables: str | None = "wall"
) -> Part:
    """A saddle roof over a rectangle around the origin, its ridge along x; gable walls unless `gables` is None."""
    x, y = width_m / 2 + overhang_m, depth_m / 2 + overhang_m
    drop = overhang_m * rise_m / (depth_m / 2)
    eaves = [(-x, -y, -drop), (x, -y, -drop), (x, y, -drop), (-x, y, -drop)]
    ridge = [(-x, 0.0, rise_m), (x, 0.0, rise_m)]
    part = [
        surface(
            "roof",
            np.concatenate(
                [quads(eaves[0], eaves[1], ridge[1], ridge[0]), quads(eaves[2], eaves[3], ridge[0], ridge[1])]
            ),
        )
    ]
    part.append(surface("metal", beam((-x, 0.0, rise_m), (x, 0.0, rise_m), 0.25)))
    if gables is not None:
        ends = [
            [
                (sx * width_m / 2, -sx * depth_m / 2, 0.0),
                (sx * width_m / 2, sx * depth_m / 2, 0.0),
                (sx * width_m / 2, 0.0, rise_m),
            ]
            for sx in (-1, 1)
        ]
        part.append(surface(gables, np.array(ends)))
    return part


def hip_roof(width_m: float, depth_m: float, rise_m: float, overhang_m: float = 0.6) -> Part:
    """A hipped roof over a rectangle centred on the origin; its ridge runs along the longer side."""
    if depth_m > width_m:
        return moved(hip_roof(depth_m, width_m, rise_m, overhang_m), (0.0, 0.0, 0.0), 90.0)
    x, y, ridge = width_m / 2 + overhang_m, depth_m / 2 + overhang_m, (width_m - 0.8 * depth_m) / 2
    a, b, c, d = (-x, -y, 0.0), (x, -y, 0.0), (x, y, 0.0), (-x, y, 0.0)
    left, right = (-ridge, 0.0, rise_m), (ridge, 0.0, rise_m)
    faces = [
        quads(a, b, right, left),
        quads(c, d, left, right),
        fan([b, c, right]),
        fan([d, a, left]),
        quads(d, c, b, a),
    ]
    return [surface("roof", np.concatenate(faces))]


def dome(radius_m: float, rise_m: float, sections: int = 40, *, ribs: int = 8, material: str = "roof") -> Part:
    """A dome with ribs."""
    polar = np.linspace(0.0, np.pi / 2, 9)
    profile = np.column_stack([radius_m * np.cos(polar).clip(0.0), rise_m * np.sin(polar)])
    angles = np.arange(ribs) * 2 * np.pi / max(ribs, 1)
    bars = [
        beam((r0 * c, r0 * s, z0), (r1 * c, r1 * s, z1), 0.3)
        for c, s in zip(np.cos(angles), np.sin(angles), strict=True)
        for (r0, z0), (r1, z1) in itertools.pairwise(profile[:-1])
    ]
    return [turned(material, profile, sections), *([surface("metal", np.concatenate(bars))] if bars else [])]


def spire(side_m: float, rise_m: float, sections: int = 8, *, material: str = "roof") -> Part:
    """A pyramid roof with a finial; 4 sections for a square tower, 8 for an octagon."""
    reach = side_m / 2 / np.cos(np.pi / sections)
    triangles, uv = lathe(
        [(reach, 0.0), (0.02, rise_m)], sections, start_deg=180.0 / sections, end_deg=360.0 + 180.0 / sections
    )
    knob = moved(
        [turned("metal", [(0.06, 0.0), (0.25, 0.3), (0.05, 0.7), (0.05, 1.6), (0.0, 1.7)], 8)],
        (0.0, 0.0, rise_m - 0.2),
    )
    return [Surface(material, triangles, uv), *knob]
