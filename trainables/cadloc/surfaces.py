"""Meshes as files have them become surfaces as renderers want them: clean, and one per appearance."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import trimesh
from numpy.typing import NDArray
from PIL import Image
from trimesh.visual import ColorVisuals, TextureVisuals
from trimesh.visual.material import PBRMaterial, SimpleMaterial

from cadloc.geometry import Array

LARGEST_TEXTURE_PX = 4096
OPAQUE_FROM = 0.5
"""Alpha from which a texel or a material is solid; below, it is a hole in colour and coordinates alike."""

_GREY = (178, 178, 178, 255)
_WHITE = (255, 255, 255, 255)
_PLAIN = np.full((1, 1, 4), 255, np.uint8)


@dataclass(frozen=True)
class Part:
    """Triangles of one appearance: the unit that is cleaned and merged.

    `normals` (V, 3) hold zeros where a vertex has none of its own (flat shading); `colours` (V, 4) uint8 belong
    to a part without texture; `key` says which parts look alike and may be merged.
    """

    vertices: Array
    faces: NDArray[np.int64]
    normals: Array
    uv: Array
    colours: NDArray[np.uint8]
    texture: Image.Image | None
    factor: tuple[int, ...]
    key: str


@dataclass(frozen=True)
class Looks:
    """Colour before light: `image` (H, W, 4) uint8 at `uv` (V, 2), v upwards, times `tint` (V, 4) in [0, 1]."""

    image: NDArray[np.uint8]
    uv: Array
    tint: Array


@dataclass(frozen=True)
class Cleaning:
    """What was taken out of a model, and what was put right, to be told to whoever owns it."""

    degenerate_faces: int
    duplicate_faces: int
    warnings: tuple[str, ...]


def surfaces_from_meshes(meshes: Sequence[trimesh.Trimesh]) -> tuple[tuple[trimesh.Trimesh, ...], Cleaning]:
    """One surface per appearance, without invisible, zero-area and repeated faces; textured ones first.

    A surface has float64 vertices, `vertex_attributes["normal"]` (zeros: shade flat) and either a `PBRMaterial`
    (doubleSided, RGBA texture of at most 4096 px or none) or vertex colours; renderers read both by `looks`. Of
    faces that coincide, in either winding, the first survives and textured ones come first: two of them in one
    place would fight for pixels.
    """
    warnings: list[str] = []
    parts = [part for mesh in meshes for part in _parts(mesh, warnings)]
    groups: dict[str, list[Part]] = {}
    for part in sorted(parts, key=lambda part: part.texture is None):
        groups.setdefault(part.key, []).append(part)
    merged = [_merged(group) for group in groups.values()]
    merged, degenerate, duplicates = _clean(merged)
    surfaces = tuple(_surface(part) for part in merged if len(part.faces))
    return surfaces, Cleaning(degenerate, duplicates, tuple(dict.fromkeys(warnings)))


def looks(surface: trimesh.Trimesh) -> Looks:
    """What a surface of a model shows, whichever way it holds its colours."""
    visual, count = surface.visual, len(surface.vertices)
    if isinstance(visual, ColorVisuals):
        return Looks(_PLAIN, np.zeros((count, 2)), np.asarray(visual.vertex_colors) / 255.0)
    assert isinstance(visual, TextureVisuals)
    assert isinstance(visual.material, PBRMaterial)
    material = visual.material
    image = _PLAIN if material.baseColorTexture is None else np.asarray(material.baseColorTexture)
    return Looks(image, np.asarray(visual.uv), np.tile(material.baseColorFactor / 255.0, (count, 1)))


def has_texture(surface: trimesh.Trimesh) -> bool:
    """Whether a surface of a model shows an image rather than one colour or its vertices' colours."""
    return looks(surface).image is not _PLAIN


