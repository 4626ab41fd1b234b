"""Where passes draw to and what is read back from it. Needs a current context (`cadloc.opengl`)."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from OpenGL import GL

_TARGETS_KEPT = 4


@dataclass(frozen=True)
class Target:
    """A framebuffer: colour, and where there is no multisampling the float32 position attachment too."""

    framebuffer: int
    renderbuffers: tuple[int, ...]

    @classmethod
    def create(cls, width_px: int, height_px: int, samples: int, *, positions: bool, depth: bool = True) -> Target:
        """A framebuffer of one size; `samples` 0 samples exactly at pixel centres."""
        formats = [(GL.GL_COLOR_ATTACHMENT0, GL.GL_RGBA8)]
        formats += [(GL.GL_COLOR_ATTACHMENT1, GL.GL_RGBA32F)] if positions else []
        formats += [(GL.GL_DEPTH_ATTACHMENT, GL.GL_DEPTH_COMPONENT32F)] if depth else []
        framebuffer = int(GL.glGenFramebuffers(1))
        buffers = tuple(int(b) for b in np.atleast_1d(GL.glGenRenderbuffers(len(formats))))
        GL.glBindFramebuffer(GL.GL_FRAMEBUFFER, framebuffer)
        for (attachment, form), buffer in zip(formats, buffers, strict=True):
            GL.glBindRenderbuffer(GL.GL_RENDERBUFFER, buffer)
            GL.glRenderbufferStorageMultisample(GL.GL_RENDERBUFFER, samples, form, width_px, height_px)
            GL.glFramebufferRenderbuffer(GL.GL_FRAMEBUFFER, attachment, GL.GL_RENDERBUFFER, buffer)
        colours = [GL.GL_COLOR_ATTACHMENT0, GL.GL_COLOR_ATTACHMENT1][: 2 if positions else 1]
        GL.glDrawBuffers(len(colours), colours)
        check_complete()
        return cls(framebuffer, buffers)

    def delete(self) -> None:
        """Frees the driver's memory."""
        GL.glDeleteFramebuffers(1, [self.framebuffer])
        GL.glDeleteRenderbuffers(len(self.renderbuffers), list(self.renderbuffers))


class Targets:
    """Framebuffers by size; the few last used are kept, so that sizes may change from call to call."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[int, int, int, bool, bool], Target] = OrderedDict()

    def get(self, width_px: int, height_px: int, samples: int, *, positions: bool, depth: bool = True) -> Target:
        """The framebuffer of this kind, made when there is none."""
        key = (width_px, height_px, samples, positions, depth)
        if key not in self._kept:
            self._kept[key] = Target.create(width_px, height_px, samples, positions=positions, depth=depth)
        self._kept.move_to_end(key)
        while len(self._kept) > _TARGETS_KEPT:
            self._kept.popitem(last=False)[1].delete()
        return self._kept[key]


def clear(target: Target, width_px: int, height_px: int) -> None:
    """Makes the target current and empty: black, no hit, nothing nearer than infinity (depth is reversed)."""
    GL.glBindFramebuffer(GL.GL_FRAMEBUFFER, target.framebuffer)
    GL.glViewport(0, 0, width_px, height_px)
    GL.glClearColor(0.0, 0.0, 0.0, 0.0)
    GL.glClearDepth(0.0)
    GL.glDepthFunc(GL.GL_GREATER)
    GL.glClear(GL.GL_COLOR_BUFFER_BIT | GL.GL_DEPTH_BUFFER_BIT)


def read_colour(target: Target, width_px: int, height_px: int) -> NDArray[np.uint8]:
    """RGB (H, W, 3) of a target without multisampling."""
    image = np.empty((height_px, width_px, 3), np.uint8)
    GL.glBindFramebuffer(GL.GL_READ_FRAMEBUFFER, target.framebuffer)
    GL.glReadBuffer(GL.GL_COLOR_ATTACHMENT0)
    GL.glReadPixels(0, 0, width_px, height_px, GL.GL_RGB, GL.GL_UNSIGNED_BYTE, array=image)
    return image


def read_positions(target: Target, width_px: int, height_px: int) -> NDArray[np.float32]:
    """Surface point minus camera centre, and 1 where something was hit, (H, W, 4)."""
    positions = np.empty((height_px, width_px, 4), np.float32)
    GL.glBindFramebuffer(GL.GL_READ_FRAMEBUFFER, target.framebuffer)
    GL.glReadBuffer(GL.GL_COLOR_ATTACHMENT1)
    GL.glReadPixels(0, 0, width_px, height_px, GL.GL_RGBA, GL.GL_FLOAT, array=positions)
    return positions


def resolve(source: Target, destination: Target, width_px: int, height_px: int) -> None:
    """Averages a multisampled target's colours into a plain one."""
    size = (0, 0, width_px, height_px)
    GL.glBindFramebuffer(GL.GL_READ_FRAMEBUFFER, source.framebuffer)
    GL.glBindFramebuffer(GL.GL_DRAW_FRAMEBUFFER, destination.framebuffer)
    GL.glBlitFramebuffer(*size, *size, GL.GL_COLOR_BUFFER_BIT, GL.GL_NEAREST)


def check_complete() -> None:
    """Own logic at fault when the bound framebuffer cannot be drawn to."""
    status = GL.glCheckFramebufferStatus(GL.GL_FRAMEBUFFER)
    assert status == GL.GL_FRAMEBUFFER_COMPLETE, f"framebuffer incomplete: {status:#x}"
