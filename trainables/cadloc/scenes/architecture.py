"""Parts of classical and Gothic buildings, each in its own frame.

z is up, in metres; a part stands on z = 0 and shows its face to -y unless it says otherwise.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from cadloc.scenes.roofs import spire
from cadloc.scenes.solids import (
    Floats,
    Part,
    Surface,
    arc,
    beam,
    box,
    fan,
    moulding,
    moved,
    pillar,
    plank,
    ribbon,
    slab,
    surface,
    turned,
)


def column(
    height_m: float, radius_m: float, rng: np.random.Generator, *, material: str = "trim", flutes: int = 8
) -> Part:
    """A fluted column with base, entasis and capital, each of its drums a stone of its own."""
    base, capital = 0.9 * radius_m, 1.1 * radius_m
    shaft = height_m - base - capital
    ends = np.concatenate([[0.0], np.sort(rng.uniform(0.12, 0.9, int(rng.integers(2, 5)))), [1.0]])
    drums = [
        _drum(material, radius_m, base + shaft * a, base + shaft * b, (a, b), flutes, rng)
        for a, b in itertools.pairwise(ends.tolist())
    ]
    foot = turned(
        material,
        [
            (1.38 * radius_m, 0.25 * radius_m),
            (1.4 * radius_m, 0.5 * radius_m),
            (1.12 * radius_m, 0.62 * radius_m),
            (1.2 * radius_m, 0.8 * radius_m),
            (radius_m, base),
        ],
        16,
    )
    head = [(0.86 * radius_m, 0.0), (0.95 * radius_m, 0.3 * capital), (1.3 * radius_m, 0.7 * capital)]
    plates = [
        box((2.9 * radius_m, 2.9 * radius_m, 0.25 * radius_m)),
        box((2.8 * radius_m, 2.8 * radius_m, 0.3 * capital), (0.0, 0.0, height_m - 0.3 * capital)),
    ]
    return [
        *drums,
        foot,
        *moved([turned(material, head, 16)], (0.0, 0.0, base + shaft)),
        surface(material, np.concatenate(plates)),
    ]


def _drum(
    material: str,
    radius_m: float,
    z0_m: float,
    z1_m: float,
    share: tuple[float, float],
    flutes: int,
    rng: np.random.Generator,
) -> Surface:
    low, high = (radius_m * (1.0 - 0.15 * t**1.7) for t in share)
    drum = turned(material, [(low, z0_m), (high, z1_m)], 16, flutes=flutes)
    return Surface(material, drum.triangles_m, drum.uv_m + rng.uniform(0.0, 50.0, 2))


def entablature(width_m: float, depth_m: float, height_m: float, rng: np.random.Generator) -> Part:
    """Architrave, frieze with some lost triglyphs, dentils and cornice on a front; y = 0 is the frieze's face."""
    frieze, cornice = 0.38 * height_m, 0.74 * height_m
    cuts = (-width_m / 2, width_m / 2)
    profile = [
        (-0.05, 0.0),
        (-0.05, 0.16 * height_m),
        (-0.12, 0.16 * height_m),
        (-0.12, 0.34 * height_m),
        (-0.2, 0.34 * height_m),
        (-0.2, frieze),
        (0.0, frieze),
        (0.0, cornice),
        (-0.25, cornice + 0.1 * height_m),
        (-0.5, cornice + 0.12 * height_m),
        (-0.55, height_m),
        (depth_m, height_m),
        (depth_m, 0.0),
    ]
    pitch = height_m * 0.62
    xs = np.arange(-width_m / 2 + pitch / 2, width_m / 2, pitch)
    glyphs = [
        plank(x + dx, frieze, 0.32 * pitch, cornice - frieze, -0.10, 0.0)
        for x in xs[rng.random(len(xs)) < 0.85]
        for dx in (-0.18 * pitch, 0.18 * pitch)
    ]
    teeth = [
        plank(x, cornice - 0.01, 0.45, 0.09 * height_m, -0.3, 0.0)
        for x in np.arange(-width_m / 2 + 0.3, width_m / 2, 0.95)
        if rng.random() < 0.93
    ]
    return (
        [
            surface("trim", np.concatenate([moulding(profile, cuts), *teeth])),
            surface("accent", np.concatenate(glyphs)),
        ]
        if glyphs
        else [surface("trim", moulding(profile, cuts))]
    )


