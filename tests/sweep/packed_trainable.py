"""A trainable of milliseconds whose training a server can do, named in spaces as `packed_trainable:train`.

It trains a sum: every step adds the learning rate and rounds. `training.weight_decay` asks for trouble at the server's
third step of the trial: 0.125 kills the server's process, 0.5 breaks it down, once for all trials beside one another.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cadloc.config import TrialConfig
from cadloc.contract import Progress, TrialContext

METRIC = "test/synthetic/translation_error_median_m"
VALIDATION = "validation/synthetic/translation_error_median_m"

STRETCH = 4
"""Steps from one milestone to the next."""


@dataclass
class Stretch:
    """A request and its answer: from a step to the next milestone."""

    config: TrialConfig
    directory: Path
    step: int
    total: float

    def take(self) -> None:
        """One step."""
        self.step += 1
        self.total = round(self.total * 0.75 + self.config.training.learning_rate + self.config.seed, 9)


def train(config: TrialConfig, context: TrialContext) -> Iterator[Progress]:
    """One progress per stretch; resumes from `step.txt`. `pids.txt` tells who took the steps."""
    checkpoint = context.directory / "step.txt"
    step, total = checkpoint.read_text().split() if checkpoint.is_file() else ("0", "0")
    stretch = Stretch(config, context.directory, int(step), float(total))
    while stretch.step < config.training.iterations:
        stretch = context.pack(stretch) if context.pack is not None else alone(stretch)
        checkpoint.write_text(f"{stretch.step} {stretch.total!r}")
        last = stretch.step == config.training.iterations
        known = {VALIDATION: stretch.total, **({METRIC: stretch.total} if last else {})}
        yield Progress(stretch.step, stretch.step, known, finished=last)


def reported_metrics(config: TrialConfig) -> frozenset[str]:
    """What `train` yields."""
    return frozenset({METRIC, VALIDATION})


def alone(stretch: Stretch) -> Stretch:
    """The stretch, without a server."""
    for _ in range(STRETCH):
        stretch.take()
    return stretch


class AddingServer:
    """Trains sums, one step of each at a time."""

    def __init__(self, device: str, slots: int) -> None:
        self._running: list[tuple[Stretch, int, Callable[[Stretch], object]]] = []
        self.steps = 0

    def admit(self, request: Stretch, on_answer: Callable[[Stretch], object]) -> None:
        """Begins a stretch."""
        with open(request.directory / "pids.txt", "a") as file:
            file.write(f"{os.getpid()}\n")
        self._running.append((request, request.step + STRETCH, on_answer))

    def step(self) -> bool:
        """One step of each."""
        self.steps += 1
        running, self._running = self._running, []
        for stretch, milestone, on_answer in running:
            stretch.take()
            trouble(stretch)
            if stretch.step == milestone:
                on_answer(stretch)
            else:
                self._running.append((stretch, milestone, on_answer))
        return bool(running)


def trouble(stretch: Stretch) -> None:
    """What happens at the third step."""
    asked, mark = stretch.config.training.weight_decay, stretch.directory.parent / "trouble.txt"
    if stretch.step != 3 or mark.exists():
        return
    mark.touch()
    if asked == 0.125:
        os.kill(os.getpid(), signal.SIGKILL)
    if asked == 0.5:
        raise RuntimeError("asked for trouble")
