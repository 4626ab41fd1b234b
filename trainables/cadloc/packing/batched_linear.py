"""Linear layers of many heads as one product of batches, bias included."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from cadloc.heads.linear import linear


class BatchedLinear(TorchFunctionMode):
    """Within it, `vmap` takes a linear layer for one product of batches.

    By itself it multiplies first and adds the bias then: a pass over memory more, and under autocast a result of
    float32 (pytorch/pytorch#192617).
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.nn.functional.linear and len(args) == 3 and args[2] is not None:
            return _Linear.apply(*args)  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))


class _Linear(torch.autograd.Function):
    """Inputs (K, B, C), weights (K, W, C), biases (K, W) as `vmap` has them; gradients are those of `baddbmm`."""

    @staticmethod
    def forward(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.nn.functional.linear(inputs, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, ...], *batched: Tensor) -> tuple[Tensor, int]:
        inputs, weight, bias = (each.movedim(dim, 0) for each, dim in zip(batched, in_dims, strict=True))
        if inputs.device.type == "cpu":  # no faster as one, and the library of single products may be
            return torch.stack([linear(*each) for each in zip(inputs, weight, bias, strict=True)]), 0
        return torch.baddbmm(bias[:, None], inputs, weight.transpose(1, 2)), 0
