"""The gate: six pairs of columns, cross walls, an attica with a chariot, and two unlike guard houses."""

from __future__ import annotations

import numpy as np

from cadloc.scenes.architecture import block, column, entablature, parapet, pediment, quoins, stairs, voussoirs
from cadloc.scenes.assembly import Assembly, Site, face_of
from cadloc.scenes.decals import decal
from cadloc.scenes.facades import Storey, facade
from cadloc.scenes.model import SceneModel, Wall
from cadloc.scenes.openings import Opening, WindowStyle, wall, window
from cadloc.scenes.palette import FITTINGS, GROUND
from cadloc.scenes.roofs import gable_roof, hip_roof
from cadloc.scenes.sculpture import figure, horse
from cadloc.scenes.solids import Part, Surface, beam, box, moved, plank, scaled, surface, turned
from cadloc.scenes.surroundings import ground, scatter
from cadloc.scenes.textures import Finish

SEED = 1791
COLUMNS_M = (-15.4, -9.5, -3.9, 3.9, 9.5, 15.4)
WIDTH_M, DEPTH_M, FLOOR_M, SHAFT_M = 34.0, 11.0, 0.51, 11.2
FINISHES = {
    "wall": Finish("ashlar", (204, 186, 150), (132, 120, 100), 0.62, 1.5, 0.03, 36.0, 2048, tone=0.13),
    "trim": Finish("ashlar", (214, 202, 176), (140, 130, 112), 0.9, 1.9, 0.025, 36.0, 2048, tone=0.12),
    "accent": Finish("ashlar", (164, 88, 64), (190, 178, 160), 0.16, 0.48, 0.02, 18.0, 2048, tone=0.2, hue=9.0),
    "roof": Finish("tiles", (126, 68, 52), (52, 38, 34), 0.34, 0.26, 0.02, 18.0, tone=0.2),
    **FITTINGS,
    **GROUND,
}


def gate() -> SceneModel:
    """About 60 m wide, 13 m deep and 27 m high; the passages run along y, the chariot looks to -y."""
    rng = np.random.default_rng(SEED)
    assembly = Assembly(rng)
    ground(assembly, 110.0, rng, fields=6)
    _passages(assembly, rng)
    top = _beams(assembly, rng)
    _attica(assembly, top, rng)
    _west_house(assembly, rng)
    _east_house(assembly, rng)
    scatter(assembly, rng, count=30, clear_m=(62.0, 22.0), reach_m=40.0)
    walls = (Wall(Site((-25.2, -4.7, 0.0)), 11.0, 9.0), Wall(Site((25.0, 3.9, 0.0), 180.0), 9.0, 6.0))
    return SceneModel(assembly, FINISHES, walls, (62.0, 24.0), 42.0, SEED)


def _passages(assembly: Assembly, rng: np.random.Generator) -> None:
    """Platform, columns in front and behind, and the walls between them, each wall face with pictures of its own."""
    for turn in (0.0, 180.0):
        assembly.add(moved(stairs(WIDTH_M + 3.0, 3), (0.0, -DEPTH_M / 2 - 0.6, 0.0)), Site(turn_deg=turn))
    assembly.put("paving", box((WIDTH_M + 3.0, DEPTH_M + 1.2, FLOOR_M)))
    for k, x in enumerate(COLUMNS_M):
        for side in (-1, 1):
            repaired = (k, side) in ((1, -1), (4, 1))
            shaft = column(SHAFT_M, 0.88, rng, material="accent" if repaired else "trim")
            assembly.add(shaft, Site((x, side * (DEPTH_M / 2 - 0.9), FLOOR_M)))
        assembly.add(_cross_wall(k, rng), Site((x, 0.0, FLOOR_M)))
    for k, x in enumerate(COLUMNS_M):
        if k % 2 == 0:
            assembly.add(_brazier(rng), Site((x + 1.9, -DEPTH_M / 2 + 0.2, FLOOR_M)), loose=True)


def _cross_wall(k: int, rng: np.random.Generator) -> Part:
    part: Part = block("wall", [(-0.6, -3.6), (0.6, -3.6), (0.6, 3.6), (-0.6, 3.6)], 0.0, SHAFT_M)
    part += [surface("trim", box((1.5, 7.3, 0.9)))]
    for side in (-1, 1):
        pictures = decal("mural", k + side, float(rng.uniform(-1, 1)), 1.6, 3.0, 3.0, -0.64)
        pictures += decal("relief", 2 * k + side, float(rng.uniform(-1.5, 1.5)), 6.2, 2.4, 2.4, -0.64)
        part += moved(pictures, (0.0, 0.0, 0.0), 90.0 * side)
    return part


def _brazier(rng: np.random.Generator) -> Part:
    height = float(rng.uniform(1.0, 1.6))
    return [turned("metal", [(0.3, 0.0), (0.08, 0.15), (0.07, height), (0.4, height + 0.25), (0.0, height + 0.2)], 10)]


