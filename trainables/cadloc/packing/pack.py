"""Many heads of one shape, trained step by step as one: their weights stand side by side."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cadloc.contract import DivergenceError
from cadloc.head_config import AnchorHead
from cadloc.heads.head import Head
from cadloc.losses.phase import Evidence
from cadloc.packing.batched_linear import BatchedLinear
from cadloc.packing.captured import Recordings
from cadloc.packing.objectives import PER_UNIT, PROGRESS, Stacked, Turn, objectives, place_in_loss, stacked
from cadloc.packing.slot import Slot
from cadloc.samples import Batch


class Seats(Protocol):
    """Where slots of one shape take their steps."""

    @property
    def slots(self) -> Sequence[Slot]:
        """Those that are seated."""
        ...

    @property
    def free(self) -> bool:
        """Whether one more may sit down."""
        ...

    def seat(self, slot: Slot) -> None:
        """Takes a slot in, between two steps."""
        ...

    def leave(self, slot: Slot) -> None:
        """Frees its seat, between two steps."""
        ...

    def step(self) -> None:
        """One step of every slot; those that are done, or fail, are answered and leave."""
        ...


class Turns:
    """Seats of slots that step one after another, as they would at home, to the bit."""

    def __init__(self, capacity: int) -> None:
        self.slots: list[Slot] = []
        self._capacity = capacity

    @property
    def free(self) -> bool:
        """See `Seats`."""
        return len(self.slots) < self._capacity

    def seat(self, slot: Slot) -> None:
        """See `Seats`."""
        self.slots.append(slot)
        slot.begin()

    def leave(self, slot: Slot) -> None:
        """See `Seats`."""
        self.slots.remove(slot)

    def step(self) -> None:
        """See `Seats`."""
        for slot in list(self.slots):
            if _taken(slot, slot.learner.step(slot.stretch.step)):
                self.leave(slot)


class Pack:
    """`capacity` seats whose heads are computed as one batch of heads.

    The parameters of all seats are leaves (K, ...). A seated head's own are views of its row, and so are its gradients:
    its optimizer works on them with the arithmetic of training alone. Free seats are computed and ignored, so that
    every product has the same shape whoever is seated: a slot's numbers do not depend on its neighbours.
    """

    def __init__(self, like: Slot, capacity: int) -> None:
        head = like.learner.head
        self._computed = _Computed(copy.deepcopy(head).to("meta"))
        self._seats: list[Slot | None] = [None] * capacity
        self._parameters = {name: _rows_like(value, capacity).requires_grad_() for name, value in _named(head)}
        for parameter in self._parameters.values():
            parameter.grad = torch.zeros_like(parameter)
        self._buffers = {name: _rows_like(value, capacity) for name, value in head.named_buffers(prefix="head")}
        self._reads_evidence = isinstance(like.learner.config.head, AnchorHead)
        self._half = like.learner.half
        self._recordings = Recordings(like.learner.device)

    @property
    def slots(self) -> Sequence[Slot]:
        """See `Seats`."""
        return [slot for slot in self._seats if slot is not None]

    @property
    def free(self) -> bool:
        """See `Seats`."""
        return None in self._seats

    def seat(self, slot: Slot) -> None:
        """See `Seats`."""
        place, head = self._seats.index(None), slot.learner.head
        self._seats[place] = slot
        with torch.no_grad():
            for name, parameter in _named(head):
                whole = self._parameters[name]
                whole[place].copy_(parameter)
                assert whole.grad is not None
                parameter.data, parameter.grad = whole.data[place], whole.grad[place]
            for name, value in head.named_buffers(prefix="head"):
                self._buffers[name][place].copy_(value)
        slot.begin()

    def leave(self, slot: Slot) -> None:
        """See `Seats`."""
        self._seats[self._seats.index(slot)] = None

    def step(self) -> None:
        """See `Seats`."""
        turns = [self._turn(place, slot) for place, slot in enumerate(self._seats) if slot is not None]
        if all(turn.captures for turn in turns):
            key = tuple((turn.place, self._evidence(turn), turn.kind) for turn in turns)
            values = self._recordings.run(key, partial(self._learn, turns), self._inputs(turns))
        else:
            values = self._learn(turns, self._inputs(turns))
        for turn, own in zip(turns, values, strict=True):
            turn.slot.learner.update(turn.slot.stretch.step)
            if _taken(turn.slot, own):
                self.leave(turn.slot)

    def _inputs(self, turns: Sequence[Turn]) -> dict[str, Tensor]:
        """All that a step reads but parameters and buffers, (K, ...)."""
        by_place = {turn.place: turn.batch for turn in turns}
        # Free seats compute on somebody's batch: of finite numbers and the right shape.
        batches = stacked([by_place.get(place, turns[0].batch) for place in range(len(self._seats))])
        return {**batches, **place_in_loss(turns, len(self._seats), turns[0].batch.pixels.device)}

    def _learn(self, turns: Sequence[Turn], inputs: Stacked) -> list[dict[str, Tensor]]:
        """Leaves the gradients of a step; returns each turn's values.

        Of the turns it reads what they have in common with those of other steps: kinds, not numbers.
        """
        torch._foreach_zero_([p.grad for p in self._parameters.values() if p.grad is not None])
        by_evidence: dict[Evidence, list[Turn]] = {}
        for turn in turns:  # where heads learn from different evidence, all are computed with either
            by_evidence.setdefault(self._evidence(turn), []).append(turn)
        totals, values = [], dict[int, dict[str, Tensor]]()
        batches = {name: value for name, value in inputs.items() if name not in (PROGRESS, PER_UNIT)}
        for evidence, some in by_evidence.items():
            total, named = objectives(some, self._outputs(batches, turns[0].batch, evidence), inputs)
            totals.append(total)
            values |= {turn.place: own for turn, own in zip(some, named, strict=True)}
        torch.stack(totals).sum().backward()  # type: ignore[no-untyped-call]
        return [values[turn.place] for turn in turns]

    def _evidence(self, turn: Turn) -> Evidence:
        """What the head reads of the turn's: but for anchors, nothing."""
        return turn.phase.evidence if self._reads_evidence else "points"

    def _turn(self, place: int, slot: Slot) -> Turn:
        step, learner = slot.stretch.step, slot.learner
        return Turn(place, slot, learner.head.shown(learner.batch(step)), learner.phase(step))

    def _outputs(self, batches: Stacked, like: Batch, evidence: Evidence) -> Stacked:
        """Training outputs of all seats, (K, ...)."""

        def one(parameters: Stacked, buffers: Stacked, batch: Stacked) -> dict[str, Tensor]:
            arguments = (like, batch, evidence)
            output: dict[str, Tensor] = torch.func.functional_call(
                self._computed, (dict(parameters), dict(buffers)), arguments
            )
            return output

        # Recorded steps may not use weights that were cast in another one.
        half = torch.autocast(like.features.device.type, torch.bfloat16, enabled=self._half, cache_enabled=False)
        with half, BatchedLinear():
            outputs: dict[str, Tensor] = torch.func.vmap(one)(self._parameters, self._buffers, batches)
        return outputs


class _Computed(nn.Module):
    """A head's training output as a module's forward: what `functional_call` calls."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head = head.train()

    def forward(self, like: Batch, tensors: Mapping[str, Any], evidence: Evidence) -> dict[str, Tensor]:
        """Of a batch like another, with its own tensors; what the head does not predict is left out."""
        output = self.head.output_of_shown(replace(like, **tensors), evidence)
        return {name: value for name, value in output._asdict().items() if value is not None}


def _named(head: Head) -> list[tuple[str, nn.Parameter]]:
    return list(head.named_parameters(prefix="head"))


def _rows_like(value: Tensor, capacity: int) -> Tensor:
    return torch.stack([value.detach()] * capacity)


def _taken(slot: Slot, values: Mapping[str, Tensor]) -> bool:
    """Tells the stretch of its step; True when that was its last, and it has been answered."""
    try:
        slot.stretch.take(values)
    except DivergenceError as error:
        slot.answer(error)
        return True
    if slot.stretch.over:
        slot.answer()
    return slot.stretch.over
