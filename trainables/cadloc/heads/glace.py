"""GLACE's head (Wang et al., CVPR 2024): ACE's perceptron, told which image a cell is of, about many centres.

The global feature of the image groups what is seen together: noise on it, anew in every step, makes neighbours on the
sphere share what they learn ("feature diffusion", section 3.3). The position decoder (section 3.4) gives the last layer
a base to be relative to: a mean of the centres, weighted by a softmax, so that offsets stay small in a large scene.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from cadloc.head_config import GlaceHead
from cadloc.heads.anchors import area_uniform, place_anchors
from cadloc.heads.head import Head, HeadOutput, TrainingOutput
from cadloc.heads.perceptron import DeviationReadOut, Perceptron, mean_camera_centre, offsets, seeing_centres
from cadloc.losses.phase import Evidence
from cadloc.samples import Batch, Samples


class GlacePerceptron(Head):
    """Global and local feature side by side, the perceptron, and a position decoder.

    With one centre, no noise and no global feature it computes what `AcePerceptron` does, bit for bit. `centres` (K, 3)
    are relative to `centre` (3,); both are float32, and so is the read-out.
    """

    centre: Tensor
    centres: Tensor

    def __init__(self, config: GlaceHead, dimensions: int, global_dimensions: int, deviation: bool = False) -> None:
        super().__init__()
        self.dimensions, self.global_dimensions = dimensions, global_dimensions
        self._centres_of, self._diffusion = config.centres_of, config.diffusion
        inner = int(config.width * config.ratio)
        self.trunk = Perceptron(global_dimensions + dimensions, config.width, inner, config.blocks)
        self.read_out = nn.Linear(inner, 4 if config.homogeneous else 3)
        self.shares = nn.Linear(inner, config.centres) if config.centres > 1 else None
        self.deviation = DeviationReadOut(inner) if deviation else None
        self.register_buffer("centre", torch.zeros(3))
        self.register_buffer("centres", torch.zeros(config.centres, 3))
        self.register_buffer("length_m", torch.ones(()))

    def forward(self, features: Tensor, global_features: Tensor | None = None) -> HeadOutput:
        """Coordinates (B, 3) of features (B, C) of images with global features (B, G)."""
        inputs = features
        if global_features is not None and self.global_dimensions:
            inputs = torch.cat([global_features, features], dim=1)
        hidden = self.trunk(inputs)
        with torch.autocast(hidden.device.type, enabled=False):
            hidden = hidden.float()
            relative = offsets(self.read_out(hidden))
            if self.shares is not None:
                relative = relative + torch.softmax(self.shares(hidden), dim=1) @ self.centres
            deviation_m = None if self.deviation is None else self.deviation(hidden)
            return HeadOutput(relative + self.centre, deviation_m=deviation_m)

    def training_output(self, batch: Batch, evidence: Evidence) -> TrainingOutput:
        """The loss is all that supervises this head; it sees the global features through noise."""
        return self.output_of_shown(self.shown(batch), evidence)

    def shown(self, batch: Batch) -> Batch:
        """With noise on the global features."""
        return replace(batch, global_features=self._diffused(batch))

    def output_of_shown(self, batch: Batch, evidence: Evidence) -> TrainingOutput:
        """Of the global features as they are."""
        output = self(batch.features, batch.global_features)
        return TrainingOutput(output.coordinates, output.coordinates.new_zeros(()), output.deviation_m)

    def fit(self, samples: Samples, seed: int, evidence: Evidence = "rays") -> None:
        """Places the centres. Raises InputError when there are fewer points to place them by."""
        self.centre.copy_(mean_camera_centre(samples))
        if self.deviation is not None:
            self.deviation.fit(samples)
        if self.shares is None:
            return
        count = len(self.centres)
        if self._centres_of == "cameras":
            points = seeing_centres(samples).cpu().numpy()
        else:
            points = area_uniform(samples.known_points.cpu().numpy(), count)
        placed = torch.from_numpy(place_anchors(points, count, seed, "head.centres"))
        self.centres.copy_(placed - self.centre.double().cpu())

    def _diffused(self, batch: Batch) -> Tensor | None:
        vectors = batch.global_features
        if vectors is None or not self.global_dimensions or not self._diffusion:
            return vectors
        generator = torch.Generator(vectors.device).manual_seed(batch.seed)
        shape = (batch.size_of_step, vectors.shape[1])
        noise = batch.own(torch.randn(shape, generator=generator, device=vectors.device))
        return nn.functional.normalize(vectors + self._diffusion * noise, dim=1)