def pediment(width_m: float, rise_m: float, depth_m: float, *, face: str = "wall") -> Part:
    """A triangular gable with raking cornices; y = 0 is the cornice's front, the tympanum stands back 0.6 m."""
    half = width_m / 2
    tympanum = slab([(-half, 0.0), (half, 0.0), (0.0, rise_m)], 0.6, depth_m)
    thick = 0.09 * width_m**0.75
    low, high = rise_m - 0.2 * thick, rise_m + 0.6 * thick
    rakes = [
        slab([(-half, 0.0), (-half + 1.6 * thick, 0.0), (0.0, low), (0.0, high)], 0.0, 0.65),
        slab([(half - 1.6 * thick, 0.0), (half, 0.0), (0.0, high), (0.0, low)], 0.0, 0.65),
    ]
    return [
        surface(face, tympanum),
        surface("trim", np.concatenate([*rakes, plank(0.0, -0.05, width_m, 0.35 * thick, 0.0, 0.65)])),
    ]


def quoins(
    height_m: float,
    rng: np.random.Generator,
    corner: tuple[int, int],
    *,
    stone_m: float = 0.6,
    material: str = "trim",
) -> Part:
    """Corner stones up to a height, for the corner of a wall that points to (sx, sy); a few have fallen."""
    stones, z, odd = [], 0.0, False
    while z < height_m - 0.3:
        high = min(stone_m * float(rng.uniform(0.75, 1.25)), height_m - z)
        a, b = (1.1, 0.7) if odd else (0.7, 1.1)
        if rng.random() < 0.94:
            stones.append(box((a, b, high - 0.05), (corner[0] * (0.12 - a / 2), corner[1] * (0.12 - b / 2), z)))
        z, odd = z + high, not odd
    return [surface(material, np.concatenate(stones))]


def stairs(width_m: float, steps: int, *, rise_m: float = 0.17, tread_m: float = 0.36, material: str = "trim") -> Part:
    """Steps that climb from y = -steps * tread to y = 0, their top at steps * rise."""
    treads = [
        box((width_m, (steps - k) * tread_m, rise_m), (0.0, -(steps - k) * tread_m / 2, k * rise_m))
        for k in range(steps)
    ]
    return [surface(material, np.concatenate(treads))]


