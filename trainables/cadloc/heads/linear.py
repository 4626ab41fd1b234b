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
        if _by_onednn(input):
            opaque = nn.functional.linear(input.to_mkldnn(), self.weight, self.bias)
            product: Tensor = opaque.to_dense()
            return product
        return super().forward(input)


def _by_onednn(values: Tensor) -> bool:
    return (
        values.device.type == "cpu"
        and values.dtype == torch.float32
        and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
        and bool(torch.backends.mkldnn.enabled)
        and not torch.is_autocast_enabled("cpu")
        and torch._C._functorch.peek_interpreter_stack() is None  # many heads as one, by `torch.func.vmap`
    )
