"""ACE's head: a multi-layer perceptron with homogeneous read-out (Brachmann et al., CVPR 2023, section 3.2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cadloc.config import AceHead
from cadloc.heads.head import Head, HeadOutput, TrainingOutput
from cadloc.losses.phase import Evidence
from cadloc.samples import Batch, Samples

LARGEST_SCALE = 4.0
SMALLEST_SCALE = 0.01
"""The homogeneous read-out multiplies what the last layer says by 0.01 to 4 (ACE, supplement)."""


class AcePerceptron(Head):
    """Residual triples of linear layers, two more, and a read-out about the mean camera centre.

    `centre` (3,) stays float32 and the read-out computes in float32: half precision would place the scene on a
    grid of centimetres.
    """

    centre: Tensor

    def __init__(self, config: AceHead, dimensions: int) -> None:
        super().__init__()
        self.dimensions = dimensions
        width = config.width
        self.skip = nn.Identity() if dimensions == width else nn.Linear(dimensions, width)
        self.first = _triple(dimensions, width)
        self.blocks = nn.ModuleList(_triple(width, width) for _ in range(config.blocks))
        self.last = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.read_out = nn.Linear(width, 4 if config.homogeneous else 3)
        self.register_buffer("centre", torch.zeros(3))
        self.register_buffer("length_m", torch.ones(()))

    def forward(self, features: Tensor) -> HeadOutput:
        """Coordinates (B, 3) of features (B, C)."""
        x = self.skip(features) + self.first(features)
        for block in self.blocks:
            x = x + block(x)
        hidden = self.last(x)
        with torch.autocast(hidden.device.type, enabled=False):
            raw = self.read_out(hidden.float())
            return HeadOutput(dehomogenised(raw) + self.centre if raw.shape[1] == 4 else raw + self.centre)

    def training_output(self, batch: Batch, evidence: Evidence) -> TrainingOutput:
        """The loss is all that supervises this head."""
        coordinates = self(batch.features).coordinates
        return TrainingOutput(coordinates, coordinates.new_zeros(()))

    def fit(self, samples: Samples, seed: int) -> None:
        """Takes the mean of the mapping views' camera centres as origin."""
        rotation, translation = samples.cam_from_cad[:, :3, :3], samples.cam_from_cad[:, :3, 3]
        self.centre.copy_(-torch.einsum("vji,vj->vi", rotation, translation).double().mean(dim=0))


def dehomogenised(raw: Tensor) -> Tensor:
    """(B, 3) of homogeneous (B, 4): xyz / h, h = min(softplus(w) + 1/4, 100), so shaped that w = 0 gives h = 1."""
    smallest_h = 1 / LARGEST_SCALE
    beta = math.log(2) / (1 - smallest_h)
    h = nn.functional.softplus(raw[:, 3:], beta=beta) + smallest_h
    return raw[:, :3] / h.clamp(max=1 / SMALLEST_SCALE)


def _triple(inputs: int, width: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for size in (inputs, width, width):
        layers += [nn.Linear(size, width), nn.ReLU()]
    return nn.Sequential(*layers)
