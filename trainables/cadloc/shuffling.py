"""Batches of training samples in an order that is a function of the seed and the step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cadloc.contract import Fault, InputError
from cadloc.permutation import Permutation
from cadloc.samples import Batch, Samples
from cadloc.workers import ALONE, Workers

DEALT_BY_CPU, DEALT_BY_GPU = 16, 256
"""Batches whose indices are worked out together: a GPU is waited for each time, a CPU's memory is every trial's."""


class Shuffled:
    """Batches in an order drawn anew in every pass over the samples, of one part of them after another.

    Step `s` has the same batch whatever was asked for before: resuming needs no state but the step. The order is never
    stored: it is a keyed permutation, of which a few steps' places are worked out at a time. Several workers have a
    slice of each batch, whatever their number: so every one of them reads from all samples.
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
        self._parts = parts
        self._sizes = [len(samples)] if parts is None else [len(part) for part in parts]
        smallest = min(self._sizes)
        if batch_size > smallest:
            of_what = "the buffer" if parts is None else "the smallest cluster of cameras"
            allowed = f"at most the {smallest} samples of {of_what}"
            raise InputError(Fault("configuration", "training.batch_size", str(batch_size), allowed))
        self._at_once = DEALT_BY_CPU if samples.features.device.type == "cpu" else DEALT_BY_GPU
        self._dealt: dict[int, tuple[tuple[int, int], Tensor]] = {}

    def batch(self, step: int) -> Batch:
        """Batch number `step`, counted from 0; the samples left over at the end of a pass are skipped."""
        turn, part = divmod(step, len(self._sizes))
        pass_, place = divmod(turn, self._sizes[part] // self._batch_size)
        hand, number = divmod(place, self._at_once)
        indices = self._hand(part, pass_, hand)[number]
        return self._samples.batch(indices, self._seed * 1_000_003 + step, part, self._workers)

    def _hand(self, part: int, pass_: int, hand: int) -> Tensor:
        """This worker's indices of the batches that are dealt together, one row each, on the samples' device; the last
        hand of each part is kept."""
        known = self._dealt.get(part)
        if known is None or known[0] != (pass_, hand):
            known = (pass_, hand), self._indices(part, pass_, hand)
            self._dealt[part] = known
        return known[1]

    def _indices(self, part: int, pass_: int, hand: int) -> Tensor:
        device = self._samples.features.device
        first, end = hand * self._at_once, self._sizes[part] // self._batch_size
        batches = torch.arange(first, min(first + self._at_once, end), device=device)[:, None]
        own = torch.arange(self._share.start, self._share.stop, device=device)
        permutation = Permutation(self._sizes[part], (self._seed, pass_, part))
        places = permutation(batches * self._batch_size + own)
        return places if self._parts is None else self._parts[part].to(device)[places]
