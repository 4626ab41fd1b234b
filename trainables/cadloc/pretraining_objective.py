"""What a method of pre-training is: how it draws its share of a step's data, and the loss on them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from cadloc.contract import CadlocError, Fault, InputError
from cadloc.encoders.ace import AceFeatures
from cadloc.encoders.small import SmallFeatures
from cadloc.pretraining_config import Contrastive, PretrainingConfig
from cadloc.pretraining_pairs import PooledBuilding
from cadloc.workers import ALONE, Workers

Trainee: TypeAlias = SmallFeatures | AceFeatures
"""An encoder whose `forward` has gradients."""

Update: TypeAlias = Callable[[Tensor, Sequence[nn.Parameter]], None]
"""One step of the optimizer on a loss, for the given parameters; the workers' gradients are averaged."""

Drawn: TypeAlias = Any
"""What `draw` hands to `loss`, of the method's own type: NumPy arrays and numbers, so that it can cross processes."""


@dataclass(frozen=True)
class Material:
    """What every method draws from."""

    buildings: Sequence[PooledBuilding]
    config: PretrainingConfig
    workers: Workers

    @property
    def size_px(self) -> tuple[int, int]:
        """Width and height of the crops."""
        return self.config.width_px, self.config.height_px

    def generator(self, step: int, *slot: int) -> np.random.Generator:
        """Random numbers of one slot of one step, the same whoever draws: resuming needs no generator's state."""
        return np.random.default_rng([self.config.seed, step, *slot])


def usable_buildings(buildings: Sequence[PooledBuilding], config: PretrainingConfig) -> list[PooledBuilding]:
    """Those that the method can learn from: with views, and for `contrastive` with views that overlap.

    Raises InputError when there is none.
    """
    pairs = isinstance(config.method, Contrastive)
    usable = [building for building in buildings if len(building.pairs if pairs else building.images)]
    if not usable:
        lacking = "views that overlap" if pairs else "a view that sees enough"
        found = f"{config.pool.views_per_target}, and none of {len(buildings)} buildings with {lacking}"
        action = "ask for more of them, for more pool.targets, or for more pool.buildings"
        raise InputError(Fault("configuration", "pool.views_per_target", found, "a pool to learn from", action))
    return usable


class Objective(nn.Module, ABC):
    """A method at work. Its parameters and buffers (heads, a read-out) are checkpointed with the encoder."""

    def prepare(self, dimensions: int, device: str) -> None:
        """Makes what depends on the encoder's number of channels; called once, before anything is learned or loaded."""

    def begin(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Called before every step."""

    @abstractmethod
    def draw(self, step: int) -> Drawn:
        """This worker's share of a step's data. Depends on nothing but configuration, buildings, step and share."""

    @abstractmethod
    def loss(self, encoder: Trainee, drawn: Drawn, update: Update) -> Tensor:
        """A scalar whose mean over the workers is the loss of the whole batch; `update` makes steps in between."""

    def active(self, drawn: Drawn) -> list[nn.Parameter]:
        """Own parameters that this step's loss moves, on all workers the same."""
        return list(self.parameters())


def as_images(pictures: Sequence[NDArray[np.uint8]], device: torch.device) -> Tensor:
    """Images (B, 3, H, W) uint8 of pictures (H, W, 3)."""
    return torch.from_numpy(np.stack(pictures)).to(device).permute(0, 3, 1, 2)


def device_of(module: nn.Module) -> torch.device:
    """Where the module's parameters lie."""
    return next(module.parameters()).device


class _Steps(Dataset[Drawn]):
    """What an objective draws, by step. Errors of ours are answers: a loader would tell them as text."""

    def __init__(self, objective: Objective, first: int, end: int) -> None:
        self._objective, self._steps = objective, range(first, end)

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, index: int) -> Drawn:
        try:
            return self._objective.draw(self._steps[index])
        except CadlocError as error:
            return error


def drawn_steps(
    objective: Objective, first: int, end: int, loaders: int, workers: Workers = ALONE, device: str = "cpu"
) -> Iterator[tuple[int, Drawn]]:
    """Steps and what is drawn for them, in order, whoever draws. Raises on all workers what `draw` raises on one."""
    steps = _Steps(objective, first, end)
    answers = _ahead(steps, loaders) if loaders and len(steps) else (steps[index] for index in range(len(steps)))
    for step, drawn in zip(range(first, end), answers, strict=True):
        workers.agree(drawn if isinstance(drawn, CadlocError) else None, device)
        yield step, drawn


def _ahead(steps: _Steps, loaders: int) -> Iterable[Drawn]:
    # Forked, not spawned: the pool's memory-mapped files are shared instead of copied. Loaders do not render.
    return DataLoader(steps, batch_size=None, num_workers=loaders, multiprocessing_context="fork", collate_fn=_as_it_is)


def _as_it_is(drawn: Drawn) -> Drawn:
    return drawn
