"""What a constraint is, and in which measure all of them count."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from cadloc.samples import Batch

LINEAR_PX = 50.0
"""Penalty up to which a cost is linear: ACE's soft clamp."""


class Constraint(Protocol):
    """What the CAD model says of predicted points."""

    def penalties_px(self, coordinates: Tensor, batch: Batch) -> Tensor:
        """By how much each of the coordinates (B, 3) in `cad` breaks the constraint, (B,), zero where it does not.

        In pixels: what the deviation in metres spans, seen from the sample's camera at the sample's depth. Gradients
        are finite everywhere, for samples of unknown coordinate, too.
        """
        ...


def pixels_per_metre(batch: Batch, metres_per_pixel: float) -> Tensor:
    """What a metre spans (B,): focal length by true depth; where that is unknown, as in a typical view of the scene.

    The predicted depth would make an error cheaper by moving the point away. Without a single known sample a scene
    has no scale (`metres_per_pixel` 0): metres count as pixels.
    """
    return torch.where(batch.known, batch.focal_px / batch.depth_m, 1.0 / (metres_per_pixel or 1.0))


def softened(penalties_px: Tensor) -> Tensor:
    """Penalties (B,), linear up to `LINEAR_PX`, logarithmic beyond, without a kink.

    At the start of training points lie hundreds of metres off. Linear penalties would let those few drown the loss;
    tanh, as losses have it, would leave them without a gradient, and nothing else may know where they belong.
    """
    beyond = LINEAR_PX * (1 + torch.log(penalties_px.clamp(min=LINEAR_PX) / LINEAR_PX))
    return torch.where(penalties_px <= LINEAR_PX, penalties_px, beyond)
