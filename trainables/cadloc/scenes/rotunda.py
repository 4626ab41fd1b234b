"""The rotunda: a drum with a stepped dome behind a portico; no two stretches of the drum are alike."""

from __future__ import annotations

import numpy as np

from cadloc.scenes.architecture import buttress, column, entablature, parapet, pediment, quoins, stairs
from cadloc.scenes.assembly import Assembly, Site, face_of
from cadloc.scenes.decals import decal
from cadloc.scenes.facades import Storey, facade, string_course
from cadloc.scenes.model import SceneModel, Wall
from cadloc.scenes.openings import Opening, WindowStyle, wall, window
from cadloc.scenes.palette import FITTINGS, GROUND
from cadloc.scenes.roofs import dome, gable_roof, spire
from cadloc.scenes.sculpture import figure
from cadloc.scenes.solids import arc, box, moved, ribbon, slab, surface, turned
from cadloc.scenes.surroundings import ground, scatter
from cadloc.scenes.textures import Finish

SEED = 126
RADIUS_M, CENTRE_Y_M = 14.0, 4.0
FINISHES = {
    "wall": Finish("ashlar", (178, 142, 112), (148, 130, 110), 0.34, 0.9, 0.025, 30.0, 2048, tone=0.2, hue=7.0),
    "trim": Finish("ashlar", (192, 188, 178), (128, 122, 112), 0.8, 2.0, 0.025, 34.0, 2048, tone=0.12),
    "accent": Finish("ashlar", (152, 92, 70), (176, 160, 140), 0.15, 0.5, 0.02, 16.0, 2048, tone=0.22, hue=9.0),
    "roof": Finish("boards", (128, 136, 134), (84, 90, 90), 0.8, 2.4, 0.04, 26.0, tone=0.16, hue=5.0),
    **FITTINGS,
    **GROUND,
}


def rotunda() -> SceneModel:
    """About 30 m wide, 42 m deep and 24 m high; the portico looks to -y."""
    rng = np.random.default_rng(SEED)
    assembly = Assembly(rng)
    ground(assembly, 100.0, rng, fields=6)
    height = _drum(assembly, rng)
    _stepped_dome(assembly, height, rng)
    _portico(assembly, rng)
    _chapel(assembly, rng)
    _stair_tower(assembly, rng)
    _lean_to(assembly, rng)
    scatter(assembly, rng, count=28, clear_m=(40.0, 48.0), reach_m=38.0)
    walls = (Wall(_around(62.0), 9.0, 10.0), Wall(_around(-115.0), 8.0, 7.0))
    return SceneModel(assembly, FINISHES, walls, (42.0, 48.0), 40.0, SEED)


def _around(turn_deg: float, reach_m: float = RADIUS_M) -> Site:
    """A straight site that touches the drum at an angle from its front."""
    return face_of(Site((0.0, CENTRE_Y_M, 0.0)), turn_deg, reach_m)


def _drum(assembly: Assembly, rng: np.random.Generator) -> float:
    """Three storeys of brick and stone around the hall, with relieving arches; returns their height."""
    site, length = Site((0.0, CENTRE_Y_M, 0.0), 0.0, RADIUS_M), 2 * np.pi * RADIUS_M
    plinth = string_course(length, 1.2, reach_m=0.35, height_m=1.2, every_m=1.5)
    assembly.add(plinth, site)
    porch = [(-9.5, 9.5)]
    lowest = Storey(6.4, 15, 1.7, 1.8, 3.6, "round", WindowStyle(2, 4, "none", surround_m=0.3), blind=0.35, lively=0.9)
    middle = Storey(5.0, 21, 1.1, 1.3, 2.2, "flat", WindowStyle(2, 3, "pediment"), blind=0.3, lively=0.6)
    attic = Storey(3.6, 13, 1.5, 0.9, 1.5, "flat", WindowStyle(3, 1, "flat"), blind=0.5, lively=0.5)
    height = 0.0
    for material, storey, free in (("wall", lowest, porch), ("accent", middle, porch), ("wall", attic, [])):
        height = facade(assembly, site, length, [storey], rng, z0_m=height, material=material, free=free)
    for x in np.arange(11.0, length - 11.0, 4.3):
        _relieving_arch(assembly, site, float(x if x < length / 2 else x - length), rng)
    for turn in (48.0, 77.0, 101.0, 158.0, -70.0, -92.0):
        tall = float(rng.uniform(5.0, 9.5))
        assembly.add(buttress(tall, float(rng.uniform(0.8, 1.5)), 1.1, pinnacle=turn > 0), _around(turn))
    return height


