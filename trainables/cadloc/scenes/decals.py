"""One atlas of pictures that hang on buildings: posters, murals, inscriptions, reliefs, signs, ivy, graffiti.

They are what tells one bay from the next at a distance. The atlas has 16 x 16 cells; each kind has its own rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np

from cadloc.scenes.assembly import DECALS
from cadloc.scenes.solids import Part, Surface, quads
from cadloc.scenes.textures import Image8

Kind = Literal["poster", "inscription", "mural", "relief", "sign", "ivy", "graffiti"]
CELLS = 16
# Room around a decal's picture, in cells: keeps a neighbour's colours out when the texture is minified.
MARGIN = 0.04


@dataclass(frozen=True)
class Shelf:
    """Where the pictures of a kind lie in the atlas: first row, and columns and rows of cells one picture takes."""

    row: int
    columns: int
    rows: int
    count: int

    def corner(self, index: int) -> tuple[int, int]:
        """Row and column of the cell at a picture's upper left; picture numbers start again after the last."""
        line, place = divmod(index % self.count, CELLS // self.columns)
        return self.row + line * self.rows, place * self.columns


SHELVES: dict[Kind, Shelf] = {
    "poster": Shelf(0, 1, 1, 16),
    "inscription": Shelf(1, 4, 1, 4),
    "mural": Shelf(2, 2, 2, 16),
    "relief": Shelf(6, 1, 1, 48),
    "sign": Shelf(9, 1, 1, 32),
    "ivy": Shelf(11, 1, 1, 16),
    "graffiti": Shelf(12, 1, 1, 16),
}


def decal(
    kind: Kind, index: int, x_m: float, z_m: float, width_m: float, height_m: float, front_m: float = -0.04
) -> Part:
    """A picture hung on a facade with its lower middle at (x, z), a little in front of the wall."""
    left, right = x_m - width_m / 2, x_m + width_m / 2
    corners = [(left, z_m), (right, z_m), (right, z_m + height_m), (left, z_m + height_m)]
    points = [(x, front_m, z) for x, z in corners]
    u0, v0, u1, v1 = _window(SHELVES[kind], index)
    places = [(u0, v0, 0.0), (u1, v0, 0.0), (u1, v1, 0.0), (u0, v1, 0.0)]
    return [Surface(DECALS, quads(*points), quads(*places)[..., :2])]


def floor_decal(kind: Kind, index: int, x_m: float, y_m: float, size_m: float, height_m: float = 0.03) -> Part:
    """A picture lying on the ground, centred on (x, y)."""
    return [
        Surface(DECALS, s.triangles_m[..., [0, 2, 1]] * [1.0, 1.0, -1.0] + [0.0, y_m - size_m / 2, 0.0], s.uv_m)
        for s in decal(kind, index, x_m, 0.0, size_m, size_m, front_m=-height_m)
    ]


def _window(shelf: Shelf, index: int) -> tuple[float, float, float, float]:
    """Texture coordinates u0, v0, u1, v1 of a picture; v runs up, as in glTF's viewers after trimesh's flip."""
    row, column = shelf.corner(index)
    top, bottom = CELLS - row, CELLS - row - shelf.rows
    edges = (column + MARGIN, bottom + MARGIN, column + shelf.columns - MARGIN, top - MARGIN)
    return edges[0] / CELLS, edges[1] / CELLS, edges[2] / CELLS, edges[3] / CELLS


def painted_atlas(
    size_px: int, seed_of: Callable[[Kind], int], tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
) -> Image8:
    """The atlas (size, size, 4) uint8 RGBA; what the pictures of a kind show depends on its seed, `tint` fades them."""
    cell = size_px // CELLS
    atlas = np.zeros((size_px, size_px, 4), np.uint8)
    for kind, shelf in SHELVES.items():
        rng = np.random.default_rng([seed_of(kind), shelf.row])
        for index in range(shelf.count):
            picture = _PAINTERS[kind](rng, shelf.columns * 128, shelf.rows * 128)
            row, column = (cell * corner for corner in shelf.corner(index))
            rows, columns = slice(row, row + shelf.rows * cell), slice(column, column + shelf.columns * cell)
            atlas[rows, columns] = cv2.resize(
                picture, (shelf.columns * cell, shelf.rows * cell), interpolation=cv2.INTER_LINEAR
            )
    atlas[..., :3] = np.clip(atlas[..., :3] * np.asarray(tint, np.float32), 0, 255)
    return atlas


def _colour(rng: np.random.Generator, low: int = 20, high: int = 235) -> tuple[int, int, int, int]:
    drawn = rng.uniform(low, high, 3)
    red, green, blue = (int(value) for value in 0.6 * drawn + 0.4 * drawn.mean())
    return red, green, blue, 255


def _canvas(width: int, height: int, colour: tuple[int, int, int, int]) -> Image8:
    return np.full((height, width, 4), colour, np.uint8)


def _letters(rng: np.random.Generator, count: int) -> str:
    return "".join(rng.choice(list("AEIOUBCDFGLMNPRSTVX "), count))


def _write(image: Image8, text: str, at: tuple[int, int], scale: float, ink: Any, thickness: int = 2) -> None:
    cv2.putText(image, text, at, cv2.FONT_HERSHEY_TRIPLEX, scale, ink, thickness, cv2.LINE_AA)


def _poster(rng: np.random.Generator, width: int, height: int) -> Image8:
    image = _canvas(width, height, _colour(rng))
    for _ in range(5):
        corner, size = rng.integers(0, width, 2), rng.integers(10, width // 2, 2)
        cv2.rectangle(image, corner.tolist(), (corner + size).tolist(), _colour(rng), -1)
    cv2.circle(
        image,
        rng.integers(20, width - 20, 2).tolist(),
        int(rng.integers(12, 40)),
        _colour(rng),
        -1,
        cv2.LINE_AA,
    )
    _write(image, _letters(rng, 5), (6, int(rng.integers(30, height - 10))), 1.0, _colour(rng))
    return image


def _inscription(rng: np.random.Generator, width: int, height: int) -> Image8:
    ground = int(rng.integers(150, 205))
    image = _canvas(width, height, (ground, ground - 8, ground - 22, 255))
    for row in range(2):
        _write(image, _letters(rng, 16), (12, 52 + 56 * row), 1.5, (60, 52, 44, 255), 4)
    return image


def _mural(rng: np.random.Generator, width: int, height: int) -> Image8:
    image = _canvas(width, height, _colour(rng, 90, 220))
    for _ in range(26):
        polygon = rng.integers(0, (width, height), (int(rng.integers(3, 7)), 2))
        cv2.fillPoly(image, [polygon // 3 + rng.integers(0, (width, height)) * 2 // 3], _colour(rng), cv2.LINE_AA)
    for _ in range(6):
        centre, axes = rng.integers(0, (width, height)).tolist(), rng.integers(8, 50, 2).tolist()
        cv2.ellipse(
            image,
            centre,
            axes,
            float(rng.uniform(0, 180)),
            0.0,
            360.0,
            _colour(rng),
            int(rng.choice([-1, 3])),
            cv2.LINE_AA,
        )
    return image


def _relief(rng: np.random.Generator, width: int, height: int) -> Image8:
    """Carved figures lit from above: an embossed drawing."""
    drawing = np.zeros((height, width), np.uint8)
    for _ in range(7):
        centre, axes = rng.integers(16, (width - 16, height - 16)).tolist(), rng.integers(6, 30, 2).tolist()
        cv2.ellipse(
            drawing,
            centre,
            axes,
            float(rng.uniform(0, 180)),
            0.0,
            360.0,
            int(rng.integers(90, 255)),
            -1,
            cv2.LINE_AA,
        )
    soft = cv2.GaussianBlur(drawing.astype(np.float32), (0, 0), 2.5)
    light = np.clip(150.0 + 4.0 * (np.roll(soft, -2, axis=0) - np.roll(soft, 2, axis=0)) + 0.15 * soft, 25, 245)
    rim = cv2.rectangle(np.zeros((height, width), np.float32), (0, 0), (width - 1, height - 1), 1.0, 8)
    return np.dstack(
        [np.clip(light * tint - 40.0 * rim, 0, 255) for tint in (1.0, 0.95, 0.84)] + [np.full_like(light, 255)]
    ).astype(np.uint8)


def _sign(rng: np.random.Generator, width: int, height: int) -> Image8:
    """A clock, a coat of arms or a shop sign."""
    image = _canvas(width, height, _colour(rng))
    centre = (width // 2, height // 2)
    cv2.circle(image, centre, 52, _colour(rng, 170, 245), -1, cv2.LINE_AA)
    cv2.circle(image, centre, 52, _colour(rng, 0, 80), 5, cv2.LINE_AA)
    for angle in rng.uniform(0.0, 2 * np.pi, 2):
        tip = (int(centre[0] + 42 * np.cos(angle)), int(centre[1] + 42 * np.sin(angle)))
        cv2.line(image, centre, tip, _colour(rng, 0, 90), 7, cv2.LINE_AA)
    _write(image, _letters(rng, 3), (26, int(rng.integers(50, 110))), 1.1, _colour(rng, 0, 160))
    return image


def _ivy(rng: np.random.Generator, width: int, height: int) -> Image8:
    """Leaves that climb from the foot of the picture and leave the wall visible between them."""
    image = np.zeros((height, width, 4), np.uint8)
    image[..., :3] = (58, 84, 40)
    sway = np.cumsum(rng.normal(0.0, 2.5, height))
    for _ in range(420):
        climb = float(rng.random()) ** 1.5
        spread = width * (0.42 - 0.30 * climb) * rng.normal(0.0, 0.5)
        centre = (
            int(width / 2 + sway[int(climb * (height - 1))] + spread),
            int((1.0 - climb) * (height - 1)),
        )
        green = int(rng.integers(60, 135))
        leaf = (int(green * rng.uniform(0.5, 1.1)), green, int(green * 0.45), 255)
        cv2.circle(image, centre, int(rng.integers(3, 7)), leaf, -1)
    return image


def _graffiti(rng: np.random.Generator, width: int, height: int) -> Image8:
    ink = _colour(rng, 10, 220)
    image = _canvas(width, height, (*ink[:3], 0))
    for _ in range(3):
        points = np.cumsum(rng.normal(0.0, 20.0, (9, 2)), axis=0) + rng.uniform(35, 95, 2)
        cv2.polylines(image, [points.astype(np.int32)], False, ink, int(rng.integers(4, 10)))
    _write(image, _letters(rng, 4), (10, int(rng.integers(50, 110))), 1.4, ink, 6)
    return image


_PAINTERS: dict[Kind, Callable[[np.random.Generator, int, int], Image8]] = {
    "poster": _poster,
    "inscription": _inscription,
    "mural": _mural,
    "relief": _relief,
    "sign": _sign,
    "ivy": _ivy,
    "graffiti": _graffiti,
}
