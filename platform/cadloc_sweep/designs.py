"""Which combinations of factor values are tried: the arms of a space, as choices."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from cadloc.contract import Json, canonical
from cadloc.settings import Count, Seed, Settings

MOST_ARMS = 100_000

Choice: TypeAlias = Mapping[str, int]
"""Factor name to index of the chosen value; a factor whose `when` is not met is not in it."""


class Factorial(Settings):
    """Every combination."""

    name: Literal["factorial"] = "factorial"


class OneFactor(Settings):
    """The baseline, and each arm that differs from it in one factor."""

    name: Literal["one_factor"] = "one_factor"


class LeaveOneOut(Settings):
    """The full method (the last value of every factor), and each arm with one factor back at its baseline."""

    name: Literal["leave_one_out"] = "leave_one_out"


class RandomSample(Settings):
    """Combinations drawn without replacement; the baseline is one of them when the space names one."""

    name: Literal["random"] = "random"
    samples: Count
    seed: Seed = 0


Design: TypeAlias = Annotated[Factorial | OneFactor | LeaveOneOut | RandomSample, Field(discriminator="name")]


@dataclass(frozen=True)
class Factor:
    """A dimension of the space. `when` maps names of earlier factors to the values under which this one applies."""

    name: str
    values: tuple[Json, ...]
    when: Mapping[str, tuple[Json, ...]] = field(default_factory=dict)
    baseline: int = 0

    def index_of(self, value: Json) -> int | None:
        """Index of the value, given as such or by its `name`; None when it is not among the values."""
        return next((index for index, own in enumerate(self.values) if means(own, value)), None)


def means(value: Json, wanted: Json) -> bool:
    """Whether a factor's value is the wanted one, which may be given by its `name` alone."""
    if isinstance(value, Mapping) and isinstance(wanted, str):
        return bool(value.get("name") == wanted)
    try:
        return canonical(value) == canonical(wanted)
    except ValueError:  # NaN and the infinities equal nothing
        return False


def choices(factors: Sequence[Factor], design: Design, with_baseline: bool = False) -> list[Choice]:
    """The arms of a design, each once; the arm that others are compared with first, except in a factorial.

    `with_baseline` says that the space names a baseline, which a random sample then contains. Raises
    ValueError for more than `MOST_ARMS`.
    """
    baseline = reference(factors, design)
    match design:
        case Factorial():
            found = _all(factors)
        case OneFactor():
            everything = {factor.name: factor.baseline for factor in factors}
            varied = ({**everything, f.name: index} for f in factors for index in range(len(f.values)))
            found = [baseline, *(applicable(factors, choice) for choice in varied)]
        case LeaveOneOut():
            full = {factor.name: len(factor.values) - 1 for factor in factors}
            found = [baseline, *(applicable(factors, {**full, f.name: f.baseline}) for f in factors)]
        case RandomSample():
            found = _sample(_all(factors), design, [baseline] if with_baseline else [])
    return _once(found)


def reference(factors: Sequence[Factor], design: Design) -> Choice:
    """The arm that the others are compared with: the full method when leaving one out, else the baseline."""
    last = isinstance(design, LeaveOneOut)
    return applicable(factors, {f.name: len(f.values) - 1 if last else f.baseline for f in factors})


def applicable(factors: Sequence[Factor], choice: Choice) -> Choice:
    """The choice without the factors whose `when` it does not meet."""
    kept: dict[str, int] = {}
    for factor in factors:
        if factor.name in choice and _applies(factor, factors, kept):
            kept[factor.name] = choice[factor.name]
    return kept


def _applies(factor: Factor, factors: Sequence[Factor], choice: Choice) -> bool:
    values = {other.name: other.values[choice[other.name]] for other in factors if other.name in choice}
    return all(
        name in values and any(means(values[name], wanted) for wanted in allowed)
        for name, allowed in factor.when.items()
    )


def _all(factors: Sequence[Factor]) -> list[Choice]:
    found = list(islice(_combinations(factors, 0, {}), MOST_ARMS + 1))
    if len(found) > MOST_ARMS:
        raise ValueError(f"more than {MOST_ARMS} arms")
    return found


def _combinations(factors: Sequence[Factor], position: int, choice: Choice) -> Iterator[Choice]:
    if position == len(factors):
        yield choice
        return
    factor = factors[position]
    if not _applies(factor, factors, choice):
        yield from _combinations(factors, position + 1, choice)
        return
    for index in range(len(factor.values)):
        yield from _combinations(factors, position + 1, {**choice, factor.name: index})


def _sample(arms: Sequence[Choice], design: RandomSample, always: Sequence[Choice]) -> list[Choice]:
    rest = [arm for arm in arms if arm not in always]
    count = min(max(design.samples - len(always), 0), len(rest))
    drawn = sorted(random.Random(design.seed).sample(range(len(rest)), count))
    return [*always, *(rest[index] for index in drawn)]


def _once(found: Sequence[Choice]) -> list[Choice]:
    return [dict(items) for items in dict.fromkeys(tuple(choice.items()) for choice in found)]
