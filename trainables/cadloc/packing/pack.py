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
from cadloc.heads.head import Head
from cadloc.losses.phase import Evidence
from cadloc.packing.batched_linear import BatchedLinear
from cadloc.packing.captured import Recordings
from cadloc.packing.objectives import (
    PER_UNIT,
    PROGRESS,
    Kind,
    Stacked,
    Turn,
    Values,
    apart,
    kind_of,
    place_in_loss,
    stacked,
    together,
)
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

    def step(self) -> None:
        """See `Seats`."""
        for slot in list(self.slots):
            if _taken(slot, slot.learner.step(slot.stretch.step)):
                self.slots.remove(slot)


class Pack:
    """`capacity` seats whose heads are computed as one batch of heads.

    The parameters of all seats are leaves (K, ...). A seated head's own are views of its row, and so are its gradients:
    its optimizer works on them with the arithmetic of training alone. Free seats are computed and ignored, so that
    every product has the same shape whoever is seated: a slot's numbers do not depend on its neighbours. They keep
    their last kind, and who comes sits down where its own kind sat: so a step that was recorded serves whoever leaves
    and returns.
    """

    def __init__(self, like: Slot, capacity: int) -> None:
        head = like.learner.head
        self._computed = _Computed(copy.deepcopy(head).to("meta"))
        self._seats: list[Slot | None] = [None] * capacity
        self._parameters = {name: _rows_like(value, capacity).requires_grad_() for name, value in _named(head)}
        for parameter in self._parameters.values():
            parameter.grad = torch.zeros_like(parameter)
        self._buffers = {name: _rows_like(value, capacity) for name, value in head.named_buffers(prefix="head")}
        self._kinds = [_next_kind(like)] * capacity
        self._constrained = like.learner.constraints is not None
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
        place, head = self._place_for(_next_kind(slot)), slot.learner.head
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

    def step(self) -> None:
        """See `Seats`."""
        turns = [_turn(place, slot) for place, slot in enumerate(self._seats) if slot is not None]
        values = self._values(turns)
        for place, slot, *_ in turns:
            slot.learner.update(slot.stretch.step)
            if _taken(slot, values[place]):
                self._seats[place] = None

    def _place_for(self, kind: Kind) -> int:
        free = [place for place, slot in enumerate(self._seats) if slot is None]
        return min(free, key=lambda place: self._kinds[place] != kind)

    def _values(self, turns: Sequence[Turn]) -> list[Values]:
        """Of the next step, by place; leaves its gradients."""
        inputs, like = self._inputs(turns), turns[0].batch
        for turn in turns:
            self._kinds[turn.place] = turn.kind
        # An evidence that only free seats read is not worth another pass.
        read = {turn.kind.evidence for turn in turns}
        kinds = tuple(kind if kind.evidence in read else turns[0].kind for kind in self._kinds)
        if self._constrained:
            return self._learn(kinds, like, inputs, turns)
        return self._recordings.run(kinds, partial(self._learn, kinds, like), inputs)

    def _inputs(self, turns: Sequence[Turn]) -> dict[str, Tensor]:
        """All that a step reads but parameters and buffers, (K, ...)."""
        by_place = {turn.place: turn.batch for turn in turns}
        # Free seats compute on somebody's batch: of finite numbers and the right shape.
        batches = stacked([by_place.get(place, turns[0].batch) for place in range(len(self._seats))])
        return {**batches, **place_in_loss(turns, len(self._seats))}

    def _learn(
        self, kinds: Sequence[Kind], like: Batch, inputs: Stacked, constrained: Sequence[Turn] = ()
    ) -> list[Values]:
        """Leaves the gradients of a step; returns each seat's values.

        Without `constrained` turns it reads kinds and `inputs` only, of the batch `like` theirs no numbers: what
        another step of the same kinds may replay.
        """
        torch._foreach_zero_([p.grad for p in self._parameters.values() if p.grad is not None])
        totals, values = [], dict[int, Values]()
        batches = {name: value for name, value in inputs.items() if name not in (PROGRESS, PER_UNIT)}
        seats = {turn.place: turn.kind for turn in constrained} or dict(enumerate(kinds))
        # Where heads learn from different evidence, all are computed with either.
        for evidence in dict.fromkeys(kind.evidence for kind in seats.values()):
            outputs = self._outputs(batches, like, evidence)
            if constrained:
                total, named = apart([turn for turn in constrained if turn.kind.evidence == evidence], outputs)
            else:
                some = {place: kind for place, kind in seats.items() if kind.evidence == evidence}
                total, named = together(some, like, outputs, inputs)
            totals.append(total)
            values |= named
        torch.stack(totals).sum().backward()  # type: ignore[no-untyped-call]
        return [values.get(place, {}) for place in range(len(self._seats))]

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


def _next_kind(slot: Slot) -> Kind:
    return kind_of(slot, slot.learner.phase(slot.stretch.step))


def _turn(place: int, slot: Slot) -> Turn:
    step, learner = slot.stretch.step, slot.learner
    phase = learner.phase(step)
    return Turn(place, slot, learner.head.shown(learner.batch(step)), phase, kind_of(slot, phase))


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