def _relieving_arch(assembly: Assembly, site: Site, x_m: float, rng: np.random.Generator) -> None:
    if rng.random() < 0.35:
        return
    radius, z_m = float(rng.uniform(1.1, 1.9)), float(rng.choice([4.6, 9.2, 12.6]))
    outer, inner = (arc(r, 12.0, 168.0, 10, (x_m, z_m)) for r in (radius, radius - 0.4))
    assembly.put("trim" if rng.random() < 0.4 else "accent", ribbon(outer, inner, -0.07, 0.0), site)


def _stepped_dome(assembly: Assembly, height_m: float, rng: np.random.Generator) -> None:
    """Rings that step back, then the cap with its open eye, a dormer, a hatch and a vane that mark its sides."""
    centre = Site((0.0, CENTRE_Y_M, height_m))
    profile = [(RADIUS_M + 0.5, -0.2), (RADIUS_M + 0.5, 0.3)]
    for k in range(5):
        radius = RADIUS_M - 0.2 - 1.05 * k
        profile += [(radius, 0.3 + 0.62 * k), (radius, 0.92 + 0.62 * k)]
    assembly.add([turned("trim", profile, 64)], centre)
    cap = dome(9.6, 4.6, 56, ribs=0)
    assembly.add(cap, centre.raised(3.2))
    assembly.add([turned("trim", [(2.1, 0.0), (2.2, 0.7), (1.8, 0.7), (1.8, 0.1)], 24)], centre.raised(7.3))
    for turn, reach, size in ((25.0, 7.2, 1.6), (140.0, 6.4, 1.1), (-110.0, 7.6, 2.2)):
        foot = face_of(centre.raised(4.7), turn, reach)
        assembly.put("wall", box((size, 1.8, size)), foot)
        assembly.add(gable_roof(1.9, size, 0.7, 0.15), Site(foot.at_m, foot.turn_deg + 90.0).raised(size))
        assembly.add(
            moved(
                window(Opening(0.0, 0.2, 0.6 * size, 0.7 * size, depth_m=-0.02), WindowStyle(1, 2, "none")),
                (0.0, -0.92, 0.0),
            ),
            foot,
        )
    for k, turn in enumerate((70.0, -35.0, -150.0, 178.0)):
        statue = figure(2.2, rng, material="trim" if k % 2 else "metal")
        assembly.add(statue, face_of(centre.raised(0.3), turn, RADIUS_M - 0.0), loose=True)
    assembly.add(spire(0.7, 3.4, 8, material="metal"), face_of(centre.raised(7.8), 60.0, 1.6), loose=True)


def _portico(assembly: Assembly, rng: np.random.Generator) -> None:
    """Eight columns in front, four behind them, the block that joins the drum, and the pediment."""
    depth, front, shaft, floor = 10.0, -19.2, 10.4, 0.85
    foot = Site((0.0, front, 0.0))
    assembly.add(moved(stairs(20.6, 5), (0.0, -0.9, 0.0)), foot)
    assembly.put("paving", box((20.6, depth + 2.0, floor), (0.0, (depth + 0.2) / 2, 0.0)), foot)
    for k in range(8):
        material = "accent" if k == 5 else "trim"
        assembly.add(
            column(shaft, 0.66, rng, material=material, flutes=0 if k in (2, 5) else 8),
            Site((-8.75 + 2.5 * k, front, floor)),
        )
    for k, x in enumerate((-8.75, -3.75, 3.75, 8.75)):
        assembly.add(column(shaft, 0.6, rng, material="wall" if k == 1 else "trim"), Site((x, front + 4.2, floor)))
    top = floor + shaft
    assembly.put("trim", box((19.0, depth, 2.0), (0.0, depth / 2 - 0.3, top)), foot)
    for turn, length, reach in ((0.0, 19.4, 0.7), (90.0, depth, 9.7), (-90.0, depth, 9.7)):
        centre = Site((0.0, front if turn == 0.0 else front + depth / 2, top), turn)
        assembly.add(moved(entablature(length, 0.4, 2.0, rng), (0.0, -reach, 0.0)), centre)
    assembly.add(decal("inscription", 1, 0.0, top + 0.72, 15.0, 0.85, -0.95), foot)
    assembly.add(moved(pediment(20.6, 4.3, 1.6, face="wall"), (0.0, -1.25, top + 2.0)), foot)
    for k, (x, z, size) in enumerate(
        ((-5.6, 0.4, 1.3), (-3.2, 0.4, 1.9), (0.0, 0.5, 2.9), (2.9, 0.4, 2.0), (5.4, 0.4, 1.2))
    ):
        assembly.add(decal("relief", k + 2, x, top + 2.2 + z, size, size, -0.72), foot)
    assembly.add(
        moved(gable_roof(depth + 1.5, 20.0, 4.2, 0.3, gables=None), (0.0, 0.0, 0.0), 90.0),
        Site((0.0, front + depth / 2, top + 2.0)),
    )
    _joining_block(assembly, rng)


