"""A discriminator of domains, and the gradient reversal that turns it into a teacher (Ganin et al., 2016)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, leaky_relu

STEEPNESS = 10.0


class PatchDiscriminator(nn.Module):
    """Says of single cells, patches of the image as wide as the encoder sees, whether they are a photo's."""

    def __init__(self, dimensions: int, width: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.first = nn.Linear(dimensions, width)
            self.second = nn.Linear(width, width)
            self.last = nn.Linear(width, 1)

    def forward(self, rows: Tensor) -> Tensor:
        """Logits (N,) of being a photo's, of features (N, C)."""
        hidden = leaky_relu(self.second(leaky_relu(self.first(rows), 0.2)), 0.2)
        logits: Tensor = self.last(hidden)[:, 0]
        return logits


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        return -ctx.weight * gradients[0], None


def reversed_gradient(features: Tensor, weight: float) -> Tensor:
    """The features themselves; on the way back their gradient changes sign and is scaled by `weight`."""
    result: Tensor = _Reversal.apply(features, weight)  # type: ignore[no-untyped-call]
    return result


def ramp(progress: float) -> float:
    """2 / (1 + exp(−10 p)) − 1: from 0 to almost 1 over the run, so that the discriminator learns first."""
    return 2 / (1 + math.exp(-STEEPNESS * progress)) - 1


def domain_loss(discriminator: PatchDiscriminator, photos: Tensor, renders: Tensor, weight: float) -> Tensor:
    """Cross-entropy of the discriminator, in nats, equal shares of both domains.

    Its gradient makes the discriminator better; reversed and scaled, it makes the features (N, C) harder to tell
    apart. At log 2 it cannot tell.
    """
    logits_photos = discriminator(reversed_gradient(photos, weight))
    logits_renders = discriminator(reversed_gradient(renders, weight))
    as_photos = binary_cross_entropy_with_logits(logits_photos, torch.ones_like(logits_photos))
    return (as_photos + binary_cross_entropy_with_logits(logits_renders, torch.zeros_like(logits_renders))) / 2