def voussoirs(
    radius_m: float,
    thickness_m: float,
    rng: np.random.Generator,
    *,
    stones: int = 13,
    reach_m: float = 0.25,
    material: str = "trim",
) -> Part:
    """The stones of a round arch around the origin; they stand out by different amounts and the keystone most."""
    rims = [arc(r, 0.0, 180.0, stones) for r in (radius_m + thickness_m, radius_m)]
    front = -reach_m * rng.uniform(0.6, 1.0, stones)
    front[stones // 2] = -1.5 * reach_m
    return [
        surface(
            material,
            np.concatenate(
                [
                    slab(
                        [rims[1][k], rims[0][k], rims[0][k + 1], rims[1][k + 1]],
                        float(front[k]),
                        0.05,
                        back=False,
                    )
                    for k in range(stones)
                ]
            ),
        )
    ]


def rose_window(radius_m: float, petals: int = 12, *, turn_deg: float = 7.0) -> Part:
    """A traceried wheel around the origin in the plane y = 0: stained glass, spokes, foils, moulded rims."""
    disc = arc(radius_m, 0.0, 360.0, 28)
    pane = np.column_stack([disc[:-1, 0], np.full(28, 0.25), disc[:-1, 1]])
    rim = [
        ribbon(arc(radius_m * b, 0.0, 360.0, 28), arc(radius_m * a, 0.0, 360.0, 28), front, 0.3)
        for a, b, front in ((0.97, 1.12, -0.2), (0.60, 0.64, 0.02), (0.17, 0.24, -0.02))
    ]
    angles = np.radians(turn_deg + np.arange(petals) * 360.0 / petals)
    spokes = [
        beam(
            (0.2 * radius_m * c, 0.12, 0.2 * radius_m * s),
            (0.98 * radius_m * c, 0.12, 0.98 * radius_m * s),
            0.16,
            0.2,
        )
        for c, s in zip(np.cos(angles), np.sin(angles), strict=True)
    ]
    foils = []
    for k, half in enumerate(angles + np.pi / petals):
        reach, size = (0.80, 0.13) if k % 3 else (0.78, 0.16)
        centre = (reach * radius_m * np.cos(half), reach * radius_m * np.sin(half))
        foils.append(
            ribbon(
                arc(size * radius_m, 0, 360, 7, centre),
                arc(0.7 * size * radius_m, 0, 360, 7, centre),
                0.05,
                0.25,
            )
        )
    return [surface("glass", fan(pane)), surface("trim", np.concatenate([*rim, *spokes, *foils]))]


def buttress(height_m: float, depth_m: float, width_m: float, *, pinnacle: bool = True) -> Part:
    """A stepped pier against a wall at y = 0, reaching to y = -depth; with a pinnacle on its head."""
    shoulder = 0.62 * height_m
    lower = slab_side([(-depth_m, 0.0), (0.0, 0.0), (0.0, shoulder + 0.8), (-depth_m, shoulder)], width_m)
    upper = slab_side(
        [(-0.6 * depth_m, shoulder), (0.0, shoulder), (0.0, height_m + 0.6), (-0.6 * depth_m, height_m)],
        0.8 * width_m,
    )
    part = [surface("wall", np.concatenate([lower, upper]))]
    if pinnacle:
        part += moved(spire(0.7 * width_m, 2.6, 4, material="trim"), (0.0, -0.35 * depth_m, height_m + 0.2))
    return part


def slab_side(polygon_yz: Sequence[tuple[float, float]], width_m: float) -> Floats:
    """A convex polygon in y, z, made `width_m` wide along x and centred on x = 0."""
    outline = np.array([(-y, z) for y, z in polygon_yz][::-1])
    across = slab(outline, -width_m / 2, width_m / 2)
    return across[..., [1, 0, 2]] * [1.0, -1.0, 1.0]


def flying_arch(span_m: float, z0_m: float, z1_m: float, thickness_m: float = 0.7) -> Part:
    """A half arch from (y = -span, z0) to the wall at (y = 0, z1)."""
    turn = np.linspace(0.0, np.pi / 2, 6)
    line = np.column_stack([np.zeros(6), -span_m * np.cos(turn), z0_m + (z1_m - z0_m) * np.sin(turn)])
    pieces = [beam(a, b, thickness_m, 0.9 * thickness_m) for a, b in itertools.pairwise(line)]
    return [surface("trim", np.concatenate(pieces))]


def parapet(width_m: float, rng: np.random.Generator, *, height_m: float = 1.0, pitch_m: float = 0.8) -> Part:
    """A balustrade along x with posts at irregular places and some balusters lost."""
    rails = [plank(0.0, 0.0, width_m, 0.18, -0.2, 0.2), plank(0.0, height_m - 0.15, width_m, 0.15, -0.2, 0.2)]
    xs = np.arange(-width_m / 2 + pitch_m / 2, width_m / 2, pitch_m)
    posts = [plank(float(x), 0.18, 0.22, height_m - 0.33, -0.1, 0.1) for x in xs[rng.random(len(xs)) < 0.88]]
    piers = [
        plank(float(x), 0.0, 0.55, height_m + 0.2, -0.28, 0.28)
        for x in rng.choice(xs, max(len(xs) // 7, 1), replace=False)
    ]
    return [surface("trim", np.concatenate([*rails, *posts, *piers]))]


def block(material: str, outline_xy: Sequence[tuple[float, float]], z0_m: float, z1_m: float) -> Part:
    """A convex block over an outline, counter-clockwise from above."""
    return [surface(material, pillar(outline_xy, z0_m, z1_m))]
