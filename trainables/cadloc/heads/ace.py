"""ACE's head: a multi-layer perceptron with homogeneous read-out (Brachmann et al., CVPR 2023, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cadloc.head_config import AceHead
from cadloc.heads.head import Head, HeadOutput, TrainingOutput
from cadloc.heads.perceptron import DeviationReadOut, Perceptron, mean_camera_centre, offsets
from cadloc.losses.phase import Evidence
from cadloc.samples import Batch, Samples


class AcePerceptron(Head):
    """Residual triples of linear layers, two more, and a read-out about the mean camera centre.

    `centre` (3,) stays float32 and the read-out computes in float32: half precision would place the scene on a
    grid of centimetres.
    """

    centre: Tensor

    def __init__(self, config: AceHead, dimensions: int, deviation: bool = False) -> None:
        super().__init__()
        self.dimensions = dimensions
        self.trunk = Perceptron(dimensions, config.width, config.width, config.blocks)
        self.read_out = nn.Linear(config.width, 4 if config.homogeneous else 3)
        self.deviation = DeviationReadOut(config.width) if deviation else None
        self.register_buffer("centre", torch.zeros(3))
        self.register_buffer("length_m", torch.ones(()))

    def forward(self, features: Tensor, global_features: Tensor | None = None) -> HeadOutput:
        """Coordinates (B, 3) of features (B, C)."""
        hidden = self.trunk(features)
        with torch.autocast(hidden.device.type, enabled=False):
            hidden = hidden.float()
            deviation_m = None if self.deviation is None else self.deviation(hidden)
            return HeadOutput(offsets(self.read_out(hidden)) + self.centre, deviation_m=deviation_m)

    def training_output(self, batch: Batch, evidence: Evidence) -> TrainingOutput:
        """The loss is all that supervises this head."""
        output = self(batch.features)
        return TrainingOutput(output.coordinates, output.coordinates.new_zeros(()), output.deviation_m)

    def fit(self, samples: Samples, seed: int, evidence: Evidence = "rays") -> None:
        """Takes the mean of the mapping views' camera centres as origin."""
        self.centre.copy_(mean_camera_centre(samples))
        if self.deviation is not None:
            self.deviation.fit(samples)
