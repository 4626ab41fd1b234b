"""What training asks of a loss at a moment of the run."""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol, TypeAlias

from torch import Tensor

from cadloc.samples import Batch
from cadloc.workers import ALONE, Workers

Unit: TypeAlias = Literal["m", "px", "nat"]
"""Metres, pixels, or the logarithm of a probability density."""

Evidence: TypeAlias = Literal["points", "rays"]
"""What a loss lets a head know of a sample: its scene coordinate, or its pixel and camera only."""


class Prediction(NamedTuple):
    """What a head says of B samples: `coordinates` (B, 3) in `cad`, metres, and how far they may be off.

    `deviation_m` (B,) is the standard deviation along each axis, positive; None from heads that do not say.
    """

    coordinates: Tensor
    deviation_m: Tensor | None = None


class Phase(Protocol):
    """A loss with all its schedules resolved."""

    @property
    def unit(self) -> Unit:
        """Unit of the loss."""
        ...

    @property
    def evidence(self) -> Evidence:
        """What else may supervise the head while this loss acts."""
        ...

    def loss(self, predicted: Prediction, batch: Batch) -> Tensor:
        """Scalar loss of predictions for the samples of a batch, in the loss's own unit."""
        ...


def mean_where(losses: Tensor, counted: Tensor, workers: Workers = ALONE) -> Tensor:
    """Mean of the losses (B,) that are `counted` (B,), 0 where none is; losses that are not must be finite still.

    Without indexing by a mask, hence without a wait for the device; of all samples it is `losses.mean()`.
    Of several `workers`, each with as many losses, it is such that the mean over them is the mean of all that count.
    """
    count = workers.mean(counted.sum().float()).clamp(min=1 / workers.size)
    return losses.where(counted, 0.0).sum() / count
