"""Distance weighted by the deviation that a head predicts: what it cannot know, it need not pay for in full."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from cadloc.loss_config import UncertainCoordinateLoss
from cadloc.losses.phase import Evidence, Prediction, Unit, mean_where
from cadloc.samples import Batch


@dataclass(frozen=True)
class UncertainCoordinatePhase:
    """Mean negative log-likelihood of the true coordinates under an isotropic Gaussian about the predicted ones.

    3 log σ + d² / 2σ² (CrossLoc, Yan et al. 2022), constants left out, times σ^2β held fixed (Seitzer et al. 2022).
    """

    config: UncertainCoordinateLoss
    unit: ClassVar[Unit] = "nat"
    evidence: ClassVar[Evidence] = "points"

    def loss(self, predicted: Prediction, batch: Batch) -> Tensor:
        """Mean over the known samples, 0 where there is none: a scalar, below zero where all is well.

        Raises ValueError for predictions without a deviation.
        """
        deviation_m = predicted.deviation_m
        if deviation_m is None:
            raise ValueError("the loss uncertain_coordinate needs a head that predicts a deviation; this one gave none")
        differences = (predicted.coordinates - batch.targets) / deviation_m[:, None]
        losses = 3 * deviation_m.log() + 0.5 * differences.square().sum(dim=1)
        if self.config.weighting:
            losses = losses * deviation_m.detach() ** (2 * self.config.weighting)
        return mean_where(losses, batch.known, batch.workers)
