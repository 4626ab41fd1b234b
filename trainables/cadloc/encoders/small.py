"""Our own encoder: 0.8 M parameters, a wide view of the scene, weights learned on made-up buildings and shipped.

It is cheap where images are large (few channels at half and quarter resolution) and spends its parameters at
stride 8, where dilated residual blocks widen the field of view to about 200 px. Strided layers have even kernels,
so a feature looks at exactly the middle of its 8 × 8 cell.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, normalize, relu

from cadloc.config import SmallEncoder
from cadloc.contract import Json
from cadloc.encoders.images import STRIDE, grayscale
from cadloc.encoders.weights_file import check_fits, fault

SHIPPED = Path(__file__).parent / "weights" / "small.safetensors"
DIMENSIONS = 128
_DILATIONS = (1, 2, 3, 4)
_CONTRAST_FLOOR = 0.02
_CONTRAST_CELLS = 5


class SmallFeatures(nn.Module):
    """Features of unit root mean square: the cosine between two of them is what pre-training shaped."""

    stride = STRIDE
    dimensions = DIMENSIONS

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            _convolution(2, 16, kernel=4, stride=2),
            _convolution(16, 32, kernel=4, stride=2),
            _convolution(32, 64, kernel=3, stride=1),
            _convolution(64, DIMENSIONS, kernel=4, stride=2),
        )
        self.blocks = nn.Sequential(*(_Block(DIMENSIONS, dilation) for dilation in _DILATIONS))
        self.projection = nn.Conv2d(DIMENSIONS, DIMENSIONS, 1, bias=False)
        # Centred channels: without it all features start out alike, and learning with their cosines is slow.
        self.centring = nn.BatchNorm2d(DIMENSIONS, affine=False)

    @classmethod
    def from_config(cls, config: SmallEncoder) -> SmallFeatures:
        """Shipped, seeded random or own weights; InputError when a file is missing or does not fit."""
        if config.weights == "random":
            return cls().initialised(config.seed)
        return cls.from_file(SHIPPED if config.weights == "shipped" else Path(config.weights))

    @classmethod
    def from_file(cls, path: Path) -> SmallFeatures:
        """The encoder of a .safetensors file written by `save`."""
        allowed = "a .safetensors file of the `small` encoder"
        if not path.is_file():
            raise fault(path, "no such file", allowed, "cadloc-sweep encoder pretrain makes one")
        try:
            state = load_file(path)
        except (SafetensorError, OSError) as error:
            raise fault(path, f"an unreadable file ({error})", allowed) from error
        encoder = cls()
        check_fits(path, state, encoder.stored_state())
        encoder.load_state_dict({name: tensor.float() for name, tensor in state.items()}, strict=False)
        return encoder

    def initialised(self, seed: int) -> SmallFeatures:
        """Self with seeded weights (He et al., 2015); normalisations start as identities."""
        generator = torch.Generator().manual_seed(seed)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, 128, H/8, W/8) of RGB images (B, 3, H, W) uint8; differentiable in the weights."""
        x = _normalised(grayscale(images)).contiguous(memory_format=torch.channels_last)  # a fifth faster on CPUs
        x = self.centring(self.projection(self.blocks(self.stem(x))))
        return normalize(x, dim=1).mul(DIMENSIONS**0.5)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """`forward` without gradients: (B, 128, H/8, W/8) float32."""
        features: Tensor = self(images.to(self.projection.weight.device))
        return features.float()

    def stored_state(self) -> dict[str, Tensor]:
        """What a weight file holds: everything but the counters of seen batches."""
        return {name: value for name, value in self.state_dict().items() if not name.endswith("num_batches_tracked")}

    def save(self, path: Path, card: Mapping[str, Json]) -> None:
        """Writes `path` (.safetensors; convolutions in half precision) and its card beside it (.json)."""
        state = {
            name: (value.half() if value.ndim == 4 else value).contiguous()
            for name, value in self.stored_state().items()
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(path.name + ".partial")
        save_file(state, aside)
        aside.replace(path)
        facts = {"architecture": "small", "stride": STRIDE, "dimensions": DIMENSIONS, **card}
        path.with_suffix(".json").write_text(json.dumps(facts, indent=2) + "\n")


class _Block(nn.Module):
    """Residual block: a dilated 3 × 3 convolution looks around, a 1 × 1 mixes channels."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.around = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, bias=False)
        self.around_norm = nn.BatchNorm2d(channels)
        self.mix = nn.Conv2d(channels, channels, 1, bias=False)
        self.mix_norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        in_place = not torch.is_grad_enabled()
        seen = relu(self.around_norm(self.around(x)), in_place)
        return relu(x + self.mix_norm(self.mix(seen)), in_place)


def _convolution(inputs: int, outputs: int, *, kernel: int, stride: int) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding=(kernel - 1) // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def _normalised(gray: Tensor) -> Tensor:
    """Brightness as it is and freed of local mean and contrast, (B, 2, H, W).

    The second survives shadows, exposure and tint. Its statistics come from a 40 px window, computed per cell and
    interpolated, so that moving the image by whole cells moves them along.
    """
    cells = avg_pool2d(torch.cat([gray, gray.square()], 1), STRIDE)
    around = avg_pool2d(cells, _CONTRAST_CELLS, 1, _CONTRAST_CELLS // 2, count_include_pad=False)
    mean, square = interpolate(around, scale_factor=STRIDE, mode="bilinear", align_corners=False).chunk(2, dim=1)
    deviation = (square - mean.square()).clamp_min(0).add(_CONTRAST_FLOOR**2).sqrt()
    return torch.cat([(gray - 0.45) / 0.25, (gray - mean) / deviation], 1)
