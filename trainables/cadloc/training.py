"""Training of a head on a buffer: a loop that can be stopped anywhere and goes on as if it had not been."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cadloc.artifacts import write_table
from cadloc.checkpoints import read_checkpoint
from cadloc.config import TrialConfig
from cadloc.constraints import Constraints
from cadloc.contract import DivergenceError, Fault, InputError, digest, identity
from cadloc.heads.head import Head
from cadloc.losses import phase_at
from cadloc.losses.phase import Phase, Prediction
from cadloc.pacing import Pace
from cadloc.samples import Samples
from cadloc.shuffling import Shuffled
from cadloc.training_window import FITTING, OBJECTIVE, Window
from cadloc.whole_files import write_bytes
from cadloc.workers import ALONE, Workers

CHECKPOINT, HISTORY = "checkpoint.pt", "history.csv"

STEPS_BETWEEN_CHECKS = 50
EXPLOSION = 1e3
"""The objective's mean over so many steps may not exceed that of the first ones by more than this factor."""

SAMPLES_AT_ONCE = 8192

Validation = Callable[[Head], Mapping[str, float]]
"""Accuracy of a head in training, by metric name."""


@dataclass
class Progression:
    """Where training stands, in plain numbers: the part of a checkpoint that is not tensors."""

    step: int = 0
    training_s: float = 0.0
    first_objective: float | None = None
    cooling_from: int | None = None
    fitting_shares: list[float] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)


