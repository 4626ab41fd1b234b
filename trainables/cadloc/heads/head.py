"""What training and localization ask of a head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cadloc.losses.phase import Evidence
from cadloc.samples import Batch, Samples

CELLS_AT_ONCE = 8192
"""Cells that `Head.predict` reads at a time: bounds its memory."""


class HeadOutput(NamedTuple):
    """`coordinates` (B, 3) float32 in `cad`, metres; `logits` (B, K) of heads that classify anchors."""

    coordinates: Tensor
    logits: Tensor | None = None


class TrainingOutput(NamedTuple):
    """`coordinates` (B, 3) for the loss, and the head's own, weighted share of the objective, a scalar."""

    coordinates: Tensor
    own_loss: Tensor


class Head(nn.Module, ABC):
    """Features of cells become scene coordinates; trained on one scene, it is the map of that scene."""

    dimensions: int
    """Channels C of the features it reads."""
    length_m: Tensor
    """Scalar buffer: the length in which this head's objective measures errors."""

    def __call__(self, features: Tensor) -> HeadOutput:
        output: HeadOutput = super().__call__(features)
        return output

    @abstractmethod
    def forward(self, features: Tensor) -> HeadOutput:
        """Output of features (B, C) float32."""

    @abstractmethod
    def training_output(self, batch: Batch, evidence: Evidence) -> TrainingOutput:
        """Output of a batch whose supervision may use the given evidence and nothing else of the batch."""

    @abstractmethod
    def fit(self, samples: Samples, seed: int) -> None:
        """Sets what is not learned by gradients; called once, before training."""

    @torch.no_grad()
    def predict(self, features: Tensor) -> Tensor:
        """Coordinates (N, 3) in `cad` of features (N, C) of any float type; piece by piece, without gradients."""
        pieces = [self(piece.float()).coordinates for piece in torch.split(features, CELLS_AT_ONCE)]
        return torch.cat(pieces)
