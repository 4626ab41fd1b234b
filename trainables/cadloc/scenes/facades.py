"""Facades: storeys of bays on a flat or bent wall, by a grammar that gives every bay a face of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cadloc.scenes.assembly import Assembly, Site
from cadloc.scenes.bays import enliven
from cadloc.scenes.openings import Arch, Opening, WindowStyle, cuts, wall, window
from cadloc.scenes.solids import (
    Part,
    moulding,
    surface,
)

PLAIN = WindowStyle()


@dataclass(frozen=True)
class Storey:
    """One row of windows: `height_m` of wall, how many bays, and the typical opening in a bay."""

    height_m: float
    bays: int
    width_m: float = 1.2
    sill_m: float = 1.0
    opening_m: float = 2.0
    arch: Arch = "flat"
    style: WindowStyle = PLAIN
    blind: float = 0.08
    lively: float = 0.6


def facade(
    assembly: Assembly,
    site: Site,
    width_m: float,
    storeys: Sequence[Storey],
    rng: np.random.Generator,
    *,
    z0_m: float = 0.0,
    material: str = "wall",
    free: Iterable[tuple[float, float]] = (),
) -> float:
    """Build a facade of storeys with a string course on each and return the height it reaches.

    No bay stands in the `free` stretches (x0, x1), kept for porches and towers.
    """
    every_m, low, barred = 1e9 if site.bend_m is None else site.bend_m * 0.105, z0_m, tuple(free)
    for storey in storeys:
        high = low + storey.height_m
        holes = [o for o in _bays(storey, width_m, low, rng) if not _barred(o, barred)]
        blind = rng.random(len(holes)) < storey.blind
        kept = [o for o, walled_up in zip(holes, blind, strict=True) if not walled_up]
        part = wall(material, width_m, low, high, kept, every_m=every_m)
        for hole in kept:
            part += window(hole, _varied(storey.style, rng))
        part += string_course(width_m, high, every_m=every_m)
        assembly.add(part, site)
        for hole, walled_up in zip(holes, blind, strict=True):
            enliven(assembly, site, hole, bool(walled_up), storey.lively, rng)
        low = high
    return low


def _bays(storey: Storey, width_m: float, low_m: float, rng: np.random.Generator) -> list[Opening]:
    pitch = width_m / max(storey.bays, 1)
    centres = (np.arange(storey.bays) - (storey.bays - 1) / 2) * pitch
    return [_bay(storey, float(x), pitch, low_m, rng) for x in centres]


def _bay(storey: Storey, x_m: float, pitch_m: float, low_m: float, rng: np.random.Generator) -> Opening:
    """The storey's typical opening, a little out of line and size; a wide arch never reaches below its sill."""
    shift, wider, higher = rng.normal(0.0, 1.0, 3)
    height_m = min(storey.opening_m * float(np.exp(0.08 * higher)), storey.height_m - storey.sill_m - 0.55)
    width_m = min(storey.width_m * float(np.exp(0.11 * wider)), 0.8 * pitch_m, 0.9 * height_m)
    return Opening(x_m + 0.03 * pitch_m * float(shift), low_m + storey.sill_m, width_m, height_m, storey.arch)


def _barred(opening: Opening, stretches: tuple[tuple[float, float], ...]) -> bool:
    left, right = opening.x_m - opening.width_m / 2 - 0.3, opening.x_m + opening.width_m / 2 + 0.3
    return any(left < end and right > start for start, end in stretches)


def _varied(style: WindowStyle, rng: np.random.Generator) -> WindowStyle:
    """Most windows follow the style; some were replaced."""
    if rng.random() > 0.35:
        return style
    return replace(
        style,
        columns=int(rng.integers(1, 4)),
        rows=int(rng.integers(1, 5)),
        frame=str(rng.choice(["wood", "metal", "trim"])),
    )


def string_course(
    width_m: float, z_m: float, *, reach_m: float = 0.22, height_m: float = 0.3, every_m: float = 1e9
) -> Part:
    """A moulding along the top of a storey."""
    profile = [(0.0, z_m - height_m), (-reach_m, z_m - 0.5 * height_m), (-reach_m, z_m), (0.0, z_m + 0.03)]
    return [surface("trim", moulding(profile, cuts(width_m, every_m)))]
