"""Encoders: an image becomes a grid of features, one per 8 × 8 pixels, from which a head reads scene coordinates."""

from __future__ import annotations

from typing import Protocol, assert_never

from torch import Tensor

from cadloc.config import AceEncoder, DenseHog, EncoderConfig, SmallEncoder
from cadloc.encoders.ace import AceFeatures
from cadloc.encoders.dense_hog import DenseHogFeatures
from cadloc.encoders.small import SmallFeatures


class Encoder(Protocol):
    """What the rest of a trial knows of an encoder."""

    stride: int
    """Pixels per feature cell and side: 8."""
    dimensions: int
    """Channels C of a feature."""

    def encode(self, images: Tensor) -> Tensor:
        """Features (B, C, H/8, W/8) float32 of RGB images (B, 3, H, W) uint8, without gradients.

        They lie on the encoder's device. Raises ValueError when a side is no multiple of the stride.
        """
        ...


def build(config: EncoderConfig, device: str = "cpu") -> Encoder:
    """The configured encoder on `device`, frozen.

    Raises InputError with key `encoder.weights` for weights that are missing, are no weights, or do not fit.
    """
    encoder: AceFeatures | SmallFeatures | DenseHogFeatures
    match config:
        case AceEncoder():
            encoder = AceFeatures.from_config(config)
        case SmallEncoder():
            encoder = SmallFeatures.from_config(config)
        case DenseHog():
            encoder = DenseHogFeatures()
        case _:
            assert_never(config)
    encoder.eval().requires_grad_(False)
    return encoder.to(device)
