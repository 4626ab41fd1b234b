"""The drawing itself: one pass gives colour and scene coordinates. Needs a current context (`cadloc.opengl`)."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyrender
import trimesh
from numpy.typing import NDArray
from OpenGL import GL
from OpenGL.platform import PLATFORM
from pyrender.texture import Texture

from cadloc.cad import CadModel
from cadloc.contract import MissingSystemLibrary
from cadloc.framebuffers import check_complete
from cadloc.geometry import Array
from cadloc.shader_programs import Programs
from cadloc.surfaces import OPAQUE_FROM, Looks, looks

SHADOW_MAP_PX = 2048
OPAQUE_FROM_DEFINE = f"OPAQUE_FROM {OPAQUE_FROM}"
_LOWER_LEFT, _ZERO_TO_ONE = 0x8CA1, 0x935F


@dataclass(frozen=True, eq=False)
class UploadedSurface:
    """Triangles of one appearance in the driver's memory, and the variant of the shaders that draws them."""

    primitive: pyrender.Primitive
    indices: int
    defines: frozenset[str]

    @classmethod
    def of(cls, surface: trimesh.Trimesh, centre: Array) -> UploadedSurface:
        """A surface of a model, positions relative to `centre`."""
        shown = looks(surface)
        normals = np.asarray(surface.vertex_attributes["normal"])
        primitive = _primitive(surface, shown, normals, centre)
        primitive._add_to_context()
        texture = primitive.material.baseColorTexture
        texture._add_to_context()
        texture._source = None  # pyrender's own copy of the image: as large as the driver's
        return cls(primitive, primitive.indices.size, defines_of(shown, normals))

    def draw(self) -> None:
        """Draws with the program in use."""
        self.primitive.material.baseColorTexture._bind()
        self.primitive._bind()
        GL.glDrawElements(GL.GL_TRIANGLES, self.indices, GL.GL_UNSIGNED_INT, None)

    def delete(self) -> None:
        """Frees the driver's memory."""
        self.primitive._remove_from_context()
        self.primitive.material.baseColorTexture._remove_from_context()


class UploadedModel:
    """A model in the driver's memory, positions relative to `centre` so that float32 suffices, and its shadow map.

    It does not keep the model alive: `is_needed` tells when that is gone.
    """

    def __init__(self, model: CadModel) -> None:
        self._model = weakref.ref(model)
        self.centre: Array = model.centre
        self.positions: Array = model.mesh.vertices - self.centre
        self.surfaces = [UploadedSurface.of(surface, self.centre) for surface in model.surfaces]
        self._shadow_map: ShadowMap | None = None

    @property
    def is_needed(self) -> bool:
        """Whether anybody still has the model."""
        return self._model() is not None

    def draw(self, programs: Programs, uniforms: Mapping[str, Any], defines: frozenset[str] = frozenset()) -> None:
        """Draws every surface, in order, with the variant of the programs for it and for `defines`."""
        current, ready = None, set()
        for surface in self.surfaces:
            variant = surface.defines | defines
            if variant != current:
                programs.get(variant).use()
                current = variant
            if variant not in ready:
                for name, value in {"base_texture": 0, **uniforms}.items():
                    programs.get(variant).set(name, value)
                ready.add(variant)
            GL.glActiveTexture(GL.GL_TEXTURE0)
            surface.draw()
        GL.glBindVertexArray(0)

    def shadow_map(self, sun_unit: Array, programs: Programs) -> ShadowMap:
        """The map for this direction of the sun; the last one is kept."""
        if self._shadow_map is None or not np.array_equal(self._shadow_map.sun_unit, sun_unit):
            if self._shadow_map is None:
                self._shadow_map = ShadowMap()
            self._shadow_map.draw(self, sun_unit, programs)
        return self._shadow_map

    def delete(self) -> None:
        """Frees the driver's memory."""
        for surface in self.surfaces:
            surface.delete()
        if self._shadow_map is not None:
            self._shadow_map.delete()


class ShadowMap:
    """What the sun sees of a model: depth along its rays, in a frame drawn tightly about the model."""

    def __init__(self) -> None:
        self.sun_unit: Array = np.zeros(3)
        self.map_from_model: Array = np.eye(4)
        self.texel_m = 0.0
        self.texture = int(GL.glGenTextures(1))
        self._framebuffer = int(GL.glGenFramebuffers(1))
        GL.glBindTexture(GL.GL_TEXTURE_2D, self.texture)
        size = (SHADOW_MAP_PX, SHADOW_MAP_PX)
        GL.glTexImage2D(
            GL.GL_TEXTURE_2D, 0, GL.GL_DEPTH_COMPONENT32F, *size, 0, GL.GL_DEPTH_COMPONENT, GL.GL_FLOAT, None
        )
        for parameter, value in _SHADOW_SAMPLING.items():
            GL.glTexParameteri(GL.GL_TEXTURE_2D, parameter, value)
        GL.glBindFramebuffer(GL.GL_FRAMEBUFFER, self._framebuffer)
        GL.glFramebufferTexture2D(GL.GL_FRAMEBUFFER, GL.GL_DEPTH_ATTACHMENT, GL.GL_TEXTURE_2D, self.texture, 0)
        GL.glDrawBuffer(GL.GL_NONE)
        check_complete()

    def bind(self, unit: int) -> None:
        """Makes the map readable by the texture unit of this number."""
        GL.glActiveTexture(GL.GL_TEXTURE0 + unit)
        GL.glBindTexture(GL.GL_TEXTURE_2D, self.texture)

    def draw(self, uploaded: UploadedModel, sun_unit: Array, programs: Programs) -> None:
        """Draws the map anew for one direction towards the sun."""
        self.map_from_model, self.texel_m = map_from_model(uploaded.positions, sun_unit)
        self.sun_unit = sun_unit
        clip_from_map = np.diag([2.0, 2.0, 1.0, 1.0])
        clip_from_map[:2, 3] = -1.0
        GL.glBindFramebuffer(GL.GL_FRAMEBUFFER, self._framebuffer)
        GL.glViewport(0, 0, SHADOW_MAP_PX, SHADOW_MAP_PX)
        GL.glClearDepth(1.0)
        GL.glDepthFunc(GL.GL_LESS)
        GL.glClear(GL.GL_DEPTH_BUFFER_BIT)
        uploaded.draw(programs, {"clip_from_model": clip_from_map @ self.map_from_model})

    def delete(self) -> None:
        """Frees the driver's memory."""
        GL.glDeleteFramebuffers(1, [self._framebuffer])
        GL.glDeleteTextures([self.texture])


