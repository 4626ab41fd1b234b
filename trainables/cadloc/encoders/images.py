"""What every encoder does first: check the size, drop the colour; and how one is asked in training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

STRIDE = 8
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as PIL's and ACE's conversion to grayscale


def grayscale(images: Tensor) -> Tensor:
    """Luma (B, 1, H, W) float32 in [0, 1] of RGB images (B, 3, H, W) uint8.

    Raises ValueError for another type or shape, or a side that is no multiple of the stride 8.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images are (B, 3, H, W) uint8, not {tuple(images.shape)} {images.dtype}")
    if images.shape[2] % STRIDE or images.shape[3] % STRIDE:
        raise ValueError(f"image sides are multiples of {STRIDE} px, not {images.shape[3]} x {images.shape[2]}")
    red, green, blue = images.float().unbind(1)
    return ((LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue) / 255).unsqueeze(1)


def features_of(encoder: nn.Module, images: Tensor, precision: str) -> Tensor:
    """Features (B, C, H/8, W/8) float32 of images (B, 3, H, W), computed in `precision` (float32 or bfloat16)."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        features: Tensor = encoder(images)
    return features.float()
