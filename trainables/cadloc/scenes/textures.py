"""Textures of building materials, painted in code: large, without a repeating tile, different for every seed.

A texture is a layout (courses of blocks, planks, panes ...), which the `structure` generator decides, under wear
(stains, streaks, grime, repairs), which the `weather` generator decides: the same wall can be painted new and old.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

Texels: TypeAlias = NDArray[np.float32]
Image8: TypeAlias = NDArray[np.uint8]
Colour: TypeAlias = tuple[float, float, float]
Pattern = Literal["ashlar", "rubble", "plaster", "tiles", "boards", "sheet", "panes", "grass", "leaves"]


@dataclass(frozen=True)
class Finish:
    """A material as it leaves the mason; colours are 8-bit RGB.

    `tone` and `hue` say how much blocks differ. Rain leaves its marks on `upright` surfaces only.
    """

    pattern: Pattern
    colour: Colour
    joint: Colour = (110.0, 104.0, 94.0)
    course_m: float = 0.5
    length_m: float = 1.0
    joint_m: float = 0.025
    extent_m: float = 32.0
    size_px: int = 1024
    tone: float = 0.16
    hue: float = 5.0
    upright: bool = True
    roughness: float = 0.9


@dataclass(frozen=True)
class Wear:
    """What weather and people did: `tint` multiplies RGB, the others are strengths in [0, 1], 0 for none."""

    tint: Colour = (1.0, 1.0, 1.0)
    stains: float = 0.35
    streaks: float = 0.2
    grime: float = 0.35
    replaced: float = 0.03
    stain_colour: Colour = (70.0, 68.0, 52.0)


def fractal(
    size_px: int, rng: np.random.Generator, *, coarsest: int = 4, roughness: float = 0.55, finest: int = 0
) -> Texels:
    """Tileable noise (size, size) in [0, 1], from `coarsest` to `finest` cells across (0: a cell per texel).

    Built from coarse to fine by doubling, which costs a third more than its last octave alone.
    """
    field, amplitude, cells = np.zeros((coarsest, coarsest), np.float32), 1.0, coarsest
    while cells <= min(finest or size_px, size_px):
        field = _doubled(field, cells)
        field += (rng.random((cells, cells), dtype=np.float32) - 0.5) * amplitude
        amplitude, cells = amplitude * roughness, cells * 2
    field = _doubled(field, size_px)
    low, high = float(field.min()), float(field.max())
    return (field - low) * (1.0 / max(high - low, 1e-6))


def _doubled(field: Texels, size_px: int) -> Texels:
    cells = field.shape[0]
    if cells == size_px:
        return field
    margin, scale = 2, size_px // cells
    wide = cv2.copyMakeBorder(field, margin, margin, margin, margin, cv2.BORDER_WRAP)
    enlarged = cv2.resize(wide, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    return np.ascontiguousarray(enlarged[margin * scale : -margin * scale, margin * scale : -margin * scale])


def painted(finish: Finish, structure: np.random.Generator, wear: Wear, weather: np.random.Generator) -> Image8:
    """The finish with its wear as (size, size, 3) uint8 RGB; (size, size, 4) with holes in alpha for leaves."""
    colours, height = _LAYOUTS[finish.pattern](finish, structure)
    _replace(colours, finish, wear, weather)
    shade = 0.90 + 0.36 * fractal(finish.size_px, structure, coarsest=64, roughness=0.8)
    shade *= 0.88 + 0.34 * fractal(finish.size_px, structure, coarsest=4, finest=64)
    shade *= height
    shade *= 1.0 - 0.5 * wear.grime * (1.0 - fractal(finish.size_px, weather, coarsest=4, finest=128))
    if finish.upright:
        shade *= 1.0 - wear.streaks * _streaks(finish.size_px, weather)
    cover = _stains(finish.size_px, wear, weather)
    shade *= 1.0 - cover
    for channel, (tint, stain) in enumerate(zip(wear.tint, wear.stain_colour, strict=True)):
        colours[..., channel] *= shade * np.float32(tint)
        colours[..., channel] += cover * np.float32(stain)
    image = np.asarray(cv2.convertScaleAbs(colours), dtype=np.uint8)
    return np.dstack([image, _leaf_alpha(finish.size_px, structure)]) if finish.pattern == "leaves" else image


def _streaks(size_px: int, rng: np.random.Generator) -> Texels:
    """Rain marks: noise drawn out down the wall, in [0, 1] and mostly near 0."""
    coarse = rng.random((max(size_px // 96, 4), size_px // 4), dtype=np.float32)
    tall = cv2.resize(coarse, (size_px, size_px), interpolation=cv2.INTER_LINEAR)
    marks: Texels = np.clip(tall * 2.6 - 1.5, 0.0, 1.0).astype(np.float32)
    return marks


def _stains(size_px: int, wear: Wear, rng: np.random.Generator) -> Texels:
    """How much of each texel a stain hides, in [0, 1]."""
    field = fractal(size_px, rng, coarsest=8, roughness=0.62, finest=512)
    field -= 0.72 - 0.22 * wear.stains
    cover: Texels = np.clip(field * np.float32(5.0), 0.0, 1.0) * np.float32(0.35 + 0.4 * wear.stains)
    return cover


def _blend(colours: Texels, other: Colour, share: Texels) -> None:
    """Mix a colour into an image (size, size, 3) by a share per texel: by channels, which saves memory."""
    for channel in range(3):
        colours[..., channel] += (np.float32(other[channel]) - colours[..., channel]) * share


def _replace(colours: Texels, finish: Finish, wear: Wear, rng: np.random.Generator) -> None:
    """Repairs: rectangles of newer or older stone, aligned with the courses, about `replaced` of the surface."""
    if finish.pattern not in ("ashlar", "tiles", "boards", "plaster", "rubble"):
        return
    size_px, texel_m = finish.size_px, finish.extent_m / finish.size_px
    course_px = max(int(finish.course_m / texel_m), 3)
    area_px = 0.0
    while area_px < wear.replaced * size_px**2:
        height, width = course_px * int(rng.integers(1, 5)), int(rng.uniform(0.5, 3.0) / texel_m)
        row, column = course_px * int(rng.integers(0, size_px // course_px)), int(rng.integers(0, size_px))
        patch = colours[row : row + height, column : column + width]
        patch *= rng.uniform(0.62, 1.32) * (1.0 + rng.normal(0.0, 0.03, 3)).astype(np.float32)
        area_px += height * width


Layout: TypeAlias = Callable[[Finish, np.random.Generator], tuple[Texels, Texels]]


def _coursed(finish: Finish, rng: np.random.Generator) -> tuple[Texels, Texels]:
    """Courses of blocks of random length: no two rows share their joints, so no place in the wall repeats another."""
    size_px, texel_m = finish.size_px, finish.extent_m / finish.size_px
    heights = _split(size_px, finish.course_m / texel_m, 0.12, rng)
    rows = np.repeat(np.arange(len(heights)), heights)
    colours = np.empty((len(heights), size_px, 3), np.float32)
    to_joint = np.empty((len(heights), size_px), np.float32)
    for row in range(len(heights)):
        lengths = _split(size_px, finish.length_m / texel_m, 0.35, rng)
        blocks = np.repeat(np.arange(len(lengths)), lengths)
        colours[row] = np.roll(
            _block_colours(finish, len(lengths), rng)[blocks], shift := int(rng.integers(size_px)), axis=0
        )
        to_joint[row] = np.roll(_edge_distance(lengths), shift)
    across, down = to_joint[rows], _edge_distance(heights)
    joint = np.clip(1.5 - np.minimum(across, down[:, None]) / max(finish.joint_m / texel_m, 0.5), 0.0, 1.0).astype(
        np.float32
    )
    laid = colours[rows]
    _blend(laid, finish.joint, joint)
    # Light from above: a block is a little brighter at its top edge and darker at its foot.
    within = np.concatenate([np.linspace(1.07, 0.90, height, dtype=np.float32) for height in heights])
    return laid, np.repeat(within[:, None], size_px, axis=1)


def _split(total_px: int, mean_px: float, spread: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """Whole texel lengths that fill `total_px`, about `mean_px` each."""
    count = max(int(round(total_px / mean_px)), 1)
    ends = np.cumsum(rng.uniform(1.0 - spread, 1.0 + spread, count))
    return np.diff(np.concatenate([[0], np.round(ends * total_px / ends[-1])])).astype(np.int64)


def _edge_distance(lengths: NDArray[np.int64]) -> Texels:
    """For each texel of consecutive blocks, the distance in texels to its block's nearer end."""
    starts = np.repeat(np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths)
    inside = np.arange(int(lengths.sum())) - starts
    nearer: Texels = np.minimum(inside + 0.5, np.repeat(lengths, lengths) - inside - 0.5).astype(np.float32)
    return nearer


