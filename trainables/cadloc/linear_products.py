"""Linear layers as convolutions of one pixel: on CPUs, the way to the faster library of matrix products.

PyTorch multiplies matrices of float32 by MKL, which on AMD's processors takes about twice as long as oneDNN, and
convolves by oneDNN. Rows (B, C) are images (16, C, B / 16, 1) in the memory order "channels last": nothing is moved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

IMAGES = 16
"""Fewer are not given to oneDNN by a process of one thread."""
LEAST_ROWS, LEAST_CHANNELS = 256, 32
"""Smaller products take no time worth saving."""


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`: rows (B, C) by weights (W, C) are (B, W), but for rounding.

    What is not of float32 on a CPU, or too small, or no multiple of 16 rows, is left to PyTorch.
    """
    if not _suits(inputs, weight):
        return torch.nn.functional.linear(inputs, weight, bias)
    rows, channels = inputs.shape
    images = inputs.view(IMAGES, rows // IMAGES, 1, channels).permute(0, 3, 1, 2)
    convolved = torch.nn.functional.conv2d(images, weight[:, :, None, None], bias)
    return convolved.permute(0, 2, 3, 1).reshape(rows, len(weight))


class FastLinear(TorchFunctionMode):
    """Within it, `torch.nn.functional.linear` is `linear`: for modules that know nothing of it."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.nn.functional.linear and not kwargs:
            return linear(*args)
        return func(*args, **(kwargs or {}))


def _suits(inputs: Tensor, weight: Tensor) -> bool:
    return (
        inputs.device.type == "cpu"
        and inputs.ndim == 2
        and inputs.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and inputs.is_contiguous()
        and len(inputs) % IMAGES == 0
        and len(inputs) >= LEAST_ROWS
        and min(weight.shape) >= LEAST_CHANNELS
        and torch.backends.mkldnn.is_available()
    )
