"""Training of a head on a buffer: a loop that can be stopped anywhere and goes on as if it had not been."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from cadloc.artifacts import write_table
from cadloc.checkpoints import read_checkpoint
from cadloc.config import TrialConfig
from cadloc.contract import DivergenceError, Fault, InputError, digest, identity
from cadloc.heads.head import Head
from cadloc.losses import phase_at
from cadloc.losses.phase import Phase, Unit
from cadloc.samples import Samples, Shuffled
from cadloc.schedules import one_cycle
from cadloc.whole_files import write_bytes

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
    history: list[dict[str, float]] = field(default_factory=list)


class Training:
    """A head, its optimizer and where they stand.

    Everything random is a function of seed and step, so a run that resumes from a checkpoint ends, on the CPU, in
    the same bits as one that was never interrupted.
    """

    def __init__(self, head: Head, samples: Samples, config: TrialConfig, directory: Path) -> None:
        self.head, self.progression = head, Progression()
        self._config, self._samples, self._directory = config, samples, directory
        self._batches = Shuffled(samples, config.training.batch_size, config.seed)
        self._device = samples.features.device
        training = config.training
        self._optimizer = torch.optim.AdamW(
            head.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay, fused=True
        )

    @property
    def milestones(self) -> list[int]:
        """Steps after which the head is validated, evenly spread, the last step included."""
        training = self._config.training
        count = min(training.validations, training.iterations)
        return [training.iterations * (i + 1) // count for i in range(count)]

    def run(self, validate: Validation) -> Iterator[Mapping[str, float]]:
        """Trains to the end; yields the history's row of every milestone, once it is validated and stored.

        Raises DivergenceError when the objective is not finite or explodes; the history is on disk by then.
        """
        for milestone in self.milestones:
            if milestone <= self.progression.step:
                continue
            try:
                row = self._run_until(milestone)
            except DivergenceError:
                write_table(self._directory / HISTORY, self.progression.history)
                raise
            self.head.eval()
            self.progression.history.append({**row, **validate(self.head), **self._validation_free_numbers()})
            write_table(self._directory / HISTORY, self.progression.history)
            if self._config.training.checkpoint:
                self._save()
            yield self.progression.history[-1]

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
        self.head.load_state_dict(stored["head"])
        self._optimizer.load_state_dict(stored["optimizer"])
        self.progression = Progression(**stored["progression"])
        return True

    def _run_until(self, milestone: int) -> dict[str, float]:
        """Trains up to step `milestone`; returns its row: mean losses since the last one, by unit."""
        start_s = time.perf_counter()
        self.head.train()
        window = _Window(self._device)
        for step in range(self.progression.step, milestone):
            window.add(phase_at(self._config.loss, step / self._config.training.iterations).unit, self._step(step))
            if (step + 1) % STEPS_BETWEEN_CHECKS == 0 or step + 1 == milestone:
                self.progression.step = step + 1
                self._check(window.objective(), window)
        self.progression.training_s += time.perf_counter() - start_s
        return self._row(window)

    def _row(self, window: _Window) -> dict[str, float]:
        return {"step": self.progression.step, **window.means()}

    def _step(self, step: int) -> Tensor:
        """One update; returns loss in its own unit, the head's own loss, and the objective, (3,), detached."""
        batch = self._batches.batch(step)
        phase = phase_at(self._config.loss, step / self._config.training.iterations)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._config.training.precision == "bfloat16"):
            output = self.head.training_output(batch, phase.evidence)
        loss = phase.loss(output.coordinates, batch)
        objective = loss * self._objective_per_unit(phase) + output.own_loss
        self._optimizer.zero_grad(set_to_none=True)
        objective.backward()  # type: ignore[no-untyped-call]
        for group in self._optimizer.param_groups:
            training = self._config.training
            group["lr"] = one_cycle(step, training.iterations, training.learning_rate)
        self._optimizer.step()
        return torch.stack([loss.detach(), output.own_loss.detach(), objective.detach()])

    def _objective_per_unit(self, phase: Phase) -> Tensor:
        """Every loss enters the objective as a length in the head's own measure.

        So pixels after a switch weigh as much as the metres before it (a pixel spans depth by focal length), and
        the optimizer's moments, gathered on one, stay valid for the other.
        """
        return phase.metres_per_unit(self._samples.metres_per_pixel) / self.head.length_m

    def _check(self, objective: float, window: _Window) -> None:
        if self.progression.first_objective is None:
            self.progression.first_objective = objective
        limit = EXPLOSION * max(self.progression.first_objective, 1e-3)
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

    def _save(self) -> None:
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
        write_bytes(self._directory / CHECKPOINT, content.getvalue())

    def _fingerprint(self) -> str:
        return digest([identity(self._config.model_dump(mode="json")), len(self._samples), self._samples.dimensions])


class _Window:
    """Sums of the steps since the last milestone, kept on the device: losses apart by unit, as a run may switch."""

    def __init__(self, device: torch.device) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._objective = torch.zeros((), device=device)
        self._checked = 0

    def add(self, unit: Unit, values: Tensor) -> None:
        """Takes a step's loss, own loss and objective (3,)."""
        for name, value in ((f"train/loss_{unit}", values[0]), ("train/own_loss", values[1])):
            self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()
            self._counts[name] = self._counts.get(name, 0) + 1
        self._objective += values[2]

    def objective(self) -> float:
        """Mean objective of the steps since this was last asked; waits for the device."""
        steps, self._checked = self._counts["train/own_loss"] - self._checked, self._counts["train/own_loss"]
        mean = float(self._objective) / steps
        self._objective.zero_()
        return mean

    def means(self) -> dict[str, float]:
        """Mean of every loss over the steps in which it was in force."""
        return {name: float(total) / self._counts[name] for name, total in self._sums.items()}


@torch.no_grad()
def mean_loss(head: Head, samples: Samples, phase: Phase) -> float:
    """Mean of the phase's loss over all samples, in its own unit."""
    total = 0.0
    indices = torch.arange(len(samples), device=samples.features.device)
    for some in torch.split(indices, SAMPLES_AT_ONCE):
        batch = samples.batch(some)
        total += float(phase.loss(head(batch.features).coordinates, batch)) * len(batch)
    return total / len(samples)
