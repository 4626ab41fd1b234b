"""A global feature: the dense features of an image, pooled by a generalised mean and projected to one unit vector.

Generalised-mean (GeM) pooling with a learned power, then a whitening projection (Radenović, Tolias, Chum: Fine-tuning
CNN image retrieval with no human annotation, TPAMI 2018, section 3.2 and 3.3). A generalised mean needs positive
numbers, and our encoders' features have both signs: a linear layer per cell and a ReLU come first. Trained, that layer
is learned with the rest; untrained, it splits every channel in its positive and its negative part.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from cadloc.contract import Fault, InputError, Json
from cadloc.encoders import Encoder
from cadloc.encoders.identity import encoder_digest
from cadloc.whole_files import write_bytes

DIMENSIONS = 256
SHIPPED = Path(__file__).parent / "weights" / "small_global.safetensors"
KEY = "global_features.weights"
SCHEMA_VERSION = 1

POWER = 6.0
"""Of the generalised mean, before training or without. 3 is the paper's; of 3, 4 and 6 it found most on made-up
buildings. Training takes it further, to 9.5."""

SHRINKAGE = 1.0
"""Share of the mean variance that is added to each before whitening: a scene has few mapping views, and whitening
fully what they vary least in makes all of them equally far apart. Of 0.1, 0.3 and 1 it found most photographs."""

_FLOOR = 1e-4
_POWERS = (1.0, 12.0)


class GlobalGem(nn.Module):
    """Cells' features (N, C) to one unit vector (256,), on the CPU, in float32.

    It reads the features of one encoder only: its file names that encoder's digest.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.lift = nn.Linear(channels, hidden)
        self.power = nn.Parameter(torch.tensor(POWER))
        self.projection = nn.Linear(hidden, DIMENSIONS)

    @classmethod
    def initialised(cls, channels: int, hidden: int, seed: int) -> GlobalGem:
        """Seeded weights, to be trained."""
        gem, generator = cls(channels, hidden), torch.Generator().manual_seed(seed)
        for layer in (gem.lift, gem.projection):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5, generator=generator)
            nn.init.zeros_(layer.bias)
        return gem

    @classmethod
    def untrained(cls, channels: int) -> GlobalGem:
        """Positive and negative parts of all channels, pooled with a fixed power; `whiten` gives it its projection."""
        gem = cls(channels, 2 * channels).requires_grad_(False)
        identity = torch.eye(channels)
        gem.lift.weight.copy_(torch.cat([identity, -identity]))
        gem.lift.bias.zero_()
        return gem

    @classmethod
    def from_file(cls, path: Path, encoder: Encoder) -> GlobalGem:
        """Frozen weights that `save` wrote, for this encoder. Raises InputError for another's, or for anything else."""
        _check_card(path.with_suffix(".json"), encoder)
        try:
            state = load_file(path)
            gem = cls(state["lift.weight"].shape[1], state["lift.weight"].shape[0])
            gem.load_state_dict(state)
        except (SafetensorError, OSError, RuntimeError, LookupError) as error:
            raise _fault(path, f"{type(error).__name__}: {str(error).splitlines()[0]}", "its weights") from error
        return gem.eval().requires_grad_(False)

    def save(self, path: Path, encoder: Encoder, card: Mapping[str, Json]) -> None:
        """Writes `path` (.safetensors, float32) and its card beside it (.json), which names the encoder's digest."""
        facts = {
            "schema_version": SCHEMA_VERSION,
            "architecture": "global_gem",
            "channels": self.lift.in_features,
            "hidden": self.lift.out_features,
            "dimensions": DIMENSIONS,
            "power": round(self.power.item(), 4),
            "encoder_digest": encoder_digest(encoder),
        }
        state = {name: value.detach().contiguous() for name, value in self.state_dict().items()}
        write_bytes(path, save(state))
        write_bytes(path.with_suffix(".json"), (json.dumps({**facts, **card}, indent=2) + "\n").encode())

    def pool(self, cells: Tensor) -> Tensor:
        """Unit vectors (..., hidden): generalised means over the cells (..., N, C)."""
        lifted = self.lift(cells).clamp_min(_FLOOR)
        power = self.power.clamp(*_POWERS)
        # (mean of x ** p) ** (1 / p), but no power overflows; the number of cells is lost in the normalisation.
        return normalize((power * lifted.log()).logsumexp(-2).div(power).exp(), dim=-1)

    def forward(self, cells: Tensor) -> Tensor:
        """Unit vectors (..., 256) of images with cells (..., N, C)."""
        return normalize(self.projection(self.pool(cells)), dim=-1)

    @torch.no_grad()
    def pooled(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Generalised means (hidden,) of dense features (rows, cols, C)."""
        cells = torch.from_numpy(np.asarray(features, np.float32)).flatten(0, -2)
        return np.asarray(self.pool(cells).numpy())

    @torch.no_grad()
    def projected(self, pooled: NDArray[np.float32]) -> NDArray[np.float32]:
        """The unit vector (256,) of what `pooled` gives."""
        whitened = linear(torch.from_numpy(pooled), self.projection.weight, self.projection.bias)
        return np.asarray(normalize(whitened, dim=-1).numpy())

    def describe(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """The unit vector (256,) of an image with dense features (rows, cols, C)."""
        return self.projected(self.pooled(features))

    @torch.no_grad()
    def whiten(self, pooled: NDArray[np.float32]) -> None:
        """Gives the projection the principal components of vectors (V, hidden) of V images, almost whitened.

        As in Jégou and Chum (ECCV 2012), but shrunk. Fewer than 257 images leave some of the 256 numbers at zero.
        Raises ValueError for images that do not differ.
        """
        mean = pooled.mean(axis=0, dtype=np.float64)
        values, vectors = np.linalg.eigh(np.cov(pooled.T.astype(np.float64), bias=True))
        kept = min(DIMENSIONS, len(pooled) - 1, len(values))
        values, basis = values[::-1][:kept], vectors[:, ::-1][:, :kept].T
        if kept < 1 or not values[0] > np.finfo(np.float32).eps ** 2:
            raise ValueError(f"{len(pooled)} images that do not differ")
        basis = basis * np.sign(basis[np.arange(kept), np.abs(basis).argmax(axis=1)])[:, None]
        whitening = basis / np.sqrt(values.clip(0) + SHRINKAGE * values.mean())[:, None]
        self.projection.weight.zero_()
        self.projection.weight[:kept] = torch.from_numpy(whitening)
        self.projection.bias.copy_(-(self.projection.weight.double() @ torch.from_numpy(mean)))


def _check_card(path: Path, encoder: Encoder) -> None:
    """Raises InputError for what is no card, and for that of another encoder."""
    try:
        card = json.loads(path.read_text())
        if card["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema version {card['schema_version']}, this program reads {SCHEMA_VERSION}")
        digest = card["encoder_digest"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        found = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        raise _fault(path, found, "the card of global features, beside their weights") from error
    if digest != encoder_digest(encoder):
        found = f"global features of the encoder {digest[:16]}…, not of this one ({encoder_digest(encoder)[:16]}…)"
        action = "weights: pca serves every encoder; cadloc-sweep encoder pretrain-global trains for one"
        raise _fault(path, found, "those trained with the trial's encoder", action)


def _fault(path: Path, found: str, allowed: str, action: str = "") -> InputError:
    return InputError(Fault(str(path), KEY, found, allowed, action))
