"""An assembly of placed parts, and the textured meshes made of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import trimesh
from PIL import Image

from cadloc.scenes.solids import Floats, Part, Point, Surface, solid_part, surface


@dataclass(frozen=True)
class Site:
    """Where a part stands in the scene: its origin, its turn about z and, for round walls, the radius it is bent to.

    A bent part's x runs along the circumference; its origin is the circle's centre, and x = 0 faces -y.
    """

    at_m: Point = (0.0, 0.0, 0.0)
    turn_deg: float = 0.0
    bend_m: float | None = None

    def place(self, points_m: Floats) -> Floats:
        """Points (..., 3) of the part's frame in the scene's frame."""
        bent = points_m if self.bend_m is None else _bent(points_m, self.bend_m)
        cos, sin = np.cos(np.radians(self.turn_deg)), np.sin(np.radians(self.turn_deg))
        turn = np.array([[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]])
        placed: Floats = bent @ turn + np.asarray(self.at_m)
        return placed

    def within(self, block: Site) -> Site:
        """This site, given in the frame of a straight one, in the scene's frame."""
        x, y, z = block.place(np.asarray(self.at_m)).tolist()
        return Site((x, y, z), block.turn_deg + self.turn_deg, self.bend_m)

    def raised(self, height_m: float) -> Site:
        """The same site, straight, `height_m` higher."""
        x, y, z = self.at_m
        return Site((x, y, z + height_m), self.turn_deg)


def face_of(block: Site, turn_deg: float, reach_m: float) -> Site:
    """The site of a wall that faces -y turned by `turn_deg`, `reach_m` from the centre of its block."""
    heading = np.radians(block.turn_deg + turn_deg)
    x, y, z = block.at_m
    return Site(
        (x + reach_m * float(np.sin(heading)), y - reach_m * float(np.cos(heading)), z),
        block.turn_deg + turn_deg,
    )


def _bent(points_m: Floats, radius_m: float) -> Floats:
    angle, reach = points_m[..., 0] / radius_m, radius_m - points_m[..., 1]
    return np.stack([reach * np.sin(angle), -reach * np.cos(angle), points_m[..., 2]], axis=-1)


ORIGIN = Site()


@dataclass(frozen=True)
class Placed:
    """A part in the scene's frame. A `loose` one (shutter, lamp, statue) may differ between CAD model and photo."""

    surfaces: tuple[Surface, ...]
    loose: bool

    def at(self, site: Site, renamed: Mapping[str, str] | None = None) -> Placed:
        """The part and its texture carried to a site, of other materials where `renamed` names them."""
        names = renamed or {}
        placed = [Surface(names.get(s.material, s.material), site.place(s.triangles_m), s.uv_m) for s in self.surfaces]
        return Placed(tuple(placed), self.loose)


@dataclass(frozen=True)
class Skin:
    """The texture of one material, covering `extent_m` x `extent_m` metres of it."""

    image: Image.Image
    extent_m: float
    roughness: float = 0.9


@dataclass
class Assembly:
    """The parts placed so far; each gets its own random piece of every texture, so that no two places look alike."""

    rng: np.random.Generator
    parts: list[Placed] = field(default_factory=list)

    def add(self, part: Iterable[Surface], site: Site = ORIGIN, *, loose: bool = False) -> None:
        """Place a part."""
        shift = self.rng.uniform(0.0, 1000.0, 2)
        placed = [Surface(s.material, site.place(s.triangles_m), _shifted(s, shift)) for s in solid_part(part)]
        self.parts.append(Placed(tuple(placed), loose))

    def put(self, material: str, triangles: Floats, site: Site = ORIGIN, *, loose: bool = False) -> None:
        """Place plain triangles (F, 3, 3) of one material."""
        self.add([surface(material, triangles)], site, loose=loose)


# Decals are places in an atlas, not metres on a material: a shift would show the seam between two pictures.
DECALS = "decals"


def _shifted(part: Surface, shift_m: Floats) -> Floats:
    return part.uv_m if part.material == DECALS else part.uv_m + shift_m


def textured_meshes(parts: Iterable[Placed], skins: Mapping[str, Skin]) -> list[trimesh.Trimesh]:
    """One PBR-textured mesh per material, sorted by name, its vertices (3F, 3) float64 unmerged: flat normals."""
    gathered: dict[str, Part] = {}
    for part in parts:
        for piece in part.surfaces:
            gathered.setdefault(piece.material, []).append(piece)
    return [_mesh(name, gathered[name], skins[name]) for name in sorted(gathered)]


def _mesh(name: str, pieces: Part, skin: Skin) -> trimesh.Trimesh:
    vertices = np.concatenate([p.triangles_m for p in pieces]).reshape(-1, 3)
    uv = np.concatenate([_wrapped(p.uv_m / skin.extent_m) for p in pieces]).reshape(-1, 2)
    material = trimesh.visual.material.PBRMaterial(  # type: ignore[no-untyped-call]
        name=name,
        baseColorTexture=skin.image,
        baseColorFactor=[255, 255, 255, 255],
        metallicFactor=0.0,
        roughnessFactor=skin.roughness,
        doubleSided=True,
        alphaMode="MASK" if skin.image.mode == "RGBA" else "OPAQUE",
        alphaCutoff=0.5 if skin.image.mode == "RGBA" else None,
    )
    mesh = trimesh.Trimesh(
        vertices,
        np.arange(len(vertices)).reshape(-1, 3),
        process=False,
        visual=trimesh.visual.TextureVisuals(uv=uv, material=material),  # type: ignore[no-untyped-call]
    )
    mesh.metadata["name"] = name
    return mesh


def _wrapped(uv: Floats) -> Floats:
    """The same places near the texture's origin, where float32 keeps its precision."""
    whole: Floats = uv - np.floor(uv[:1, :1])
    return whole
