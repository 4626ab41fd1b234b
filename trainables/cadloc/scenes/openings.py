"""Walls with openings, and the windows and doors that fill them.

Everything is designed flat: x along the wall, y = 0 its face, seen from y < 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from cadloc.scenes.solids import (
    Floats,
    Part,
    arc,
    fan,
    plank,
    quads,
    ribbon,
    slab,
    surface,
)

Arch = Literal["flat", "round", "pointed"]


Hood = Literal["none", "flat", "pediment", "arch"]


ARCH_RISE: dict[Arch, float] = {"flat": 0.0, "round": 0.5, "pointed": 0.75**0.5}
ARCH_SEGMENTS = 8


# How far a window's surround stands out of the wall.
SURROUND_M = 0.09


@dataclass(frozen=True)
class Opening:
    """A hole in a wall: its lower middle (x, z), its size up to the crown of its arch, and how deep it is."""

    x_m: float
    z_m: float
    width_m: float
    height_m: float
    arch: Arch = "flat"
    depth_m: float = 0.35

    @property
    def rise_m(self) -> float:
        """Height of the arch: half the width if round, that of an equilateral triangle if pointed."""
        return ARCH_RISE[self.arch] * self.width_m

    @property
    def outline_xz(self) -> Floats:
        """Corners (K, 2) of the hole, counter-clockwise from its lower left."""
        left, right = self.x_m - self.width_m / 2, self.x_m + self.width_m / 2
        foot = np.array([(left, self.z_m), (right, self.z_m)])
        spring, half = self.z_m + self.height_m - self.rise_m, ARCH_SEGMENTS // 2
        if self.arch == "flat":
            return np.concatenate([foot, [(right, spring), (left, spring)]])
        if self.arch == "round":
            return np.concatenate([foot, arc(self.width_m / 2, 0.0, 180.0, ARCH_SEGMENTS, (self.x_m, spring))])
        rising, falling = (
            arc(self.width_m, 0.0, 60.0, half, (left, spring)),
            arc(self.width_m, 120.0, 180.0, half, (right, spring)),
        )
        return np.concatenate([foot, rising, falling[1:]])


def cuts(width_m: float, every_m: float) -> Floats:
    """Places along a wall of a width, both ends included, no farther apart than `every_m`."""
    return np.linspace(-width_m / 2, width_m / 2, max(int(np.ceil(width_m / every_m)), 1) + 1)


def wall(
    material: str,
    width_m: float,
    z0_m: float,
    z1_m: float,
    openings: Sequence[Opening],
    *,
    every_m: float = 1e9,
) -> Part:
    """A wall's face with its holes, cut at least `every_m` metres (a bent wall is as round as its cuts)."""
    xs = np.concatenate([cuts(width_m, every_m), *([o.x_m - o.width_m / 2, o.x_m + o.width_m / 2] for o in openings)])
    zs = np.concatenate([[z0_m, z1_m], *([o.z_m, o.z_m + o.height_m] for o in openings)])
    xs, zs = _distinct(xs), _distinct(zs.clip(z0_m, z1_m))
    x_mid, z_mid = np.meshgrid((xs[:-1] + xs[1:]) / 2, (zs[:-1] + zs[1:]) / 2, indexing="ij")
    solid = np.ones(x_mid.shape, dtype=bool)
    for o in openings:
        solid &= (abs(x_mid - o.x_m) > o.width_m / 2) | (z_mid < o.z_m) | (z_mid > o.z_m + o.height_m)
    i, j = np.nonzero(solid)
    face = _upright(xs[i], xs[i + 1], zs[j], zs[j + 1])
    return [surface(material, np.concatenate([face, *(_spandrels(o) for o in openings if o.arch != "flat")]))]


def _distinct(values: Floats) -> Floats:
    ordered = np.sort(values)
    distinct: Floats = ordered[np.concatenate([[True], np.diff(ordered) > 1e-6])]
    return distinct


def _upright(x0: Floats, x1: Floats, z0: Floats, z1: Floats) -> Floats:
    y = np.zeros_like(x0)
    return quads(*(np.column_stack([x, y, z]) for x, z in ((x0, z0), (x1, z0), (x1, z1), (x0, z1))))


