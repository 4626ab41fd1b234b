"""One step of training: a batch, the head's output, its objective, and an update of the head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cadloc.config import TrialConfig
from cadloc.constraints import Constraints
from cadloc.heads.head import Head, TrainingOutput
from cadloc.losses import phase_at
from cadloc.losses.phase import Phase
from cadloc.pacing import Pace
from cadloc.samples import Batch, Samples
from cadloc.shuffling import Shuffled
from cadloc.training_window import FITTING, OBJECTIVE
from cadloc.workers import ALONE, Workers


class Learner:
    """A head, its optimizer and its place in the schedules: what changes in a step, and how.

    A step is `batch`, the head's `training_output`, `objective`, backward, `update`; `step` does all of it. Everything
    random is a function of seed and step.
    """

    def __init__(
        self,
        head: Head,
        samples: Samples,
        config: TrialConfig,
        constraints: Constraints | None = None,
        workers: Workers = ALONE,
    ) -> None:
        self.head, self.samples, self.config, self.workers = head, samples, config, workers
        self.constraints = constraints
        self.pace = Pace(config.training, config.loss)
        training = config.training
        self.optimizer = torch.optim.AdamW(
            head.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay, fused=True
        )

    @property
    def device(self) -> torch.device:
        """Of the samples, and so of all that is computed."""
        return self.samples.features.device

    @property
    def half(self) -> bool:
        """Whether the network computes in bfloat16."""
        return self.config.training.precision == "bfloat16"

    def begin(self) -> None:
        """Deals the samples into batches; the head has been fitted or taken up.

        Raises InputError for samples too few for a batch.
        """
        training = self.config.training
        parts = self.head.parts(self.samples)
        self._batches = Shuffled(self.samples, training.batch_size, self.config.seed, parts, self.workers)
        self.head.train()

    def batch(self, step: int) -> Batch:
        """The batch of a step, counted from 0."""
        return self._batches.batch(step)

    def phase(self, step: int) -> Phase:
        """The loss in force at a step."""
        return phase_at(self.config.loss, self.pace.progress(step), self.samples.scale)

    def step(self, step: int) -> dict[str, Tensor]:
        """One update; returns, detached, the loss by its unit, the head's own, the constraints' and the objective."""
        batch, phase = self.batch(step), self.phase(step)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            output = self.head.training_output(batch, phase.evidence)
        objective, values = self.objective(output, batch, phase)
        self.optimizer.zero_grad(set_to_none=True)
        objective.backward()  # type: ignore[no-untyped-call]
        self.update(step)
        return values

    def objective(self, output: TrainingOutput, batch: Batch, phase: Phase) -> tuple[Tensor, dict[str, Tensor]]:
        """What is to become smaller, a scalar, and what it consists of, detached, for the history."""
        loss = phase.loss(output.prediction, batch)
        metres_per_pixel = self.samples.scale.metres_per_pixel
        objective = loss * self.head.objective_per_unit(phase.unit, metres_per_pixel, batch.part) + output.own_loss
        values = {f"train/loss_{phase.unit}": loss, "train/own_loss": output.own_loss}
        if self.constraints is not None:
            means_px = self.constraints.named(output.coordinates, batch)
            per_pixel = self.head.objective_per_unit("px", metres_per_pixel, batch.part)
            objective = objective + self.constraints.weighted(means_px) * per_pixel
            values |= {f"train/constraint_{name}_px": value for name, value in means_px.items()}
        if self.pace.early_stop is not None:
            values[FITTING] = batch.share_within(output.coordinates, self.pace.early_stop.within_px)
        return objective, {name: value.detach() for name, value in {**values, OBJECTIVE: objective}.items()}

    def update(self, step: int) -> None:
        """Moves the head along the gradients that it has, at the learning rate of the step."""
        # Who has no gradient has none in any worker, and the optimizer is to leave it alone.
        self.workers.average_gradients(p for p in self.head.parameters() if p.grad is not None)
        for group in self.optimizer.param_groups:
            group["lr"] = self.pace.learning_rate(step)
        self.optimizer.step()

    def state(self) -> dict[str, Any]:
        """Head and optimizer."""
        return {"head": self.head.state_dict(), "optimizer": self.optimizer.state_dict()}

    def take_up(self, state: Mapping[str, Any], cooling_from: int | None) -> None:
        """Goes on from what `state` gave; `cooling_from` is where an early stop began, if it did."""
        self.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.pace = Pace(self.config.training, self.config.loss, cooling_from)
