"""Batches of training samples in an order that is a function of the seed and the step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cadloc.contract import Fault, InputError
from cadloc.samples import Batch, Samples
from cadloc.workers import ALONE, Workers

_SHUFFLE_SALT = 8191
"""Sets the generator of the order of samples apart from all others that start from the same seed."""


class Shuffled:
    """Batches in an order drawn anew in every pass over the samples, of one part of them after another.

    Step `s` has the same batch whatever was asked for before: resuming needs no state but the step. Several workers
    have a slice of it each, whatever their number: so every one of them needs all samples in its memory.
    """

    def __init__(
        self,
        samples: Samples,
        batch_size: int,
        seed: int,
        parts: Sequence[Tensor] | None = None,
        workers: Workers = ALONE,
    ) -> None:
        """`parts` are indices (P,) of samples, in turn those of the steps. None: all samples are one part.

        Raises InputError for a part smaller than a batch, and for a batch that does not divide among the workers.
        """
        self._samples, self._batch_size, self._seed = samples, batch_size, seed
        self._workers, self._share = workers, workers.share(batch_size, "training.batch_size")
        self._parts = [torch.arange(len(samples))] if parts is None else [part.cpu() for part in parts]
        smallest = min(map(len, self._parts))
        if batch_size > smallest:
            of_what = "the buffer" if parts is None else "the smallest cluster of cameras"
            allowed = f"at most the {smallest} samples of {of_what}"
            raise InputError(Fault("configuration", "training.batch_size", str(batch_size), allowed))
        self._orders: dict[int, tuple[int, Tensor]] = {}

    def batch(self, step: int) -> Batch:
        """Batch number `step`, counted from 0; the samples left over at the end of a pass are skipped."""
        turn, part = divmod(step, len(self._parts))
        pass_, place = divmod(turn, len(self._parts[part]) // self._batch_size)
        start = place * self._batch_size
        indices = self._order(part, pass_)[start + self._share.start : start + self._share.stop]
        return self._samples.batch(indices, self._seed * 1_000_003 + step, part, self._workers)

    def _order(self, part: int, pass_: int) -> Tensor:
        """Indices of the part's samples, shuffled, on the samples' device; the last pass's are kept."""
        known = self._orders.get(part)
        if known is None or known[0] != pass_:
            generator = torch.Generator().manual_seed(self._seed * 1_000_003 + pass_ + _SHUFFLE_SALT)
            order = torch.randperm(len(self._parts[part]), generator=generator)
            known = pass_, self._parts[part][order].to(self._samples.features.device)
            self._orders[part] = known
        return known[1]
