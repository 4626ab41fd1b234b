"""How a built-in scene looks when it is photographed: years later, and not quite as it was modelled.

Amounts, chosen so that a photograph can be recognized by a careful observer but not by comparing pixels:

* colour: each material's RGB is multiplied by exp(N(0, 0.14)) overall and by exp(N(0, 0.06)) from warm to cool; stains,
  streaks, grime and repairs are about twice as strong as in the CAD model;
* glass, posters and graffiti are other ones; reliefs, inscriptions and murals stay;
* geometry: fixed parts (walls, columns, roofs, windows, floors) are shifted by N(0, 1 cm) along x and y; of the
  loose ones (shutters, lamps, statues, plants ...) 15 % are gone, 35 % moved by 5-30 cm and turned by up to 4 degrees;
* added: a scaffold before one wall (three on the campus), banners, graffiti and signs on two (the campus: on one of
  every building with flat walls); trees, lamps, kiosks, benches on the plaza.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cadloc.scenes.assembly import Assembly, Placed, Skin
from cadloc.scenes.decals import decal
from cadloc.scenes.model import SceneModel, Wall
from cadloc.scenes.palette import skins
from cadloc.scenes.solids import Floats, Part, beam, box, surface
from cadloc.scenes.surroundings import scatter
from cadloc.scenes.textures import Wear

FIXED_SHIFT_M = 0.01
LOOSE_GONE, LOOSE_MOVED = 0.15, 0.35
LOOSE_SHIFT_M, LOOSE_TURN_DEG = (0.05, 0.30), 4.0
TINT_OVERALL, TINT_WARMTH = 0.14, 0.06
REPLACED = ("glass", "poster", "graffiti")
MODELLED = Wear(stains=0.3, streaks=0.15, grime=0.3, replaced=0.02)
YEARS = 23


def modelled_skins(model: SceneModel) -> dict[str, Skin]:
    """The textures of the CAD model: clean, lightly aged."""
    return skins(model.finishes, lambda _: model.seed, lambda _: MODELLED, model.seed)


def photographed_skins(model: SceneModel) -> dict[str, Skin]:
    """The textures on the day of the photographs: same stones, other tints, more dirt, other glass and posters."""
    rng = np.random.default_rng([model.seed, YEARS])
    wear = {name: _aged(rng) for name in [*sorted(model.finishes), "decals"]}
    return skins(
        model.finishes,
        lambda name: model.seed + YEARS if name in REPLACED else model.seed,
        wear.__getitem__,
        model.seed + YEARS,
    )


def _aged(rng: np.random.Generator) -> Wear:
    red, green, blue = np.exp(rng.normal(0.0, TINT_OVERALL) + rng.normal(0.0, TINT_WARMTH) * np.array([1.0, 0.1, -1.0]))
    return Wear(
        tint=(float(red), float(green), float(blue)),
        stains=float(rng.uniform(0.45, 0.7)),
        streaks=float(rng.uniform(0.2, 0.35)),
        grime=float(rng.uniform(0.45, 0.7)),
        replaced=float(rng.uniform(0.03, 0.05)),
    )


def photographed_parts(model: SceneModel) -> list[Placed]:
    """The parts on the day of the photographs: a little displaced, some gone, some new."""
    rng = np.random.default_rng([model.seed, YEARS, 1])
    kept = [part for part in model.assembly.parts if not (part.loose and rng.random() < LOOSE_GONE)]
    later = Assembly(np.random.default_rng([model.seed, YEARS, 2]))
    _additions(later, model, rng)
    return [_displaced(part, rng) for part in kept] + later.parts


def _displaced(part: Placed, rng: np.random.Generator) -> Placed:
    if not part.loose:
        shift = np.append(rng.normal(0.0, FIXED_SHIFT_M, 2), 0.0)
        return _moved(part, np.eye(3), shift)
    if rng.random() >= LOOSE_MOVED:
        return part
    heading, angle = rng.uniform(0, 2 * np.pi), np.radians(rng.uniform(-LOOSE_TURN_DEG, LOOSE_TURN_DEG))
    shift = rng.uniform(*LOOSE_SHIFT_M) * np.array([np.cos(heading), np.sin(heading), 0.0])
    turn = np.array([[np.cos(angle), np.sin(angle), 0.0], [-np.sin(angle), np.cos(angle), 0.0], [0.0, 0.0, 1.0]])
    return _moved(part, turn, shift)


def _moved(part: Placed, turn: Floats, shift_m: Floats) -> Placed:
    corners = np.concatenate([s.triangles_m.reshape(-1, 3) for s in part.surfaces])
    centre = (corners.min(axis=0) + corners.max(axis=0)) / 2
    surfaces = [replace(s, triangles_m=(s.triangles_m - centre) @ turn + centre + shift_m) for s in part.surfaces]
    return replace(part, surfaces=tuple(surfaces))


def _additions(later: Assembly, model: SceneModel, rng: np.random.Generator) -> None:
    for wall in model.walls[: model.scaffolds]:
        later.add(_scaffold(0.6 * wall.width_m, 0.8 * wall.height_m, rng), wall.site)
    for wall in model.walls:
        later.add(_hangings(wall, rng), wall.site)
    scatter(
        later,
        rng,
        count=model.additions,
        clear_m=model.clear_m,
        reach_m=model.reach_m,
        footprints=model.footprints,
    )


def _hangings(wall: Wall, rng: np.random.Generator) -> Part:
    """A banner high on the wall, graffiti and a sign in reach."""
    xs = rng.uniform(-0.4, 0.4, 4) * wall.width_m
    banner = decal("poster", int(rng.integers(96)), float(xs[0]), 0.45 * wall.height_m, 1.5, 0.4 * wall.height_m, -0.4)
    marks = [d for x in xs[1:3] for d in decal("graffiti", int(rng.integers(96)), float(x), 0.4, 1.8, 1.3, -0.3)]
    return [*banner, *marks, *decal("sign", int(rng.integers(96)), float(xs[3]), 2.2, 0.9, 0.9, -0.35)]


def _scaffold(width_m: float, height_m: float, rng: np.random.Generator) -> Part:
    """Poles, boards and braces, 0.7 to 1.7 m in front of a wall."""
    bays, floors = max(int(width_m / 2.2), 1), max(int(height_m / 2.1), 1)
    xs, zs = np.linspace(-width_m / 2, width_m / 2, bays + 1), np.arange(1, floors + 1) * 2.1
    poles = [beam((x, y, 0.0), (x, y, height_m + 0.6), 0.07) for x in xs for y in (-1.7, -0.7)]
    rails = [beam((xs[0], -1.7, z + dz), (xs[-1], -1.7, z + dz), 0.06) for z in zs for dz in (0.5, 1.0)]
    braces = [
        beam((xs[k], -1.7, z - 2.1), (xs[k + 1], -1.7, z), 0.06) for z in zs for k in range(bays) if rng.random() < 0.4
    ]
    boards = [box((width_m, 0.9, 0.06), (0.0, -1.2, float(z))) for z in zs]
    return [
        surface("metal", np.concatenate([*poles, *rails, *braces])),
        surface("wood", np.concatenate(boards)),
    ]
