"""Uncertainty of an arm over its seeds, and of the difference between two arms that share seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

Pair = TypeVar("Pair")


@dataclass(frozen=True)
class Interval:
    """A mean over `n` values and its confidence interval.

    `lo` and `hi` are None below two values: one number says nothing about its spread. `mean` is None without
    values, and where one of them is not finite: leaving it out would flatter the arm.
    """

    n: int
    mean: float | None
    lo: float | None
    hi: float | None

    @property
    def decided(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.lo is not None and self.hi is not None and (self.lo > 0 or self.hi < 0)


def t_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """The mean and Student's t interval of independent values, two-sided (Student 1908).

    Raises ValueError for a confidence outside (0, 1).
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}; it lies between 0 and 1")
    n = len(values)
    if n == 0 or not all(math.isfinite(value) for value in values):
        return Interval(n, None, None, None)
    mean = math.fsum(values) / n
    if n == 1:
        return Interval(1, mean, None, None)
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    half = _t_quantile((1 + confidence) / 2, n - 1) * math.sqrt(variance / n)
    return Interval(n, mean, mean - half, mean + half)


def paired_difference(arm: Mapping[Pair, float], baseline: Mapping[Pair, float], confidence: float = 0.95) -> Interval:
    """The mean of `arm − baseline` over the pairs that both have, with its t interval.

    A pair is a (scene, seed): what the two trials share (views, initialisation, order of the data) cancels, so
    that the interval is about the factor alone.
    """
    shared = [pair for pair in arm if pair in baseline]
    return t_interval([arm[pair] - baseline[pair] for pair in shared], confidence)


def _t_quantile(probability: float, degrees_of_freedom: int) -> float:
    from scipy.special import stdtrit  # scipy.stats has it too and takes a second to import

    return float(stdtrit(degrees_of_freedom, probability))
