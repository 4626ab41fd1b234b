"""One metric of every arm on every scene, with each seed: what the accuracy bars show."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cadloc.contract import Fault, InputError
from cadloc.faults import did_you_mean
from cadloc_sweep.report.results import Arm, SweepResults
from cadloc_sweep.report.statistics import Interval, t_interval

DECADE = 10.0


@dataclass(frozen=True)
class Bar:
    """One arm on one scene: mean over seeds with its 95 % t interval, and the seeds' values.

    `failed`: some seed's value stands in for an error that does not exist, and nothing is drawn.
    """

    scene: str
    label: str
    interval: Interval
    seeds: tuple[float, ...]
    failed: bool


@dataclass(frozen=True)
class Bars:
    """Bars scene by scene, in the plan's order; shares of queries are in percent."""

    space: str
    metric: str
    percent: bool
    bars: tuple[Bar, ...]

    @property
    def drawn(self) -> list[Bar]:
        """Those that have a number."""
        return [bar for bar in self.bars if bar.interval.mean is not None and not bar.failed]

    @property
    def logarithmic(self) -> bool:
        """Whether values span more than a decade, all of them positive, and are no shares."""
        values = [value for bar in self.drawn for value in bar.seeds]
        return not self.percent and bool(values) and min(values) > 0 and max(values) > DECADE * min(values)


def read_bars(results: SweepResults, metric: str | None = None) -> Bars:
    """The bars of a metric, unless given the objective. Raises InputError for one that no finished trial has."""
    wanted = metric or results.objective
    known = sorted({name for arm in results.arms for name in arm.metrics})
    if wanted not in known:
        guess = did_you_mean(wanted, known)
        option = "--bars" if metric is None else "--metric"
        raise InputError(Fault(results.space, option, wanted, "a metric of the finished trials", guess))
    percent = "recall_" in wanted
    return Bars(results.space, wanted, percent, tuple(_bar(arm, wanted, percent) for arm in results.arms))


def _bar(arm: Arm, metric: str, percent: bool) -> Bar:
    values = [100 * value if percent else value for value in arm.values(metric).values()]
    failed = arm.has_failed(metric) or not all(math.isfinite(value) for value in values)
    return Bar(arm.scene, arm.label, t_interval(values), tuple(values), failed)
