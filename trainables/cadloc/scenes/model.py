"""What a built-in scene hands over before it is painted: parts, finishes, and where photographs add things."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cadloc.scenes.assembly import Assembly, Site
from cadloc.scenes.surroundings import Rectangle
from cadloc.scenes.textures import Finish


@dataclass(frozen=True)
class Wall:
    """A stretch of facade in reach of people, where scaffolds, banners and graffiti appear."""

    site: Site
    width_m: float
    height_m: float


@dataclass(frozen=True)
class SceneModel:
    """A building with its plaza; `clear_m` (width, depth) is the rectangle around the origin that it fills.

    `footprints` are those of buildings elsewhere. Photographs show scaffolds before the first `scaffolds` walls and
    `additions` more props.
    """

    assembly: Assembly
    finishes: Mapping[str, Finish]
    walls: tuple[Wall, ...]
    clear_m: tuple[float, float]
    reach_m: float | tuple[float, float]
    seed: int
    footprints: tuple[Rectangle, ...] = ()
    scaffolds: int = 1
    additions: int = 14
