"""Which weights of an encoder a fine-tuning may move, small ones added for it among them, and tuned encoders on disk.

An adapter is a residual bottleneck of 1 × 1 convolutions whose second layer starts at zero (Rebuffi et al., 2017;
Houlsby et al., 2019): at first it changes nothing, later no more than a few numbers can say.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias, assert_never

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.functional import relu

from cadloc.contract import Fault, InputError, Json
from cadloc.encoders import Encoder
from cadloc.encoders.ace import AceFeatures
from cadloc.encoders.small import SmallFeatures
from cadloc.encoders.weights_file import check_fits
from cadloc.finetuning.settings import ParameterSet
from cadloc.whole_files import write_bytes

SCHEMA_VERSION = 1
WEIGHTS, CARD = "encoder.safetensors", "card.json"
_ADAPTER = ".adapter."
_SMALL_LAST = ("blocks.3.", "projection.")
_ACE_LAST = ("res2_conv1.", "res2_conv2.", "res2_conv3.", "res2_skip.")
_ACE_ADAPTED = ("res1_conv3", "res2_conv3")

LearnedEncoder: TypeAlias = SmallFeatures | AceFeatures


class Bottleneck(nn.Module):
    """x + up(relu(down(x))): nothing is added while `up` is zero."""

    def __init__(self, features: int, channels: int, generator: torch.Generator) -> None:
        super().__init__()
        self.down = nn.Conv2d(features, channels, 1)
        self.up = nn.Conv2d(channels, features, 1)
        nn.init.kaiming_normal_(self.down.weight, nonlinearity="relu", generator=generator)
        for parameter in (self.down.bias, self.up.weight, self.up.bias):
            assert parameter is not None
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.up(relu(self.down(x)))
        return x + added


class Adapted(nn.Module):
    """A layer followed by its adapter."""

    def __init__(self, layer: nn.Module, adapter: Bottleneck) -> None:
        super().__init__()
        self.layer, self.adapter = layer, adapter

    def forward(self, x: Tensor) -> Tensor:
        adapted: Tensor = self.adapter(self.layer(x))
        return adapted


def with_adapters(encoder: LearnedEncoder, channels: int, seed: int = 0) -> LearnedEncoder:
    """A copy with bottlenecks of that many channels after each block; its features are the same, bit for bit.

    `small`: after each of its dilated blocks. `ace`: after its first and second residual branch, before the ReLU.
    """
    generator = torch.Generator().manual_seed(seed)
    adapted = copy.deepcopy(encoder)
    match adapted:
        case SmallFeatures():
            blocks = [Adapted(block, Bottleneck(adapted.dimensions, channels, generator)) for block in adapted.blocks]
            adapted.blocks = nn.Sequential(*blocks)
        case AceFeatures():
            for name in _ACE_ADAPTED:
                layer = getattr(adapted, name)
                setattr(adapted, name, Adapted(layer, Bottleneck(layer.out_channels, channels, generator)))
        case _:
            assert_never(adapted)
    return adapted.to(next(encoder.parameters()).device).train(encoder.training)


def parameters_of(encoder: LearnedEncoder, which: ParameterSet) -> dict[str, nn.Parameter]:
    """The parameters of the set, by name. Raises ValueError for adapters of an encoder that has none."""
    named = dict(encoder.named_parameters())
    match which:
        case "full":
            return named
        case "last_block":
            last = _SMALL_LAST if isinstance(encoder, SmallFeatures) else _ACE_LAST
            return {name: parameter for name, parameter in named.items() if name.startswith(last)}
        case "adapters":
            adapters = {name: parameter for name, parameter in named.items() if _ADAPTER in name}
            if not adapters:
                raise ValueError("the encoder has no adapters: with_adapters puts them in")
            return adapters
        case _:
            assert_never(which)


def learned(encoder: Encoder) -> LearnedEncoder:
    """The encoder, if it has weights to tune; InputError for gradient histograms, which have none."""
    if isinstance(encoder, SmallFeatures | AceFeatures):
        return encoder
    found = f"{type(encoder).__name__}, which has no weights"
    raise InputError(Fault("configuration", "finetuning", found, "the encoder small or ace"))


def save_tuned(directory: Path, encoder: LearnedEncoder, card: Mapping[str, Json]) -> None:
    """Writes `encoder.safetensors` (one state dict, adapters included, float32) and `card.json`."""
    state = {name: value.detach().cpu().contiguous() for name, value in _stored(encoder).items()}
    facts = {
        "schema_version": SCHEMA_VERSION,
        "architecture": "small" if isinstance(encoder, SmallFeatures) else "ace",
        "dimensions": encoder.dimensions,
        "adapter_channels": _adapter_channels(encoder),
    }
    write_bytes(directory / WEIGHTS, save(state))
    write_bytes(directory / CARD, (json.dumps({**facts, **card}, indent=2, allow_nan=False) + "\n").encode())


def load_tuned(directory: Path, device: str = "cpu") -> Encoder:
    """The encoder that `save_tuned` left in `directory`, frozen, on `device`. Raises InputError for anything else."""
    encoder = _skeleton(directory / CARD)
    path = directory / WEIGHTS
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        allowed = "the weights of a finished fine-tuning"
        raise InputError(Fault(str(path), "encoder", f"an unreadable file ({error})", allowed)) from error
    check_fits(path, state, _stored(encoder))
    encoder.load_state_dict(state, strict=False)  # but for the counters of seen batches, which nothing reads
    return encoder.eval().requires_grad_(False).to(device)


def _skeleton(card_path: Path) -> LearnedEncoder:
    """An encoder of the card's architecture, weights not set."""
    try:
        card = json.loads(card_path.read_text())
        if card["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema version {card['schema_version']}, this program reads {SCHEMA_VERSION}")
        architecture = card["architecture"]
        if architecture not in ("small", "ace"):
            raise ValueError(f"architecture {architecture!r}")
        encoder = SmallFeatures() if architecture == "small" else AceFeatures(int(card["dimensions"]))
        channels = card["adapter_channels"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        found = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        raise InputError(Fault(str(card_path), "encoder", found, "the card of a finished fine-tuning")) from error
    return encoder if channels is None else with_adapters(encoder, int(channels))


def _stored(encoder: LearnedEncoder) -> dict[str, Tensor]:
    return {name: value for name, value in encoder.state_dict().items() if not name.endswith("num_batches_tracked")}


def _adapter_channels(encoder: LearnedEncoder) -> int | None:
    widths = {module.down.out_channels for module in encoder.modules() if isinstance(module, Bottleneck)}
    return widths.pop() if widths else None
