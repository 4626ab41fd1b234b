"""Every setting of a fine-tuning, typed and bounded. Pydantic only: the platform reads this without torch."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from cadloc.settings import Ascending, Count, Degrees, Fraction, NonNegative, Positive, Scale, Seed, Settings

Side = Annotated[int, Field(ge=32, le=4096, multiple_of=8)]
ParameterSet: TypeAlias = Literal["full", "last_block", "adapters"]
GradientRule: TypeAlias = Literal["sum", "pcgrad", "equalised"]


# --- losses of pairs --------------------------------------------------------------------------------------


class MeanSquaredError(Settings):
    """Mean squared difference of paired features."""

    name: Literal["mse"] = "mse"


class CosineMargin(Settings):
    """Cosine drawn to 1 for the same point and to −1 for another, each within a margin: the source work's form.

    Kept as an arm. A cosine of −1 to many points at once cannot be had; the margins are what makes the rest of it.
    """

    name: Literal["cosine_margin"] = "cosine_margin"
    same_margin: Fraction = 0.1
    other_margin: Fraction = 0.3


class InfoNce(Settings):
    """Symmetric InfoNCE (van den Oord et al., 2018); negatives see points farther away than `reach`."""

    name: Literal["info_nce"] = "info_nce"
    temperature: Positive = 0.07
    reach_m: Positive = 0.3
    reach_share: Fraction = 0.01
    """Of the scene's diameter; the larger of the two holds. Cells that see a nearer point are no negatives."""


class VicReg(Settings):
    """Invariance, variance and covariance (Bardes et al., 2022, with its weights)."""

    name: Literal["vicreg"] = "vicreg"
    invariance: NonNegative = 25.0
    variance: NonNegative = 25.0
    covariance: NonNegative = 1.0


class BarlowTwins(Settings):
    """Cross-correlation of paired features drawn to the identity (Zbontar et al., 2021, with its weight)."""

    name: Literal["barlow_twins"] = "barlow_twins"
    off_diagonal: NonNegative = 0.0051


PairLoss: TypeAlias = Annotated[
    MeanSquaredError | CosineMargin | InfoNce | VicReg | BarlowTwins, Field(discriminator="name")
]


# --- what all strategies share ----------------------------------------------------------------------------


class CropSettings(Settings):
    """Crops that a step learns from, each scaled, turned and shifted at random, photo and render apart."""

    width_px: Side = 320
    height_px: Side = 240
    scale: Annotated[tuple[Scale, Scale], Ascending] = (0.8, 1.25)
    rotation_deg: Degrees = 10.0
    develop_renders: bool = True
    """Whether renders get another sky, light and camera in every step; synthetic views always do."""
    photo_brightness: Fraction = 0.3
    photo_contrast: Fraction = 0.3