def _beams(assembly: Assembly, rng: np.random.Generator) -> float:
    """Entablature all around and the ceiling; returns the height of its top."""
    foot, height = FLOOR_M + SHAFT_M, 2.2
    assembly.put("wall", box((WIDTH_M - 0.2, DEPTH_M - 0.2, height - 0.1), (0.0, 0.0, foot + 0.05)))
    for k, (width, reach) in enumerate(((WIDTH_M, DEPTH_M), (DEPTH_M, WIDTH_M)) * 2):
        site = Site((0.0, 0.0, foot), 90.0 * k)
        assembly.add(moved(entablature(width, 0.5, height, rng), (0.0, -reach / 2, 0.0)), site)
        for x in np.arange(-width / 2 + 1.5, width / 2 - 1.0, 2.6):
            if rng.random() < 0.6:
                assembly.add(decal("relief", int(rng.integers(96)), float(x), 0.86, 1.1, 0.75, -reach / 2 - 0.14), site)
    return foot + height


def _attica(assembly: Assembly, z_m: float, rng: np.random.Generator) -> None:
    """The stepped upper storey: reliefs and an inscription in front, windows and a clock behind, the chariot on top."""
    width, depth, height = 25.0, 8.0, 3.3
    assembly.put("wall", box((width, depth, height), (0.0, 0.0, z_m)))
    for k, (size_x, size_y) in enumerate(((width + 1.2, depth + 1.2), (10.0, 6.0), (8.4, 5.4))):
        assembly.put("trim", box((size_x, size_y, 0.5), (0.0, 0.0, z_m + height + 0.5 * k)))
    front, back = Site((0.0, -depth / 2, z_m)), Site((0.0, depth / 2, z_m), 180.0)
    assembly.add(decal("inscription", 0, -1.0, 0.9, 9.0, 1.7), front)
    for k, x in enumerate((-10.5, -7.8, 5.5, 8.2, 10.9)):
        assembly.add(decal("relief", k, x, 0.5, 2.2, 2.3), front)
    for k, x in enumerate((-10.0, -6.5, 3.0, 7.5)):
        assembly.add(
            window(Opening(x, 0.7, 1.3 + 0.15 * k, 1.9, "round" if k % 2 else "flat", -0.02), WindowStyle()),
            back,
        )
    assembly.add(decal("sign", 3, -1.6, 0.5, 2.4, 2.4, -0.1), back)
    assembly.add(decal("mural", 2, 11.0, 0.4, 2.0, 2.4), back)
    for x, y in ((-12.0, -3.9), (12.0, -3.9), (11.4, 3.6)):
        assembly.add(figure(2.3, rng, material="trim"), Site((x, y, z_m + height + 0.5)), loose=True)
    assembly.add(scaled(_chariot(rng), 1.35), Site((0.4, 0.0, z_m + height + 1.5)))
    for x in (-9.5, 9.0):
        assembly.add(parapet(4.5, rng), Site((x, -3.6, z_m + height + 0.5)))


def _chariot(rng: np.random.Generator) -> Part:
    part: Part = []
    for k, x in enumerate((-2.4, -0.9, 0.7, 2.3)):
        part += moved(horse(2.5, rng), (x, -1.6 + 0.25 * (k % 2), 0.0), float(rng.uniform(-14, 14)))
    part += [
        surface(
            "metal",
            np.concatenate([box((1.8, 1.5, 1.3), (0.0, 1.6, 0.5)), beam((0, 1.2, 0.8), (0, -1.8, 1.2), 0.15)]),
        )
    ]
    for side in (-1, 1):
        wheel = turned("metal", [(0.0, -0.1), (0.8, -0.1), (0.8, 0.1), (0.0, 0.1)], 14)
        part.append(Surface("metal", wheel.triangles_m[..., [2, 1, 0]] + [side * 1.05, 1.7, 0.8], wheel.uv_m))
        part.append(surface("metal", beam((side * 0.2, 1.9, 3.2), (side * 1.6, 2.3, 4.4), 0.15, 0.7)))
    part += moved(figure(2.6, rng), (0.0, 1.6, 1.6))
    return [
        *part,
        surface(
            "metal",
            np.concatenate([beam((0.9, 1.2, 1.8), (0.9, 1.2, 5.4), 0.1), box((0.9, 0.12, 0.9), (0.9, 1.2, 5.0))]),
        ),
    ]


def _west_house(assembly: Assembly, rng: np.random.Generator) -> None:
    """The left guard house: brick, two storeys, hipped roof, a pedimented door towards the plaza."""
    width, depth, centre = 12.5, 13.0, Site((-25.2, 1.8, 0.0))
    style = WindowStyle(2, 4, "pediment")
    height = 0.0
    for k, (length, reach) in enumerate(((width, depth), (depth, width)) * 2):
        site = face_of(centre, 90.0 * k, reach / 2)
        storeys = [
            Storey(4.6, 4 - k % 2, 1.25, 1.2, 2.2, "round" if k == 2 else "flat", style, lively=0.8),
            Storey(3.9, 4 + k % 3, 1.1, 0.9, 1.8, style=WindowStyle(2, 2), lively=0.7),
        ]
        free = [(-1.6, 1.6)] if k == 0 else []
        height = facade(assembly, site, length, storeys, rng, material="accent", free=free)
    for sx in (-1, 1):
        for sy in (-1, 1):
            assembly.add(moved(quoins(height, rng, (sx, sy)), (sx * width / 2, sy * depth / 2, 0.0)), centre)
    assembly.add(hip_roof(width, depth, 3.6), centre.raised(height))
    for x, y in ((-2.5, 1.5), (3.0, -2.0)):
        assembly.put("accent", box((1.0, 0.9, 4.4)), Site((centre.at_m[0] + x, centre.at_m[1] + y, height)), loose=True)
    _porch(assembly, face_of(centre, 0.0, depth / 2), rng)
    _screen(assembly, Site((-18.5, 2.4, 0.0)), rng)


