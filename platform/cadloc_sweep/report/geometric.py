"""Means of what is compared by ratio, and their uncertainty."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cadloc_sweep.report.statistics import Interval, t_interval


def geometric_interval(values: Sequence[float]) -> Interval:
    """The geometric mean of positive values and the 95 % t interval of their logarithms, both as numbers again.

    Unlike the interval of the numbers themselves it never reaches below zero. Raises ValueError for a value that is
    not positive.
    """
    logs = t_interval([math.log(value) for value in values])
    mean, lo, hi = (None if value is None else math.exp(value) for value in (logs.mean, logs.lo, logs.hi))
    return Interval(logs.n, mean, lo, hi)