def _block_colours(finish: Finish, count: int, rng: np.random.Generator) -> Texels:
    tone = 1.0 + finish.tone * np.clip(rng.normal(0.0, 0.75, (count, 1)), -1.8, 1.8)
    warmth = rng.normal(0.0, finish.hue, (count, 1)) * [1.0, 0.2, -0.9]
    colours = np.asarray(finish.colour) * tone + warmth + rng.normal(0.0, 0.3 * finish.hue, (count, 3))
    return colours.astype(np.float32)


def _rubble(finish: Finish, rng: np.random.Generator) -> tuple[Texels, Texels]:
    """Irregular stones: the cells around random points."""
    size_px, texel_m = finish.size_px, finish.extent_m / finish.size_px
    count = int(finish.extent_m**2 / (finish.course_m * finish.length_m))
    free = np.full((size_px, size_px), 255, np.uint8)
    free[rng.integers(0, size_px, count), rng.integers(0, size_px, count)] = 0
    _, labels = cv2.distanceTransformWithLabels(free, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    edge = cv2.morphologyEx(labels.astype(np.float32), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    depth = cv2.distanceTransform((~edge).astype(np.uint8), cv2.DIST_L2, 3)
    joint = np.clip(1.3 - depth / max(finish.joint_m / texel_m, 0.7), 0.0, 1.0).astype(np.float32)
    laid = _block_colours(finish, int(labels.max()) + 1, rng)[labels]
    _blend(laid, finish.joint, joint)
    return laid, np.clip(0.86 + 0.05 * depth, 0.86, 1.06).astype(np.float32)


def _plain(finish: Finish, rng: np.random.Generator) -> tuple[Texels, Texels]:
    """Plaster, grass and the like: clouds of a few hues and no joints."""
    size_px = finish.size_px
    cloud = fractal(size_px, rng, coarsest=8, roughness=0.65)[..., None] - 0.5
    other = np.asarray(finish.joint, np.float32) - np.asarray(finish.colour, np.float32)
    laid = np.asarray(finish.colour, np.float32) + other * cloud * np.float32(4.0 * finish.tone)
    return laid.astype(np.float32), np.ones((size_px, size_px), np.float32)


def _boards(finish: Finish, rng: np.random.Generator) -> tuple[Texels, Texels]:
    """Upright boards or metal sheets: courses lying on their side, with grain along them."""
    laid, _ = _coursed(finish, rng)
    grain = cv2.resize(
        rng.random((finish.size_px, finish.size_px // 16), dtype=np.float32), (finish.size_px, finish.size_px)
    )
    upright = np.ascontiguousarray(laid.transpose(1, 0, 2))
    return upright, np.ascontiguousarray((0.82 + 0.36 * grain).T)


def _tiles(finish: Finish, rng: np.random.Generator) -> tuple[Texels, Texels]:
    """Roof tiles: each course is dark at its head, where the next one overlaps it."""
    laid, shade = _coursed(finish, rng)
    return laid, shade**3


def _panes(finish: Finish, rng: np.random.Generator) -> tuple[Texels, Texels]:
    """Window glass: dark rooms, reflections of sky and trees, curtains and blinds, different behind every window."""
    size_px, texel_m = finish.size_px, finish.extent_m / finish.size_px
    sky = fractal(size_px, rng, coarsest=16, finest=128, roughness=0.5)
    laid = np.asarray(finish.colour, np.float32) * (0.45 + 1.1 * sky[..., None])
    laid[sky > 0.62] += 42.0
    for _ in range(int(finish.extent_m**2 * 0.30)):
        row, column = rng.integers(0, size_px, 2)
        height, width = int(rng.uniform(0.4, 2.2) / texel_m), int(rng.uniform(0.3, 1.1) / texel_m)
        curtain = np.asarray(finish.joint, np.float32) * (1.0 + rng.normal(0.0, 0.09, 3).astype(np.float32))
        laid[row : row + height, column : column + width] = curtain * rng.uniform(0.35, 1.25)
    return laid, np.ones((size_px, size_px), np.float32)


def _leaf_alpha(size_px: int, rng: np.random.Generator) -> Image8:
    holes = fractal(size_px, rng, coarsest=64, roughness=0.9)
    return np.where(holes > 0.40, 255, 0).astype(np.uint8)


_LAYOUTS: dict[Pattern, Layout] = {
    "ashlar": _coursed,
    "rubble": _rubble,
    "plaster": _plain,
    "tiles": _tiles,
    "boards": _boards,
    "sheet": _boards,
    "panes": _panes,
    "grass": _plain,
    "leaves": _plain,
}
