"""Views of a CAD model: colour image, exact scene coordinates and mask, by OpenGL or by ray casting."""

from __future__ import annotations

import ctypes
import gc
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol, assert_never

import numpy as np
from numpy.typing import NDArray

from cadloc.cad import CadModel
from cadloc.geometry import Array, inverse

if TYPE_CHECKING:  # needs libGL: imported when the first Renderer has checked for it
    from cadloc.framebuffers import Target
    from cadloc.rasterization import UploadedModel

NEAR_M = 0.1
"""Surfaces closer to the image plane than this are not seen. Depth precision does not depend on it (reversed depth)."""

GROUND_BOUNCE = 0.2
"""Share of the ambient light that a surface gains by facing the sky, and loses by facing the ground."""

_MODELS_KEPT = 3
_SHADOWS = frozenset({"SHADOWS"})
_kept = threading.local()


@dataclass(frozen=True)
class Light:
    """A sun and a sky; colours are RGB factors on the texture, in display space.

    `sun_direction` (3,) points from the scene towards the sun, any length. A wall that faces the sun
    unshadowed shows its texture times `ambient_colour + sun_colour`.
    """

    sun_direction: tuple[float, float, float] = (-0.47, -0.66, 0.58)
    sun_colour: tuple[float, float, float] = (0.62, 0.59, 0.53)
    ambient_colour: tuple[float, float, float] = (0.48, 0.50, 0.54)
    shadows: bool = False

    @property
    def sun_unit(self) -> Array:
        """`sun_direction` at length 1; raises ValueError for the zero vector."""
        direction = np.asarray(self.sun_direction, dtype=np.float64)
        length = np.linalg.norm(direction)
        if not length > 0:
            raise ValueError("sun_direction is the zero vector")
        return np.asarray(direction / length)


@dataclass(frozen=True, eq=False)
class Rendering:
    """One view: `image` (H, W, 3) uint8 RGB, black where `mask` (H, W) is False, for nothing was hit there.

    `points` (H, W, 3) are the surface points in metres minus `eye` (3,), `cad` axes; anything where nothing was hit.
    """

    image: NDArray[np.uint8]
    points: NDArray[np.float32]
    mask: NDArray[np.bool_]
    eye: Array = field(default_factory=lambda: np.zeros(3))

    @cached_property
    def scene_coordinates(self) -> NDArray[np.float32]:
        """(H, W, 3) metres in `cad`: the surface point seen through the pixel's centre, zeros outside the mask."""
        sums = np.empty((*self.mask.shape, 3), np.float32)
        for axis in range(3):  # in float64, rounded once; one axis at a time: rows of three are slow to walk along
            np.add(self.points[..., axis], self.eye[axis], out=sums[..., axis], dtype=np.float64, casting="same_kind")
        sums[~self.mask] = 0.0
        return sums

    def every_second(self) -> Rendering:
        """Every second pixel of every second row, the first ones left out."""
        return Rendering(self.image[1::2, 1::2], self.points[1::2, 1::2], self.mask[1::2, 1::2], self.eye)


class ViewRenderer(Protocol):
    """What both backends are."""

    def render(
        self,
        model: CadModel,
        cad_from_cam: Array,
        intrinsics: Array,
        width_px: int,
        height_px: int,
        light: Light,
        *,
        colour_samples: int = 0,
    ) -> Rendering:
        """The model from one camera. `colour_samples` > 0 smooths colour only: coordinates stay at pixel centres."""
        ...


def depth_m(rendering: Rendering, cad_from_cam: Array) -> NDArray[np.float32]:
    """Depth z along the optical axis (H, W) in metres; 0 where nothing was hit."""
    forward = inverse(cad_from_cam)[2]
    z = rendering.scene_coordinates @ forward[:3] + forward[3]
    return np.where(rendering.mask, z, 0.0).astype(np.float32)


