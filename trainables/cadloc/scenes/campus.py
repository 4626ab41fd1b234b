"""The campus: twenty unlike buildings in blocks along streets and squares, more than 300 m across.

A scene made large, to compare heads on. As on a real campus buildings differ in shape and share their looks: what
a wall is made of does not say which building it belongs to.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cadloc.scenes.assembly import Assembly, Placed, Site
from cadloc.scenes.decals import Kind, floor_decal
from cadloc.scenes.model import SceneModel, Wall
from cadloc.scenes.palette import FITTINGS, GROUND
from cadloc.scenes.solids import Floats, box, quads
from cadloc.scenes.surroundings import Rectangle, fountain, lamp, monument, scatter, tree
from cadloc.scenes.textures import Finish
from cadloc.scenes.training import random_building

SEED = 1088
# The generators of the pre-training pool's buildings are seeded by [seed, 1], with seeds from 0 upward. These end in
# another number, so no building is one that an encoder has seen, whatever pool it was trained on.
_BUILDING, _GROUNDS = 5, 6
COLUMNS, ROWS = 6, 4
SQUARES = ((0, 1), (2, 1), (2, 2), (4, 3))
"""Blocks (column, row) without a building, from the south-west."""
STREETS_M = (12.0, 18.0)
MEADOW_M = 45.0
STRETCH = (1.3, 2.0)
_ACROSS = 0.2
"""Share of the buildings that stand with their long side along y; the others line the streets that run along x."""
PALETTES: tuple[Mapping[str, Finish], ...] = (
    {
        "wall": Finish("ashlar", (196, 182, 152), (130, 120, 102), 0.45, 1.1, 0.025, 24.0, tone=0.14),
        "trim": Finish("ashlar", (212, 202, 178), (140, 130, 112), 0.8, 1.8, 0.025, 26.0, tone=0.12),
        "accent": Finish("ashlar", (158, 92, 68), (186, 174, 154), 0.16, 0.48, 0.02, 14.0, tone=0.2, hue=8.0),
        "roof": Finish("tiles", (78, 84, 94), (46, 48, 54), 0.34, 0.3, 0.02, 18.0, tone=0.18),
    },
    {
        "wall": Finish("ashlar", (152, 84, 62), (184, 174, 156), 0.16, 0.46, 0.02, 14.0, tone=0.2, hue=8.0),
        "trim": Finish("ashlar", (206, 196, 172), (136, 126, 108), 0.6, 1.4, 0.025, 24.0, tone=0.12),
        "accent": Finish("ashlar", (122, 74, 60), (160, 148, 130), 0.16, 0.46, 0.02, 14.0, tone=0.22, hue=7.0),
        "roof": Finish("tiles", (138, 70, 50), (54, 40, 36), 0.36, 0.28, 0.02, 18.0, tone=0.2),
    },
    {
        "wall": Finish("plaster", (224, 212, 184), (206, 184, 146), extent_m=22.0, tone=0.14),
        "trim": Finish("ashlar", (178, 172, 162), (112, 106, 98), 0.7, 1.6, 0.025, 24.0, tone=0.13),
        "accent": Finish("plaster", (196, 160, 120), (178, 136, 98), extent_m=22.0, tone=0.16),
        "roof": Finish("sheet", (98, 134, 118), (66, 92, 82), 0.7, 2.4, 0.03, 20.0, tone=0.16),
    },
    {
        "wall": Finish("rubble", (142, 136, 128), (98, 92, 86), 0.42, 0.42, 0.03, 18.0, tone=0.18),
        "trim": Finish("ashlar", (190, 182, 166), (124, 116, 102), 0.7, 1.7, 0.025, 24.0, tone=0.12),
        "accent": Finish("ashlar", (128, 122, 112), (86, 82, 76), 0.5, 1.2, 0.025, 22.0, tone=0.16),
        "roof": Finish("tiles", (108, 98, 84), (58, 52, 46), 0.4, 0.36, 0.02, 18.0, tone=0.18),
    },
)


@dataclass(frozen=True)
class Building:
    """A building where it stands: its parts, its walls in reach of people, and the rectangle none of it leaves."""

    parts: tuple[Placed, ...]
    walls: tuple[Wall, ...]
    footprint: Rectangle

    @property
    def size_m(self) -> tuple[float, float]:
        """Extent along x and along y."""
        plan = self.footprint
        return plan.east_m - plan.west_m, plan.north_m - plan.south_m

    def at(self, site: Site, renamed: Mapping[str, str] | None = None) -> Building:
        """The building carried to a straight site, built of other materials where `renamed` names them."""
        parts = tuple(part.at(site, renamed) for part in self.parts)
        walls = tuple(Wall(wall.site.within(site), wall.width_m, wall.height_m) for wall in self.walls)
        return Building(parts, walls, _footprint(parts))


@dataclass(frozen=True)
class Plan:
    """Where blocks begin and end (N, 2), in metres: along x for columns, along y for rows; streets lie between."""

    columns_m: Floats
    rows_m: Floats

    def block(self, cell: tuple[int, int]) -> Rectangle:
        """The block in a column and row."""
        (west, east), (south, north) = self.columns_m[cell[0]].tolist(), self.rows_m[cell[1]].tolist()
        return Rectangle(west, south, east, north)


def campus() -> SceneModel:
    """20 buildings on level ground, 359 m from west to east and 185 m from south to north, 12 to 31 m high."""
    return furnished(*campus_buildings())


def furnished(plan: Plan, buildings: tuple[Building, ...]) -> SceneModel:
    """The buildings with ground, streets and what stands there."""
    rng = np.random.default_rng([SEED, _GROUNDS])
    assembly = Assembly(rng, [part for building in buildings for part in building.parts])
    reach = (float(plan.columns_m[-1, 1]) + 6.0, float(plan.rows_m[-1, 1]) + 6.0)
    _grounds(assembly, plan, rng)
    _avenues(assembly, plan, rng)
    for k, cell in enumerate(SQUARES):
        square = plan.block(cell)
        middle = ((square.west_m + square.east_m) / 2, (square.south_m + square.north_m) / 2, 0.0)
        assembly.add((fountain, monument)[k % 2](rng), Site(middle, float(rng.uniform(0, 360))))
    footprints = tuple(building.footprint for building in buildings)
    scatter(assembly, rng, count=90, clear_m=(0.0, 0.0), reach_m=reach, footprints=footprints)
    # One wall of each building that has flat ones: who hangs posters hangs them everywhere.
    walls = [building.walls[int(rng.integers(len(building.walls)))] for building in buildings if building.walls]
    return SceneModel(
        assembly, _finishes(), tuple(walls), (0.0, 0.0), reach, SEED, footprints, scaffolds=3, additions=45
    )


def campus_buildings() -> tuple[Plan, tuple[Building, ...]]:
    """The plan of the campus, centred on the origin, and its buildings, column by column from the south-west."""
    rng = np.random.default_rng([SEED, _GROUNDS, _BUILDING])
    cells = [cell for cell in itertools.product(range(COLUMNS), range(ROWS)) if cell not in SQUARES]
    palettes = (rng.permutation(len(cells)) % len(PALETTES)).tolist()
    drawn = {cell: drawn_building(k, palettes[k], rng) for k, cell in enumerate(cells)}
    plan = Plan(
        _strips([_widest(drawn, 0, k) for k in range(COLUMNS)], rng),
        _strips([_widest(drawn, 1, k) for k in range(ROWS)], rng),
    )
    return plan, tuple(_settled(building, plan.block(cell), rng) for cell, building in drawn.items())


def drawn_building(index: int, palette: int, rng: np.random.Generator) -> Building:
    """Building `index` about the origin, of one of the palettes, turned to the streets but for a few degrees."""
    own = np.random.default_rng([SEED, index, _BUILDING])
    assembly = Assembly(own)
    body = random_building(assembly, own, float(own.uniform(*STRETCH)))
    parts = tuple(assembly.parts)
    turn = 180.0 * int(rng.integers(2)) + (90.0 if rng.random() < _ACROSS else 0.0)
    site = Site(turn_deg=turn + float(rng.normal(0.0, 1.5)))
    renamed = {name: _named(name, palette) for name in PALETTES[palette]}
    return Building(parts, body.walls, _footprint(parts)).at(site, renamed)


def _named(name: str, palette: int) -> str:
    """A palette's name for a material; the ground and what stands on it are of the first palette."""
    return f"{name}_{palette}" if palette else name