class TuningSettings(Settings):
    """Common to all strategies: AdamW, linear warm-up, half a cosine, an average of the weights (EMA)."""

    steps: Count = 10_000
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Of the encoder's layers while it is tuned; features, losses, gradients and weights are float32. bfloat16: twice
    as fast where the processor has it."""
    learning_rate: Positive = 1e-4
    warm_up: Count = 500
    weight_decay: NonNegative = 0.01
    clip: Positive = 1.0
    """Norm to which the true gradient, summed over all objectives, is shortened."""
    images: Count = 16
    """Pairs per step, and as many pairs of synthetic views when there is replay."""
    matches: Count = 64
    """Cells per pair."""
    chunk: Count = 128
    """Images encoded with a graph at a time. A step of more goes in two passes, with the same gradients."""
    crops: CropSettings = CropSettings()
    parameters: ParameterSet = "full"
    adapter_channels: Count | None = None
    """Width of the bottlenecks, 64 if not said. With parameters `adapters` only."""
    anchor: NonNegative = 0.3
    """Weight of staying near the original encoder's features."""
    anchor_on: Literal["renders", "photos", "both"] = "renders"
    """Whose features stay. Renders, synthetic views included: photos come to them, and maps made of them last."""
    replay: NonNegative = 1.0
    """Weight of the InfoNCE between synthetic views of the same point: against forgetting."""
    replay_loss: InfoNce = InfoNce()
    gradients: GradientRule = "sum"
    """How the objectives' gradients become one: added, with conflicts projected out, or at equal norms."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.999
    validate_every: Count = 500
    validation_pairs: Count = 24
    """At most so many pairs are measured on, and about as many crops."""
    seed: Seed = 0
    device: Literal["cpu", "cuda"] = "cpu"

    @model_validator(mode="after")
    def _warm_up_ends(self) -> TuningSettings:
        if self.warm_up >= self.steps:
            raise ValueError(f"warm_up = {self.warm_up} of steps = {self.steps} never gets to the learning rate")
        return self

    @model_validator(mode="after")
    def _adapters_are_read(self) -> TuningSettings:
        if self.adapter_channels is not None and self.parameters != "adapters":
            raise ValueError(f"adapter_channels: parameters {self.parameters} does not read it, adapters does")
        return self


class TuningHead(Settings):
    """The head that a strategy learns through; not the map of the trial, which is trained afterwards."""

    name: Literal["anchor", "ace"] = "anchor"
    width: Annotated[int, Field(ge=16, le=4096)] = 128
    blocks: Annotated[int, Field(ge=0, le=16)] = 1
    anchors: Annotated[int, Field(ge=2, le=65536)] = 512
    """Of the head `anchor`."""
    samples: Count = 30_000
    """Cells of synthetic views, under the original encoder, that it is fitted and prepared on."""
    prepared_steps: Annotated[int, Field(ge=0)] = 1_000
    """Updates of the head alone, before the encoder moves."""
    batch_size: Count = 2_048
    learning_rate: Positive = 2e-3

    @model_validator(mode="after")
    def _samples_suffice(self) -> TuningHead:
        wanted = {"batch_size": self.batch_size} | ({"anchors": self.anchors} if self.name == "anchor" else {})
        for key, number in wanted.items():
            if number > self.samples:
                raise ValueError(f"{key} = {number} is more than samples = {self.samples}")
        return self


# --- strategies -------------------------------------------------------------------------------------------


class FeatureTuning(TuningSettings):
    """A loss between the features of a photo's and its render's cells."""

    name: Literal["features"] = "features"
    loss: PairLoss = InfoNce()
    tolerance_cells: Annotated[int, Field(ge=0, le=2)] = 0
    """1: a photo's cell is paired with the most similar of the 3 × 3 render cells about its place, for photos whose
    poses or whose model are off by a few pixels."""


class CoordinateTuning(TuningSettings):
    """Photos must read the right scene coordinates through a head: a frozen one, or one that learns along."""

    name: Literal["scene_coordinates"] = "scene_coordinates"
    head: TuningHead = TuningHead()
    head_learns: bool = False


class EndToEndTuning(TuningSettings):
    """Encoder and head as one network, on photos, renders and synthetic views, in batches over many images."""

    name: Literal["end_to_end"] = "end_to_end"
    images: Count = 64
    head: TuningHead = TuningHead()
    loss: Literal["coordinate", "reprojection"] = "coordinate"


class AdversarialTuning(TuningSettings):
    """A discriminator tells photo cells from render cells; its reversed gradient makes the encoder fool it (DANN,
    Ganin et al., 2016)."""

    name: Literal["adversarial"] = "adversarial"
    weight: Positive = 3.0
    """Of the reversed gradient, at the end of its ramp: at 1 it is far below the other objectives'."""
    width: Annotated[int, Field(ge=8, le=4096)] = 128
    discriminator_learning_rate: Positive = 3e-3
    loss: PairLoss | None = None
    """A loss of pairs besides. None: the two sets of features are made alike, and no photo needs a render."""


class RandomisationTuning(TuningSettings):
    """Synthetic views under random appearance and not one photo: the control that every strategy must beat."""

    name: Literal["randomisation"] = "randomisation"
    replay: Positive = 1.0

    @model_validator(mode="after")
    def _no_photos_to_anchor(self) -> RandomisationTuning:
        if self.anchor_on != "renders":
            raise ValueError(f"anchor_on {self.anchor_on}: randomisation sees no photos, only renders")
        return self


FinetuningConfig: TypeAlias = Annotated[
    FeatureTuning | CoordinateTuning | EndToEndTuning | AdversarialTuning | RandomisationTuning,
    Field(discriminator="name"),
]