def _porch(assembly: Assembly, site: Site, rng: np.random.Generator) -> None:
    for x in (-1.5, 1.5):
        assembly.add(moved(column(3.4, 0.24, rng), (x, -1.2, 0.34)), site)
    assembly.add(moved(stairs(4.2, 2), (0.0, -1.6, 0.0)), site)
    assembly.put("trim", box((4.2, 1.8, 0.34), (0.0, -0.8, 0.0)), site)
    assembly.add(moved(pediment(4.4, 1.2, 1.6, face="trim"), (0.0, -1.7, 3.74)), site)
    assembly.add(decal("sign", 5, 0.0, 3.85, 0.8, 0.8, -1.15), site)
    assembly.add(
        moved(
            window(Opening(0.0, 0.34, 1.5, 2.7, "round", 0.1), WindowStyle(2, 3, fill="wood")),
            (0.0, -0.12, 0.0),
        ),
        site,
    )


def _screen(assembly: Assembly, site: Site, rng: np.random.Generator) -> None:
    """A wall with one arch that joins the gate to its guard house."""
    arch = Opening(0.0, 0.0, 1.9, 4.0, "round")
    for turn in (0.0, 180.0):
        face = Site((site.at_m[0], site.at_m[1] - (0.5 if turn == 0.0 else -0.5), 0.0), turn)
        assembly.add(wall("wall", 3.4, 0.0, 6.2, [arch]), face)
        assembly.add(moved(voussoirs(0.95, 0.4, rng), (0.0, 0.0, 3.05)), face)
    assembly.put("trim", box((3.6, 1.4, 0.4), (0.0, 0.0, 6.2)), site)
    assembly.add(figure(1.9, rng, material="trim"), Site((site.at_m[0], site.at_m[1], 6.6)), loose=True)


def _east_house(assembly: Assembly, rng: np.random.Generator) -> None:
    """The right guard house: one tall storey behind a loggia, saddle roof across, and a stair turret behind."""
    width, depth, centre = 10.5, 11.0, Site((25.0, -1.6, 0.0))
    height = 0.0
    for k, (length, reach) in enumerate(((width, depth), (depth, width)) * 2):
        tall = Storey(5.2, 3 + k % 2, 1.5, 1.0, 3.2, "round", WindowStyle(3, 4, "none"), blind=0.2, lively=0.7)
        low = Storey(2.4, 5 - k, 0.8, 0.6, 1.1, "flat", WindowStyle(1, 2, "none"), lively=0.4)
        height = facade(assembly, face_of(centre, 90.0 * k, reach / 2), length, [tall, low], rng, material="wall")
    roof = moved(gable_roof(depth, width, 3.8), (0.0, 0.0, 0.0), 90.0)
    assembly.add(roof, centre.raised(height))
    _loggia(assembly, face_of(centre, 0.0, depth / 2), rng)
    assembly.add(decal("mural", 1, 0.3, height + 0.4, 2.4, 2.2, -0.05), face_of(centre, 0.0, depth / 2))
    turret = Site((30.5, 2.6, 0.0), 0.0, 1.7)
    top = facade(
        assembly,
        turret,
        2 * np.pi * 1.7,
        [Storey(3.1, 3, 0.6, 1.2, 1.2, lively=0.3)] * 3,
        rng,
        material="accent",
    )
    assembly.add([turned("roof", [(2.0, 0.0), (0.05, 3.4), (0.0, 3.4)], 14)], Site((30.5, 2.6, top)))
    _screen(assembly, Site((18.6, -2.8, 0.0)), rng)


def _loggia(assembly: Assembly, site: Site, rng: np.random.Generator) -> None:
    for k, x in enumerate((-4.4, -1.5, 1.3, 4.3)):
        assembly.add(
            moved(column(3.6, 0.22, rng, flutes=0, material="accent" if k == 2 else "trim"), (x, -2.4, 0.0)),
            site,
        )
    assembly.put("trim", plank(0.0, 3.6, 10.2, 0.6, -2.8, -2.0), site)
    awning = [(-5.1, -2.8, 4.2), (5.1, -2.8, 4.2), (5.1, 0.0, 5.0), (-5.1, 0.0, 5.0)]
    corners = np.array(awning)
    assembly.put("roof", np.stack([corners[[0, 1, 2]], corners[[0, 2, 3]]]), site)