def _finishes() -> dict[str, Finish]:
    masonry = {_named(name, k): finish for k, palette in enumerate(PALETTES) for name, finish in palette.items()}
    return {**masonry, **FITTINGS, **GROUND}


def _footprint(parts: tuple[Placed, ...]) -> Rectangle:
    places = [s.triangles_m[..., :2].reshape(-1, 2) for part in parts for s in part.surfaces]
    low, high = (np.min([p.min(axis=0) for p in places], axis=0), np.max([p.max(axis=0) for p in places], axis=0))
    return Rectangle(float(low[0]), float(low[1]), float(high[0]), float(high[1]))


def _widest(buildings: Mapping[tuple[int, int], Building], axis: int, k: int) -> float:
    """Extent along an axis of the largest building in column (axis 0) or row (axis 1) `k`."""
    return max(building.size_m[axis] for cell, building in buildings.items() if cell[axis] == k)


def _strips(widths_m: list[float], rng: np.random.Generator) -> Floats:
    """Beginnings and ends (N, 2) of blocks of these widths with streets between them, centred on 0."""
    streets = np.append(0.0, rng.uniform(*STREETS_M, len(widths_m) - 1))
    ends = np.cumsum(streets + np.asarray(widths_m))
    return np.column_stack([ends - widths_m, ends]) - float(ends[-1]) / 2


