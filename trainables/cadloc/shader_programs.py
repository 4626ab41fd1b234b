"""Shaders, compiled: one program per variant of a pair of them. Needs a current context (`cadloc.opengl`)."""

from __future__ import annotations

from collections.abc import Collection
from importlib import resources
from typing import Any

import numpy as np
from OpenGL import GL

from cadloc.contract import MissingSystemLibrary


class Program:
    """A shader program with its uniforms' places looked up once; `defines` say which variant of the shaders it is."""

    def __init__(self, vertex: str, fragment: str, defines: Collection[str] = ()) -> None:
        self._id = GL.glCreateProgram()
        for kind, name in ((GL.GL_VERTEX_SHADER, vertex), (GL.GL_FRAGMENT_SHADER, fragment)):
            shader = _compiled(kind, name, defines)
            GL.glAttachShader(self._id, shader)
            GL.glDeleteShader(shader)  # goes with the program
        GL.glLinkProgram(self._id)
        if not GL.glGetProgramiv(self._id, GL.GL_LINK_STATUS):
            log = _log(GL.glGetProgramInfoLog(self._id))
            raise MissingSystemLibrary(f"the OpenGL driver rejects {vertex} + {fragment}: {log}")
        self._places: dict[str, int] = {}

    def use(self) -> None:
        """Makes this the program that draws."""
        GL.glUseProgram(self._id)

    def set(self, name: str, value: Any) -> None:
        """Uniform `name` of the program in use: a bool or int, a float, a vector (3,) or (4,), a matrix (4, 4).

        A variant that has no use for the uniform passes over it.
        """
        if name not in self._places:
            self._places[name] = GL.glGetUniformLocation(self._id, name)
        place = self._places[name]
        if place < 0:
            return
        if isinstance(value, int):
            GL.glUniform1i(place, value)
            return
        array = np.ascontiguousarray(value, dtype=np.float32)
        if array.shape == (4, 4):
            GL.glUniformMatrix4fv(place, 1, GL.GL_TRUE, array)
        else:
            {1: GL.glUniform1fv, 3: GL.glUniform3fv, 4: GL.glUniform4fv}[array.size](place, 1, array)


class Programs:
    """The variants of one pair of shaders, each compiled when it is first drawn with.

    A variant does only what its surfaces and light need, to the same bits: on a CPU half of a view's cost is shadows
    that are not cast, and the test for holes that are not there keeps hidden pixels from being left out early.
    """

    def __init__(self, vertex: str, fragment: str) -> None:
        self._files = (vertex, fragment)
        self._made: dict[frozenset[str], Program] = {}

    def get(self, defines: frozenset[str]) -> Program:
        """The variant with these defines, `NAME` or `NAME VALUE`."""
        if defines not in self._made:
            self._made[defines] = Program(*self._files, sorted(defines))
        return self._made[defines]


def _compiled(kind: int, name: str, defines: Collection[str]) -> int:
    shader = GL.glCreateShader(kind)
    version, rest = resources.files("cadloc").joinpath("shaders", name).read_text().split("\n", 1)
    GL.glShaderSource(shader, "\n".join([version, *(f"#define {each}" for each in defines), rest]))
    GL.glCompileShader(shader)
    if not GL.glGetShaderiv(shader, GL.GL_COMPILE_STATUS):
        raise MissingSystemLibrary(f"the OpenGL driver rejects {name}: {_log(GL.glGetShaderInfoLog(shader))}")
    return int(shader)


def _log(text: bytes | str) -> str:
    return " ".join((text.decode(errors="replace") if isinstance(text, bytes) else text).split())
