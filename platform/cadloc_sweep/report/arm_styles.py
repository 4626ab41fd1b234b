"""One colour per arm, the same in every figure of a sweep."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass

from cadloc.contract import Json, canonical
from cadloc_sweep.report.budgets import Family, families, label_of
from cadloc_sweep.report.results import Arm, SweepResults

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#303030")
"""Told apart whatever one's colour vision (Okabe and Ito 2008; their yellow is left out, it vanishes on white)."""

DASHES: tuple[tuple[float, tuple[float, ...]], ...] = ((0, ()), (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.2, 1, 1.2)))
HATCHES = ("", "////", "....", "xxxx")
"""What tells the eighth arm from the first: lines are broken and bars hatched, another way every round of colours."""

PALEST = 0.4
"""Of its colour, how much the shortest run of a family keeps."""

WIDEST_LEGEND = 52
"""Characters after which a legend's entry is broken."""


MOST_BARE = 2
"""Where no more factors vary, a legend gives their values alone and names them on top."""


@dataclass(frozen=True)
class ArmStyle:
    """How an arm is drawn: `legend` its varied factors, broken into lines; `colour` as (red, green, blue)."""

    legend: str
    colour: tuple[float, float, float]
    dashes: tuple[float, tuple[float, ...]]
    hatch: str


@dataclass(frozen=True)
class ArmStyles:
    """The arms of a sweep by label, in the plan's order; `title` names the factors whose bare values legends give."""

    styles: Mapping[str, ArmStyle]
    title: str


def arm_styles(results: SweepResults) -> ArmStyles:
    """A style for every arm: a colour per family of arms that differ in the budget alone, paler for shorter runs."""
    unlike = {arm.label: arm for arm in reversed(results.arms)}  # an arm is drawn alike on all scenes
    ordered = tuple(unlike[label] for label in dict.fromkeys(arm.label for arm in results.arms))
    varied = _varied(ordered)
    found = {
        arm.label: _style(_legend(arm, varied), place, _strength(family, arm))
        for place, family in enumerate(families(ordered))
        for arm in family.arms
    }
    bare = varied if len(varied) <= MOST_BARE else []
    return ArmStyles({arm.label: found[arm.label] for arm in ordered}, " · ".join(bare))


def _varied(arms: tuple[Arm, ...]) -> list[str]:
    names = dict.fromkeys(name for arm in arms for name in arm.choice)
    return [name for name in names if len({canonical(_written(arm.choice, name)) for arm in arms}) > 1]


def _written(choice: Mapping[str, Json], name: str) -> Json:
    return [choice[name]] if name in choice else []


def _legend(arm: Arm, varied: list[str]) -> str:
    parts = [label_of({name: arm.choice[name]}, arm) for name in varied if name in arm.choice]
    if len(varied) <= MOST_BARE:
        parts = [part.partition("=")[2] for part in parts]
    text = (" · " if len(varied) <= MOST_BARE else " ").join(parts) or arm.label
    return "\n".join(textwrap.wrap(text.replace(",", ", "), WIDEST_LEGEND))


def _strength(family: Family, arm: Arm) -> float:
    if len(family.arms) == 1:
        return 1.0
    return PALEST + (1 - PALEST) * family.arms.index(arm) / (len(family.arms) - 1)


def _style(legend: str, place: int, strength: float) -> ArmStyle:
    turn, colour = divmod(place, len(COLOURS))
    red, green, blue = (int(COLOURS[colour][at : at + 2], 16) / 255 for at in (1, 3, 5))
    mixed = (1 - strength * (1 - red), 1 - strength * (1 - green), 1 - strength * (1 - blue))
    return ArmStyle(legend, mixed, DASHES[turn % len(DASHES)], HATCHES[turn % len(HATCHES)])
