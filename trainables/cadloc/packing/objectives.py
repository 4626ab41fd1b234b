"""Objectives of many slots at once: slots under the same loss differ only by where they stand in its schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cadloc.head_config import AnchorHead
from cadloc.heads.head import TrainingOutput
from cadloc.losses.phase import Evidence, Phase
from cadloc.packing.slot import Slot
from cadloc.samples import Batch
from cadloc.training_config import EarlyStop
from cadloc.training_window import FITTING, OBJECTIVE

Stacked = Mapping[str, Tensor]
"""The tensors of K batches, or of K training outputs, by field, (K, ...)."""

Values = dict[str, Tensor]
"""Of one head's step, by name, scalars."""


def stacked(batches: Sequence[Batch]) -> dict[str, Tensor]:
    """The fields of batches of one kind, side by side."""
    names = [each.name for each in fields(batches[0]) if isinstance(getattr(batches[0], each.name), Tensor)]
    return {name: torch.stack([getattr(batch, name) for batch in batches]) for name in names}


PROGRESS, PER_UNIT = "progress", "per_unit"


class Kind(NamedTuple):
    """What seats have in common that are computed as one.

    The loss in force, wherever it stands in its schedules, the rule by which the run may end early, and what the head
    reads of the samples.
    """

    phase: Phase
    early_stop: EarlyStop | None
    evidence: Evidence


def kind_of(slot: Slot, phase: Phase) -> Kind:
    """Of a slot's step with that loss. What samples show is one to all heads but those of anchors: they read none."""
    learner = slot.learner
    evidence: Evidence = phase.evidence if isinstance(learner.config.head, AnchorHead) else "points"
    return Kind(_at(phase, 0.0), learner.pace.early_stop, evidence)


class Turn(NamedTuple):
    """A slot's part of a pack's step: at which place it is, its batch, the loss in force, and of which kind that is."""

    place: int
    slot: Slot
    batch: Batch
    phase: Phase
    kind: Kind


def place_in_loss(turns: Sequence[Turn], seats: int) -> dict[str, Tensor]:
    """What moves from step to step beside the batches: of each seat its loss's progress and weight, (K,).

    Progress is float64, as `cadloc.losses.kernels.Moment` says; the weight of free seats is 0.
    """
    like = turns[0].batch.pixels
    progress, weights = [0.0] * seats, [like.new_zeros(())] * seats
    for turn in turns:
        progress[turn.place] = float(getattr(turn.phase, "progress", 0.0))
        weights[turn.place] = turn.slot.per_unit(turn.phase.unit)
    moments = torch.tensor(progress, dtype=torch.float64).to(like.device, non_blocking=True)
    return {PROGRESS: moments, PER_UNIT: torch.stack(weights)}


def together(
    kinds: Mapping[int, Kind], like: Batch, outputs: Stacked, inputs: Stacked
) -> tuple[Tensor, dict[int, Values]]:
    """Sum of the objectives at some places, a scalar, and each one's values as `Learner.objective` gives them.

    A function of tensors alone: `outputs` and `inputs` are the whole pack's, (K, ...), the latter batches `like` one,
    `stacked`, and their `place_in_loss`.
    """
    groups: dict[Kind, list[int]] = {}
    for place, kind in kinds.items():
        groups.setdefault(kind, []).append(place)
    totals, values = [], dict[int, Values]()
    for kind, places in groups.items():
        total, named = _of_a_kind(kind, places, like, outputs, inputs)
        totals.append(total)
        values |= named
    return torch.stack(totals).sum(), values


def apart(turns: Sequence[Turn], outputs: Stacked) -> tuple[Tensor, dict[int, Values]]:
    """The same, one after the other, with the constraints of each; what they draw, they draw by the step's seed."""
    totals, values = [], dict[int, Values]()
    for turn in turns:
        own = TrainingOutput(**{name: each[turn.place] for name, each in outputs.items()})
        total, values[turn.place] = turn.slot.learner.objective(own, turn.batch, turn.phase)
        totals.append(total)
    return torch.stack(totals).sum(), values


def _of_a_kind(
    kind: Kind, places: list[int], like: Batch, outputs: Stacked, inputs: Stacked
) -> tuple[Tensor, dict[int, Values]]:
    rule = kind.early_stop

    def one(told: Stacked, given: Mapping[str, Any]) -> dict[str, Tensor]:
        """As `Learner.objective`, of tensors alone."""
        batch = {name: value for name, value in given.items() if name not in (PROGRESS, PER_UNIT)}
        output, seen = TrainingOutput(**told), replace(like, **batch)
        loss = _at(kind.phase, given[PROGRESS]).loss(output.prediction, seen)
        values = {f"train/loss_{kind.phase.unit}": loss, "train/own_loss": output.own_loss}
        if rule is not None:
            values[FITTING] = seen.share_within(output.coordinates, rule.within_px)
        return {**values, OBJECTIVE: loss * given[PER_UNIT] + output.own_loss}

    values = torch.func.vmap(one)(_rows(outputs, places), _rows(inputs, places))
    named = {name: value.detach().unbind() for name, value in values.items()}
    each = {place: {name: value[i] for name, value in named.items()} for i, place in enumerate(places)}
    return values[OBJECTIVE].sum(), each


def _rows(whole: Stacked, places: list[int]) -> Stacked:
    if places == list(range(len(next(iter(whole.values()))))):
        return whole
    return {name: torch.stack([each[place] for place in places]) for name, each in whole.items()}


def _at(phase: Phase, progress: Tensor | float) -> Phase:
    """The phase elsewhere in its schedules; some have none."""
    like: Any = phase
    moved: Phase = replace(like, progress=progress) if hasattr(phase, "progress") else phase
    return moved