def _settled(building: Building, block: Rectangle, rng: np.random.Generator) -> Building:
    """The building somewhere in its block."""
    plan = building.footprint
    x = rng.uniform(block.west_m - plan.west_m, max(block.east_m - plan.east_m, block.west_m - plan.west_m))
    y = rng.uniform(block.south_m - plan.south_m, max(block.north_m - plan.north_m, block.south_m - plan.south_m))
    return building.at(Site((float(x), float(y), 0.0)))


def _grounds(assembly: Assembly, plan: Plan, rng: np.random.Generator) -> None:
    """Level ground: paved and cobbled streets, blocks of lawn or paving behind kerbs, a meadow all around."""
    strips = (plan.columns_m.ravel().tolist(), plan.rows_m.ravel().tolist())
    xs, ys = ([along[0] - MEADOW_M, *along, along[-1] + MEADOW_M] for along in strips)
    kerbs = []
    for (i, (x0, x1)), (j, (y0, y1)) in itertools.product(
        enumerate(itertools.pairwise(xs)), enumerate(itertools.pairwise(ys))
    ):
        material = _ground_material(i, j, (len(xs) - 2, len(ys) - 2), rng)
        assembly.put(material, quads((x0, y0, 0.0), (x1, y0, 0.0), (x1, y1, 0.0), (x0, y1, 0.0)))
        if i % 2 and j % 2:
            kerbs += [box((x1 - x0, 0.3, 0.11), ((x0 + x1) / 2, y, 0.0)) for y in (y0, y1)]
            kerbs += [box((0.3, y1 - y0, 0.12), (x, (y0 + y1) / 2, 0.0)) for x in (x0, x1)]
    assembly.put("trim", np.concatenate(kerbs))
    for _ in range(60):
        x, y = rng.uniform(-1.0, 1.0, 2) * [plan.columns_m[-1, 1], plan.rows_m[-1, 1]]
        kind: Kind = "sign" if rng.random() < 0.5 else "mural"
        assembly.add(floor_decal(kind, int(rng.integers(96)), float(x), float(y), float(rng.uniform(0.8, 2.4))))


def _ground_material(i: int, j: int, last: tuple[int, int], rng: np.random.Generator) -> str:
    if i in (0, last[0]) or j in (0, last[1]):
        return "grass"
    if i % 2 and j % 2:
        return str(rng.choice(["grass", "grass", "paving"]))
    return "cobbles" if (i if i % 2 == 0 else j) % 4 == 0 else "paving"


def _avenues(assembly: Assembly, plan: Plan, rng: np.random.Generator) -> None:
    """Lamps and trees in turn along both sides of every street, some of them missing."""
    for strips, others, axis in ((plan.columns_m, plan.rows_m, 0), (plan.rows_m, plan.columns_m, 1)):
        for edge, inward in [(float(e), 1.0) for e in strips[:-1, 1]] + [(float(e), -1.0) for e in strips[1:, 0]]:
            start = float(others[0, 0] + rng.uniform(2.0, 12.0))
            for k, along in enumerate(np.arange(start, others[-1, 1], 17.0).tolist()):
                if rng.random() < 0.25 or _at_crossing(along, others):
                    continue
                prop, reach = (tree(rng), 3.4) if k % 2 else (lamp(rng), 1.6)
                side = edge + inward * reach
                place = (side, along, 0.0) if axis == 0 else (along, side, 0.0)
                assembly.add(prop, Site(place, float(rng.uniform(0, 360))), loose=True)


def _at_crossing(along_m: float, strips_m: Floats) -> bool:
    return not bool(((strips_m[:, 0] < along_m) & (along_m < strips_m[:, 1])).any())
