"""What trials share of their training: runs that begin alike are one trunk until their ways part.

All of a step but its loss, its learning rate and its place among the milestones is a function of the samples, the
head and the seed. Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

from cadloc.catalog import REGRESSORS, STAGES, test_sets
from cadloc.config import TrialConfig
from cadloc.contract import Json, StageSpec, digest, identity
from cadloc.courses import Course, Moment
from cadloc.loss_config import LossConfig, predicts_deviation
from cadloc.training_config import Plateau, TrainingConfig

TRUNK = "trunk"
"""Kind of the stage, and the role in which a trial, or a trunk that goes on from it, reads it."""

LEAST_STEPS, LEAST_SHARE = 20, 0.02
"""Steps, and share of the run, below which a trunk costs more than it saves."""

_PACED = {"iterations", "learning_rate", "schedule", "validations", "checkpoint"}
"""Training settings that steps do not read but by the learning rate, the progress and the milestones."""

Run: TypeAlias = tuple[LossConfig, TrainingConfig]


@dataclass(frozen=True)
class Prefix:
    """Steps `start` to `until` of `runs`, by number, after those of `parent`; under `loss`, which any of them might
    have until then: the same whichever they are, as far as it can be."""

    runs: tuple[int, ...]
    start: int
    until: int
    loss: LossConfig
    parent: Prefix | None


def shared_trunks(trials: Sequence[tuple[TrialConfig, Mapping[str, StageSpec]]], device: str) -> dict[int, StageSpec]:
    """The trunk that each trial starts from, by the trial's number; none for those that share too little.

    Trials come with the stages they read. Two share a trunk where all is equal but the loss and the schedule, and these
    are, too, until then. Runs that may stop early have an end that nobody knows before, and share nothing.
    """
    groups: dict[str, list[int]] = {}
    for number, (config, _) in enumerate(trials):
        if _may_share(config):
            groups.setdefault(_all_else(config), []).append(number)
    trunks: dict[int, StageSpec] = {}
    for numbers in groups.values():
        specs: dict[Prefix, StageSpec] = {}
        for prefix in shared_prefixes(tuple((trials[n][0].loss, trials[n][0].training) for n in numbers)):
            config, stages = trials[numbers[prefix.runs[0]]]
            parent = None if prefix.parent is None else specs[prefix.parent]
            specs[prefix] = _trunk(config, stages, prefix, parent, device)
            trunks |= {numbers[run]: specs[prefix] for run in prefix.runs}
    return trunks


@cache
def shared_prefixes(runs: tuple[Run, ...]) -> Sequence[Prefix]:
    """What runs on the same samples, of the same head and seed, have in common; what others go on from comes first."""
    courses, numbers = [Course(*run) for run in runs], tuple(range(len(runs)))
    return list(_parting(courses, numbers, 0, None)) if len(runs) > 1 else []


def own_steps(trunk: StageSpec) -> int:
    """Steps that a trunk trains beyond its parent's."""
    parent = trunk.inputs.get(TRUNK)
    return int(trunk.config["until"]) - (0 if parent is None else int(parent.config["until"]))


def _parting(courses: Sequence[Course], runs: tuple[int, ...], step: int, parent: Prefix | None) -> Iterable[Prefix]:
    """Prefixes of runs that are one until `step`; they have been so from the end of `parent` on."""
    while len(groups := _grouped(courses, runs, step)) == 1 and None not in groups:
        step += 1
    start = 0 if parent is None else parent.until
    longest = max(courses[run].steps for run in runs)
    if step - start >= max(LEAST_STEPS, LEAST_SHARE * longest):
        parent = Prefix(runs, start, step, _loss_until(courses[runs[0]], step), parent)
        yield parent
    for moment, group in groups.items():
        if moment is not None and len(group) > 1:
            yield from _parting(courses, group, step, parent)


def _grouped(courses: Sequence[Course], runs: Iterable[int], step: int) -> dict[Moment | None, tuple[int, ...]]:
    """The runs by what they do at a step."""
    groups: dict[Moment | None, tuple[int, ...]] = {}
    for run in runs:
        moment = courses[run].at(step)
        groups[moment] = (*groups.get(moment, ()), run)
    return groups


def _loss_until(course: Course, until: int) -> LossConfig:
    """What acts first, where it might have acted alone until then."""
    first = course.at(0)
    assert first is not None
    alone = Course(first.loss, course.training)
    return first.loss if alone.agrees(course, until) else course.loss


def _may_share(config: TrialConfig) -> bool:
    schedule = config.training.schedule
    return config.trainable in REGRESSORS and not (isinstance(schedule, Plateau) and schedule.early_stop is not None)


def _all_else(config: TrialConfig) -> str:
    """Digest of a configuration but for what the courses compare."""
    plain: dict[str, Json] = config.model_dump(mode="json", exclude={"loss": True, "training": _PACED})
    return digest([identity(plain), predicts_deviation(config.loss)])


def _trunk(
    config: TrialConfig, stages: Mapping[str, StageSpec], prefix: Prefix, parent: StageSpec | None, device: str
) -> StageSpec:
    """The stage; its `trial` is what any of the trials might be, as far as it goes."""
    trial = config.model_copy(update={"loss": prefix.loss})
    slice_ = {"trial": trial.model_dump(mode="json"), "until": prefix.until, "device": device}
    tested = {f"{kind}/{name}" for kind in ("queries", "global_features/queries") for name in test_sets(config)}
    inputs = {role: spec for role, spec in stages.items() if role not in tested and _trains(role)}
    return StageSpec(TRUNK, STAGES[TRUNK][1], slice_, {**inputs, **({} if parent is None else {TRUNK: parent})})


def _trains(role: str) -> bool:
    """Whether training or validation reads a stage of this role; the encoder has done its work by then."""
    return role in ("views/synthetic", "distance_field") or role.startswith(("buffer/", "queries/", "global_features/"))
