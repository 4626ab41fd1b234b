"""Training of a head on a buffer: a loop that can be stopped anywhere and goes on as if it had not been."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from cadloc.artifacts import write_table
from cadloc.checkpoints import read_checkpoint
from cadloc.config import TrialConfig
from cadloc.constraints import Constraints
from cadloc.contract import DivergenceError, Fault, InputError, digest, identity
from cadloc.courses import milestones
from cadloc.heads.head import Head
from cadloc.learner import Learner
from cadloc.losses import phase_at
from cadloc.losses.phase import Phase, Prediction
from cadloc.samples import Samples
from cadloc.stretch import Here, Progression, Runner, Stretch
from cadloc.whole_files import write_bytes
from cadloc.workers import ALONE, Workers

CHECKPOINT, HISTORY = "checkpoint.pt", "history.csv"

SAMPLES_AT_ONCE = 8192

Validation = Callable[[Head], Mapping[str, float]]
"""Accuracy of a head in training, by metric name."""


class Training:
    """A head, its optimizer and where they stand.

    Everything random is a function of seed and step, so a run that resumes from a checkpoint ends, on the CPU, in
    the same bits as one that was never interrupted.

    Several `workers` share every step: each takes a slice of its batch, and all take the mean gradient. The first one
    reads, validates, writes and tells; the others `follow`. The result is that of one worker but for rounding. Every
    worker holds all samples: W times the buffer's memory where they share a node. `runner` takes the steps.
    """

    def __init__(
        self,
        head: Head,
        samples: Samples,
        config: TrialConfig,
        directory: Path,
        constraints: Constraints | None = None,
        workers: Workers = ALONE,
        runner: Runner | None = None,
    ) -> None:
        self.head, self.progression = head, Progression()
        self._learner = Learner(head, samples, config, constraints, workers)
        self._workers, self._runner = workers, runner or Here()
        self._window: Mapping[str, Any] | None = None
        self._config, self._samples, self._directory = config, samples, directory

    @property
    def milestones(self) -> list[int]:
        """Steps after which the head is validated: evenly spread over the iterations, and the last step of the run."""
        return [*milestones(self._config.training, self._learner.pace.steps)]

    def start(self, trunk: Path | None = None) -> Sequence[Mapping[str, float]]:
        """Makes the head ready for step 0, or takes up the checkpoint in the trial's directory, else the one that a
        `trunk` left in its own: then returns the history's rows until there.

        Raises InputError for a checkpoint of another configuration or another buffer, and for samples that are too
        few for the head.
        """
        first = self._workers.rank == 0
        if first and not self.resume():
            if trunk is not None and self._fork(trunk):
                return tuple(self.progression.history)
            start_s = time.perf_counter()
            evidence = phase_at(self._config.loss, 0.0, self._samples.scale).evidence
            self.head.fit(self._samples, self._config.seed, evidence)
            self.progression.training_s = time.perf_counter() - start_s
        if self._workers.size > 1:
            told = self._workers.told(self._content() if first else b"")
            self._take_up(torch.load(io.BytesIO(told), map_location="cpu", weights_only=True))
        return ()

    def run(self, validate: Validation, until: int | None = None) -> Iterator[Mapping[str, float]]:
        """Trains to the end; yields the history's row of every milestone, once it is validated and stored.

        Trains to step `until` only, where there is one, for `store`, and then for others to go on from; a run that may
        stop early has none. The head has been made ready by `start`. Raises InputError for samples too few for a batch,
        DivergenceError when the objective is not finite or explodes; the history is on disk by then.
        """
        self._learner.begin()
        while self.progression.step < (self._learner.pace.steps if until is None else until):
            milestone = next(step for step in self.milestones if step > self.progression.step)
            try:
                row = self._run_until(milestone, until)
            except DivergenceError:
                if self._workers.rank == 0:
                    write_table(self._directory / HISTORY, self.progression.history)
                raise
            if self._workers.rank == 0 and row is not None:
                yield self._validated(row, validate)

    def store(self) -> None:
        """Writes the checkpoint, at a milestone or between two."""
        write_bytes(self._directory / CHECKPOINT, self._content())

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

    def _fork(self, trunk: Path) -> bool:
        """Goes on from where a trunk ends; False where it has left nothing that can be read."""
        stored = read_checkpoint(trunk / CHECKPOINT)
        if stored is None:
            return False
        self._take_up(stored)
        write_table(self._directory / HISTORY, self.progression.history)
        return True

    def _take_up(self, stored: Mapping[str, Any]) -> None:
        self.progression = Progression(**stored["progression"])
        self._window = stored.get("window")
        self._learner.take_up(stored, self.progression.cooling_from)

    def _validated(self, row: Mapping[str, float], validate: Validation) -> Mapping[str, float]:
        """The milestone's row with the validation's metrics, once it is stored."""
        self.head.eval()
        self.progression.history.append({**row, **validate(self.head), **self._validation_free_numbers()})
        write_table(self._directory / HISTORY, self.progression.history)
        if self._config.training.checkpoint:
            self.store()
        return self.progression.history[-1]

    def _run_until(self, milestone: int, until: int | None = None) -> dict[str, float] | None:
        """Trains up to step `milestone`, or the end of a run that stops early; returns its row: mean losses since the
        last one. Where `until` comes first, there is none, and the sums so far are part of the checkpoint."""
        self.head.train()
        stretch = _Opening(self._learner, self.progression, milestone, until)
        if self._window is not None:
            stretch.window.take_up(self._window)
            self._window = None
        try:
            self._runner.run(stretch)
        except DivergenceError:
            self.progression.history.append({**stretch.row(), **self._validation_free_numbers()})
            raise
        if stretch.cut_short:
            self.progression.step, self._window = stretch.step, stretch.window.state()
            return None
        return stretch.row()

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
                **self._learner.state(),
                "progression": vars(self.progression),
                "window": self._window,
            },
            content,
        )
        return content.getvalue()

    def _fingerprint(self) -> str:
        return digest([identity(self._config.model_dump(mode="json")), len(self._samples), self._samples.dimensions])


class _Opening(Stretch):
    """A stretch of which only the steps up to `until`, if that comes first, are taken; nothing is checked there."""

    def __init__(self, learner: Learner, progression: Progression, milestone: int, until: int | None) -> None:
        super().__init__(learner, progression, milestone)
        self._until = milestone if until is None else until

    @property
    def over(self) -> bool:
        """Whether no step is left."""
        return super().over or self.step >= self._until

    @property
    def cut_short(self) -> bool:
        """Whether it has ended before the milestone."""
        return self.over and not super().over


@torch.no_grad()
def mean_loss(head: Head, samples: Samples, phase: Phase) -> float:
    """Mean of the phase's loss over all samples, in its own unit."""
    total = 0.0
    indices = torch.arange(len(samples), device=samples.features.device)
    for some in torch.split(indices, SAMPLES_AT_ONCE):
        batch = samples.batch(some)
        total += float(phase.loss(Prediction(head.output_for(batch).coordinates), batch)) * len(batch)
    return total / len(samples)
