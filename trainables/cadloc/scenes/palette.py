"""From finishes to skins: the dozen textures one building wears."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from PIL import Image

from cadloc.scenes.assembly import DECALS, Skin
from cadloc.scenes.decals import painted_atlas
from cadloc.scenes.textures import Colour, Finish, Wear, painted

WearOf = Callable[[str], Wear]

GROUND: dict[str, Finish] = {
    "paving": Finish(
        "ashlar",
        (158, 152, 142),
        (92, 88, 80),
        course_m=0.9,
        length_m=1.2,
        extent_m=40.0,
        tone=0.15,
        upright=False,
    ),
    "cobbles": Finish(
        "rubble",
        (122, 116, 110),
        (74, 70, 64),
        course_m=0.34,
        length_m=0.34,
        extent_m=28.0,
        tone=0.22,
        upright=False,
    ),
    "grass": Finish("grass", (98, 116, 62), (128, 118, 70), extent_m=40.0, tone=0.35, upright=False),
    "foliage": Finish("leaves", (74, 100, 50), (40, 62, 30), extent_m=9.0, tone=0.4, size_px=512, upright=False),
}
FITTINGS: dict[str, Finish] = {
    "glass": Finish("panes", (62, 78, 92), (196, 186, 166), extent_m=18.0, roughness=0.3),
    "wood": Finish(
        "boards",
        (104, 70, 44),
        (50, 36, 26),
        course_m=0.22,
        length_m=2.6,
        extent_m=12.0,
        tone=0.3,
        size_px=512,
    ),
    "metal": Finish(
        "sheet",
        (84, 104, 94),
        (60, 74, 68),
        course_m=0.7,
        length_m=2.2,
        extent_m=16.0,
        tone=0.25,
        size_px=512,
    ),
}


def skins(
    finishes: Mapping[str, Finish], seed_of: Callable[[str], int], wear_of: WearOf, wear_seed: int
) -> dict[str, Skin]:
    """The painted texture of every material and the decals.

    `seed_of` gives the seed of a material's layout or of a kind of decal; `wear_of` and `wear_seed` say what it
    has been through since.
    """
    worn = {name: _skin(name, finish, seed_of(name), wear_of(name), wear_seed) for name, finish in finishes.items()}
    atlas = painted_atlas(min(2 * finishes["trim"].size_px, 2048), seed_of, wear_of(DECALS).tint)
    return {**worn, DECALS: Skin(Image.fromarray(atlas), 1.0)}


def _skin(name: str, finish: Finish, structure_seed: int, wear: Wear, wear_seed: int) -> Skin:
    image = painted(finish, _generator(structure_seed, name), wear, _generator(wear_seed, name + " wear"))
    return Skin(Image.fromarray(image), finish.extent_m, finish.roughness)


def _generator(seed: int, name: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def resized(finishes: Mapping[str, Finish], size_px: int) -> dict[str, Finish]:
    """The same finishes at another texture size."""
    return {name: replace(finish, size_px=size_px) for name, finish in finishes.items()}


def random_finishes(rng: np.random.Generator, size_px: int) -> dict[str, Finish]:
    """Finishes drawn from what towns are built of: for buildings that only have to be various."""
    walls: list[Colour] = [
        (196, 182, 152),
        (152, 84, 62),
        (214, 196, 150),
        (150, 146, 140),
        (188, 132, 96),
        (226, 222, 208),
        (134, 122, 96),
        (176, 120, 112),
    ]
    roofs: list[Colour] = [(138, 70, 50), (78, 84, 94), (104, 96, 84), (92, 132, 116), (120, 60, 56)]
    wall, accent, trim = (_masonry(rng, walls[int(rng.integers(len(walls)))]) for _ in range(3))
    roof = Finish(
        "tiles",
        _near(rng, roofs[int(rng.integers(len(roofs)))]),
        (50, 44, 42),
        course_m=float(rng.uniform(0.25, 0.5)),
        length_m=float(rng.uniform(0.2, 0.6)),
        extent_m=16.0,
        tone=float(rng.uniform(0.1, 0.28)),
    )
    chosen = {"wall": wall, "trim": trim, "accent": accent, "roof": roof, **FITTINGS, **GROUND}
    varied = {
        name: replace(finish, colour=_near(rng, finish.colour), extent_m=0.6 * finish.extent_m)
        for name, finish in chosen.items()
    }
    return resized(varied, size_px)


def _masonry(rng: np.random.Generator, colour: Colour) -> Finish:
    joint = _near(rng, (140, 132, 120), 0.25)
    course_m = float(rng.choice([0.16, 0.3, 0.45, 0.7]))
    pattern = str(rng.choice(["ashlar", "ashlar", "ashlar", "rubble", "plaster"]))
    extent_m = 14.0 if course_m < 0.2 else 22.0
    finish = Finish(
        "ashlar",
        _near(rng, colour),
        joint,
        course_m,
        course_m * float(rng.uniform(1.4, 3.0)),
        0.03,
        extent_m,
        tone=float(rng.uniform(0.08, 0.25)),
        hue=float(rng.uniform(2, 9)),
    )
    if pattern == "rubble":
        side_m = float(rng.uniform(0.28, 0.5))
        return replace(finish, pattern="rubble", course_m=side_m, length_m=side_m)
    return replace(finish, pattern="plaster", joint=_near(rng, colour, 0.2)) if pattern == "plaster" else finish


def _near(rng: np.random.Generator, colour: Colour, spread: float = 0.1) -> Colour:
    factors = np.exp(rng.normal(0.0, spread, 1)) * np.exp(rng.normal(0.0, 0.4 * spread, 3))
    red, green, blue = (float(c) for c in np.clip(np.asarray(colour) * factors, 12, 245))
    return red, green, blue
