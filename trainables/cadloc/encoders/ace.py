"""The encoder of ACE (Brachmann et al., CVPR 2023, section 3 and supplement): eleven convolutions, 512 features."""

from __future__ import annotations

import json
import pickle
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from cadloc.config import AceEncoder
from cadloc.contract import Json
from cadloc.encoders.images import STRIDE, grayscale
from cadloc.encoders.weights_file import check_fits, fault

_MEAN, _STD = 0.4, 0.25
_WIDTH_KEY = "res2_conv3.weight"


class AceFeatures(nn.Module):
    """ACE's architecture under its own names, so that its published state dict loads as it is."""

    stride = STRIDE

    def __init__(self, dimensions: int = 512) -> None:
        super().__init__()
        self.dimensions = dimensions
        self.conv1 = nn.Conv2d(1, 32, 3, 1, 1)
        self.conv2 = nn.Conv2d(32, 64, 3, 2, 1)
        self.conv3 = nn.Conv2d(64, 128, 3, 2, 1)
        self.conv4 = nn.Conv2d(128, 256, 3, 2, 1)
        self.res1_conv1 = nn.Conv2d(256, 256, 3, 1, 1)
        self.res1_conv2 = nn.Conv2d(256, 256, 1, 1, 0)
        self.res1_conv3 = nn.Conv2d(256, 256, 3, 1, 1)
        self.res2_conv1 = nn.Conv2d(256, 512, 3, 1, 1)
        self.res2_conv2 = nn.Conv2d(512, 512, 1, 1, 0)
        self.res2_conv3 = nn.Conv2d(512, dimensions, 3, 1, 1)
        self.res2_skip = nn.Conv2d(256, dimensions, 1, 1, 0)

    @classmethod
    def from_config(cls, config: AceEncoder) -> AceFeatures:
        """Seeded random weights, or those of a state dict; InputError when the file is missing or does not fit."""
        if config.weights == "random":
            return cls().initialised(config.seed)
        return cls.from_file(Path(config.weights))

    @classmethod
    def from_file(cls, path: Path) -> AceFeatures:
        """The encoder of a state dict: ACE's encoder file, or a whole regressor's (its `encoder.` part)."""
        state = _encoder_part(read_state_dict(path))
        width = state[_WIDTH_KEY].shape[0] if _WIDTH_KEY in state and state[_WIDTH_KEY].ndim == 4 else 512
        encoder = cls(width)
        check_fits(path, state, encoder.state_dict())
        encoder.load_state_dict({name: tensor.float() for name, tensor in state.items()})
        return encoder

    def initialised(self, seed: int) -> AceFeatures:
        """Self with seeded weights that keep the signal's variance through the ReLUs (He et al., 2015)."""
        generator = torch.Generator().manual_seed(seed)
        for layer in self.children():
            assert isinstance(layer, nn.Conv2d)
            assert layer.bias is not None
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(layer.bias)
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, C, H/8, W/8) of RGB images (B, 3, H, W) uint8; differentiable in the weights."""
        in_place = not torch.is_grad_enabled()
        x = (grayscale(images) - _MEAN) / _STD
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = relu(layer(x), in_place)
        residual = x
        for layer in (self.res1_conv1, self.res1_conv2, self.res1_conv3):
            x = relu(layer(x), in_place)
        residual = residual + x
        x = residual
        for layer in (self.res2_conv1, self.res2_conv2, self.res2_conv3):
            x = relu(layer(x), in_place)
        skipped: Tensor = self.res2_skip(residual)
        return skipped + x

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """`forward` without gradients: (B, C, H/8, W/8) float32."""
        features: Tensor = self(images.to(self.conv1.weight.device))
        return features.float()


def save_ace(encoder: AceFeatures, path: Path, card: Mapping[str, Json]) -> None:
    """Writes a flat state dict with ACE's names and shapes, which ACE's own code loads, and its card beside it."""
    state = {name: value.detach().float().cpu().contiguous() for name, value in encoder.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".partial")
    torch.save(state, aside)
    aside.replace(path)
    facts = {"architecture": "ace", "stride": encoder.stride, "dimensions": encoder.dimensions, **card}
    path.with_suffix(".json").write_text(json.dumps(facts, indent=2) + "\n")


# What PyTorch's reader of pickles lets through, found by feeding it mutated files.
_BROKEN = (
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    struct.error,
)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors by name of a file made by `torch.save`, read without running any code it may carry.

    Raises InputError for a missing file, one that is not a state dict, or one that needs code to load.
    """
    allowed = "a state dict of tensors saved with torch.save"
    if not path.is_file():
        raise fault(path, "no such file", allowed)
    try:
        with warnings.catch_warnings(action="ignore"):  # about the pickle's age; what is wrong is said below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise fault(path, "a pickle with code or foreign objects", allowed, "save only its state_dict()") from error
    except _BROKEN as error:
        raise fault(path, f"an unreadable file ({type(error).__name__})", allowed) from error
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise fault(path, f"a {type(content).__name__}, not only tensors by name", allowed)
    return {str(name): tensor for name, tensor in content.items()}


def _encoder_part(state: dict[str, Tensor]) -> dict[str, Tensor]:
    part = {name.removeprefix("encoder."): value for name, value in state.items() if name.startswith("encoder.")}
    return part or state
