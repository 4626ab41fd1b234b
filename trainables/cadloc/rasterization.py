"""The drawing itself: one pass gives colour and scene coordinates. Needs a current context (`cadloc.opengl`)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from importlib import resources
from typing import Any

import numpy as np
import pyrender
import trimesh
from OpenGL import GL
from OpenGL.platform import PLATFORM
from pyrender.texture import Texture

from cadloc.cad import CadModel
from cadloc.contract import MissingSystemLibrary
from cadloc.framebuffers import check_complete
from cadloc.geometry import Array
from cadloc.surfaces import OPAQUE_FROM, looks

SHADOW_MAP_PX = 2048
_LOWER_LEFT, _ZERO_TO_ONE = 0x8CA1, 0x935F


class Program:
    """A shader program with its uniforms' places looked up once."""

    def __init__(self, vertex: str, fragment: str) -> None:
        self._id = GL.glCreateProgram()
        for kind, name in ((GL.GL_VERTEX_SHADER, vertex), (GL.GL_FRAGMENT_SHADER, fragment)):
            GL.glAttachShader(self._id, _compiled(kind, name))
        GL.glLinkProgram(self._id)
        if not GL.glGetProgramiv(self._id, GL.GL_LINK_STATUS):
            log = _log(GL.glGetProgramInfoLog(self._id))
            raise MissingSystemLibrary(f"the OpenGL driver rejects {vertex} + {fragment}: {log}")
        self._places: dict[str, int] = {}

    def use(self) -> None:
        """Makes this the program that draws."""
        GL.glUseProgram(self._id)

    def set(self, name: str, value: Any) -> None:
        """Uniform `name` of the program in use: a bool or int, a float, a vector (3,) or (4,), a matrix (4, 4)."""
        if name not in self._places:
            self._places[name] = GL.glGetUniformLocation(self._id, name)
            assert self._places[name] >= 0, f"no uniform {name}"
        place = self._places[name]
        if isinstance(value, int):
            GL.glUniform1i(place, value)
            return
        array = np.ascontiguousarray(value, dtype=np.float32)
        if array.shape == (4, 4):
            GL.glUniformMatrix4fv(place, 1, GL.GL_TRUE, array)
        else:
            {1: GL.glUniform1fv, 3: GL.glUniform3fv, 4: GL.glUniform4fv}[array.size](place, 1, array)


class UploadedModel:
    """A model in the driver's memory, positions relative to `centre` so that float32 suffices, and its shadow map."""

    def __init__(self, model: CadModel) -> None:
        self.model = model  # keeps the model alive: renderers know models by identity
        self.centre: Array = model.centre
        self.primitives = [_primitive(surface, self.centre) for surface in model.surfaces]
        for primitive in self.primitives:
            primitive._add_to_context()
            primitive.material.baseColorTexture._add_to_context()
        self._shadow_map: ShadowMap | None = None

    def draw(self, program: Program) -> None:
        """Draws every surface with the program in use."""
        program.set("base_texture", 0)
        program.set("opaque_from", OPAQUE_FROM)
        GL.glActiveTexture(GL.GL_TEXTURE0)
        for primitive in self.primitives:
            primitive.material.baseColorTexture._bind()
            primitive._bind()
            GL.glDrawElements(GL.GL_TRIANGLES, primitive.indices.size, GL.GL_UNSIGNED_INT, None)
        GL.glBindVertexArray(0)

    def shadow_map(self, sun_unit: Array, program: Program) -> ShadowMap:
        """The map for this direction of the sun; the last one is kept."""
        if self._shadow_map is None or not np.array_equal(self._shadow_map.sun_unit, sun_unit):
            if self._shadow_map is None:
                self._shadow_map = ShadowMap()
            self._shadow_map.draw(self, sun_unit, program)
        return self._shadow_map

    def delete(self) -> None:
        """Frees the driver's memory."""
        for primitive in self.primitives:
            primitive._remove_from_context()
            primitive.material.baseColorTexture._remove_from_context()
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

    def draw(self, uploaded: UploadedModel, sun_unit: Array, program: Program) -> None:
        """Draws the map anew for one direction towards the sun."""
        self.map_from_model, self.texel_m = map_from_model(uploaded.model.mesh.vertices - uploaded.centre, sun_unit)
        self.sun_unit = sun_unit
        clip_from_map = np.diag([2.0, 2.0, 1.0, 1.0])
        clip_from_map[:2, 3] = -1.0
        GL.glBindFramebuffer(GL.GL_FRAMEBUFFER, self._framebuffer)
        GL.glViewport(0, 0, SHADOW_MAP_PX, SHADOW_MAP_PX)
        GL.glClearDepth(1.0)
        GL.glDepthFunc(GL.GL_LESS)
        GL.glClear(GL.GL_DEPTH_BUFFER_BIT)
        program.use()
        program.set("clip_from_model", clip_from_map @ self.map_from_model)
        uploaded.draw(program)

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


def _primitive(surface: trimesh.Trimesh, centre: Array) -> pyrender.Primitive:
    """Always with normals, texture coordinates and colours, so that one program draws everything."""
    shown = looks(surface)
    return pyrender.Primitive(
        positions=surface.vertices - centre,
        normals=surface.vertex_attributes["normal"],
        texcoord_0=shown.uv,
        color_0=shown.tint,
        indices=surface.faces,
        material=pyrender.MetallicRoughnessMaterial(
            baseColorTexture=Texture(source=shown.image, source_channels="RGBA")
        ),
    )


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


def _compiled(kind: int, name: str) -> int:
    shader = GL.glCreateShader(kind)
    GL.glShaderSource(shader, resources.files("cadloc").joinpath("shaders", name).read_text())
    GL.glCompileShader(shader)
    if not GL.glGetShaderiv(shader, GL.GL_COMPILE_STATUS):
        raise MissingSystemLibrary(f"the OpenGL driver rejects {name}: {_log(GL.glGetShaderInfoLog(shader))}")
    return int(shader)


def _log(text: bytes | str) -> str:
    return " ".join((text.decode(errors="replace") if isinstance(text, bytes) else text).split())
