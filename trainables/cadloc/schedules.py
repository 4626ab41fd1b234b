"""How the learning rate and the soft clamp change over a run: pure functions of its progress, nothing to resume."""

from __future__ import annotations

import math

WARM_UP_SHARE = 0.3
START_DIVISOR = 25.0
END_DIVISOR = 1e4
"""One cycle as ACE runs it: from a 25th of the peak up to it at 30 % of the run, then to a 10,000th of the start."""


def one_cycle(step: int, steps: int, peak: float) -> float:
    """Learning rate of step `step` of `steps`, counted from 0: two cosine ramps (Smith and Topin, 2018)."""
    start = peak / START_DIVISOR
    turn = max(WARM_UP_SHARE * steps - 1, 0.0)
    if step <= turn:
        return _cosine(start, peak, step / turn if turn else 1.0)
    return _cosine(peak, start / END_DIVISOR, (step - turn) / max(steps - 1 - turn, 1e-9))


def plateau(step: int, warm_up: int, cool_down_at: int, end: int, peak: float) -> float:
    """Learning rate of step `step`: up to the peak in `warm_up` steps, held, from `cool_down_at` down until `end`.

    Straight ramps, from a 25th of the peak and to almost nothing (ACE0, supplement). Where they overlap, as in a run
    that cools down before it is warm, the lower one holds.
    """
    rising = peak if step >= warm_up else peak / START_DIVISOR + (peak - peak / START_DIVISOR) * step / warm_up
    falling = peak if step < cool_down_at else peak * max(end - step, 1) / (end - cool_down_at + 1)
    return min(rising, falling)


def circle(progress: float, largest: float, smallest: float) -> float:
    """`largest · sqrt(1 − progress²) + smallest`: stays high for long and drops at the end (ACE, section 3.4)."""
    return largest * math.sqrt(max(1.0 - progress * progress, 0.0)) + smallest


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2
