"""The linear layers of heads: on a CPU by oneDNN, whose products are at the processor's rate whoever made it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Linear(nn.Linear):
    """`nn.Linear`, the same to rounding, and its parameters by the same names.

    On a CPU PyTorch multiplies in float32 by MKL, which on AMD's processors uses half of the vector units' width:
    oneDNN is twice as fast there, and about as fast as MKL elsewhere. Only the products are left to it: its ReLU makes
    zeros of NaN, and a diverged head would go unnoticed.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, outputs) of (B, inputs)."""
        if torch._C._functorch.peek_interpreter_stack() is not None:  # many heads as one, by `torch.func.vmap`
            return super().forward(input)
        return linear(input, self.weight, self.bias)


def linear(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(B, outputs) of (B, inputs), by whichever library is the faster one there."""
    if not _by_onednn(inputs):
        return nn.functional.linear(inputs, weight, bias)
    opaque = nn.functional.linear(inputs.to_mkldnn(), weight, bias)
    product: Tensor = opaque.to_dense()
    return product


def _by_onednn(values: Tensor) -> bool:
    return (
        values.device.type == "cpu"
        and values.dtype == torch.float32
        and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
        and bool(torch.backends.mkldnn.enabled)
        and not torch.is_autocast_enabled("cpu")
    )
