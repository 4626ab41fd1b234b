"""A stretch of training, from where it stands to its next milestone: the steps, and what is checked between them."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from cadloc.contract import DivergenceError
from cadloc.learner import Learner
from cadloc.training_window import Window

STEPS_BETWEEN_CHECKS = 50
EXPLOSION = 1e3
"""The objective's mean over so many steps may not exceed that of the first ones by more than this factor."""


@dataclass
class Progression:
    """Where training stands, in plain numbers: the part of a checkpoint that is not tensors."""

    step: int = 0
    training_s: float = 0.0
    first_objective: float | None = None
    cooling_from: int | None = None
    fitting_shares: list[float] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)


class Stretch:
    """The steps up to `milestone`, or to the end of a run that stops early before it.

    Whoever takes the steps calls `take` after each; `step` is the number of the next one, `over` says that there is
    none. The progression's step moves at the checks only: those are what a run can be taken up from.
    """

    def __init__(self, learner: Learner, progression: Progression, milestone: int) -> None:
        self.learner, self.progression, self.milestone = learner, progression, milestone
        self.window = Window(learner.device, learner.workers)
        self.step = progression.step

    @property
    def over(self) -> bool:
        """Whether no step is left."""
        return self.step >= min(self.milestone, self.learner.pace.steps)

    def take(self, values: Mapping[str, Tensor]) -> None:
        """What the learner's step came to. Raises DivergenceError when the objective is not finite or explodes."""
        self.window.add(values)
        self.step += 1
        if self.step % STEPS_BETWEEN_CHECKS == 0 or self.step in (self.milestone, self.learner.pace.steps):
            self.progression.step = self.step
            self._check(self.window.objective())
            self._stop_early()

    def row(self) -> dict[str, float]:
        """Of the history: mean losses over the stretch."""
        return {"step": self.progression.step, **self.window.means()}

    def _check(self, objective: float) -> None:
        progression = self.progression
        if progression.first_objective is None:
            progression.first_objective = objective
        limit = EXPLOSION * max(abs(progression.first_objective), 1.0)  # a likelihood may begin below zero
        if not math.isfinite(objective) or objective > limit:
            raise DivergenceError(
                f"training diverged by step {progression.step}: objective {objective:.3g}, at first "
                f"{progression.first_objective:.3g}; try a smaller training.learning_rate"
            )

    def _stop_early(self) -> None:
        """Begins to cool down where the last steps' batches fit well enough."""
        rule, progression = self.learner.pace.early_stop, self.progression
        if rule is None:
            return
        shares = [*progression.fitting_shares, *self.window.fitting_shares()][-rule.window :]
        progression.fitting_shares = shares
        if len(shares) == rule.window and sum(shares) / rule.window > rule.share:
            progression.cooling_from = progression.step
            self.learner.pace = self.learner.pace.stopped_at(progression.step)


class Runner(Protocol):
    """Who takes the steps of stretches, and where."""

    def run(self, stretch: Stretch) -> None:
        """Takes all steps of the stretch; its learner, progression and window then stand at its end.

        Raises DivergenceError, with the progression at the step by which it showed.
        """
        ...


class Here:
    """One step after another, in this process: what every other runner must agree with."""

    def run(self, stretch: Stretch) -> None:
        """See `Runner`."""
        start_s = time.perf_counter()
        while not stretch.over:
            stretch.take(stretch.learner.step(stretch.step))
        stretch.progression.training_s += time.perf_counter() - start_s
