"""An OpenGL context without a window: system libraries checked first, then pyrender's EGL or OSMesa platform."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import sys
import types
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from cadloc.contract import MissingSystemLibrary

GlPlatform: TypeAlias = Any
"""`pyrender.platforms.base.Platform`: a type that cannot be imported where there is no libGL."""

_LIBRARIES = {"egl": ("EGL", "GL"), "osmesa": ("OSMesa",)}
_EGL_EXTENSIONS, _EGL_CUDA_DEVICE = 0x3055, 0x323A
_PACKAGES = {"egl": "libegl1 libgl1", "osmesa": "libosmesa6"}


def check_graphics() -> None:
    """Passes when the system libraries of headless OpenGL can be loaded; touches no OpenGL state.

    Raises MissingSystemLibrary, naming the libraries and the command that installs them.
    """
    platform = _platform_name()
    missing = [name for name in _LIBRARIES[platform] if not _loads(name)]
    if missing:
        names = ", ".join(f"lib{name}" for name in missing)
        raise MissingSystemLibrary(
            f"headless OpenGL ({platform}) needs {names}, not found on this system; install with: "
            f"apt-get install -y --no-install-recommends {_PACKAGES[platform]}; "
            "or render without OpenGL, slower: views: {backend: raycasting}"
        )


def open_context() -> GlPlatform:
    """A new context, current in this thread. It belongs to this thread; `close_context` ends it.

    EGL takes the device with index EGL_DEVICE_ID, else the first that gives a context, in `device_order`. Raises
    MissingSystemLibrary when there is none.
    """
    check_graphics()
    prepare_pyrender()
    if _platform_name() == "osmesa":
        return _opened(_osmesa_platform())
    return _first_opened(_egl_platforms())


def close_context(platform: GlPlatform) -> None:
    """Ends one context, others of the process unharmed."""
    platform.delete_context()


def prepare_pyrender() -> None:
    """Makes `import pyrender` work headless with current NumPy and Python; call before the first import.

    pyrender 0.1.45 wants `np.infty` (gone in NumPy 2) and imports its viewer, and with it X11 libraries; PyOpenGL
    3.1.0, which it pins, does not know where ctypes keeps its argument type since Python 3.12.
    """
    os.environ.setdefault("PYOPENGL_PLATFORM", "egl")
    if not hasattr(np, "infty"):
        np.infty = np.inf  # type: ignore[attr-defined]
    if "pyrender.viewer" not in sys.modules:
        viewer = types.ModuleType("pyrender.viewer")
        viewer.Viewer = None  # type: ignore[attr-defined]
        sys.modules["pyrender.viewer"] = viewer
    if sys.version_info >= (3, 12):
        from OpenGL.plugins import FormatHandler

        handler = "OpenGL.arrays.ctypesparameters.CtypesParameterHandler"
        FormatHandler("ctypesparameter", handler, ["_ctypes.CArgObject"], isOutput=True)


def _platform_name() -> str:
    name = os.environ.get("PYOPENGL_PLATFORM", "egl")
    if name not in _LIBRARIES:
        raise MissingSystemLibrary(f"PYOPENGL_PLATFORM={name!r} is not supported; set it to egl or osmesa, or unset it")
    return name


def _loads(name: str) -> bool:
    found = ctypes.util.find_library(name)
    if found is None:
        return False
    try:
        ctypes.CDLL(found)
    except OSError:
        return False
    return True


def _egl_platforms() -> list[GlPlatform]:
    from pyrender.platforms.egl import EGLPlatform, query_devices

    class SharedDisplayPlatform(EGLPlatform):
        """EGL whose contexts do not end each other: pyrender terminates the display that all of them share."""

        _egl_context: Any

        def delete_context(self) -> None:
            from OpenGL.EGL import EGL_NO_CONTEXT, EGL_NO_SURFACE, eglDestroyContext, eglMakeCurrent

            if self._egl_context is not None:
                eglMakeCurrent(self._egl_display, EGL_NO_SURFACE, EGL_NO_SURFACE, EGL_NO_CONTEXT)
                eglDestroyContext(self._egl_display, self._egl_context)
                self._egl_context = None

    index, devices = os.environ.get("EGL_DEVICE_ID"), query_devices()
    if index is None:
        order = device_order([_cuda_ordinal(device) for device in devices], os.environ, os.getpid())
    elif index.isdecimal() and int(index) < len(devices):
        order = [int(index)]
    else:
        raise MissingSystemLibrary(f"EGL_DEVICE_ID={index!r} names no EGL device; there are {len(devices)}, from 0")
    return [SharedDisplayPlatform(1, 1, device=devices[each]) for each in order]


def device_order(cuda_ordinals: Sequence[int | None], environment: Mapping[str, str], process: int) -> list[int]:
    """Indices of EGL's devices in the order in which a process tries them, one that is `None` no GPU of CUDA's.

    EGL knows nothing of CUDA_VISIBLE_DEVICES: a process that is given a GPU draws on that one, and processes that are
    given none, or by a name, take turns by their number. What else there is follows in EGL's own order: GPUs come
    before Mesa's software device.
    """
    gpus = [index for index, ordinal in enumerate(cuda_ordinals) if ordinal is not None]
    visible = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    given = [index for index in gpus if str(cuda_ordinals[index]) == visible]
    first = given or gpus[process % len(gpus) :][:1] if gpus else []
    return [*first, *(index for index in range(len(cuda_ordinals)) if index not in first)]


def _cuda_ordinal(device: Any) -> int | None:
    """The number that CUDA knows an EGL device by (EGL_NV_device_cuda); None for what is no GPU of NVIDIA's."""
    from pyrender.platforms import egl

    extensions = egl._eglQueryDeviceStringEXT(device._display, _EGL_EXTENSIONS)
    query = egl._get_egl_func("eglQueryDeviceAttribEXT", ctypes.c_uint)
    if query is None or b"EGL_NV_device_cuda" not in (extensions or b"").split():
        return None
    ordinal = ctypes.c_ssize_t()
    return ordinal.value if query(device._display, _EGL_CUDA_DEVICE, ctypes.byref(ordinal)) else None


