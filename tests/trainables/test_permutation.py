"""Laws of the order that samples are drawn in, which is worked out and never stored."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cadloc.permutation import Permutation

KEY = (3, 0, 0)
MANY = 100_003


def whole(size: int, *key: int) -> Tensor:
    return Permutation(size, key or KEY)(torch.arange(size))


def correlation(one: Tensor, other: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([one, other]).double())[0, 1])


@pytest.mark.parametrize("size", [*range(1, 40), 97, 100, 700, 1024, 65_537, MANY])
def test_every_place_is_taken_once(size: int) -> None:
    """Whatever the size, primes and squares included."""
    assert torch.equal(whole(size).sort().values, torch.arange(size))


def test_any_piece_can_be_worked_out_alone() -> None:
    """What goes where does not depend on what else is asked for, nor on the shape in which it is."""
    places = torch.tensor([[99_000, 5], [77, MANY - 1]])
    assert torch.equal(Permutation(MANY, KEY)(places), whole(MANY)[places])


def test_large_sizes_stay_inside() -> None:
    """Of a size beyond 32 bits, places go to distinct places inside."""
    size = 2**40 + 7
    values = Permutation(size, KEY)(torch.arange(size - 5000, size))
    assert int(values.min()) >= 0
    assert int(values.max()) < size
    assert len(values.unique()) == 5000


@pytest.mark.parametrize("other", [(4, 0, 0), (3, 1, 0), (3, 0, 1), (0, 3, 0)])
def test_every_part_of_the_key_counts(other: tuple[int, ...]) -> None:
    """Seed, pass and part each draw an order that has nothing to do with the others."""
    assert abs(correlation(whole(MANY), whole(MANY, *other))) < 0.02
    assert int((whole(MANY) == whole(MANY, *other)).sum()) < 12  # of chance, one is expected


def test_the_order_looks_drawn_at_random() -> None:
    """Places move by a third of the size in the mean, neighbours part, and a batch is spread evenly over all."""
    order, places = whole(MANY), torch.arange(MANY)
    assert abs(float((order - places).abs().double().mean()) / MANY - 1 / 3) < 0.005
    for apart in (1, 2, 316, 317, 1000):
        assert abs(correlation(order[:-apart], order[apart:])) < 0.02
    counts = torch.histc(order[:20_000].double(), bins=100, min=0, max=MANY)
    chi_squared = float(((counts - 200) ** 2 / 200).sum())
    assert 50 < chi_squared < 160  # 99 degrees of freedom, less what drawing without replacement takes


def test_orders_of_a_few_are_equally_likely() -> None:
    """Of 3 samples, all 6 orders come up about as often."""
    drawn = torch.stack([whole(3, 1, pass_, 0) for pass_ in range(600)])
    counts = torch.unique(drawn @ torch.tensor([9, 3, 1]), return_counts=True)[1]
    assert len(counts) == 6
    assert int(counts.min()) > 50
