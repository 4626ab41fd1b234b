"""Robust kernels: how much of an error counts, under a threshold that may fall over the run."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, TypeAlias, assert_never

import torch
from torch import Tensor

from cadloc.loss_config import Course, Kernel
from cadloc.schedules import circle

Threshold: TypeAlias = float | Tensor
"""In the unit of the errors: one for all, or (B,), one for each."""

Moment: TypeAlias = float | Tensor
"""Progress in [0, 1] of a run: a number, or a scalar tensor where many runs, each at its own, are computed at once.

The tensor is float64, as numbers are: towards a run's end 1 − progress² is a small difference of large ones. Losses are
float32 all the same, as a scalar's type gives way to theirs.
"""

NEAR_LIMIT = 1e-6
"""Shapes of the general loss so close to 0 or 2 count as these."""


class Clamp(NamedTuple):
    """A kernel, and the thresholds, positive, between which it moves over a run.

    Kernels that follow the `course` start at `largest + smallest` and end at `smallest`; the others keep `largest`.
    """

    kernel: Kernel | Literal["none"]
    course: Course
    largest: Threshold
    smallest: Threshold


def threshold_at(progress: Moment, course: Course, largest: Threshold, smallest: Threshold) -> Threshold:
    """The falling threshold τ at `progress` in [0, 1]: along a quarter of a circle (ACE, section 3.4), or a line."""
    match course:
        case "circle":
            return largest * _circle(progress) + smallest
        case "linear":
            return largest * (1.0 - progress) + smallest
        case _:
            assert_never(course)


def _circle(progress: Moment) -> Moment:
    if isinstance(progress, Tensor):
        return (1.0 - progress * progress).clamp(min=0.0).sqrt()
    return circle(progress, 1.0, 0.0)


def robust(errors: Tensor, clamp: Clamp, progress: Moment) -> Tensor:
    """Losses (B,) of errors (B,), not negative, at `progress` in [0, 1] of the clamp's course; same unit.

    With the falling threshold τ: `dyntanh` is τ · tanh(e/τ) (ACE), `geman_mcclure` τ · 9r²/(9r² + 4) with r = e/τ (as
    R-SCoRe weighs it), `barron` the general loss (Barron, 2019) times τ, its shape annealed from 2 to −2 as graduated
    non-convexity does. With the largest threshold s (ACE's options): `tanh` is s · tanh(e/s); `l1`, `l1_sqrt` and
    `l1_log` are e up to s, and beyond it nothing, sqrt(s · e) and log(1 + s · e). Gradients are finite for all e.
    """
    most = clamp.largest
    tau = threshold_at(progress, clamp.course, most, clamp.smallest)
    match clamp.kernel:
        case "none":
            return errors
        case "dyntanh":
            return tau * torch.tanh(errors / tau)
        case "tanh":
            return most * torch.tanh(errors / most)
        case "l1":
            return torch.where(errors <= most, errors, 0.0)
        case "l1_sqrt":
            # Clamped from below: the root's gradient is infinite at zero, and `where` would make NaN of it.
            return torch.where(errors <= most, errors, (most * errors.clamp(min=most)).sqrt())
        case "l1_log":
            return torch.where(errors <= most, errors, torch.log1p(most * errors))
        case "geman_mcclure":
            squares = 9.0 * (errors / tau).square()
            return tau * (squares / (squares + 4.0))
        case "barron":
            return tau * general_loss(errors / tau, 2.0 - 4.0 * progress)
        case _:
            assert_never(clamp.kernel)


def general_loss(ratios: Tensor, shape: float | Tensor) -> Tensor:
    """Barron's general adaptive loss (CVPR 2019, equation 8) of errors in units of its scale, finite `shape` α.

    ½ r² for α = 2, log(½ r² + 1) for α = 0, 2 r²/(r² + 4) for α = −2. Near the two limits, the general form
    is written such that nothing cancels.
    """
    squares = ratios.square()
    if isinstance(shape, Tensor):
        return _general_loss_of_tensor(squares, shape)
    width = abs(shape - 2.0)
    if math.isclose(width, 0.0, abs_tol=NEAR_LIMIT):
        return 0.5 * squares
    logarithms = torch.log1p(squares / width)
    if math.isclose(shape, 0.0, abs_tol=NEAR_LIMIT):
        return logarithms
    return (width / shape) * torch.expm1(0.5 * shape * logarithms)


def _general_loss_of_tensor(squares: Tensor, shape: Tensor) -> Tensor:
    """The same where only the device knows the shape, a scalar: all three forms are computed, one is chosen."""
    quadratic, logarithmic = (shape - 2.0).abs() <= NEAR_LIMIT, shape.abs() <= NEAR_LIMIT
    width = (shape - 2.0).abs().where(~quadratic, 1.0)
    exponent = shape.where(~logarithmic, 1.0)
    logarithms = torch.log1p(squares / width)
    general = (width / exponent) * torch.expm1(0.5 * exponent * logarithms)
    return torch.where(quadratic, 0.5 * squares, torch.where(logarithmic, logarithms, general))
