"""An unlimited family of procedural buildings, other than the built-in ones, to pre-train encoders on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import trimesh

from cadloc.scenes.architecture import column, entablature, parapet, pediment, quoins, rose_window, stairs
from cadloc.scenes.assembly import Assembly, Site, face_of, textured_meshes
from cadloc.scenes.decals import decal
from cadloc.scenes.facades import Storey, facade
from cadloc.scenes.model import Wall
from cadloc.scenes.openings import Arch, Hood, Opening, WindowStyle, window
from cadloc.scenes.palette import random_finishes, skins
from cadloc.scenes.roofs import dome, gable_roof, hip_roof, spire
from cadloc.scenes.sculpture import figure
from cadloc.scenes.solids import box, moved, turned
from cadloc.scenes.surroundings import ground, scatter
from cadloc.scenes.textures import Wear

TEXTURE_PX = 512


def training_building(seed: int, appearance: int) -> list[trimesh.Trimesh]:
    """Textured meshes (z up, metres, ground included) of a random building.

    `seed` decides the geometry alone, `appearance` everything one sees of it: materials, colours, pictures, weathering.
    """
    assembly = training_assembly(seed)
    paint = np.random.default_rng([seed, appearance, 2])
    wear = Wear(
        stains=float(paint.uniform(0.1, 0.7)),
        streaks=float(paint.uniform(0.0, 0.4)),
        grime=float(paint.uniform(0.1, 0.7)),
        replaced=float(paint.uniform(0.0, 0.08)),
    )
    finishes = random_finishes(paint, TEXTURE_PX)
    look = int(paint.integers(2**31))
    return textured_meshes(assembly.parts, skins(finishes, lambda _: look, lambda _: wear, look))


def training_assembly(seed: int) -> Assembly:
    """The parts (z up, metres, ground included) of a random building, each with the name of its material."""
    rng = np.random.default_rng([seed, 1])
    assembly = Assembly(rng)
    ground(assembly, 90.0, rng, fields=4)
    width, depth = random_building(assembly, rng).size_m
    scatter(assembly, rng, count=int(rng.integers(8, 16)), clear_m=(width + 22, depth + 22), reach_m=32.0)
    return assembly


@dataclass(frozen=True)
class Body:
    """A building's main part: the rectangle it fills about the origin (width, depth), and its walls without annexes."""

    size_m: tuple[float, float]
    walls: tuple[Wall, ...]


def random_building(assembly: Assembly, rng: np.random.Generator, stretch: float = 1.0) -> Body:
    """Add a random building about the origin, without ground; `stretch` makes it longer along x, with more bays."""
    size = (stretch * float(rng.uniform(14, 26)), float(rng.uniform(10, 18)))
    form = float(rng.random())
    if form < 0.16:
        walls = _temple(assembly, size, rng, stretch)
    elif form < 0.32:
        size, walls = _round_hall(assembly, rng), {}
    else:
        style = _style(rng)
        storeys = [_storey(style, rng) for _ in range(int(rng.integers(2, 5)))]
        height = _block(assembly, Site(), size, [replace(s, bays=round(stretch * s.bays)) for s in storeys], rng)
        _crown(assembly, size, height, rng)
        walls = {side: _wall(side, size, height) for side in range(4)}
    sides = [int(side) for side in rng.permutation(4)[: int(rng.integers(1, 4))]]
    for side in sides:
        _annexe(assembly, side, size, rng)
    return Body(size, tuple(wall for side, wall in walls.items() if side not in sides))


def _wall(side: int, size_m: tuple[float, float], height_m: float) -> Wall:
    return Wall(face_of(Site(), 90.0 * side, size_m[1 - side % 2] / 2), size_m[side % 2], height_m)


def _temple(
    assembly: Assembly, size_m: tuple[float, float], rng: np.random.Generator, stretch: float
) -> dict[int, Wall]:
    """A hall with columns along its front and back under one saddle roof; returns the walls at its sides."""
    width, depth = size_m
    steps, shaft, hall = int(rng.integers(2, 7)), float(rng.uniform(6, 9)), depth - 6.0
    assembly.put("paving", box((width, depth, 0.17 * steps)))
    _block(
        assembly, Site((0.0, 0.0, 0.0)), (width - 3.0, hall), [Storey(0.17 * steps + shaft, 4, arch=_arch(rng))], rng
    )
    count = round(stretch * int(rng.integers(4, 9)))
    for turn in (0.0, 180.0):
        face = face_of(Site(), turn, depth / 2)
        assembly.add(stairs(width, steps), face)
        for x in np.linspace(-width / 2 + 1.0, width / 2 - 1.0, count):
            assembly.add(moved(column(shaft, 0.07 * shaft, rng), (float(x), 1.2, 0.17 * steps)), face)
    top = Site((0.0, 0.0, 0.17 * steps + shaft))
    for turn, length, reach in ((0.0, width, depth), (90.0, depth, width)):
        for side in (turn, turn + 180.0):
            assembly.add(entablature(length, 0.5, 1.8, rng), face_of(top, side, reach / 2))
    assembly.put("wall", box((width - 1.0, depth - 1.0, 1.7)), top)
    assembly.add(gable_roof(width, depth, float(rng.uniform(0.2, 0.45)) * depth), top.raised(1.8))
    return {side: _wall(side, (width - 3.0, hall), shaft) for side in (1, 3)}