def _parts(mesh: trimesh.Trimesh, warnings: list[str]) -> Iterable[Part]:
    visual = mesh.visual
    if isinstance(visual, ColorVisuals) and visual.kind == "face":
        mesh = _with_vertex_colours(mesh, visual)
        visual = mesh.visual
    texture, factor = _appearance(mesh, warnings)
    if factor[3] < OPAQUE_FROM * 255:
        warnings.append(f"{len(mesh.faces)} faces with a see-through material (alpha {factor[3]}/255) are left out")
        return
    count = len(mesh.vertices)
    colours = None
    if isinstance(visual, ColorVisuals) and visual.kind == "vertex":
        colours = np.asarray(visual.vertex_colors, np.uint8)
    yield Part(
        vertices=np.array(mesh.vertices, dtype=np.float64),
        faces=np.array(mesh.faces, dtype=np.int64),
        normals=_own_normals(mesh),
        uv=_texture_coordinates(mesh) if texture is not None else np.zeros((count, 2)),
        colours=np.full((count, 4), 255, np.uint8) if colours is None else colours,
        texture=texture,
        factor=factor,
        key="vertex colours" if colours is not None else f"{factor} {_texture_digest(texture)}",
    )


def _with_vertex_colours(mesh: trimesh.Trimesh, visual: ColorVisuals) -> trimesh.Trimesh:
    """The same triangles, no vertex shared, so that each face keeps its own colour at its three corners."""
    colours = np.repeat(visual.face_colors, 3, axis=0)
    vertices = mesh.vertices[mesh.faces].reshape(-1, 3)
    faces = np.arange(len(vertices)).reshape(-1, 3)
    return trimesh.Trimesh(vertices, faces, vertex_colors=colours, process=False)


def _appearance(mesh: trimesh.Trimesh, warnings: list[str]) -> tuple[Image.Image | None, tuple[int, ...]]:
    visual = mesh.visual
    if not isinstance(visual, TextureVisuals):
        return None, _WHITE if visual is not None and visual.kind == "vertex" else _GREY
    material = visual.material
    if isinstance(material, PBRMaterial):
        image, colour = material.baseColorTexture, material.baseColorFactor
    elif isinstance(material, SimpleMaterial):
        # Exporters leave a grey diffuse colour (trimesh: 102) beside the texture; multiplied, it darkens to 40 %.
        image, colour = material.image, None if material.image is not None else material.diffuse
    else:
        warnings.append(f"material {type(material).__name__} is not understood and drawn grey")
        return None, _GREY
    if image is not None and visual.uv is None:
        warnings.append(f"texture of {len(mesh.faces)} faces without texture coordinates is not drawn")
        image = None
    return _rgba(image, warnings), _WHITE if colour is None else _rgba_bytes(colour)


def _rgba_bytes(colour: NDArray[np.generic] | Sequence[float]) -> tuple[int, ...]:
    """RGBA as four integers in [0, 255], whether they came as bytes or as shares of one."""
    values = np.asarray(colour)
    values = values * 255 if np.issubdtype(values.dtype, np.floating) else values
    return tuple(int(round(float(v))) for v in np.append(values, 255)[:4])


def _rgba(image: Image.Image | None, warnings: list[str]) -> Image.Image | None:
    if image is None:
        return None
    if max(image.size) > LARGEST_TEXTURE_PX:
        warnings.append(f"texture of {image.size[0]}×{image.size[1]} px reduced to {LARGEST_TEXTURE_PX} px")
        image = image.convert("RGBA")
        image.thumbnail((LARGEST_TEXTURE_PX, LARGEST_TEXTURE_PX), Image.Resampling.LANCZOS)
    return image.convert("RGBA")


def _texture_digest(texture: Image.Image | None) -> str:
    if texture is None:
        return "plain"
    return f"{texture.size} {hashlib.blake2b(texture.tobytes(), digest_size=16).hexdigest()}"


def _texture_coordinates(mesh: trimesh.Trimesh) -> Array:
    assert isinstance(mesh.visual, TextureVisuals)
    return np.nan_to_num(np.asarray(mesh.visual.uv, dtype=np.float64)[:, :2], posinf=0.0, neginf=0.0)