class Renderer:
    """Renders with OpenGL in one context of its own, kept until `close` or the end of the `with` block.

    Models are uploaded once and the last few stay, as long as somebody has them; sizes may differ from call to call.
    It belongs to the thread that made it; a process that forks must not have one yet (spawned, as Ray's, are fine).
    """

    def __init__(self) -> None:
        from cadloc import opengl

        self._platform = opengl.open_context()
        self._thread = threading.get_ident()
        from cadloc import framebuffers, rasterization, shader_programs

        self._gl, self._buffers = rasterization, framebuffers
        rasterization.set_state()
        self._view = shader_programs.Programs("view.vert", "view.frag")
        self._shadow = shader_programs.Programs("shadow.vert", "shadow.frag")
        self._targets = framebuffers.Targets()
        self._models: OrderedDict[int, UploadedModel] = OrderedDict()

    @property
    def device(self) -> str:
        """What draws, in the driver's words."""
        self._make_current()
        return self._gl.device()

    def render(
        self,
        model: CadModel,
        cad_from_cam: Array,
        intrinsics: Array,
        width_px: int,
        height_px: int,
        light: Light,
        *,
        colour_samples: int = 0,
    ) -> Rendering:
        """See `ViewRenderer.render`; `colour_samples` is the number of multisamples, 4 for smooth edges."""
        self._make_current()
        uploaded = self._uploaded(model)
        eye = np.asarray(cad_from_cam, dtype=np.float64)[:3, 3]
        uniforms = self._uniforms(uploaded, eye, clip_from_eye(cad_from_cam, intrinsics, width_px, height_px), light)
        target = self._targets.get(width_px, height_px, 0, positions=True)
        self._draw(uploaded, uniforms, target, width_px, height_px)
        positions = self._buffers.read_positions(target, width_px, height_px)
        if colour_samples:
            target = self._smooth(uploaded, uniforms, width_px, height_px, colour_samples)
        image = self._buffers.read_colour(target, width_px, height_px)
        return Rendering(image, positions[..., :3], positions[..., 3] > 0.5, eye)

    def close(self) -> None:
        """Frees the context and all it holds."""
        from cadloc import opengl

        opengl.close_context(self._platform)

    def __enter__(self) -> Renderer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _make_current(self) -> None:
        if threading.get_ident() != self._thread:
            raise ValueError("a Renderer belongs to the thread that made it; make one per thread")
        self._platform.make_current()

    def _uploaded(self, model: CadModel) -> UploadedModel:
        self._forget_gone()  # before the look-up: a new model may have the identity of one that is gone
        if id(model) not in self._models:
            self._models[id(model)] = self._gl.UploadedModel(model)
        self._models.move_to_end(id(model))
        while len(self._models) > _MODELS_KEPT:
            self._models.popitem(last=False)[1].delete()
        return self._models[id(model)]

    def _forget_gone(self) -> None:
        gone = [key for key, uploaded in self._models.items() if not uploaded.is_needed]
        for key in gone:
            self._models.pop(key).delete()
        if gone:
            _give_memory_back()

    def _uniforms(self, uploaded: UploadedModel, eye: Array, clip_from_eye: Array, light: Light) -> dict[str, Any]:
        """What the shaders need to know of camera and light; draws the sun's map and binds it, where it is new."""
        uniforms = {
            "eye": eye - uploaded.centre,
            "clip_from_eye": clip_from_eye,
            "sun_direction": light.sun_unit,
            "sun_colour": light.sun_colour,
            "ambient_colour": light.ambient_colour,
            "ground_bounce": GROUND_BOUNCE,
        }
        if not light.shadows:
            return uniforms
        shadow_map = uploaded.shadow_map(light.sun_unit, self._shadow)
        shadow_map.bind(1)
        model_from_eye = np.eye(4)
        model_from_eye[:3, 3] = eye - uploaded.centre
        shadow_from_eye = shadow_map.map_from_model @ model_from_eye
        return uniforms | {
            "shadow_map": 1,
            "shadow_from_eye": shadow_from_eye,
            "shadow_texel_m": shadow_map.texel_m,
        }

    def _draw(
        self, uploaded: UploadedModel, uniforms: Mapping[str, Any], target: Target, width_px: int, height_px: int
    ) -> None:
        self._buffers.clear(target, width_px, height_px)
        uploaded.draw(self._view, uniforms, _SHADOWS if "shadow_map" in uniforms else frozenset())

    def _smooth(
        self, uploaded: UploadedModel, uniforms: Mapping[str, Any], width_px: int, height_px: int, samples: int
    ) -> Target:
        """A second pass, colour only, with several samples per pixel."""
        multisampled = self._targets.get(width_px, height_px, samples, positions=False)
        self._draw(uploaded, uniforms, multisampled, width_px, height_px)
        resolved = self._targets.get(width_px, height_px, 0, positions=False, depth=False)
        self._buffers.resolve(multisampled, resolved, width_px, height_px)
        return resolved


def process_renderer(backend: Literal["gl", "raycasting"] = "gl") -> ViewRenderer:
    """The renderer of this process and thread, made at the first call and kept."""
    renderers: dict[str, ViewRenderer] = _kept.__dict__.setdefault("renderers", {})
    if backend not in renderers:
        renderers[backend] = _new_renderer(backend)
    return renderers[backend]


def clip_from_eye(cad_from_cam: Array, intrinsics: Array, width_px: int, height_px: int) -> Array:
    """Projection (4, 4) of positions relative to the camera centre, `cad` axes, onto OpenGL's clip space.

    OpenGL's window has row 0 at the bottom; the image's row 0 goes there, so that what is read back lies the right
    way up and the camera stays OpenCV's. Pixel centres are at +0.5 in both. Depth is reversed, NEAR_M / z: float32
    then resolves all distances alike (Reed 2015, "Depth precision visualized"), and there is no far plane.
    """
    clip_from_pixel = np.array(
        [[2.0 / width_px, 0, -1, 0], [0, 2.0 / height_px, -1, 0], [0, 0, 0, NEAR_M], [0, 0, 1, 0]]
    )
    pixel_from_cam = np.eye(4)
    pixel_from_cam[:3, :3] = intrinsics
    cam_from_eye = np.eye(4)
    cam_from_eye[:3, :3] = np.asarray(cad_from_cam, dtype=np.float64)[:3, :3].T
    return clip_from_pixel @ pixel_from_cam @ cam_from_eye


def _new_renderer(backend: Literal["gl", "raycasting"]) -> ViewRenderer:
    match backend:
        case "gl":
            return Renderer()
        case "raycasting":
            from cadloc.raycasting import RayCastingRenderer

            return RayCastingRenderer()
        case _:
            assert_never(backend)


def _give_memory_back() -> None:
    """What models that are gone have left. Without it a process that draws many grows by gigabytes.

    Meshes and their looks refer to each other, so that only the collector of cycles frees them; and the C library keeps
    for itself what was freed in between other pieces.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc's
        trim(0)
