"""A stretch on a server: built from a request alone, and answered for."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from cadloc.contract import CadlocError
from cadloc.head_config import EnsembleHead
from cadloc.heads import build as build_head
from cadloc.learner import Learner
from cadloc.loss_config import predicts_deviation
from cadloc.losses.phase import Unit
from cadloc.packing.material import MaterialStore
from cadloc.packing.requests import StretchAnswer, StretchRequest, packed, take_up, unpacked
from cadloc.stretch import Progression, Stretch

OnAnswer = Callable[[StretchAnswer], object]


@dataclass(eq=False)
class Slot:
    """A stretch that a server runs, and whom to answer."""

    stretch: Stretch
    on_answer: OnAnswer
    alone: bool = False
    start_s: float | None = None

    @property
    def learner(self) -> Learner:
        """The stretch's."""
        return self.stretch.learner

    def begin(self) -> None:
        """Its first step is about to be taken: time in training runs."""
        self.start_s = time.perf_counter()

    def answer(self, error: CadlocError | None = None) -> None:
        """Tells the client where the stretch stands."""
        if self.start_s is not None:
            self.stretch.progression.training_s += time.perf_counter() - self.start_s
        self.on_answer(StretchAnswer(packed(self.stretch), error))

    @cached_property
    def shape(self) -> Hashable | None:
        """What slots of one pack must have in common; None for heads that only step alone.

        Ensembles step alone: their members take turns. Those with constraints have packs of their own: what they draw
        cannot be recorded, and is to keep nobody else from it.
        """
        config, samples = self.learner.config, self.learner.samples
        if isinstance(config.head, EnsembleHead):
            return None
        told = None if samples.global_features is None else samples.global_features.shape[1]
        head = json.dumps(config.head.model_dump(mode="json"), sort_keys=True)
        training, of_samples = config.training, (samples.dimensions, told, samples.complete)
        outputs = (predicts_deviation(config.loss), self.learner.constraints is not None)
        return (head, *of_samples, training.batch_size, training.precision, *outputs)

    def per_unit(self, unit: Unit) -> Tensor:
        """`Head.objective_per_unit` as a scalar tensor: the stretch's alone, whatever the step."""
        if unit not in self._per_unit:
            metres_per_pixel = self.learner.samples.scale.metres_per_pixel
            value = self.learner.head.objective_per_unit(unit, metres_per_pixel)
            self._per_unit[unit] = self.learner.head.length_m.new_ones(()) * value
        return self._per_unit[unit]

    @cached_property
    def _per_unit(self) -> dict[Unit, Tensor]:
        return {}


def slot_of(request: StretchRequest, store: MaterialStore, on_answer: OnAnswer) -> Slot:
    """The request's stretch, ready for its next step.

    Raises InputError for stages or settings that cannot be used, CadlocError for a state that is none of its own.
    """
    stored, config = unpacked(request.state), request.config
    try:
        samples, limits = store.of(config, request.stages)
    except (OSError, KeyError) as error:
        raise CadlocError(f"a stage is absent or cannot be read: {error}") from error
    told = samples.global_features
    head = build_head(
        config.head,
        samples.dimensions,
        config.seed,
        global_dimensions=0 if told is None else told.shape[1],
        deviation=predicts_deviation(config.loss),
    ).to(samples.features.device)
    learner = Learner(head, samples, config, limits)
    stretch = Stretch(learner, Progression(), request.milestone)
    try:
        take_up(stretch, stored)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise CadlocError(f"a stretch's state is not of the head it is sent with: {error}") from error
    learner.begin()
    return Slot(stretch, on_answer, request.alone)
