"""Where a run stands: how far along its losses' schedules, at which learning rate, and when it ends."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import assert_never

from cadloc.loss_config import LossConfig, SwitchingLoss
from cadloc.schedules import one_cycle, plateau
from cadloc.training_config import EarlyStop, OneCycle, Plateau, TrainingConfig


@dataclass(frozen=True)
class Pace:
    """A function of the step alone, until the map fits its samples early: then of when that was, too.

    `cooling_from` is the step at which an early stop began to cool the learning rate down, None before that.
    """

    training: TrainingConfig
    loss: LossConfig
    cooling_from: int | None = None

    @property
    def early_stop(self) -> EarlyStop | None:
        """The rule that may still end the run early."""
        schedule = self.training.schedule
        waiting = isinstance(schedule, Plateau) and self.cooling_from is None
        return schedule.early_stop if waiting and isinstance(schedule, Plateau) else None

    @cached_property
    def steps(self) -> int:
        """Number of steps of the run."""
        if self.cooling_from is None:
            return self.training.iterations
        return min(self.training.iterations, self.cooling_from + self._cool_down)

    @cached_property
    def _cool_down(self) -> int:
        schedule = self.training.schedule
        share = schedule.cool_down if isinstance(schedule, Plateau) else 0.0
        return max(1, round(share * self.training.iterations))

    @cached_property
    def _cooling_from(self) -> int:
        latest = max(0, self.training.iterations - self._cool_down)
        return latest if self.cooling_from is None else min(latest, self.cooling_from)

    def stopped_at(self, step: int) -> Pace:
        """The pace of a run that is to cool down from `step` on."""
        return replace(self, cooling_from=step)

    def progress(self, step: int) -> float:
        """In [0, 1]: by it the losses' thresholds and weights run; what an early stop leaves out, they do faster."""
        iterations = self.training.iterations
        if self.cooling_from is None or step < self.cooling_from:
            return step / iterations
        start = self.cooling_from / iterations
        return start + (1 - start) * ((step - self.cooling_from) / max(1, self.steps - self.cooling_from))  # ends at 1

    def learning_rate(self, step: int) -> float:
        """At step `step`, counted from 0."""
        peak = self.training.learning_rate
        match self.training.schedule:
            case OneCycle():
                start, end = self._cycle(step)
                return one_cycle(step - start, end - start, peak)
            case Plateau(warm_up=share):
                return plateau(step, round(share * self.training.iterations), self._cooling_from, self.steps, peak)
            case _:
                assert_never(self.training.schedule)

    def _cycle(self, step: int) -> tuple[int, int]:
        """First step of the cycle that `step` is in, and of the next one."""
        return (0, self._restart) if step < self._restart else (self._restart, self.steps)

    @cached_property
    def _restart(self) -> int:
        """First step of the second cycle, that of the second loss; of a single cycle, its end."""
        if isinstance(self.loss, SwitchingLoss) and self.loss.learning_rate == "restart":
            at = self.loss.at
            return next(step for step in range(self.steps + 1) if step / self.steps >= at)
        return self.steps
