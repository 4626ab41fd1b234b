"""The paired two-way bootstrap: how far a ratio of median errors moves with other seeds and other queries."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from cadloc_sweep.report.statistics import Interval

Array: TypeAlias = NDArray[np.float64]
Draws: TypeAlias = NDArray[np.intp]

RESAMPLES = 4000

SMALLEST_ERROR = 1e-9
"""An error of exactly zero has no logarithm."""


def log_medians(errors: Array, query_draws: Draws, cap: float = np.inf) -> Array:
    """Logs (D,) of the median of the errors (Q,) under each draw (D, Q) of queries; a median counts at most `cap`."""
    medians = np.median(errors[query_draws], axis=1)
    return np.log(np.clip(medians, SMALLEST_ERROR, cap))


def draws(generator: np.random.Generator, n: int, resamples: int = RESAMPLES) -> Draws:
    """Indices (1 + resamples, n) into n items: first all of them once, then samples with replacement."""
    return np.concatenate([np.arange(n)[None], generator.integers(n, size=(resamples, n))])


def log_ratios(arm: Array, baseline: Array, seed_draws: Draws) -> Array:
    """Log ratios (D,) of an arm to its baseline, from the log medians (S, D) of the seeds that both have.

    The paired two-way bootstrap: seeds and queries are resampled independently, the same draws for both arms, so that
    what they share cancels ("pigeonhole bootstrap": Owen, The pigeonhole bootstrap, Ann. Appl. Stat. 1(2), 2007). The
    first entry is the estimate itself.

    What it leaves out: all that the seeds share (mapping views, buffer, a tuned encoder, which were made once). Its
    95 % percentile interval covered, in simulations with 8 to 40 queries, 97 % and more where the arms' difference
    varies mostly over queries or from trial to trial within a query, and only 78 % with 3 seeds, 87 % with 5 and
    92 % with 10 where it varies mostly over seeds as a whole.
    """
    with np.errstate(invalid="ignore"):  # both failed, and no cap is known: nobody can say
        differences = arm - baseline
    return differences[seed_draws.T, np.arange(differences.shape[1])].mean(axis=0)  # type: ignore[no-any-return]


def percent_interval(ratios: Array, n: int, *, bounds: bool = True) -> Interval:
    """Log ratios (estimate, then resamples) as a change in percent with its 95 % percentile interval.

    No number where the estimate is not finite (a median has no pose, and no cap), no bounds where a resample is not.
    """
    if not np.isfinite(ratios[0]):
        return Interval(n, None, None, None)
    mean = 100 * float(np.expm1(ratios[0]))
    if not (bounds and np.isfinite(ratios).all()):
        return Interval(n, mean, None, None)
    lo, hi = (100 * float(np.expm1(each)) for each in np.quantile(ratios[1:], (0.025, 0.975)))
    return Interval(n, mean, lo, hi)