def _own_normals(mesh: trimesh.Trimesh) -> Array:
    """Vertex normals the file came with, zeros where there are none: trimesh would invent rounded corners."""
    if "vertex_normals" not in mesh._cache.cache:  # reading the property would compute and keep them
        return np.zeros((len(mesh.vertices), 3))
    return np.nan_to_num(np.asarray(mesh.vertex_normals, dtype=np.float64), posinf=0.0, neginf=0.0)


def _merged(parts: Sequence[Part]) -> Part:
    starts = np.cumsum([0, *(len(part.vertices) for part in parts)])
    return replace(
        parts[0],
        vertices=np.concatenate([part.vertices for part in parts]),
        faces=np.concatenate([part.faces + start for part, start in zip(parts, starts[:-1], strict=True)]),
        normals=np.concatenate([part.normals for part in parts]),
        uv=np.concatenate([part.uv for part in parts]),
        colours=np.concatenate([part.colours for part in parts]),
    )


def _clean(parts: Sequence[Part]) -> tuple[list[Part], int, int]:
    """The parts without zero-area faces and repetitions, and how many there were of each."""
    triangles = [part.vertices[part.faces] for part in parts]
    solid = [_has_area(corners) for corners in triangles]
    first = first_of_its_kind(np.concatenate([c[s] for c, s in zip(triangles, solid, strict=True)]) if parts else None)
    keeps = []
    for mask in solid:
        keep, first = first[: mask.sum()], first[mask.sum() :]
        kept = mask.copy()
        kept[mask] = keep
        keeps.append(kept)
    cleaned = [replace(part, faces=part.faces[keep]) for part, keep in zip(parts, keeps, strict=True)]
    degenerate = sum(int((~mask).sum()) for mask in solid)
    kept_count = sum(int(keep.sum()) for keep in keeps)
    return cleaned, degenerate, sum(len(part.faces) for part in parts) - degenerate - kept_count


def _has_area(corners: Array) -> NDArray[np.bool_]:
    """(F,): triangles (F, 3, 3) whose area is more than rounding of their own edge lengths."""
    edges = corners[:, 1:] - corners[:, :1]
    doubled_area = np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=-1)
    longest = np.maximum((edges**2).sum(-1).max(-1), ((edges[:, 0] - edges[:, 1]) ** 2).sum(-1))
    return np.asarray(doubled_area > 1e-12 * longest)


def first_of_its_kind(corners: Array | None) -> NDArray[np.bool_]:
    """(F,): whether no earlier triangle (F, 3, 3) has exactly the same three corners, in any order."""
    if corners is None or not len(corners):
        return np.zeros(0, dtype=bool)
    _, ids = np.unique(_bytes(corners.reshape(-1, 3)), return_inverse=True)
    kinds = np.sort(ids.reshape(-1, 3), axis=1)
    _, firsts = np.unique(_bytes(kinds), return_index=True)
    first = np.zeros(len(corners), dtype=bool)
    first[firsts] = True
    return first


def _bytes(rows: NDArray[np.generic]) -> NDArray[np.void]:
    """Rows (N, D) as one opaque item each: comparing bytes is many times faster than comparing rows."""
    rows = np.ascontiguousarray(rows + 0)  # -0.0 becomes 0.0: the same point must have the same bytes
    return rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))).ravel()


def _surface(part: Part) -> trimesh.Trimesh:
    used, faces = np.unique(part.faces, return_inverse=True)
    return trimesh.Trimesh(
        vertices=part.vertices[used],
        faces=faces.reshape(-1, 3),
        vertex_attributes={"normal": part.normals[used]},
        visual=_visual(part, used),
        process=False,
    )


def _visual(part: Part, used: NDArray[np.int64]) -> ColorVisuals | TextureVisuals:
    if part.key == "vertex colours":
        return ColorVisuals(vertex_colors=part.colours[used])
    factor = np.array(part.factor, np.uint8)
    material = PBRMaterial(baseColorFactor=factor, baseColorTexture=part.texture, doubleSided=True)  # type: ignore[no-untyped-call]
    return TextureVisuals(uv=part.uv[used], material=material)  # type: ignore[no-untyped-call]
