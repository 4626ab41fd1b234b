"""What a fine-tuning draws its steps from, and how they are drawn: by seed and step, ahead of time if need be."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from cadloc.finetuning.cells import CellBatch, Role, Step
from cadloc.finetuning.pairs import PairedView, SyntheticViews, draw_pairs, draw_replay
from cadloc.finetuning.settings import TuningSettings
from cadloc.finetuning.strategies import Strategy


@dataclass(frozen=True, eq=False)
class Material:
    """What is learned from, or validated on: pairs, synthetic views, and the scene's diameter."""

    pairs: Sequence[PairedView]
    synthetic: SyntheticViews
    diameter_m: float

    @property
    def names(self) -> list[list[str]]:
        """Names of the pairs and of the synthetic views."""
        return [[pair.photo.name for pair in self.pairs], [view.name for view in self.synthetic.views]]


def draw_step(material: Material, config: TuningSettings, strategy: Strategy, generator: np.random.Generator) -> Step:
    """The pictures and cells of one step."""
    cells = dict[Role, CellBatch]()
    counts = (config.images, config.matches)
    if strategy.uses_photos:
        cells["photos"], cells["renders"] = draw_pairs(material.pairs, config.crops, *counts, generator)
    if config.replay:
        cells["first"], cells["second"] = draw_replay(material.synthetic, config.crops, *counts, generator)
    cells = {role: batch.to(config.device) for role, batch in cells.items()}
    return Step(cells, strategy.tolerance_cells)


def drawn_ahead(draw: Callable[[int], Step], steps: range, readers: int) -> Iterator[Step]:
    """`draw(step)` of every step in order, by so many threads; one draws when asked."""
    if readers == 1:
        yield from map(draw, steps)
        return
    with ThreadPoolExecutor(readers) as pool:
        waiting: deque[Future[Step]] = deque()
        for step in steps:
            waiting.append(pool.submit(draw, step))
            if len(waiting) > readers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
