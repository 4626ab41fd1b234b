"""An encoder with fewer channels: its features, centred, along a few directions; and such projections on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from cadloc.contract import Fault, InputError, Json
from cadloc.encoders import Encoder
from cadloc.encoders.folding import Folded
from cadloc.whole_files import write_bytes

SCHEMA_VERSION = 1
WEIGHTS, CARD = "projection.safetensors", "projection.json"
_ARRAYS = ("mean", "directions")


class Projected(nn.Module):
    """An encoder for encoding only, whose features are (x - mean) · directionsᵀ of another's features x.

    `mean` (C,) and `directions` (D, C), its rows orthonormal, are float32. The state is theirs and the plain encoder's,
    and so is the digest: projected otherwise it is another encoder.
    """

    mean: Tensor
    directions: Tensor

    def __init__(self, encoder: Encoder, mean: Tensor, directions: Tensor, device: str = "cpu") -> None:
        """Of an encoder that lies on `device`. Raises ValueError for a projection of other channels than its."""
        super().__init__()
        if mean.shape != (encoder.dimensions,) or directions.ndim != 2 or directions.shape[1] != encoder.dimensions:
            shapes = f"{tuple(directions.shape)} about {tuple(mean.shape)}"
            raise ValueError(f"a projection {shapes} of an encoder of {encoder.dimensions} channels")
        self.stride, self.dimensions = encoder.stride, len(directions)
        self.plain = encoder.plain if isinstance(encoder, Folded) else encoder
        self.register_buffer("mean", mean.to(device))
        self.register_buffer("directions", directions.to(device))
        self._encode = encoder.encode

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Features (B, D, H/8, W/8) float32 of RGB images (B, 3, H, W) uint8."""
        features = self._encode(images).movedim(1, -1)
        # A product of matrices, not a 1 × 1 convolution: cuDNN would round its factors to ten bits.
        return ((features - self.mean) @ self.directions.T).movedim(-1, 1)


def save_projection(directory: Path, mean: Tensor, directions: Tensor, card: Mapping[str, Json]) -> None:
    """Writes `projection.safetensors` (mean (C,) and directions (D, C), float32) and `projection.json`."""
    arrays = {name: each.float().contiguous() for name, each in zip(_ARRAYS, (mean, directions), strict=True)}
    write_bytes(directory / WEIGHTS, save(arrays))
    facts = {"schema_version": SCHEMA_VERSION, **card}
    write_bytes(directory / CARD, (json.dumps(facts, indent=2, allow_nan=False) + "\n").encode())


def load_projected(directory: Path, encoder: Encoder, device: str = "cpu") -> Projected:
    """An encoder on `device` with the projection in `directory`. Raises InputError for anything else there."""
    path = directory / WEIGHTS
    try:
        arrays = load_file(path)
        mean, directions = (arrays[name] for name in _ARRAYS)
        return Projected(encoder, mean, directions, device)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        found = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        allowed = "the projection of this encoder's features, as a finished stage left it"
        raise InputError(Fault(str(path), "projection", found, allowed)) from error
