"""The linear layers of heads are PyTorch's, by another library where that is faster."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cadloc.heads.linear import Linear


def pair() -> tuple[Linear, nn.Linear]:
    ours, plain = Linear(48, 32), nn.Linear(48, 32)
    plain.load_state_dict(ours.state_dict())
    return ours, plain


def gradients(layer: nn.Linear, values: Tensor) -> list[Tensor]:
    inputs = values.clone().requires_grad_()
    product = layer(inputs)
    (product * torch.linspace(-1, 1, product.numel()).view_as(product)).sum().backward()
    found = [each.grad for each in (inputs, layer.weight, layer.bias)]
    return [product.detach(), *(each for each in found if each is not None)]


def test_products_and_gradients_are_those_of_a_linear_layer() -> None:
    """To rounding, by name of parameters and all."""
    ours, plain = pair()
    values = torch.randn(200, 48, generator=torch.Generator().manual_seed(0))
    for one, other in zip(gradients(ours, values), gradients(plain, values), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_nothing_that_is_not_finite_gets_lost() -> None:
    """A sample of NaN gives a row of NaN, also behind a ReLU: divergence is to be seen."""
    ours, _ = pair()
    values = torch.zeros(20, 48)
    values[3, 5] = torch.nan
    found = torch.relu(ours(values))
    assert found.isnan().all(dim=1).nonzero().flatten().tolist() == [3]
    assert not found[:3].isnan().any()


def test_it_can_be_one_of_many_computed_at_once() -> None:
    """Under `vmap` over stacked weights, each gives what it gives alone, gradients included."""
    layers = [pair()[0] for _ in range(3)]
    weights, biases = (torch.stack([getattr(layer, name).detach() for layer in layers]) for name in ("weight", "bias"))
    weights.requires_grad_()
    values = torch.randn(40, 48)

    def one(weight: Tensor, bias: Tensor) -> Tensor:
        result: Tensor = torch.func.functional_call(layers[0], {"weight": weight, "bias": bias}, (values,))
        return result

    together = torch.func.vmap(one)(weights, biases)
    together.square().sum().backward()
    for k, layer in enumerate(layers):
        alone = layer(values)
        alone.square().sum().backward()
        torch.testing.assert_close(together[k], alone, rtol=1e-4, atol=1e-5)
        assert weights.grad is not None
        torch.testing.assert_close(weights.grad[k], layer.weight.grad, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_other_types_are_left_to_pytorch(kind: torch.dtype) -> None:
    """Double precision stays double; under autocast the layer is computed in half."""
    ours, plain = pair()
    if kind == torch.float64:
        values = torch.randn(7, 48, dtype=kind)
        assert torch.equal(ours.double()(values), plain.double()(values))
        return
    with torch.autocast("cpu", kind):
        assert ours(torch.randn(7, 48)).dtype == kind