def _spandrels(opening: Opening) -> Floats:
    """The wall between an arch and the rectangle around it."""
    curve = opening.outline_xz[2:]
    top = np.column_stack([curve[:, 0], np.full(len(curve), opening.z_m + opening.height_m)])
    flat = [np.column_stack([line[:, 0], np.zeros(len(line)), line[:, 1]]) for line in (curve, top)]
    return quads(flat[0][1:], flat[0][:-1], flat[1][:-1], flat[1][1:])


@dataclass(frozen=True)
class WindowStyle:
    """How windows are made: panes across and up, hood above, materials."""

    columns: int = 2
    rows: int = 3
    hood: Hood = "flat"
    frame: str = "wood"
    trim: str = "trim"
    surround_m: float = 0.18
    fill: str = "glass"


def window(opening: Opening, style: WindowStyle) -> Part:
    """Reveal, pane, glazing bars, surround, sill and hood of one opening."""
    outline, depth = opening.outline_xz, opening.depth_m
    back = np.column_stack([outline[:, 0], np.full(len(outline), depth), outline[:, 1]])
    front = back * [1.0, 0.0, 1.0] - [0.0, SURROUND_M, 0.0]
    reveal = quads(np.roll(front, -1, axis=0), np.roll(back, -1, axis=0), back, front)
    bars = _glazing_bars(opening, style)
    part = [surface(style.trim, reveal), surface(style.fill, fan(back))]
    if bars:
        part.append(surface(style.frame, np.concatenate(bars)))
    return [*part, surface(style.trim, _surround(opening, style)), *_hood(opening, style)]


def _glazing_bars(opening: Opening, style: WindowStyle) -> list[Floats]:
    """Bars in front of the pane; thin enough that only their faces are seen."""
    wide, thick, straight = opening.width_m, 0.07, opening.height_m - opening.rise_m
    left, rows = opening.x_m - wide / 2, style.rows + (0 if opening.arch == "flat" else 1)
    upright = [(left + k * wide / style.columns, opening.z_m, thick, straight) for k in range(1, style.columns)]
    level = [(opening.x_m, opening.z_m + k * straight / style.rows - thick / 2, wide, thick) for k in range(1, rows)]
    return [_strip(*bar, opening.depth_m - 0.08) for bar in upright + level]


def _strip(x_m: float, z_m: float, width_m: float, height_m: float, y_m: float) -> Floats:
    left, right, top = x_m - width_m / 2, x_m + width_m / 2, z_m + height_m
    return quads((left, y_m, z_m), (right, y_m, z_m), (right, y_m, top), (left, y_m, top))


def _surround(opening: Opening, style: WindowStyle) -> Floats:
    inner = np.roll(opening.outline_xz, -1, axis=0)
    wide = style.surround_m
    outward = replace(opening, width_m=opening.width_m + 2 * wide, height_m=opening.height_m + wide)
    outer = np.roll(outward.outline_xz, -1, axis=0)
    sill = plank(opening.x_m, opening.z_m - 0.16, opening.width_m + 4 * wide, 0.16, -0.22, 0.0)
    return np.concatenate([ribbon(outer, inner, -SURROUND_M, 0.0), sill])


def _hood(opening: Opening, style: WindowStyle) -> Part:
    top, reach = opening.z_m + opening.height_m + style.surround_m, opening.width_m / 2 + 2 * style.surround_m
    if style.hood == "flat":
        return [surface(style.trim, plank(opening.x_m, top, 2 * reach, 0.18, -0.30, 0.0))]
    if style.hood == "pediment":
        gable = [(opening.x_m - reach, top), (opening.x_m + reach, top), (opening.x_m, top + 0.55 * reach)]
        return [surface(style.trim, slab(gable, -0.28, 0.0))]
    if style.hood == "arch":
        bow = [arc(r, 20.0, 160.0, 8, (opening.x_m, top - 0.35 * reach)) for r in (1.08 * reach, 0.90 * reach)]
        return [surface(style.trim, ribbon(bow[0], bow[1], -0.26, 0.0))]
    return []
