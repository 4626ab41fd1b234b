"""Colours of surface points without OpenGL: textures with mip levels, and the light of `cadloc.rendering`."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from cadloc.cad import CadModel
from cadloc.geometry import Array
from cadloc.rendering import GROUND_BOUNCE, Light
from cadloc.surfaces import looks

_LEVELS = 14


@dataclass(frozen=True)
class Fragments:
    """N surface points seen by a camera: faces of `model.mesh` and barycentric weights (N, 3) in them.

    `facing` (N, 3) is the face's unit normal turned towards the viewer; `footprint_m` (N,) how far one pixel
    reaches along the surface.
    """

    triangle: NDArray[np.int64]
    weights: Array
    facing: Array
    footprint_m: Array


class Materials:
    """A model's looks in flat tables: one row per vertex, face or surface, all textures end to end."""

    def __init__(self, model: CadModel) -> None:
        surfaces = model.surfaces
        self._faces = np.asarray(model.mesh.faces)
        self._surface = np.repeat(np.arange(len(surfaces)), [len(surface.faces) for surface in surfaces])
        self._normals = np.concatenate([surface.vertex_attributes["normal"] for surface in surfaces])
        shown = [looks(surface) for surface in surfaces]
        self._uv = np.concatenate([look.uv for look in shown])
        self._tint = np.concatenate([look.tint for look in shown])
        self._texels, self._offsets, self._sizes = _pyramids([look.image for look in shown])
        self._texels_per_m = self._density(model)
        self.has_holes = any((look.image[..., 3] < 255).any() for look in shown)

    def albedo(self, fragments: Fragments) -> Array:
        """Colour and alpha (N, 4) in [0, 1] before light: factor × texture, filtered between two mip levels."""
        surface = self._surface[fragments.triangle]
        uv = self._interpolated(self._uv, fragments)
        texels = self._texels_per_m[fragments.triangle] * fragments.footprint_m
        level = np.clip(np.log2(np.maximum(texels, 1.0)), 0, _LEVELS - 1)
        fine = level.astype(int)
        coarse = np.minimum(fine + 1, _LEVELS - 1)
        share = (level - fine)[:, None]
        texture = (1 - share) * self._bilinear(surface, fine, uv) + share * self._bilinear(surface, coarse, uv)
        return np.asarray(texture * self._interpolated(self._tint, fragments))

    def lit(self, albedo: Array, fragments: Fragments, light: Light, sunlit: NDArray[np.bool_]) -> NDArray[np.uint8]:
        """RGB (N, 3) of fragments under a light; `sunlit` (N,) says which see the sun."""
        normal = self._shading_normals(fragments)
        sky = 1 + GROUND_BOUNCE * normal[:, 2:]
        sun = np.maximum(normal @ light.sun_unit, 0.0) * sunlit
        factor = np.asarray(light.ambient_colour) * sky + np.asarray(light.sun_colour) * sun[:, None]
        return np.asarray(np.rint(255 * np.clip(albedo[:, :3] * factor, 0.0, 1.0)), dtype=np.uint8)

    def _shading_normals(self, fragments: Fragments) -> Array:
        """The vertices' own normals where a surface has them, else the face's; always on the viewer's side."""
        own = self._interpolated(self._normals, fragments)
        length = np.linalg.norm(own, axis=-1, keepdims=True)
        smooth = np.where(length > 0.5, own / np.maximum(length, 1e-12), fragments.facing)
        towards = np.einsum("ni,ni->n", smooth, fragments.facing)[:, None]
        return np.where(towards < 0, -smooth, smooth)

    def _interpolated(self, per_vertex: Array, fragments: Fragments) -> Array:
        corners = per_vertex[self._faces[fragments.triangle]]
        return np.asarray(np.einsum("nk,nkc->nc", fragments.weights, corners))

    def _bilinear(self, surface: NDArray[np.int64], level: NDArray[np.int64], uv: Array) -> Array:
        """Texture values (N, 4) in [0, 1]; coordinates repeat, v grows upwards."""
        height, width = self._sizes[surface, level].T
        column, row = uv[:, 0] * width - 0.5, (1 - uv[:, 1]) * height - 0.5
        left, top = np.floor(column).astype(np.int64), np.floor(row).astype(np.int64)
        x, y = (column - left)[:, None], (row - top)[:, None]
        offset = self._offsets[surface, level]

        def at(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Array:
            return np.asarray(self._texels[offset + rows % height * width + columns % width] / 255.0)

        upper = (1 - x) * at(top, left) + x * at(top, left + 1)
        lower = (1 - x) * at(top + 1, left) + x * at(top + 1, left + 1)
        return np.asarray((1 - y) * upper + y * lower)

    def _density(self, model: CadModel) -> Array:
        """Texels per metre on each face (F,), the geometric mean over directions."""
        uv = self._uv[self._faces]
        a, b = uv[:, 1] - uv[:, 0], uv[:, 2] - uv[:, 0]
        area_uv = 0.5 * np.abs(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0])
        pixels = self._sizes[self._surface, 0].prod(axis=1)
        return np.asarray(np.sqrt(area_uv * pixels / np.maximum(model.mesh.area_faces, 1e-12)))


def _pyramids(images: list[NDArray[np.uint8]]) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """All mip levels of all images as rows of RGBA, with offset (S, L) and height and width (S, L, 2) of each."""
    chunks, offsets, sizes, position = [], [], [], 0
    for image in images:
        for _ in range(_LEVELS):
            chunks.append(image.reshape(-1, 4))
            offsets.append(position)
            sizes.append(image.shape[:2])
            position += len(chunks[-1])
            half = (max(1, image.shape[1] // 2), max(1, image.shape[0] // 2))
            image = np.asarray(cv2.resize(image, half, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    shape = (len(images), _LEVELS)
    return np.concatenate(chunks), np.reshape(offsets, shape), np.reshape(sizes, (*shape, 2))