def _round_hall(assembly: Assembly, rng: np.random.Generator) -> tuple[float, float]:
    """A domed drum; returns the rectangle it fills."""
    radius = float(rng.uniform(7.0, 10.5))
    storeys = [
        replace(_storey(_style(rng), rng), bays=int(rng.integers(9, 18))) for _ in range(int(rng.integers(1, 4)))
    ]
    height = facade(assembly, Site(bend_m=radius), 2 * np.pi * radius, storeys, rng)
    cap = dome(radius + 0.4, radius * float(rng.uniform(0.4, 1.1)), 40, ribs=int(rng.integers(0, 13)))
    assembly.add(cap, Site((0.0, 0.0, height)))
    return 2 * radius - 1.0, 2 * radius - 1.0


def _style(rng: np.random.Generator) -> WindowStyle:
    hoods: tuple[Hood, ...] = ("none", "flat", "pediment", "arch")
    return WindowStyle(
        int(rng.integers(1, 4)),
        int(rng.integers(1, 5)),
        hoods[int(rng.integers(4))],
        surround_m=float(rng.uniform(0.1, 0.3)),
    )


def _arch(rng: np.random.Generator) -> Arch:
    arches: tuple[Arch, ...] = ("flat", "flat", "flat", "round", "pointed")
    return arches[int(rng.integers(len(arches)))]


def _storey(style: WindowStyle, rng: np.random.Generator) -> Storey:
    height = float(rng.uniform(3.0, 4.8))
    return Storey(
        height,
        int(rng.integers(3, 8)),
        float(rng.uniform(0.9, 1.6)),
        float(rng.uniform(0.4, 1.1)),
        height * float(rng.uniform(0.45, 0.62)),
        _arch(rng),
        style,
        lively=0.5,
    )


def _block(
    assembly: Assembly,
    site: Site,
    size_m: tuple[float, float],
    storeys: list[Storey],
    rng: np.random.Generator,
) -> float:
    """Four facades around a rectangle, each with its own bays; returns their height."""
    height = 0.0
    material = str(rng.choice(["wall", "wall", "accent"]))
    for k, (length, reach) in enumerate(((size_m[0], size_m[1]), (size_m[1], size_m[0])) * 2):
        face = face_of(site, 90.0 * k, reach / 2)
        own = [
            replace(s, bays=max(1, round(s.bays * length / max(size_m)) + int(rng.integers(-1, 2)))) for s in storeys
        ]
        height = facade(assembly, face, length, own, rng, material=material)
    if rng.random() < 0.6:
        for sx in (-1, 1):
            for sy in (-1, 1):
                corner = moved(quoins(height, rng, (sx, sy)), (sx * size_m[0] / 2, sy * size_m[1] / 2, 0.0))
                assembly.add(corner, site)
    return height


def _crown(assembly: Assembly, size_m: tuple[float, float], height_m: float, rng: np.random.Generator) -> None:
    """A roof: saddle, hipped, domed, or flat behind parapets; with chimneys or figures."""
    width, depth = size_m
    site, rise = Site((0.0, 0.0, height_m)), float(rng.uniform(0.25, 0.6)) * min(size_m)
    form = int(rng.integers(4))
    chimney_m = rise + 1.4 if form < 2 else 2.4
    match form:
        case 0:
            assembly.add(gable_roof(width, depth, rise), site)
        case 1:
            assembly.add(hip_roof(width, depth, rise), site)
        case 2:
            _flat_roof(assembly, size_m, site, rng)
            drum = 0.32 * min(size_m)
            assembly.add([turned("wall", [(drum, 0.0), (drum, 2.6), (drum + 0.4, 2.8), (drum + 0.4, 3.1)], 28)], site)
            assembly.add(dome(drum, drum * float(rng.uniform(0.7, 1.3)), 28), Site((0.0, 0.0, height_m + 3.1)))
        case _:
            _flat_roof(assembly, size_m, site, rng)
    for _ in range(int(rng.integers(1, 4))):
        x, y = rng.uniform(-0.35, 0.35, 2) * size_m
        assembly.put("accent", box((1.1, 0.9, chimney_m)), Site((float(x), float(y), height_m)))


def _flat_roof(assembly: Assembly, size_m: tuple[float, float], site: Site, rng: np.random.Generator) -> None:
    width, depth = size_m
    assembly.put("paving", box((width, depth, 0.05)), site)
    for k, (length, reach) in enumerate(((width, depth), (depth, width)) * 2):
        assembly.add(parapet(length, rng, height_m=1.1), face_of(site, 90.0 * k, reach / 2 - 0.3))
    for x in rng.uniform(-0.45, 0.45, 3) * width:
        statue = figure(float(rng.uniform(1.8, 2.6)), rng, material=str(rng.choice(["trim", "metal"])))
        assembly.add(statue, Site((float(x), -depth / 2 + 0.3, site.at_m[2] + 1.2)), loose=True)


