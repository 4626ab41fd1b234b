"""Objectives of many slots at once: slots under the same loss differ only by where they stand in its schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from cadloc.heads.head import TrainingOutput
from cadloc.losses.phase import Phase
from cadloc.packing.slot import Slot
from cadloc.samples import Batch
from cadloc.training_window import FITTING, OBJECTIVE

Stacked = Mapping[str, Tensor]
"""The tensors of K batches, or of K training outputs, by field, (K, ...)."""


def stacked(batches: Sequence[Batch]) -> dict[str, Tensor]:
    """The fields of batches of one kind, side by side."""
    names = [each.name for each in fields(batches[0]) if isinstance(getattr(batches[0], each.name), Tensor)]
    return {name: torch.stack([getattr(batch, name) for batch in batches]) for name in names}


PROGRESS, PER_UNIT = "progress", "per_unit"


@dataclass(frozen=True)
class Turn:
    """A slot's part of a pack's step: at which place it is, its batch, the loss in force."""

    place: int
    slot: Slot
    batch: Batch
    phase: Phase

    @property
    def kind(self) -> tuple[object, ...]:
        """Turns of the same kind are computed as one."""
        own = None if self.captures else self.place
        return (_at(self.phase, 0.0), self.slot.learner.pace.early_stop, own)

    @property
    def captures(self) -> bool:
        """Whether its objective is a function of tensors alone; what constraints draw, they draw by the step's seed."""
        return self.slot.learner.constraints is None


def place_in_loss(turns: Sequence[Turn], seats: int, device: torch.device) -> dict[str, Tensor]:
    """What moves from step to step beside the batches: of each seat its loss's progress and weight, (K,) float32."""
    progress, weights = [0.0] * seats, [turns[0].slot.per_unit("nat")] * seats
    for turn in turns:
        progress[turn.place] = float(getattr(turn.phase, "progress", 0.0))
        weights[turn.place] = turn.slot.per_unit(turn.phase.unit)
    moments = torch.tensor(progress).to(device, non_blocking=True)
    return {PROGRESS: moments, PER_UNIT: torch.stack(weights)}


def objectives(turns: Sequence[Turn], outputs: Stacked, inputs: Stacked) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Sum of the turns' objectives, a scalar, and each turn's values as `Learner.objective` gives them, in order.

    `outputs` and `inputs` are the whole pack's, (K, ...); the latter are `stacked` batches and their `place_in_loss`.
    """
    groups: dict[tuple[object, ...], list[Turn]] = {}
    for turn in turns:
        groups.setdefault(turn.kind, []).append(turn)
    totals = []
    values: dict[int, dict[str, Tensor]] = {}
    for group in groups.values():
        total, named = _together(group, outputs, inputs) if group[0].captures else _alone(group[0], outputs)
        totals.append(total)
        values |= {turn.place: own for turn, own in zip(group, named, strict=True)}
    return torch.stack(totals).sum(), [values[turn.place] for turn in turns]


def _alone(turn: Turn, outputs: Stacked) -> tuple[Tensor, list[dict[str, Tensor]]]:
    own = TrainingOutput(**{name: each[turn.place] for name, each in outputs.items()})
    objective, values = turn.slot.learner.objective(own, turn.batch, turn.phase)
    return objective, [values]


def _together(group: Sequence[Turn], outputs: Stacked, inputs: Stacked) -> tuple[Tensor, list[dict[str, Tensor]]]:
    first = group[0]
    rule, unit = first.slot.learner.pace.early_stop, first.phase.unit

    def one(told: Stacked, given: Mapping[str, Any]) -> dict[str, Tensor]:
        """As `Learner.objective`, of tensors alone."""
        batch = {name: value for name, value in given.items() if name not in (PROGRESS, PER_UNIT)}
        output, seen = TrainingOutput(**told), replace(first.batch, **batch)
        loss = _at(first.phase, given[PROGRESS]).loss(output.prediction, seen)
        values = {f"train/loss_{unit}": loss, "train/own_loss": output.own_loss}
        if rule is not None:
            values[FITTING] = seen.share_within(output.coordinates, rule.within_px)
        return {**values, OBJECTIVE: loss * given[PER_UNIT] + output.own_loss}

    places = [turn.place for turn in group]
    values = torch.func.vmap(one)(_rows(outputs, places), _rows(inputs, places))
    named = {name: value.detach().unbind() for name, value in values.items()}
    each = [{name: value[i] for name, value in named.items()} for i in range(len(group))]
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
