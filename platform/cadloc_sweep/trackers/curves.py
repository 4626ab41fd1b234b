"""What of a trial's progress a run holds already, and what is to be sent next."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from cadloc.contract import Progress

Place: TypeAlias = tuple[int, bool]
"""How far a trial has come: its step, and whether it has finished (at the step of its last validation)."""

START: Place = (-1, False)
_FINISHED = "finished"


def place_of(progress: Progress) -> Place:
    """Where a progress stands in its trial: two of them at the same place are the same."""
    return progress.step, progress.finished


def as_tag(place: Place) -> str:
    """The place as a tag's value, `200` or `200 finished`; `from_tag` undoes it."""
    return f"{place[0]} {_FINISHED}" if place[1] else str(place[0])


def from_tag(tag: str | None) -> Place:
    """The place that a tag's value says; the start where there is no tag."""
    if tag is None:
        return START
    step, _, finished = tag.partition(" ")
    return int(step), finished == _FINISHED


@dataclass(frozen=True)
class Point:
    """One value of one metric."""

    name: str
    value: float
    at_ms: int
    step: int


@dataclass(frozen=True)
class Batch:
    """Points of the next `progresses` that wait; once they are sent the run holds `values` and has come to `place`."""

    points: list[Point]
    progresses: int
    place: Place
    values: Mapping[str, float]


@dataclass
class Curves:
    """A trial's progress on its way into a run. `held` and `values` are what the run has got."""

    held: Place = START
    values: Mapping[str, float] = field(default_factory=dict)
    waiting: list[tuple[float, Progress]] = field(default_factory=list)

    def holds(self, place: Place, values: Mapping[str, float]) -> None:
        """Says what the run has got, as the run itself tells."""
        self.held, self.values = place, dict(values)

    def add(self, progress: Iterable[Progress], at_s: float) -> None:
        """Lets progress wait that does not wait yet; the run gets it in the trial's order, as of `at_s`."""
        told = {place_of(other) for _, other in self.waiting}
        self.waiting += [(at_s, item) for item in progress if place_of(item) not in told]
        self.waiting.sort(key=lambda item: place_of(item[1]))

    def next_batch(self, most: int) -> Batch | None:
        """As many progresses as fit into `most` points, at least one; None when nothing waits.

        The last progress stands at the step of the last validation and repeats some of its values: those are left
        out, so that no point is sent twice.
        """
        self.waiting = [item for item in self.waiting if place_of(item[1]) > self.held]
        batch = Batch([], 0, self.held, self.values)
        for at_s, progress in self.waiting:
            longer = _extended(batch, at_s, progress)
            if batch.progresses and len(longer.points) > most:
                break
            batch = longer
        return batch if batch.progresses else None

    def sent(self, batch: Batch) -> None:
        """The run has got the batch."""
        self.held, self.values = batch.place, batch.values
        del self.waiting[: batch.progresses]


def _extended(batch: Batch, at_s: float, progress: Progress) -> Batch:
    values = {**progress.metrics, "train/samples_seen": float(progress.samples_seen)}
    again = progress.step == batch.place[0]
    news = [name for name, value in values.items() if not (again and batch.values.get(name) == value)]
    points = [Point(name, values[name], int(at_s * 1000), progress.step) for name in news]
    known = {**batch.values, **values}
    return Batch([*batch.points, *points], batch.progresses + 1, place_of(progress), known)