def _annexe(assembly: Assembly, side: int, size_m: tuple[float, float], rng: np.random.Generator) -> None:
    """Add a portico, a tower, a wing or a round chapel to one side of the main block."""
    face = face_of(Site(), 90.0 * side, (size_m[1] if side % 2 == 0 else size_m[0]) / 2)
    match int(rng.integers(4)):
        case 0:
            _portico(assembly, face, size_m[side % 2], rng)
        case 1:
            _tower(assembly, face, rng)
        case 2:
            size = (float(rng.uniform(6, 10)), float(rng.uniform(5, 9)))
            wing = face_of(face, 0.0, size[1] / 2 - 0.2)
            height = _block(
                assembly, wing, size, [_storey(_style(rng), rng) for _ in range(int(rng.integers(1, 3)))], rng
            )
            roof = (
                gable_roof(*size, rise_m=float(rng.uniform(2, 4)))
                if rng.random() < 0.5
                else hip_roof(*size, rise_m=3.0)
            )
            assembly.add(roof, Site((wing.at_m[0], wing.at_m[1], height), wing.turn_deg))
        case _:
            _chapel(assembly, face, rng)


def _portico(assembly: Assembly, face: Site, room_m: float, rng: np.random.Generator) -> None:
    pitch, height = float(rng.uniform(1.9, 2.6)), float(rng.uniform(5.0, 8.0))
    count = min(int(rng.integers(2, 5)) * 2, int(room_m / pitch))
    width, out = (count - 1) * pitch, float(rng.uniform(2.2, 4.0))
    steps = int(rng.integers(2, 6))
    assembly.add(moved(stairs(width + 3.0, steps), (0.0, -out - 0.8, 0.0)), face)
    assembly.put("trim", box((width + 3.0, out + 0.8, 0.17 * steps), (0.0, -(out + 0.8) / 2, 0.0)), face)
    for k in range(count):
        shaft = column(
            height,
            0.1 * pitch + 0.18,
            rng,
            material="accent" if rng.random() < 0.12 else "trim",
            flutes=int(rng.choice([0, 8])),
        )
        assembly.add(moved(shaft, (k * pitch - width / 2, -out, 0.17 * steps)), face)
    top = height + 0.17 * steps
    assembly.add(moved(entablature(width + 1.4, out + 0.5, 1.5, rng), (0.0, -out - 0.5, top)), face)
    if rng.random() < 0.7:
        rise = 0.22 * width
        assembly.add(moved(pediment(width + 2.2, rise, out, face="accent"), (0.0, -out - 1.0, top + 1.5)), face)
        assembly.add(
            decal("relief", int(rng.integers(96)), 0.0, top + 1.7, 0.32 * width, 0.5 * rise, -out - 0.45), face
        )
    door = Opening(0.0, 0.17 * steps, 2.0, min(0.6 * height, 4.0), _arch(rng), 0.1)
    assembly.add(moved(window(door, WindowStyle(2, 2, "flat", fill="wood")), (0.0, -0.15, 0.0)), face)


def _tower(assembly: Assembly, face: Site, rng: np.random.Generator) -> None:
    side, floors = float(rng.uniform(4.0, 6.5)), int(rng.integers(3, 7))
    site = Site(face.at_m, face.turn_deg)
    height = _block(
        assembly,
        site,
        (side, side),
        [replace(_storey(_style(rng), rng), bays=int(rng.integers(1, 3))) for _ in range(floors)],
        rng,
    )
    for k in range(4):
        wall = face_of(site, 90.0 * k, side / 2)
        assembly.add(decal("sign", int(rng.integers(96)), 0.0, height - 1.9, 1.7, 1.7, -0.3), wall, loose=True)
    rise, sections = float(rng.uniform(3.0, 9.0)), int(rng.choice([4, 8]))
    assembly.add(spire(side + 0.6, rise, sections), Site((*site.at_m[:2], height), site.turn_deg))


def _chapel(assembly: Assembly, face: Site, rng: np.random.Generator) -> None:
    radius = float(rng.uniform(3.0, 5.5))
    site = Site(face.at_m, face.turn_deg, radius)
    height = facade(
        assembly,
        site,
        2 * np.pi * radius,
        [replace(_storey(_style(rng), rng), bays=int(rng.integers(6, 11))) for _ in range(int(rng.integers(1, 3)))],
        rng,
        material="accent",
    )
    assembly.add(
        dome(radius + 0.3, radius * float(rng.uniform(0.5, 1.1)), 28, ribs=int(rng.integers(0, 9))),
        Site((*face.at_m[:2], height)),
    )
    if rng.random() < 0.5:
        rose = moved(rose_window(0.9, int(rng.integers(6, 13))), (0.0, -0.3, height - 1.3))
        assembly.add(rose, site, loose=True)
