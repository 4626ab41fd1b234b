"""What ACE's head and its descendants share: residual triples of linear layers, and how their last layer is read."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cadloc.heads.linear import Linear
from cadloc.samples import Samples

LARGEST_SCALE = 4.0
SMALLEST_SCALE = 0.01
"""The homogeneous read-out multiplies what the last layer says by 0.01 to 4 (ACE, supplement)."""

SMALLEST_DEVIATION_M = 0.01
LEAST_RANGE = 10.0
"""Between the smallest and the largest deviation, in scenes of no depth."""


class Perceptron(nn.Module):
    """Residual triples of linear layers and two more (ACE, section 3.2): features (B, inputs) become (B, inner).

    `inner` is the width inside the triples and of the last layer (GLACE's ratio times the width).
    """

    def __init__(self, inputs: int, width: int, inner: int, blocks: int) -> None:
        super().__init__()
        self.skip = nn.Identity() if inputs == width else Linear(inputs, width)
        self.first = _triple(inputs, width, inner)
        self.blocks = nn.ModuleList(_triple(width, width, inner) for _ in range(blocks))
        self.last = nn.Sequential(Linear(width, width), _relu(), Linear(width, inner), _relu())

    def forward(self, features: Tensor) -> Tensor:
        """Hidden values (B, inner)."""
        x = self.skip(features) + self.first(features)
        for block in self.blocks:
            x = x + block(x)
        hidden: Tensor = self.last(x)
        return hidden


class DeviationReadOut(nn.Module):
    """The standard deviation of a prediction along each axis: between a centimetre and the median depth.

    It begins at what is right for a head that knows nothing yet, and is a median depth off. From below, the first
    steps' likelihood would drive it into its upper end, where it has no gradient to come back by.
    """

    largest_m: Tensor

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.layer = nn.Linear(inputs, 1)
        for parameter in self.layer.parameters():
            nn.init.zeros_(parameter)
        self.register_buffer("largest_m", torch.ones(()))

    def forward(self, hidden: Tensor) -> Tensor:
        """Deviations (B,) in metres, even steps of the layer being even ratios."""
        share = torch.sigmoid(self.layer(hidden)[:, 0])
        return SMALLEST_DEVIATION_M * (self.largest_m / SMALLEST_DEVIATION_M) ** share

    @torch.no_grad()
    def fit(self, samples: Samples) -> None:
        """Takes range and beginning from the samples' depths."""
        depth_m = float(samples.scale.metres_per_pixel * samples.intrinsics[:, 0, 0].median())
        largest_m = max(depth_m, LEAST_RANGE * SMALLEST_DEVIATION_M)
        self.largest_m.fill_(largest_m)
        share = 1 - math.log(math.sqrt(3)) / math.log(largest_m / SMALLEST_DEVIATION_M)
        self.layer.bias.fill_(math.log(share / (1 - share)))


def dehomogenised(raw: Tensor) -> Tensor:
    """(B, 3) of homogeneous (B, 4): xyz / h, h = min(softplus(w) + 1/4, 100), so shaped that w = 0 gives h = 1."""
    smallest_h = 1 / LARGEST_SCALE
    beta = math.log(2) / (1 - smallest_h)
    h = nn.functional.softplus(raw[:, 3:], beta=beta) + smallest_h
    return raw[:, :3] / h.clamp(max=1 / SMALLEST_SCALE)


def offsets(raw: Tensor) -> Tensor:
    """(B, 3) of what the last layer says: homogeneous (B, 4) or plain (B, 3)."""
    return dehomogenised(raw) if raw.shape[1] == 4 else raw


def mean_camera_centre(samples: Samples) -> Tensor:
    """(3,) float64, of the cameras that the samples are of."""
    return seeing_centres(samples).mean(dim=0)


def seeing_centres(samples: Samples) -> Tensor:
    """Of the cameras that the samples are of, (S, 3) float64 in `cad`."""
    seen = torch.bincount(samples.view, minlength=len(samples.cam_from_cad))
    return camera_centres(samples)[seen.nonzero()[:, 0]]


def camera_centres(samples: Samples) -> Tensor:
    """Of all cameras, (V, 3) float64 in `cad`."""
    rotation, translation = samples.cam_from_cad[:, :3, :3], samples.cam_from_cad[:, :3, 3]
    return -torch.einsum("vji,vj->vi", rotation, translation).double()


def _triple(inputs: int, width: int, inner: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in ((inputs, width), (width, inner), (inner, width)):
        layers += [Linear(before, after), _relu()]
    return nn.Sequential(*layers)


def _relu() -> nn.ReLU:
    """In place: no backward pass asks for what a linear layer gave, and on a CPU each new array costs its pages."""
    return nn.ReLU(inplace=True)
