"""Arms that differ in nothing but how long they train: families, and what each of their runs has seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cadloc.contract import Json, canonical
from cadloc_sweep.arms import Arm as PlannedArm
from cadloc_sweep.report.results import Arm

BUDGET = "training.iterations"
SAMPLES = "train/samples_seen"


@dataclass(frozen=True)
class Family:
    """Arms of one scene that share every factor but the budget, the smallest planned budget first.

    `label` says the shared factors in one line, `all` where there are none.
    """

    label: str
    key: str
    arms: tuple[Arm, ...]


def families(arms: Sequence[Arm]) -> tuple[Family, ...]:
    """The families of one scene's arms, in the plan's order."""
    groups: dict[str, list[Arm]] = {}
    for arm in arms:
        groups.setdefault(family_key(arm.choice), []).append(arm)
    return tuple(
        Family(label_of(without_budget(found[0].choice), found[0]), key, tuple(sorted(found, key=planned_samples)))
        for key, found in groups.items()
    )


def family_key(choice: Mapping[str, Json]) -> str:
    """Equal for choices that differ in the budget alone."""
    return canonical(without_budget(choice))


def without_budget(choice: Mapping[str, Json]) -> dict[str, Json]:
    """The factors that do not say how long training is, also where a factor `training` says it among other things."""
    kept = {name: value for name, value in choice.items() if name != BUDGET}
    training = kept.get("training")
    if isinstance(training, Mapping) and "iterations" in training:
        rest = {name: value for name, value in training.items() if name != "iterations"}
        kept = {**kept, "training": rest} if rest else {name: kept[name] for name in kept if name != "training"}
    return kept


def label_of(factors: Mapping[str, Json], arm: Arm) -> str:
    """Some of an arm's factors in one line, as plans write them."""
    return PlannedArm({}, factors, arm.outcomes[0].trial.config).label


def planned_samples(arm: Arm) -> int:
    """Samples that a run of the arm sees unless it stops early: iterations times batch size."""
    training = arm.outcomes[0].trial.config.training
    return training.iterations * training.batch_size


def samples_seen(arm: Arm) -> float | None:
    """Mean over the arm's finished trials of what they report to have seen; None where none reports it."""
    return arm.metrics[SAMPLES].mean if SAMPLES in arm.metrics else None
