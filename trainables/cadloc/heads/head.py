"""What training and localization ask of a head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple, assert_never

import torch
from torch import Tensor, nn

from cadloc.losses.phase import Evidence, Prediction, Unit
from cadloc.samples import Batch, Samples

CELLS_AT_ONCE = 8192
"""Cells that `Head.guesses` reads at a time: bounds its memory."""


class HeadOutput(NamedTuple):
    """`coordinates` (B, 3) float32 in `cad`, metres; `logits` (B, K) of heads that classify anchors; `deviation_m` (B,)
    of heads that say how far they may be off."""

    coordinates: Tensor
    logits: Tensor | None = None
    deviation_m: Tensor | None = None

    @property
    def confidence(self) -> Tensor | None:
        """How sure the head is of each cell, (B,), comparable within an image; None: it does not say."""
        if self.deviation_m is not None:
            return -self.deviation_m
        return None if self.logits is None else torch.log_softmax(self.logits, dim=1).amax(dim=1)


class TrainingOutput(NamedTuple):
    """What the loss is taken of, and the head's own, weighted share of the objective, a scalar."""

    coordinates: Tensor
    own_loss: Tensor
    deviation_m: Tensor | None = None

    @property
    def prediction(self) -> Prediction:
        """What a loss may read."""
        return Prediction(self.coordinates, self.deviation_m)


class Guess(NamedTuple):
    """What a head makes of an image: `coordinates` (N, 3) of its cells and how sure it is of each, (N,) or None."""

    coordinates: Tensor
    confidence: Tensor | None = None


class Head(nn.Module, ABC):
    """Features of cells become scene coordinates; trained on one scene, it is the map of that scene."""

    dimensions: int
    """Channels C of the features it reads."""
    length_m: Tensor
    """Scalar buffer: the length in which this head's objective measures errors."""

    def __call__(self, features: Tensor, global_features: Tensor | None = None) -> HeadOutput:
        output: HeadOutput = super().__call__(features, global_features)
        return output

    @abstractmethod
    def forward(self, features: Tensor, global_features: Tensor | None = None) -> HeadOutput:
        """Output of features (B, C) float32, of images with global features (B, G)."""

    @abstractmethod
    def training_output(self, batch: Batch, evidence: Evidence) -> TrainingOutput:
        """Output of a batch whose supervision may use the given evidence and nothing else of the batch."""

    def shown(self, batch: Batch) -> Batch:
        """The batch as training shows it to this head: with what is drawn at random in its step."""
        return batch

    def output_of_shown(self, batch: Batch, evidence: Evidence) -> TrainingOutput:
        """`training_output` of what `shown` gave: a function of tensors alone, nothing in it is drawn."""
        return self.training_output(batch, evidence)

    @abstractmethod
    def fit(self, samples: Samples, seed: int, evidence: Evidence = "rays") -> None:
        """Sets what is not learned by gradients; called once, before training.

        Of what the samples see it may use the given evidence, but for where the scene's surface is.
        """

    def output_for(self, batch: Batch) -> HeadOutput:
        """Output of samples whose cameras are known, to validate by."""
        return self(batch.features, batch.global_features)

    def parts(self, samples: Samples) -> Sequence[Tensor] | None:
        """Indices of the samples that steps draw their batches from in turn; None: all of them, always."""
        return None

    def length_of_part_m(self, part: int) -> Tensor:
        """`length_m` of what is trained by batches of this part."""
        return self.length_m

    def objective_per_unit(self, unit: Unit, metres_per_pixel: float, part: int = 0) -> Tensor | float:
        """Every loss enters the objective as a length in the head's own measure.

        So pixels after a switch weigh as much as the metres before it (a pixel spans depth by focal length), and
        the optimizer's moments, gathered on one, stay valid for the other. A likelihood has no length.
        """
        match unit:
            case "m":
                return 1 / self.length_of_part_m(part)
            case "px":
                return metres_per_pixel / self.length_of_part_m(part)
            case "nat":
                return 1.0
            case _:
                assert_never(unit)

    @torch.no_grad()
    def guesses(self, features: Tensor, global_features: Tensor | None = None) -> Iterator[Guess]:
        """What an image of cells (N, C), of any float type, may show: one guess, or one per global feature (H, G)."""
        candidates = [None] if global_features is None else list(global_features)
        for candidate in candidates:
            yield self._guess(features, candidate)

    def predict(self, features: Tensor) -> Tensor:
        """Coordinates (N, 3) in `cad` of features (N, C) of any float type; piece by piece, without gradients."""
        return next(self.guesses(features)).coordinates

    def _guess(self, features: Tensor, global_feature: Tensor | None) -> Guess:
        outputs = [
            self(piece.float(), None if global_feature is None else global_feature.expand(len(piece), -1))
            for piece in torch.split(features, CELLS_AT_ONCE)
        ]
        sure = [output.confidence for output in outputs]
        confidence = torch.cat([some for some in sure if some is not None]) if sure[0] is not None else None
        return Guess(torch.cat([output.coordinates for output in outputs]), confidence)
