"""Processes that share one step: each takes a part of the batch, all take the same step.

Nothing of the result but rounding depends on their number. Works over any backend of `torch.distributed` (gloo on CPUs,
nccl on GPUs); one all-reduce per step carries the gradients.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn

from cadloc.contract import CadlocError, Fault, InputError, WorkerLost


@dataclass(frozen=True)
class Workers:
    """This process's `rank` among `size` that were joined by `torch.distributed`; alone it needs none.

    What they do together raises WorkerLost where one of them is gone and the backend notices.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def joined(cls) -> Workers:
        """The processes of the default group of `torch.distributed`, which must be initialised."""
        return cls(distributed.get_rank(), distributed.get_world_size())

    def share(self, items: int, what: str) -> range:
        """This worker's part of `items` slots. Raises InputError where they do not divide evenly."""
        if items % self.size:
            allowed = f"a multiple of the {self.size} workers"
            raise InputError(Fault("configuration", what, str(items), allowed, "change one of the two"))
        part = items // self.size
        return range(self.rank * part, (self.rank + 1) * part)

    def gathered(self, rows: Tensor) -> Tensor:
        """Rows (N, ...) of all workers, in order of rank, (size · N, ...); every worker must have as many.

        Gradients flow back: the sum over the workers' losses, for the rows that are this worker's.
        """
        if self.size == 1:
            return rows
        whole: Tensor = _Gathered.apply(rows, self)  # type: ignore[no-untyped-call]
        return whole

    def mean(self, values: Tensor) -> Tensor:
        """Elementwise mean over the workers, with gradients (the mean over the workers' losses' gradients)."""
        if self.size == 1:
            return values
        mean: Tensor = _Mean.apply(values, self.size)  # type: ignore[no-untyped-call]
        return mean

    @torch.no_grad()
    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Gives every worker the mean of all workers' gradients; where one has none, it counts as zero."""
        if self.size == 1:
            return
        listed = list(parameters)
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in listed])
        with _together():
            distributed.all_reduce(flat)
        flat /= self.size
        for parameter, mean in zip(listed, torch.split(flat, [p.numel() for p in listed]), strict=True):
            parameter.grad = mean.view_as(parameter).clone()

    def told(self, value: bytes) -> bytes:
        """What the first worker has, on all of them."""
        if self.size == 1:
            return value
        box = [value]
        with _together():
            distributed.broadcast_object_list(box)
        return box[0]

    def agree(self, error: CadlocError | None, device: str | torch.device) -> None:
        """Raises an error that any of the workers has, on all of them: the others would wait for that one for ever.

        `device` is one that the group's backend can send from.
        """
        if self.size > 1:
            error = self._first_of(error, device)
        if error is not None:
            raise error

    def _first_of(self, error: CadlocError | None, device: str | torch.device) -> CadlocError | None:
        failed = torch.tensor(float(error is not None), device=device)
        errors: list[CadlocError | None] = [None] * self.size
        with _together():
            distributed.all_reduce(failed)
            if not failed.item():
                return None
            distributed.all_gather_object(errors, error)
        return next(found for found in errors if found is not None)

    def wait(self) -> None:
        """Until all workers have come here."""
        if self.size > 1:
            with _together():
                distributed.barrier()


ALONE = Workers()


@contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo's have no type of their own
        raise WorkerLost(f"the workers cannot go on together: {error}") from error


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, workers: Workers) -> Tensor:
        ctx.own = slice(workers.rank * len(rows), (workers.rank + 1) * len(rows))
        parts = [torch.empty_like(rows) for _ in range(workers.size)]
        with _together():
            distributed.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        with _together():
            distributed.all_reduce(total)
        return total[ctx.own], None


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, size: int) -> Tensor:
        ctx.size = size
        total = values.clone(memory_format=torch.contiguous_format)
        with _together():
            distributed.all_reduce(total)
        return total / size

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        with _together():
            distributed.all_reduce(total)
        return total / ctx.size, None
