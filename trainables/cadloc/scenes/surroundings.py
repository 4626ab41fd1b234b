"""The ground around a building and what stands on it: paving, lamps, benches, trees, statues, kiosks, fountains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cadloc.scenes.assembly import Assembly, Site
from cadloc.scenes.decals import Kind, decal, floor_decal
from cadloc.scenes.sculpture import figure
from cadloc.scenes.solids import Floats, Part, beam, box, ellipsoid, moved, quads, surface, turned

Prop = Callable[[np.random.Generator], Part]


@dataclass(frozen=True)
class Rectangle:
    """A rectangle on the ground along the axes, in metres."""

    west_m: float
    south_m: float
    east_m: float
    north_m: float

    def holds(self, x_m: float, y_m: float, margin_m: float = 0.0) -> bool:
        """Whether a place lies in the rectangle or within `margin_m` of it."""
        beside, behind = max(self.west_m - x_m, x_m - self.east_m), max(self.south_m - y_m, y_m - self.north_m)
        return max(beside, behind) < margin_m


def ground(assembly: Assembly, size_m: float, rng: np.random.Generator, *, fields: int = 5) -> None:
    """Cover a square around the origin at z = 0 with a patchwork of paving, cobbles and lawns that repeats nowhere."""
    xs, ys = (_uneven(size_m, fields, rng) for _ in range(2))
    for i in range(fields):
        for j in range(fields):
            edge = i in (0, fields - 1) or j in (0, fields - 1)
            material = str(
                rng.choice(["grass", "grass", "cobbles"] if edge else ["paving", "paving", "cobbles", "grass"])
            )
            corners = [
                (xs[i], ys[j], 0.0),
                (xs[i + 1], ys[j], 0.0),
                (xs[i + 1], ys[j + 1], 0.0),
                (xs[i], ys[j + 1], 0.0),
            ]
            assembly.put(material, quads(*corners))
    _kerbs(assembly, xs[1:-1], ys[1:-1])
    for _ in range(fields * 2):
        x, y = rng.uniform(-0.42, 0.42, 2) * size_m
        kind: Kind = "sign" if rng.random() < 0.5 else "mural"
        assembly.add(floor_decal(kind, int(rng.integers(96)), float(x), float(y), float(rng.uniform(0.8, 2.4))))


def _uneven(size_m: float, count: int, rng: np.random.Generator) -> Floats:
    inner = np.linspace(-size_m / 2, size_m / 2, count + 1)[1:-1] + rng.uniform(-0.3, 0.3, count - 1) * size_m / count
    return np.concatenate([[-size_m / 2], inner, [size_m / 2]])


def _kerbs(assembly: Assembly, xs: Floats, ys: Floats) -> None:
    stones = [box((0.3, float(ys[-1] - ys[0]), 0.12), (float(x), float(ys[-1] + ys[0]) / 2, 0.0)) for x in xs]
    stones += [box((float(xs[-1] - xs[0]), 0.3, 0.11), (float(xs[-1] + xs[0]) / 2, float(y), 0.0)) for y in ys]
    assembly.put("trim", np.concatenate(stones))


def lamp(rng: np.random.Generator) -> Part:
    """A street lamp with one, two or three lanterns."""
    height, lanterns = float(rng.uniform(3.2, 4.6)), int(rng.integers(1, 4))
    post = turned("metal", [(0.28, 0.0), (0.26, 0.25), (0.09, 0.45), (0.07, height)], 7)
    part = [post]
    for k in range(lanterns):
        angle = 2 * np.pi * k / lanterns
        x, y = 0.55 * np.cos(angle), 0.55 * np.sin(angle)
        glass = turned(
            "glass",
            [(0.06, height - 0.3), (0.2, height - 0.2), (0.26, height + 0.3), (0.05, height + 0.5)],
            5,
        )
        shifted = glass.triangles_m + np.array([x, y, 0.0])
        part += [
            surface("glass", shifted, glass.uv_m),
            surface("metal", beam((0, 0, height - 0.5), (x, y, height - 0.25), 0.06)),
        ]
    return part


def bench(rng: np.random.Generator) -> Part:
    """A wooden bench, with or without a back."""
    width = float(rng.uniform(1.4, 2.2))
    feet = [box((0.12, 0.45, 0.42), (sx * width * 0.4, 0.0, 0.0)) for sx in (-1, 1)]
    seat = [box((width, 0.12, 0.05), (0.0, y, 0.42)) for y in (-0.16, 0.0, 0.16)]
    back = [box((width, 0.05, 0.14), (0.0, 0.24, z)) for z in (0.6, 0.8)] if rng.random() < 0.6 else []
    return [surface("metal", np.concatenate(feet)), surface("wood", np.concatenate([*seat, *back]))]


def tree(rng: np.random.Generator) -> Part:
    """A tree: trunk, boughs and a crown of leafy clumps that lets the background through."""
    height = float(rng.uniform(5.0, 9.0))
    trunk = turned("wood", [(0.3, 0.0), (0.2, 0.4), (0.14, 0.65 * height), (0.0, 0.9 * height)], 8)
    part = [trunk]
    for _ in range(int(rng.integers(5, 9))):
        clump = rng.uniform(-1.0, 1.0, 3) * [1.6, 1.6, 1.5] + [0.0, 0.0, 0.68 * height]
        radii = rng.uniform(0.9, 1.8, 3) * [1.0, 1.0, 0.8]
        part.append(ellipsoid("foliage", (float(radii[0]), float(radii[1]), float(radii[2])), tuple(clump), 7))
        part.append(surface("wood", beam((0.0, 0.0, 0.4 * height), clump, 0.1)))
    return part


def planter(rng: np.random.Generator) -> Part:
    """A stone tub with shrubs."""
    size = float(rng.uniform(1.0, 1.9))
    tub = box((size, size * float(rng.uniform(0.6, 1.0)), 0.65))
    shrubs = [
        ellipsoid("foliage", (0.45, 0.45, float(rng.uniform(0.4, 0.9))), (float(dx), 0.0, 0.85), 7)
        for dx in rng.uniform(-0.4, 0.4, 3) * size
    ]
    return [surface(str(rng.choice(["trim", "accent", "wood"])), tub), *shrubs]


def monument(rng: np.random.Generator) -> Part:
    """A figure on an inscribed pedestal."""
    side, high = float(rng.uniform(1.3, 2.2)), float(rng.uniform(1.4, 2.6))
    plinth = [
        box((side + 0.6, side + 0.6, 0.3)),
        box((side, side, high), (0.0, 0.0, 0.3)),
        box((side + 0.3, side + 0.3, 0.2), (0.0, 0.0, high + 0.3)),
    ]
    statue = moved(figure(float(rng.uniform(2.0, 3.0)), rng), (0.0, 0.0, high + 0.5))
    return [
        surface("trim", np.concatenate(plinth)),
        *statue,
        *decal("inscription", int(rng.integers(96)), 0.0, 0.6, side * 0.9, 0.6, -side / 2 - 0.02),
    ]


def kiosk(rng: np.random.Generator) -> Part:
    """An advertising column or a small stall."""
    if rng.random() < 0.5:
        drum = turned("accent", [(0.75, 0.0), (0.7, 0.2), (0.7, 2.8), (0.9, 2.9), (0.1, 3.5), (0.0, 3.6)], 14)
        turns = rng.permutation(8)[:3]
        posters = [
            Site(turn_deg=float(120 * k), bend_m=0.7).place(d.triangles_m)
            for k in range(3)
            for d in decal("poster", int(turns[k]), 0.0, 0.6, 1.0, 1.7)
        ]
        places = [d.uv_m for k in range(3) for d in decal("poster", int(turns[k]), 0.0, 0.6, 1.0, 1.7)]
        return [drum, *(surface("decals", t, uv) for t, uv in zip(posters, places, strict=True))]
    width = float(rng.uniform(2.0, 3.0))
    body = [
        box((width, 1.8, 1.0)),
        *(box((0.1, 0.1, 2.3), (sx * width * 0.48, sy * 0.85, 0.0)) for sx in (-1, 1) for sy in (-1, 1)),
    ]
    roof = quads((-width * 0.6, -1.5, 2.1), (width * 0.6, -1.5, 2.1), (width * 0.6, 1.1, 2.7), (-width * 0.6, 1.1, 2.7))
    return [
        surface("wood", np.concatenate(body)),
        surface("accent", roof),
        *decal("sign", int(rng.integers(96)), 0.0, 0.1, 0.8, 0.8, -0.93),
    ]


def fountain(rng: np.random.Generator) -> Part:
    """A round basin with a bowl in its middle."""
    radius = float(rng.uniform(1.8, 2.8))
    basin = turned("trim", [(radius, 0.0), (radius, 0.6), (radius - 0.3, 0.6), (radius - 0.3, 0.35)], 20)
    water = turned("glass", [(radius - 0.3, 0.4), (0.0, 0.42)], 20)
    bowl = turned(
        "trim",
        [(0.4, 0.0), (0.2, 0.8), (0.25, 1.4), (1.0, 1.8), (0.9, 1.85), (0.1, 1.7), (0.1, 2.5), (0.0, 2.6)],
        14,
    )
    return [basin, water, bowl]


def signpost(rng: np.random.Generator) -> Part:
    """A post with a plate on each side."""
    height = float(rng.uniform(2.2, 3.0))
    plates = [
        *decal("sign", int(rng.integers(96)), 0.0, height - 0.7, 0.7, 0.7, -0.05),
        *decal("inscription", int(rng.integers(96)), 0.3, height - 1.1, 1.2, 0.3, -0.05),
    ]
    return [surface("metal", box((0.08, 0.08, height))), *plates]


PROPS: tuple[Prop, ...] = (
    lamp,
    bench,
    planter,
    lamp,
    monument,
    signpost,
    kiosk,
    bench,
    fountain,
    tree,
    planter,
    lamp,
)


def scatter(
    assembly: Assembly,
    rng: np.random.Generator,
    *,
    count: int,
    clear_m: tuple[float, float],
    reach_m: float | tuple[float, float],
    loose: bool = True,
    footprints: Sequence[Rectangle] = (),
) -> None:
    """Stand `count` props on the plaza, outside the rectangle `clear_m` (width, depth) and within `reach_m`
    of its middle along x and y. None stands within 1.5 m of a footprint either.
    """
    placed = 0
    for _ in range(20 * count):
        if placed == count:
            return
        x, y = rng.uniform(np.negative(reach_m), reach_m, 2)
        if abs(x) < clear_m[0] / 2 + 1.5 and abs(y) < clear_m[1] / 2 + 1.5:
            continue
        if any(footprint.holds(float(x), float(y), 1.5) for footprint in footprints):
            continue
        site = Site((float(x), float(y), 0.0), float(rng.uniform(0, 360)))
        assembly.add(PROPS[placed % len(PROPS)](rng), site, loose=loose)
        placed += 1
