"""What the steps of training came to since somebody last asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cadloc.workers import Workers

OBJECTIVE, FITTING = "objective", "fitting"
"""Names of a step's objective, and of the share of its batch that fits well enough."""


class Window:
    """Sums of the steps since the last milestone, kept on the device: losses apart by unit, as a run may switch.

    What it is asked for are means over the workers, all of whom must ask.
    """

    def __init__(self, device: torch.device, workers: Workers) -> None:
        self._workers = workers
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._objective = torch.zeros((), device=device)
        self._checked = 0
        self._fitting: list[Tensor] = []

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Takes what a step returned, all scalars."""
        for name, value in values.items():
            if name == OBJECTIVE:
                self._objective += value
            elif name == FITTING:
                self._fitting.append(value)
            else:
                self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()
                self._counts[name] = self._counts.get(name, 0) + 1

    def fitting_shares(self) -> list[float]:
        """Of the steps since this was last asked; waits for the device."""
        shares = self._workers.mean(torch.stack(self._fitting)).tolist() if self._fitting else []
        self._fitting = []
        return [float(share) for share in shares]

    def objective(self) -> float:
        """Mean objective of the steps since this was last asked; waits for the device."""
        steps, self._checked = self._counts["train/own_loss"] - self._checked, self._counts["train/own_loss"]
        mean = float(self._workers.mean(self._objective)) / steps
        self._objective.zero_()
        return mean

    def means(self) -> dict[str, float]:
        """Mean of every loss over the steps in which it was in force."""
        return {name: float(self._workers.mean(total)) / self._counts[name] for name, total in self._sums.items()}

    def state(self) -> dict[str, Any]:
        """All sums, tensors and plain numbers: what a checkpoint may hold."""
        return {
            "sums": self._sums,
            "counts": self._counts,
            "objective": self._objective,
            "checked": self._checked,
            "fitting": self._fitting,
        }

    def take_up(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state` gave, on any device."""
        device = self._objective.device
        self._sums = {name: total.to(device, copy=True) for name, total in state["sums"].items()}
        self._counts, self._checked = dict(state["counts"]), state["checked"]
        self._objective = state["objective"].to(device, copy=True)
        self._fitting = [share.to(device, copy=True) for share in state["fitting"]]
