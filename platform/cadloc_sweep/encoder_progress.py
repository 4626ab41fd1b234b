"""What a pre-training run shows while it works: a line now and then, wherever its steps are taken."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cadloc.pretraining_history import Row

EVERY_S = 10.0
LOOK_EVERY_S = 1.0


class RunLines:
    """Lines for people: buildings as they are rendered; the first step, validations, the last one, and some between.

    Between them at most a line per `every_s`. `steps` is how many the run has.
    """

    def __init__(
        self,
        steps: int,
        say: Callable[[str], None],
        every_s: float = EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._steps, self._say, self._every_s, self._clock = steps, say, every_s, clock
        self._said_s = -every_s
        self._first: tuple[float, float] | None = None

    def rendered(self, done: int, buildings: int) -> None:
        """So many of the pool's buildings are there."""
        if self._due() or done == buildings:
            self._say_now(f"rendered {done} of {buildings} buildings")

    def heard(self, rows: Sequence[Row]) -> None:
        """New rows of the history, in order: one by one, or all that another process wrote since the last time."""
        begins = self._first is None
        if self._first is None and rows:  # the pace is counted from the newest: the rest was done before
            self._first = (rows[-1]["step"], self._clock())
        for index, row in enumerate(rows):
            newest = index == len(rows) - 1
            if (begins and not index) or _precisions(row) or row["step"] == self._steps or (newest and self._due()):
                self._say_now(self._line(row, rows[-1]["step"]))

    def _line(self, row: Row, reached: float) -> str:
        precisions = ", ".join(f"{kind} {value:.3f}" for kind, value in _precisions(row).items())
        parts = [f"step {row['step']:.0f} of {self._steps}", f"loss {row['loss']:.4f}"]
        return "  ".join([*parts, *([f"precision: {precisions}"] if precisions else []), *self._left(reached)])

    def _left(self, reached: float) -> list[str]:
        """How long the steps after `reached` take at the pace so far; nothing where that is not known yet."""
        assert self._first is not None
        first, since_s = self._first
        if reached in (first, self._steps):
            return []
        left_min = (self._clock() - since_s) / (reached - first) * (self._steps - reached) / 60
        return [f"({left_min:.0f} min left)" if left_min >= 1 else "(less than a minute left)"]

    def _due(self) -> bool:
        return self._clock() - self._said_s >= self._every_s

    def _say_now(self, line: str) -> None:
        self._said_s = self._clock()
        self._say(line)


def history_rows(path: Path) -> list[Row]:
    """The rows of a history's file; none where it is not there or cannot be read."""
    from cadloc.pretraining_history import History

    with contextlib.suppress(OSError, ValueError):
        return History.read(path).rows
    return []


@contextlib.contextmanager
def followed(path: Path, after: int, heard: Callable[[Sequence[Row]], None]) -> Iterator[None]:
    """Tells `heard` of the rows after the first `after` that other processes write to a history's file meanwhile."""
    told, over = after, threading.Event()

    def look() -> None:
        nonlocal told
        fresh = history_rows(path)[told:]
        told += len(fresh)
        if fresh:
            heard(fresh)

    def follow() -> None:
        while not over.wait(LOOK_EVERY_S):
            look()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        look()


def _precisions(row: Row) -> dict[str, float]:
    return {name.removeprefix("precision/"): value for name, value in row.items() if name.startswith("precision/")}