def _first_opened(platforms: Sequence[GlPlatform]) -> GlPlatform:
    from OpenGL.error import Error, GLError

    refusals = []
    for platform in platforms:
        try:
            return _opened(platform)
        except (AssertionError, Error, GLError, ctypes.ArgumentError) as error:
            refusals.append(f"{platform._egl_device.name or 'software'}: {type(error).__name__} {error}".strip())
    reasons = "; ".join(refusals) or "EGL lists no device"
    raise MissingSystemLibrary(
        f"no EGL device gives an OpenGL context ({reasons}); Mesa's software device comes with: "
        f"apt-get install -y --no-install-recommends {_PACKAGES['egl']}"
    )


def _opened(platform: GlPlatform) -> GlPlatform:
    platform.init_context()
    platform.make_current()
    return platform


def _osmesa_platform() -> GlPlatform:
    _complete_osmesa_bindings()
    from pyrender.platforms.osmesa import OSMesaPlatform

    return OSMesaPlatform(1, 1)


def _complete_osmesa_bindings() -> None:
    """Adds what PyOpenGL 3.1.0 leaves out of OSMesa: contexts with attributes, and contexts as dictionary keys."""
    from OpenGL import osmesa
    from OpenGL import platform as gl_platform

    if hasattr(osmesa, "OSMesaCreateContextAttribs"):
        return
    create = gl_platform.PLATFORM.OSMesa.OSMesaCreateContextAttribs
    create.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    create.restype = osmesa.OSMesaContext

    def address(context: object) -> int | None:
        return ctypes.cast(context, ctypes.c_void_p).value  # type: ignore[arg-type]

    def create_context(attributes: Sequence[int], _shared_with: None) -> object:
        numbers = np.array(attributes, dtype=np.int32)
        return create(numbers.ctypes.data, None)

    osmesa.OSMesaContext.__hash__ = lambda self: hash(address(self))
    osmesa.OSMesaContext.__eq__ = lambda self, other: address(self) == address(other)
    osmesa.OSMesaCreateContextAttribs = create_context
    constants = {"DEPTH_BITS": 0x30, "PROFILE": 0x33, "CORE_PROFILE": 0x34, "CONTEXT_MAJOR_VERSION": 0x36}
    for name, value in {**constants, "COMPAT_PROFILE": 0x35, "CONTEXT_MINOR_VERSION": 0x37}.items():
        setattr(osmesa, f"OSMESA_{name}", value)