_SHADOW_SAMPLING = {
    GL.GL_TEXTURE_MIN_FILTER: GL.GL_LINEAR,
    GL.GL_TEXTURE_MAG_FILTER: GL.GL_LINEAR,
    GL.GL_TEXTURE_WRAP_S: GL.GL_CLAMP_TO_EDGE,
    GL.GL_TEXTURE_WRAP_T: GL.GL_CLAMP_TO_EDGE,
    GL.GL_TEXTURE_COMPARE_MODE: GL.GL_COMPARE_REF_TO_TEXTURE,
    GL.GL_TEXTURE_COMPARE_FUNC: GL.GL_LEQUAL,
}


def map_from_model(points: Array, sun_unit: Array) -> tuple[Array, float]:
    """Orthographic `map_from_model` (4, 4) that fills [0, 1]³ with points (N, 3), z growing away from the sun.

    Also returns the larger side of a texel in metres.
    """
    side = np.cross(sun_unit, [0.0, 0.0, 1.0] if abs(sun_unit[2]) < 0.9 else [1.0, 0.0, 0.0])
    side /= np.linalg.norm(side)
    axes = np.stack([side, np.cross(sun_unit, side), -sun_unit])
    seen = points @ axes.T
    lowest, extent = seen.min(axis=0), np.maximum(np.ptp(seen, axis=0), 1e-3)
    lowest, extent = lowest - 0.01 * extent, 1.02 * extent
    transform = np.eye(4)
    transform[:3, :3] = axes / extent[:, None]
    transform[:3, 3] = -lowest / extent
    return transform, float(extent[:2].max() / SHADOW_MAP_PX)


def set_state() -> None:
    """What holds for every pass: both sides drawn, depth in [0, 1] as a float, rows read without padding.

    Raises MissingSystemLibrary for a driver without clip control (OpenGL 4.5; every Mesa and GPU driver in use).
    """
    _clip_control()(_LOWER_LEFT, _ZERO_TO_ONE)
    GL.glEnable(GL.GL_DEPTH_TEST)
    GL.glDisable(GL.GL_CULL_FACE)
    GL.glPixelStorei(GL.GL_PACK_ALIGNMENT, 1)


def device() -> str:
    """The driver's name for what draws: `llvmpipe (…)` is the CPU."""
    return str(GL.glGetString(GL.GL_RENDERER).decode())


def _primitive(surface: trimesh.Trimesh, shown: Looks, normals: Array, centre: Array) -> pyrender.Primitive:
    """Always with normals, texture coordinates and colours, so that all programs find them in the same places.

    Vertices that are alike in all of these are one, and computed once: faces shaded flat share those of their plane.
    """
    told = np.hstack([surface.vertices - centre, normals, shown.uv, shown.tint])
    rows, kept = _distinct(np.ascontiguousarray(told, dtype=np.float32))
    return pyrender.Primitive(
        positions=rows[:, :3],
        normals=rows[:, 3:6],
        texcoord_0=rows[:, 6:8],
        color_0=rows[:, 8:],
        indices=kept[surface.faces],
        material=pyrender.MetallicRoughnessMaterial(
            baseColorTexture=Texture(source=shown.image, source_channels="RGBA")
        ),
    )


def _distinct(rows: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """Rows (N, D) without repetition, in the order in which they come first, and where each of the N is among them."""
    as_bytes = rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))).ravel()
    _, first, kind = np.unique(as_bytes, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return rows[first[order]], np.argsort(order)[kind.ravel()]


def defines_of(shown: Looks, normals: Array) -> frozenset[str]:
    """What the shaders of a surface must heed: holes, where alpha comes near the limit, and normals of its own."""
    least_alpha = float(shown.image[..., 3].min()) / 255 * float(shown.tint[:, 3].min())
    holes = least_alpha < OPAQUE_FROM + 2 / 255  # filtering may take a step of 8 bits
    return frozenset(({OPAQUE_FROM_DEFINE} if holes else set()) | ({"NORMALS"} if normals.any() else set()))


def _clip_control() -> Callable[[int, int], None]:
    """`glClipControl`, which PyOpenGL 3.1.0 does not wrap."""
    count = GL.glGetIntegerv(GL.GL_NUM_EXTENSIONS)
    names = {GL.glGetStringi(GL.GL_EXTENSIONS, index) for index in range(count)}
    if b"GL_ARB_clip_control" not in names:
        raise MissingSystemLibrary(
            f"OpenGL driver {device()!r} lacks ARB_clip_control; use a newer one, or views: {{backend: raycasting}}"
        )
    address = ctypes.cast(PLATFORM.getExtensionProcedure(b"glClipControl"), ctypes.c_void_p).value
    assert address is not None
    return ctypes.CFUNCTYPE(None, ctypes.c_uint, ctypes.c_uint)(address)
