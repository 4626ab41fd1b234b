"""Work on a CUDA device that is recorded once and replayed: thousands of small launches become one.

What is recorded is a function of its input tensors and of tensors that stay where they are. It is replayed on the same
memory: inputs are copied in, results copied out (PyTorch's documentation, "CUDA semantics", section on CUDA graphs).
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

WARM_UPS = 3
"""Runs before the recording, in which libraries set themselves up."""
MOST_GRAPHS = 8
_LOG = logging.getLogger(__name__)

Tensors = Mapping[str, Tensor]
Values = list[dict[str, Tensor]]
Work = Callable[[Tensors], Values]
"""Reads its inputs; repeated, it does the same again. Waits for nothing, and makes scalars."""


class Captured:
    """A recording of `work`. Raises RuntimeError where something in it cannot be recorded."""

    def __init__(self, work: Work, inputs: Tensors, pool: Any) -> None:
        self._inputs = {name: value.clone() for name, value in inputs.items()}
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                work(self._inputs)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        # Other threads may open samples meanwhile.
        with _back_to_its_stream(), torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self._values = work(self._inputs)
            self._side_by_side = torch.stack([value for each in self._values for value in each.values()])

    def __call__(self, inputs: Tensors) -> Values:
        """What `work` makes of the inputs."""
        torch._foreach_copy_([*self._inputs.values()], [inputs[name] for name in self._inputs])
        self._graph.replay()
        values = iter(self._side_by_side.clone().unbind())
        return [{name: next(values) for name in each} for each in self._values]


@contextmanager
def _back_to_its_stream() -> Iterator[None]:
    """Whatever happens within, the thread goes on where it was: a capture that fails leaves it on a stream of its own.

    (`torch.cuda.graph` ends the capture first, which raises, and would go back then.)
    """
    before = torch.cuda.current_stream()
    try:
        yield
    finally:
        torch.cuda.set_stream(before)


class Recordings:
    """The last recordings, by what sets one apart from another; on other devices than CUDA, work is done as it is.

    Work that cannot be recorded is said so of once, and from then on all is done as it is. Where memory runs out, it
    would without a recording, or soon: that is raised.
    """

    def __init__(self, device: torch.device) -> None:
        self._on = device.type == "cuda"
        self._kept: OrderedDict[Hashable, Captured] = OrderedDict()
        self._pool = torch.cuda.graph_pool_handle() if self._on else None

    def run(self, key: Hashable, work: Work, inputs: Tensors) -> Values:
        """What `work` makes of the inputs; under the same key, it must differ in nothing but these.

        Raises torch.OutOfMemoryError.
        """
        if not self._on:
            return work(inputs)
        try:
            return self._recorded(key, work, inputs)(inputs)
        except RuntimeError as error:
            if _out_of_memory(error):
                raise
            _LOG.warning("steps are not recorded as a CUDA graph: %s", error)
            self._on = False
            self._kept.clear()
            return work(inputs)

    def _recorded(self, key: Hashable, work: Work, inputs: Tensors) -> Captured:
        if key not in self._kept:
            self._kept[key] = Captured(work, inputs, self._pool)
        self._kept.move_to_end(key)
        if len(self._kept) > MOST_GRAPHS:
            self._kept.popitem(last=False)
        return self._kept[key]


def _out_of_memory(error: BaseException) -> bool:
    """Also where the end of the recording failed for it."""
    return any(isinstance(each, torch.OutOfMemoryError) for each in (error, error.__context__))
