"""Shuffled orders that need no memory: a keyed permutation of [0, N), any piece of which can be computed alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

ROUNDS = 6
"""Of the Feistel network; four make a permutation that no efficient test tells from chance (Luby and Rackoff, 1988),
given round functions that none does. Ours are quick hashes, hence two more."""

_LOW_BITS = 0xFFFFFFFF
_MULTIPLIER = 0x45D9F3B


@dataclass(frozen=True)
class Permutation:
    """A permutation of [0, `size`), `size` up to 2^60, drawn by the integers of `key`, not negative.

    A generalised Feistel network on the product of two ranges of about √size each, and a walk along its cycle from what
    it sends outside (Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002, methods 2 and 3). All
    integers: the same on every device.
    """

    size: int
    key: tuple[int, ...]

    def __call__(self, places: Tensor) -> Tensor:
        """Where `places` (B,) int64 in [0, size) go, (B,) int64; waits for the device, seldom more than twice."""
        values = self._network(places)
        outside = values >= self.size
        while bool(outside.any()):
            values = torch.where(outside, self._network(values), values)
            outside = values >= self.size
        return values

    @cached_property
    def _sides(self) -> tuple[int, int]:
        """Sizes of the two ranges: their product is `size` or, by less than the first, more."""
        side = max(2, math.isqrt(self.size))
        return side, -(-self.size // side)

    @cached_property
    def _keys(self) -> list[int]:
        """One of each round, below 2^32."""
        return [int(each) for each in np.random.SeedSequence(self.key).generate_state(ROUNDS)]

    def _network(self, values: Tensor) -> Tensor:
        """A permutation of [0, product of the sides)."""
        low_side, high_side = self._sides
        low, high = values % low_side, values // low_side
        for round_, key in enumerate(self._keys):
            if round_ % 2:
                high = (high + _hashed(low, key, high_side)) % high_side
            else:
                low = (low + _hashed(high, key, low_side)) % low_side
        return high * low_side + low


def _hashed(values: Tensor, key: int, end: int) -> Tensor:
    """Values (B,) below 2^31 to seemingly random ones in [0, end), end < 2^31: no product exceeds 63 bits."""
    mixed = values ^ key
    for _ in range(2):
        mixed = ((mixed ^ (mixed >> 16)) * _MULTIPLIER) & _LOW_BITS
    return ((mixed ^ (mixed >> 16)) * end) >> 32
