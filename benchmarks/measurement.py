"""One number of a benchmark, what it is compared with, and what the machine could do at most."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Measurement:
    """A rate (more is better) or a cost (less is better: `better="less"`) in `unit`, on this machine, just now.

    `baseline` was measured in the same run in the same unit, and `what` says of what; `limit` is the physical limit, in
    the same unit, and `limit_is` says which. Where there is none, they are None.
    """

    name: str
    value: float
    unit: str
    baseline: float | None = None
    limit: float | None = None
    what: str = ""
    """What the baseline is."""
    limit_is: str = ""
    better: str = "more"
    target: str = ""
    """What the project promises of it."""

    @property
    def ratio(self) -> float | None:
        """How many times better than the baseline."""
        if self.baseline is None or not self.value or not self.baseline:
            return None
        return self.value / self.baseline if self.better == "more" else self.baseline / self.value

    @property
    def of_limit(self) -> float | None:
        """Share of the limit that is reached."""
        if not self.limit or not self.value:
            return None
        return self.value / self.limit if self.better == "more" else self.limit / self.value

    def to_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {**asdict(self), "ratio": self.ratio, "of_limit": self.of_limit}


def readable(number: float) -> str:
    """Three leading figures, without an exponent: `0.0231`, `37`, `28,800`."""
    if abs(number) < 999.5:
        return f"{number:.3g}"
    return f"{round(number, 2 - math.floor(math.log10(abs(number)))):,.0f}"


def rate(work: Callable[[], object], seconds: float = 1.0, least: int = 3) -> float:
    """How often per second `work` can be done: the median over its runs for `seconds`, the first run left out."""
    work()
    times: list[float] = []
    end_s = time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < end_s:
        start_s = time.perf_counter()
        work()
        times.append(time.perf_counter() - start_s)
    return 1 / median(times)


def interleaved(works: dict[str, Callable[[], object]], rounds: int = 5) -> dict[str, float]:
    """Rates of several works, taken in turns, so that what else the machine does hits all alike; medians of rounds."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()
    for _ in range(rounds):
        for name, work in works.items():
            start_s = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - start_s)
    return {name: 1 / median(each) for name, each in times.items()}