def _joining_block(assembly: Assembly, rng: np.random.Generator) -> None:
    width, depth, centre = 19.0, 5.6, Site((0.0, -8.6, 0.0))
    door = Opening(0.6, 0.85, 3.4, 6.6, "flat")
    niches = [Opening(-6.2, 1.4, 2.0, 4.4, "round"), Opening(6.4, 1.4, 2.2, 5.0, "round")]
    front = face_of(centre, 0.0, depth / 2)
    assembly.add(
        [
            *wall("wall", width, 0.0, 15.6, [door, *niches]),
            *window(door, WindowStyle(2, 5, "pediment", surround_m=0.35, fill="wood")),
        ],
        front,
    )
    for k, niche in enumerate(niches):
        assembly.add(window(niche, WindowStyle(1, 1, "none", fill="accent")), front)
        assembly.add(moved(figure(2.2 + 0.4 * k, rng, material="trim"), (niche.x_m, 0.0, niche.z_m)), front, loose=True)
    for turn in (90.0, -90.0):
        side = [
            Storey(7.0, 1 if turn > 0 else 2, 1.3, 2.0, 3.0, "round"),
            Storey(6.0, 2, 1.0, 1.5, 2.0),
            Storey(2.6, 3, 0.7, 0.7, 1.0),
        ]
        assembly.add([surface("trim", box((depth, 0.3, 1.0), (0.0, 0.0, 0.0)))], face_of(centre, turn, width / 2))
        facade(assembly, face_of(centre, turn, width / 2), depth, side, rng, material="wall")
    assembly.put("paving", box((width, depth, 0.1)), centre.raised(15.55))
    assembly.add(parapet(width, rng, height_m=0.9), face_of(centre.raised(15.6), 0.0, depth / 2 - 0.3))


def _chapel(assembly: Assembly, rng: np.random.Generator) -> None:
    """A domed chapel grown onto the drum, behind on the right."""
    centre = _around(128.0, RADIUS_M + 1.6)
    site = Site(centre.at_m, centre.turn_deg, 4.2)
    storey = Storey(6.0, 9, 1.0, 1.4, 3.2, "pointed", WindowStyle(2, 3, "none"), blind=0.15, lively=0.6)
    height = facade(assembly, site, 2 * np.pi * 4.2, [storey], rng, material="accent")
    assembly.add(dome(4.5, 3.2, 28, ribs=7), centre.raised(height))
    assembly.add(spire(1.2, 2.2, 8), centre.raised(height + 3.0))


def _stair_tower(assembly: Assembly, rng: np.random.Generator) -> None:
    """A square bell tower on the left."""
    centre, side, height = _around(-128.0, RADIUS_M + 1.2), 4.6, 0.0
    for k in range(4):
        storeys = [
            Storey(4.2, 1, 0.8, 1.4, 1.8, lively=0.4),
            Storey(4.2, 2 - k % 2, 0.8, 1.2, 1.8, "round"),
            Storey(3.6, 1, 1.0, 1.0, 1.7),
            Storey(4.0, 2, 1.1, 0.9, 2.4, "round", WindowStyle(1, 1, "none", fill="metal"), blind=0.0, lively=0.0),
        ]
        height = facade(
            assembly,
            face_of(centre, 90.0 * k, side / 2),
            side,
            storeys,
            rng,
            material="wall" if k % 2 else "accent",
        )
    for sx, sy in ((-1, -1), (1, -1), (-1, 1), (1, 1)):
        assembly.add(moved(quoins(height, rng, (sx, sy), stone_m=0.8), (sx * side / 2, sy * side / 2, 0.0)), centre)
    assembly.add(spire(5.2, 5.0, 4), centre.raised(height))
    assembly.add(decal("sign", 1, 0.0, height - 5.6, 1.9, 1.9, -0.3), face_of(centre, 0.0, side / 2))


def _lean_to(assembly: Assembly, rng: np.random.Generator) -> None:
    """A low house that leans on the back of the drum."""
    centre = _around(176.0, RADIUS_M + 1.8)
    width, depth, height = 8.5, 5.5, 0.0
    for k, (length, reach) in enumerate(((width, depth), (depth, width)) * 2):
        storeys = [
            Storey(3.0, 3, 1.0, 0.9, 1.5, lively=0.9),
            Storey(2.6, 4 - k % 2, 0.9, 0.7, 1.3, lively=0.9),
        ]
        height = facade(
            assembly,
            face_of(centre, 90.0 * k, reach / 2),
            length,
            storeys,
            rng,
            material="accent" if k else "wall",
        )
    assembly.put(
        "roof",
        slab(
            [
                (-width / 2 - 0.4, height),
                (width / 2 + 0.4, height),
                (width / 2 + 0.4, height + 0.3),
                (-width / 2 - 0.4, height + 1.2),
            ],
            -depth / 2 - 0.4,
            depth / 2,
        ),
        centre,
    )