class Training:
    """A head, its optimizer and where they stand.

    Everything random is a function of seed and step, so a run that resumes from a checkpoint ends, on the CPU, in
    the same bits as one that was never interrupted.

    Several `workers` share every step: each takes a slice of its batch, and all take the mean gradient. The first one
    reads, validates, writes and tells; the others `follow`. The result is that of one worker but for rounding. Every
    worker holds all samples: W times the buffer's memory where they share a node.
    """

    def __init__(
        self,
        head: Head,
        samples: Samples,
        config: TrialConfig,
        directory: Path,
        constraints: Constraints | None = None,
        workers: Workers = ALONE,
    ) -> None:
        self.head, self.progression = head, Progression()
        self._workers = workers
        self._config, self._samples, self._directory = config, samples, directory
        self._constraints = constraints
        self._pace = Pace(config.training, config.loss)
        self._device = samples.features.device
        training = config.training
        self._optimizer = torch.optim.AdamW(
            head.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay, fused=True
        )

    @property
    def milestones(self) -> list[int]:
        """Steps after which the head is validated: evenly spread over the iterations, and the last step of the run."""
        iterations, end = self._config.training.iterations, self._pace.steps
        count = min(self._config.training.validations, iterations)
        spread = (iterations * (i + 1) // count for i in range(count))
        return [*(step for step in spread if step < end), end]

    def start(self) -> None:
        """Makes the head ready for step 0, or takes up the checkpoint in the trial's directory.

        Raises InputError for a checkpoint of another configuration or another buffer, and for samples that are too
        few for the head.
        """
        first = self._workers.rank == 0
        if first and not self.resume():
            start_s = time.perf_counter()
            evidence = phase_at(self._config.loss, 0.0, self._samples.scale).evidence
            self.head.fit(self._samples, self._config.seed, evidence)
            self.progression.training_s = time.perf_counter() - start_s
        if self._workers.size > 1:
            told = self._workers.told(self._content() if first else b"")
            self._take_up(torch.load(io.BytesIO(told), map_location="cpu", weights_only=True))

    def run(self, validate: Validation) -> Iterator[Mapping[str, float]]:
        """Trains to the end; yields the history's row of every milestone, once it is validated and stored.

        The head has been made ready by `start`. Raises InputError for samples too few for a batch, DivergenceError
        when the objective is not finite or explodes; the history is on disk by then.
        """
        training = self._config.training
        parts = self.head.parts(self._samples)
        self._batches = Shuffled(self._samples, training.batch_size, self._config.seed, parts, self._workers)
        while self.progression.step < self._pace.steps:
            milestone = next(step for step in self.milestones if step > self.progression.step)
            try:
                row = self._run_until(milestone)
            except DivergenceError:
                if self._workers.rank == 0:
                    write_table(self._directory / HISTORY, self.progression.history)
                raise
            if self._workers.rank == 0:
                yield self._validated(row, validate)

    def follow(self) -> None:
        """Takes this worker's part in every step of the first worker's `run`. Raises what that raises of training."""
        for _ in self.run(lambda head: {}):
            raise AssertionError("the first worker follows nobody")

    def resume(self) -> bool:
        """Takes up the checkpoint in the trial's directory; False where there is none.

        Raises InputError for a checkpoint of another configuration or another buffer.
        """
        path = self._directory / CHECKPOINT
        stored = read_checkpoint(path)
        if stored is None:
            return False
        if stored["fingerprint"] != self._fingerprint():
            allowed = "one of this very configuration and buffer"
            raise InputError(Fault(str(path), "checkpoint", "a checkpoint of another trial", allowed, "delete it"))
        self._take_up(stored)
        return True

    def _take_up(self, stored: Mapping[str, Any]) -> None:
        self.head.load_state_dict(stored["head"])
        self._optimizer.load_state_dict(stored["optimizer"])
        self.progression = Progression(**stored["progression"])
        self._pace = Pace(self._config.training, self._config.loss, self.progression.cooling_from)

    def _validated(self, row: Mapping[str, float], validate: Validation) -> Mapping[str, float]:
        """The milestone's row with the validation's metrics, once it is stored."""
        self.head.eval()
        self.progression.history.append({**row, **validate(self.head), **self._validation_free_numbers()})
        write_table(self._directory / HISTORY, self.progression.history)
        if self._config.training.checkpoint:
            write_bytes(self._directory / CHECKPOINT, self._content())
        return self.progression.history[-1]

    def _run_until(self, milestone: int) -> dict[str, float]:
        """Trains up to step `milestone`, or the end of a run that stops early; returns its row: mean losses since the
        last one."""
        start_s = time.perf_counter()
        self.head.train()
        window = Window(self._device, self._workers)
        step = self.progression.step
        while step < min(milestone, self._pace.steps):
            window.add(self._step(step))
            step += 1
            if step % STEPS_BETWEEN_CHECKS == 0 or step in (milestone, self._pace.steps):
                self.progression.step = step
                self._check(window.objective(), window)
                self._stop_early(window)
        self.progression.training_s += time.perf_counter() - start_s
        return self._row(window)

    def _row(self, window: Window) -> dict[str, float]:
        return {"step": self.progression.step, **window.means()}

    def _step(self, step: int) -> dict[str, Tensor]:
        """One update; returns, detached, the loss by its unit, the head's own, the constraints' and the objective."""
        batch = self._batches.batch(step)
        phase = phase_at(self._config.loss, self._pace.progress(step), self._samples.scale)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._config.training.precision == "bfloat16"):
            output = self.head.training_output(batch, phase.evidence)
        loss = phase.loss(output.prediction, batch)
        metres_per_pixel = self._samples.scale.metres_per_pixel
        objective = loss * self.head.objective_per_unit(phase.unit, metres_per_pixel, batch.part) + output.own_loss
        values = {f"train/loss_{phase.unit}": loss, "train/own_loss": output.own_loss}
        if self._constraints is not None:
            means_px = self._constraints.named(output.coordinates, batch)
            per_pixel = self.head.objective_per_unit("px", metres_per_pixel, batch.part)
            objective = objective + self._constraints.weighted(means_px) * per_pixel
            values |= {f"train/constraint_{name}_px": value for name, value in means_px.items()}
        self._optimizer.zero_grad(set_to_none=True)
        objective.backward()  # type: ignore[no-untyped-call]
        # Who has no gradient has none in any worker, and the optimizer is to leave it alone.
        self._workers.average_gradients(p for p in self.head.parameters() if p.grad is not None)
        for group in self._optimizer.param_groups:
            group["lr"] = self._pace.learning_rate(step)
        self._optimizer.step()
        if self._pace.early_stop is not None:
            values[FITTING] = batch.share_within(output.coordinates, self._pace.early_stop.within_px)
        return {name: value.detach() for name, value in {**values, OBJECTIVE: objective}.items()}

    def _stop_early(self, window: Window) -> None:
        """Begins to cool down where the last steps' batches fit well enough."""
        rule = self._pace.early_stop
        if rule is None:
            return
        shares = [*self.progression.fitting_shares, *window.fitting_shares()][-rule.window :]
        self.progression.fitting_shares = shares
        if len(shares) == rule.window and sum(shares) / rule.window > rule.share:
            self.progression.cooling_from = self.progression.step
            self._pace = self._pace.stopped_at(self.progression.step)

    def _check(self, objective: float, window: Window) -> None:
        if self.progression.first_objective is None:
            self.progression.first_objective = objective
        limit = EXPLOSION * max(abs(self.progression.first_objective), 1.0)  # a likelihood may begin below zero
        if not math.isfinite(objective) or objective > limit:
            self.progression.history.append({**self._row(window), **self._validation_free_numbers()})
            raise DivergenceError(
                f"training diverged by step {self.progression.step}: objective {objective:.3g}, at first "
                f"{self.progression.first_objective:.3g}; try a smaller training.learning_rate"
            )

    def _validation_free_numbers(self) -> dict[str, float]:
        training = self._config.training
        return {
            "train/samples_seen": float(self.progression.step * training.batch_size),
            "time/training_s": self.progression.training_s,
        }

    def _content(self) -> bytes:
        """Of a checkpoint."""
        content = io.BytesIO()
        torch.save(
            {
                "fingerprint": self._fingerprint(),
                "head": self.head.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "progression": vars(self.progression),
            },
            content,
        )
        return content.getvalue()

    def _fingerprint(self) -> str:
        return digest([identity(self._config.model_dump(mode="json")), len(self._samples), self._samples.dimensions])


@torch.no_grad()
def mean_loss(head: Head, samples: Samples, phase: Phase) -> float:
    """Mean of the phase's loss over all samples, in its own unit."""
    total = 0.0
    indices = torch.arange(len(samples), device=samples.features.device)
    for some in torch.split(indices, SAMPLES_AT_ONCE):
        batch = samples.batch(some)
        total += float(phase.loss(Prediction(head.output_for(batch).coordinates), batch)) * len(batch)
    return total / len(samples)
