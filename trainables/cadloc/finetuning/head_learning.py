"""Through a head: what a strategy needs in order to judge features by the scene coordinates read from them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from cadloc.contract import DivergenceError
from cadloc.finetuning.cells import CellBatch
from cadloc.finetuning.settings import TuningHead
from cadloc.head_config import AceHead, AnchorHead, HeadConfig
from cadloc.heads import build
from cadloc.loss_config import ReprojectionLoss
from cadloc.losses.coordinate import CoordinatePhase
from cadloc.losses.phase import Phase
from cadloc.losses.reprojection import ReprojectionPhase
from cadloc.samples import Batch, Samples
from cadloc.schedules import one_cycle
from cadloc.shuffling import Shuffled

FeaturedCells = Callable[[], tuple[CellBatch, Tensor]]
"""Draws cells and their features (M · n, C) under the original encoder, others at every call."""


class LearningHead(nn.Module):
    """A head and the size of a pixel in its scene, (), in metres: what the head's loss is measured with."""

    metres_per_pixel: Tensor

    def __init__(self, config: TuningHead, dimensions: int, seed: int) -> None:
        super().__init__()
        self.config, self.seed = config, seed
        self.head = build(_head_config(config), dimensions, seed)
        self.register_buffer("metres_per_pixel", torch.ones(()))

    def prepare(self, featured: FeaturedCells) -> None:
        """Fits the head to cells of the original encoder and trains it on them alone, by distance."""
        samples = gathered(featured, self.config.samples)
        self.metres_per_pixel.fill_(samples.metres_per_pixel)
        self.head.fit(samples, self.seed)
        batches = Shuffled(samples, self.config.batch_size, self.seed)
        optimizer = torch.optim.AdamW(self.head.parameters(), lr=self.config.learning_rate)
        self.head.train()
        for step in range(self.config.prepared_steps):
            objective = self.objective(batches.batch(step), CoordinatePhase())
            if not torch.isfinite(objective):
                raise DivergenceError(f"preparing the head of a fine-tuning: {objective.item()} at step {step}")
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(objective)
            for group in optimizer.param_groups:
                group["lr"] = one_cycle(step, self.config.prepared_steps, self.config.learning_rate)
            optimizer.step()

    def objective(self, batch: Batch, phase: Phase) -> Tensor:
        """The phase's loss as a length in the head's own measure, and the head's own loss."""
        output = self.head.training_output(batch, phase.evidence)
        per_unit = self.head.objective_per_unit(phase.unit, float(self.metres_per_pixel))
        return phase.loss(output.prediction, batch) * per_unit + output.own_loss


def phase_of(loss: str, progress: float) -> Phase:
    """The loss `coordinate` or `reprojection` at `progress` in [0, 1] of the run."""
    return CoordinatePhase() if loss == "coordinate" else ReprojectionPhase(ReprojectionLoss(), progress)


def gathered(featured: FeaturedCells, count: int) -> Samples:
    """The first `count` cells that `featured` gives, with a camera each picture."""
    parts: list[Samples] = []
    while sum(len(part) for part in parts) < count:
        cells, rows = featured()
        view = torch.arange(len(cells), device=rows.device).repeat_interleave(cells.pixels.shape[1])
        batch = cells.with_features(rows)
        # Half precision, as features are stored everywhere else.
        features = rows.half()
        cameras = cells.cam_from_cad, cells.intrinsics
        parts.append(Samples(features, batch.pixels, view, batch.scene_coordinates, *cameras))
    joined = Samples.joined(parts)
    kept = (joined.features[:count], joined.pixels[:count], joined.view[:count], joined.scene_coordinates[:count])
    return Samples(*kept, joined.cam_from_cad, joined.intrinsics)


def median_error_m(head: LearningHead, batch: Batch) -> float:
    """Median distance of predicted to true scene coordinates."""
    predicted = head.head.predict(batch.features)
    return float(np.median((predicted - batch.scene_coordinates).norm(dim=1).cpu().numpy()))


def _head_config(config: TuningHead) -> HeadConfig:
    if config.name == "ace":
        return AceHead(width=config.width, blocks=config.blocks)
    return AnchorHead(width=config.width, blocks=config.blocks, anchors=config.anchors)
