"""Strategies: what a fine-tuning asks of the features of one step's cells, as named objectives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import assert_never

import torch
from torch import Tensor, nn

from cadloc.finetuning.cells import Role, Step
from cadloc.finetuning.discriminator import PatchDiscriminator, domain_loss, ramp
from cadloc.finetuning.feature_losses import anchor_loss, neighbourhood_max, pair_loss
from cadloc.finetuning.head_learning import FeaturedCells, LearningHead, median_error_m, phase_of
from cadloc.finetuning.settings import (
    AdversarialTuning,
    CoordinateTuning,
    EndToEndTuning,
    FeatureTuning,
    FinetuningConfig,
    PairLoss,
    RandomisationTuning,
    TuningSettings,
)

_ANCHORED: Mapping[str, tuple[Role, ...]] = {
    "renders": ("renders", "first", "second"),
    "photos": ("photos",),
    "both": ("photos", "renders", "first", "second"),
}


@dataclass(frozen=True)
class Seen:
    """A step's cells with their features by role, now and (`original`) under the encoder before tuning; `progress`
    in [0, 1] of the run, `diameter_m` of the scene."""

    step: Step
    rows: Mapping[Role, Tensor]
    original: Mapping[Role, Tensor]
    progress: float
    diameter_m: float

    def points_cad(self, role: Role) -> Tensor:
        """What the cells of a role see, (N, 3)."""
        return self.step.cells[role].points_cad.flatten(0, 1)

    def pair(self) -> tuple[Tensor, Tensor]:
        """Features (N, C) of photo cells and of the render cells they are paired with."""
        photos, renders = self.rows["photos"], self.rows["renders"]
        return photos, neighbourhood_max(photos, renders) if renders.ndim == 3 else renders


class Strategy(nn.Module, ABC):
    """Its parameters are its own (a head, a discriminator) and learn along unless they are frozen."""

    uses_photos = True
    tolerance_cells = 0
    own_learning_rate = 0.0

    def prepare(self, featured: FeaturedCells) -> None:
        """Called once, before the first step and not when resuming."""
        return

    @abstractmethod
    def objectives(self, seen: Seen) -> dict[str, Tensor]:
        """The strategy's own objectives, weighted scalars."""

    def measures(self, seen: Seen) -> dict[str, float]:
        """What else validation reports, of steps without gradients."""
        return {}


class PairsAlike(Strategy):
    """`features`: a loss of pairs."""

    def __init__(self, config: FeatureTuning) -> None:
        super().__init__()
        self.config, self.tolerance_cells = config, config.tolerance_cells

    def objectives(self, seen: Seen) -> dict[str, Tensor]:
        return {"pairs": paired(self.config.loss, seen)}


class ThroughHead(Strategy):
    """`scene_coordinates` and `end_to_end`: the loss of a head on photos and renders, synthetic views among them."""

    def __init__(self, config: CoordinateTuning | EndToEndTuning, dimensions: int) -> None:
        super().__init__()
        self.learning_head = LearningHead(config.head, dimensions, config.seed)
        self.loss = config.loss if isinstance(config, EndToEndTuning) else "coordinate"
        self.learns = isinstance(config, EndToEndTuning) or config.head_learns
        self.own_learning_rate = config.head.learning_rate
        self.requires_grad_(self.learns)

    def prepare(self, featured: FeaturedCells) -> None:
        self.requires_grad_(True)
        self.learning_head.prepare(featured)
        self.requires_grad_(self.learns)

    def objectives(self, seen: Seen) -> dict[str, Tensor]:
        phase = phase_of(self.loss, seen.progress)
        names: dict[str, Role] = {"photos": "photos", "renders": "renders", "synthetic": "first"}
        return {
            name: self.learning_head.objective(seen.step.cells[role].with_features(seen.rows[role]), phase)
            for name, role in names.items()
            if role in seen.rows
        }

    def measures(self, seen: Seen) -> dict[str, float]:
        roles: tuple[Role, ...] = ("photos", "renders")
        batches = {role: seen.step.cells[role].with_features(seen.rows[role]) for role in roles}
        return {f"error_{role}_m": median_error_m(self.learning_head, batch) for role, batch in batches.items()}


class Adversarial(Strategy):
    """`adversarial`: a discriminator behind reversed gradients, and a loss of pairs if one is asked for."""

    def __init__(self, config: AdversarialTuning, dimensions: int) -> None:
        super().__init__()
        self.config = config
        self.discriminator = PatchDiscriminator(dimensions, config.width, config.seed)
        self.own_learning_rate = config.discriminator_learning_rate

    def objectives(self, seen: Seen) -> dict[str, Tensor]:
        weight = self.config.weight * ramp(seen.progress)
        domain = domain_loss(self.discriminator, seen.rows["photos"], seen.rows["renders"], weight)
        pairs = {} if self.config.loss is None else {"pairs": paired(self.config.loss, seen)}
        return {"domain": domain, **pairs}


class SyntheticOnly(Strategy):
    """`randomisation`: nothing but what every strategy has, replay and anchor."""

    uses_photos = False

    def objectives(self, seen: Seen) -> dict[str, Tensor]:
        return {}


def build_strategy(config: FinetuningConfig, dimensions: int) -> Strategy:
    """The strategy for features of so many channels."""
    match config:
        case FeatureTuning():
            return PairsAlike(config)
        case CoordinateTuning() | EndToEndTuning():
            return ThroughHead(config, dimensions)
        case AdversarialTuning():
            return Adversarial(config, dimensions)
        case RandomisationTuning():
            return SyntheticOnly()
        case _:
            assert_never(config)


def all_objectives(strategy: Strategy, config: TuningSettings, seen: Seen) -> dict[str, Tensor]:
    """The strategy's objectives, and those of replay and anchor where they have a weight."""
    objectives = strategy.objectives(seen)
    if "first" in seen.rows and config.replay:
        points_cad = seen.points_cad("first")
        loss = pair_loss(config.replay_loss, seen.rows["first"], seen.rows["second"], points_cad, seen.diameter_m)
        objectives["replay"] = config.replay * loss
    if config.anchor:
        objectives["anchor"] = config.anchor * _anchor(config, seen)
    return objectives


def paired(loss: PairLoss, seen: Seen) -> Tensor:
    """The loss of the step's photo and render cells."""
    photos, renders = seen.pair()
    return pair_loss(loss, photos, renders, seen.points_cad("photos"), seen.diameter_m)


def _anchor(config: TuningSettings, seen: Seen) -> Tensor:
    roles = [role for role in _ANCHORED[config.anchor_on] if role in seen.rows]
    rows, original = (
        torch.cat([features[role].flatten(0, -2) for role in roles]) for features in (seen.rows, seen.original)
    )
    return anchor_loss(rows, original)
