"""Settings of the training loop and of the pose solver."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from cadloc.settings import Count, Fraction, NonNegative, OpenFraction, Positive, Settings


class OneCycle(Settings):
    """One cosine cycle of the learning rate, as ACE runs it."""

    name: Literal["one_cycle"] = "one_cycle"


class EarlyStop(Settings):
    """ACE0's rule (Brachmann et al., ECCV 2024, section 3.4): cool down as soon as the map fits its own samples."""

    share: OpenFraction = 0.7
    """Of a batch, within `within_px` of their pixels, on average over `window` steps."""
    within_px: Positive = 10.0
    window: Count = 100


class Plateau(Settings):
    """Warm up, hold, cool down: a schedule whose end need not be known from the start (ACE0)."""

    name: Literal["plateau"] = "plateau"
    warm_up: Fraction = 0.04
    """Share of `iterations`."""
    cool_down: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Likewise; begins at the latest so that it ends with `iterations`."""
    early_stop: EarlyStop | None = None
    """Whatever the loss: a run that fits under a 3D loss cools down before it has switched, and then switches."""


ScheduleConfig: TypeAlias = Annotated[OneCycle | Plateau, Field(discriminator="name")]


class TrainingConfig(Settings):
    """AdamW under a schedule of the learning rate, batches drawn across all views."""

    iterations: Count = 25_000
    batch_size: Count = 5120
    learning_rate: Positive = 5e-3
    schedule: ScheduleConfig = OneCycle()
    weight_decay: NonNegative = 0.01
    precision: Literal["float32", "bfloat16"] = "float32"
    validations: Count = 8
    """How often validation accuracy is measured during training, the end included."""
    checkpoint: bool = True
    """Whether each validation leaves a checkpoint to resume from."""

    @model_validator(mode="after")
    def _may_stop_early(self) -> TrainingConfig:
        rule = self.schedule.early_stop if isinstance(self.schedule, Plateau) else None
        if rule is not None and rule.window > self.iterations:
            raise ValueError(f"schedule.early_stop.window = {rule.window} is more than iterations = {self.iterations}")
        return self


class LocalizationConfig(Settings):
    """Pose from scene coordinates."""

    solver: Literal["poselib", "opencv"] = "poselib"
    sampling: Literal["uniform", "prosac"] = "uniform"
    """`prosac`: cells that the head is sure of are tried first (Chum and Matas 2005; PoseLib only). Sure is what the
    head says: anchors by their probability, heads under `uncertain_coordinate` by their deviation."""
    threshold_px: Positive = 10.0
    """Inlier threshold for an image of 480 px short side; scaled with the image."""
    max_iterations: Count = 10_000
    min_iterations: Count = 1_000
    """PoseLib's; OpenCV's solver has no such setting, and a fixed seed of its own."""
    max_cells: Annotated[int, Field(ge=4)] = 5_000
