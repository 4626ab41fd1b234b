"""What people hang on a bay of a facade: shutters, flower boxes, awnings, lanterns, banners, balconies, ivy, signs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cadloc.scenes.assembly import Assembly, Site
from cadloc.scenes.decals import Kind, decal
from cadloc.scenes.openings import Opening
from cadloc.scenes.solids import (
    Part,
    box,
    ellipsoid,
    moved,
    plank,
    quads,
    surface,
    turned,
)

_PANELS: tuple[Kind, ...] = ("relief", "mural", "poster")


def _filled(hole: Opening, rng: np.random.Generator) -> Part:
    """A bay whose window was never cut: a panel, with a relief, a poster or a mural in it."""
    panel = plank(hole.x_m, hole.z_m, hole.width_m, hole.height_m, -0.06, 0.0)
    kind = _PANELS[int(rng.integers(len(_PANELS)))]
    hung = decal(
        kind,
        int(rng.integers(96)),
        hole.x_m,
        hole.z_m + 0.1 * hole.height_m,
        0.9 * hole.width_m,
        0.8 * hole.height_m,
        -0.09,
    )
    return [surface("accent", panel), *hung]


def _shutters(hole: Opening, rng: np.random.Generator) -> Part:
    sides = [(-1, 1), (-1,), (1,)][int(rng.integers(3))]
    height = hole.height_m - hole.rise_m
    leaves = [
        plank(hole.x_m + side * hole.width_m * 1.06, hole.z_m, hole.width_m * 0.5, height, -0.16, -0.10)
        for side in sides
    ]
    return [surface("wood", np.concatenate(leaves))]


def _flower_box(hole: Opening, rng: np.random.Generator) -> Part:
    trough = plank(hole.x_m, hole.z_m - 0.05, hole.width_m, 0.25, -0.5, -0.22)
    bushes = [
        ellipsoid("foliage", (0.22, 0.2, float(rng.uniform(0.15, 0.4))), (hole.x_m + dx, -0.36, hole.z_m + 0.32), 6)
        for dx in np.linspace(-0.4, 0.4, 3) * hole.width_m
    ]
    return [surface("wood", trough), *bushes]


def _awning(hole: Opening, rng: np.random.Generator) -> Part:
    top, reach, drop = hole.z_m + hole.height_m, float(rng.uniform(0.6, 1.1)), float(rng.uniform(0.5, 0.9))
    half = hole.width_m * 0.62
    corners = [
        (hole.x_m + sx * half, y, z)
        for sx, y, z in ((-1, -reach, top - drop), (1, -reach, top - drop), (1, -0.1, top), (-1, -0.1, top))
    ]
    cloth = decal("poster", int(rng.integers(96)), 0.0, 0.0, 1.0, 1.0)[0]
    return [replace(cloth, triangles_m=quads(*corners))]


def _lantern(hole: Opening, rng: np.random.Generator) -> Part:
    side = float(rng.choice([-1.0, 1.0])) * hole.width_m * 0.9
    z = hole.z_m + hole.height_m * float(rng.uniform(0.3, 0.8))
    arm = plank(hole.x_m + side, z + 0.55, 0.06, 0.06, -0.5, 0.0)
    lamp = moved(
        [turned("metal", [(0.02, 0.0), (0.16, 0.1), (0.22, 0.45), (0.03, 0.6)], 6)],
        (hole.x_m + side, -0.5, z),
    )
    return [surface("metal", arm), *lamp]


def _banner(hole: Opening, rng: np.random.Generator) -> Part:
    drop = hole.height_m * float(rng.uniform(0.7, 1.1))
    return decal(
        "poster",
        int(rng.integers(96)),
        hole.x_m,
        hole.z_m + hole.height_m - drop,
        hole.width_m * float(rng.uniform(0.6, 1.0)),
        drop,
        -0.34,
    )


def _balcony(hole: Opening, rng: np.random.Generator) -> Part:
    width, reach = hole.width_m * 1.7, float(rng.uniform(0.7, 1.0))
    floor = plank(hole.x_m, hole.z_m - 0.2, width, 0.16, -reach, 0.0)
    rail = [plank(hole.x_m, hole.z_m + 0.75, width, 0.07, -reach, -reach + 0.07)]
    rail += [
        plank(hole.x_m + dx, hole.z_m - 0.05, 0.05, 0.8, -reach, -reach + 0.05)
        for dx in np.linspace(-width, width, 7) / 2.05
    ]
    return [surface("trim", floor), surface("metal", np.concatenate(rail))]


def _ivy(hole: Opening, rng: np.random.Generator) -> Part:
    side = float(rng.choice([-1.0, 1.0])) * hole.width_m * 0.95
    return decal(
        "ivy",
        int(rng.integers(96)),
        hole.x_m + side,
        max(hole.z_m - 0.9, 0.02),
        1.6,
        hole.height_m + float(rng.uniform(0.4, 1.6)),
        -0.12,
    )


def _shop_sign(hole: Opening, rng: np.random.Generator) -> Part:
    board = box((0.06, 0.8, 0.8), (hole.x_m + hole.width_m * 0.85, -0.6, hole.z_m + hole.height_m * 0.6))
    kind: Kind = "sign" if rng.random() < 0.6 else "graffiti"
    plate = decal(
        kind, int(rng.integers(96)), hole.x_m + hole.width_m * 0.95, max(hole.z_m - 0.7, 0.05), 0.8, 0.8, -0.05
    )
    return [surface("wood", board), *plate]


_BAY_FEATURES = (
    _shutters,
    _shutters,
    _flower_box,
    _awning,
    _lantern,
    _banner,
    _balcony,
    _ivy,
    _ivy,
    _shop_sign,
)


def enliven(
    assembly: Assembly, site: Site, hole: Opening, walled_up: bool, chance: float, rng: np.random.Generator
) -> None:
    """Hang something of its own on a bay: what people add to a building, and the reason bays can be told apart."""
    if walled_up:
        assembly.add(_filled(hole, rng), site)
        return
    if rng.random() > chance:
        return
    pick = _BAY_FEATURES[int(rng.integers(len(_BAY_FEATURES)))]
    assembly.add(pick(hole, rng), site, loose=True)
