"""Settings of pre-training: the pool of made-up buildings, what is learned from it and how, how long. Pydantic only."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from cadloc.settings import Count, NonNegative, Positive, Seed, Settings

_STRIDE = 8
Side = Annotated[int, Field(ge=64, le=4096, multiple_of=_STRIDE)]
"""Pixels: a multiple of every encoder's stride."""


class PoolConfig(Settings):
    """How many buildings are made up, and how many views of each are rendered."""

    buildings: Annotated[int, Field(ge=2)] = 160
    held_out: Count = 4
    """Buildings, of those, that only validation sees; their views are rendered as photographs too."""
    targets: Count = 5
    """Points of a building that views gather about."""
    views_per_target: Count = 4
    appearances: Count = 2
    width_px: Side = 480
    height_px: Side = 360
    seed: Seed = 0

    @model_validator(mode="after")
    def _some_to_learn_from(self) -> PoolConfig:
        if self.held_out >= self.buildings:
            raise ValueError(f"held_out = {self.held_out} of {self.buildings} buildings leaves none to learn from")
        return self

    def building_seed(self, index: int) -> int:
        """The seed of building `index`: what it looks like, rendered or photographed."""
        return 1_000 * self.seed + index


class Contrastive(Settings):
    """The same point must look alike in two views, other points not (InfoNCE over dense correspondence)."""

    name: Literal["contrastive"] = "contrastive"
    pairs: Count = 8
    pairs_per_building: Count = 2
    matches: Count = 128
    """Matches per pair; as many other cells of each image join the negatives of the whole batch."""
    temperature: Positive = 0.07
    hard_negatives: Annotated[int, Field(ge=0)] = 0
    """Cells of the other image, most like a match's feature though they see another point, that count once more."""
    hard_distance: Annotated[float, Field(ge=1, le=1000)] = 2.0
    """How far off another point is at least, in sizes of a cell on the surface."""


class Regression(Settings):
    """Scene coordinates of many buildings at once: a shared encoder, one small head per building, as ACE's was made."""

    name: Literal["regression"] = "regression"
    images: Count = 8
    """Images per step."""
    images_per_building: Count = 2
    cells: Count = 256
    """Cells per image that the heads see."""
    images_at_once: Count = 8
    """More images per worker than that are encoded piece by piece, and once more for their gradients. Memory is bounded
    then, and batch normalisation sees one piece of every worker at a time: there alone their number counts."""
    loss: Literal["coordinate", "reprojection"] = "coordinate"
    head_width: Annotated[int, Field(ge=16, le=4096)] = 128
    head_blocks: Annotated[int, Field(ge=0, le=16)] = 1
    head_updates: Count = 4
    """Updates of the heads per step; the last one moves the encoder too."""
    head_learning_rate: Positive = 1e-3
    head_reset: Annotated[int, Field(ge=0)] = 5_000
    """Steps after which a building's head starts anew (each at its own time), so that features, not heads, remember;
    0: never."""


class Distillation(Settings):
    """Another feature extractor's view of the same images, reduced to its principal components."""

    name: Literal["distillation"] = "distillation"
    teacher: Annotated[str, Field(min_length=1)]
    """An entry point of the group `cadloc.feature_extractors`, or `module:function`."""
    images: Count = 8
    cells: Annotated[int, Field(ge=2)] = 256
    """Cells per image whose likeness to one another is compared."""
    relations: NonNegative = 1.0
    """Weight of that comparison beside the likeness of each cell to the teacher's."""
    components: Count = 128
    """Principal components of the teacher's features that count; fewer if it has fewer."""
    fitting_images: Count = 64
    """Images that the components are computed from."""
    clean_teacher: bool = True
    """Whether the teacher sees the plain render where the encoder sees its photograph."""


Method = Annotated[Contrastive | Regression | Distillation, Field(discriminator="name")]


class PretrainingConfig(Settings):
    """What the encoder learns from, how long, and how."""

    architecture: Literal["small", "ace"] = "small"
    pool: PoolConfig = PoolConfig()
    method: Method = Contrastive()
    steps: Count = 3_600
    width_px: Side = 256
    height_px: Side = 192
    """Size of the crops."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Of the encoder's layers in training; losses, statistics and weights stay float32. bfloat16: twice as fast where
    the processor has it."""
    learning_rate: Positive = 5e-3
    weight_decay: NonNegative = 0.01
    warm_up: Count = 30
    checkpoint_every: Count = 50
    validation_pairs: Count = 48
    """Pairs of each kind in the fixed set on which matching precision is measured."""
    validate_every: Count = 400
    seed: Seed = 0

    @model_validator(mode="after")
    def _crops_of_enough_cells(self) -> PretrainingConfig:
        key = "matches" if isinstance(self.method, Contrastive) else "cells"
        asked = self.method.matches if isinstance(self.method, Contrastive) else self.method.cells
        there = self.width_px // _STRIDE * (self.height_px // _STRIDE)
        if asked > there:
            sides = f"width_px = {self.width_px} and height_px = {self.height_px}"
            raise ValueError(f"method.{key} of at most {there}, the cells of a crop of {sides}; it is {asked}")
        return self
