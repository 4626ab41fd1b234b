"""Every setting of a trial, typed and bounded. Pydantic only: the platform reads this without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, model_validator

from cadloc.finetuning.settings import FinetuningConfig
from cadloc.presets import PRESETS
from cadloc.scene_config import (
    SceneConfig,
)
from cadloc.settings import (
    Ascending,
    AtLeastOne,
    Count,
    Degrees,
    Fraction,
    NonNegative,
    OpenFraction,
    Positive,
    Scale,
    Seed,
    Settings,
    merged,
)
from cadloc.views_config import (
    ViewsConfig,
)

Domain: TypeAlias = Literal["synthetic", "photo", "gt_poses", "real", "target"]
TrainingDomain: TypeAlias = Literal["synthetic", "gt_poses", "real"]


# --- encoder and buffer -----------------------------------------------------------------------------------


class AceEncoder(Settings):
    """The published ACE architecture: 512 features, 5.6 M parameters."""

    name: Literal["ace"] = "ace"
    weights: str = "random"
    """`random`, or the place of a state dict such as `ace_encoder_pretrained.pt`."""
    seed: Seed = 0


class SmallEncoder(Settings):
    """Our own: under 1 M parameters, shipped weights."""

    name: Literal["small"] = "small"
    weights: str = "shipped"
    """`shipped`, `random`, or the place of a .safetensors file."""
    seed: Seed = 0


class DenseHog(Settings):
    """Dense gradient histograms, nothing learned: the baseline that learning must beat."""

    name: Literal["dense-hog"] = "dense-hog"


EncoderConfig: TypeAlias = Annotated[AceEncoder | SmallEncoder | DenseHog, Field(discriminator="name")]


class AugmentationConfig(Settings):
    """Applied to whole images before encoding, anew in every pass (ACE, supplement)."""

    scale: Annotated[tuple[Scale, Scale], Ascending] = (0.667, 1.5)
    rotation_deg: Degrees = 15.0
    brightness: Fraction = 0.1
    contrast: Fraction = 0.1


class BufferConfig(Settings):
    """Training samples: features of cells that see the model, encoded once and shared by all trials."""

    samples: Count = 1_000_000
    """At most: a view gives no more than the cells in which it sees the model."""
    passes: Count | Literal["enough"] = 2
    """How often every mapping view is encoded, each time with fresh augmentation; the first pass is plain. `enough`:
    as often as `samples` needs, however few the views are (`cadloc.buffer.passes_of`)."""
    augmentation: AugmentationConfig = AugmentationConfig()
    seed: Seed = 0


# --- head, loss, training ---------------------------------------------------------------------------------


class AceHead(Settings):
    """ACE's multi-layer perceptron with homogeneous read-out."""

    name: Literal["ace"] = "ace"
    width: Annotated[int, Field(ge=16, le=4096)] = 512
    blocks: Annotated[int, Field(ge=0, le=16)] = 1
    homogeneous: bool = True


class AnchorHead(Settings):
    """Names one of many k-means anchors of the mapping views' scene coordinates, then an offset from it."""

    name: Literal["anchor"] = "anchor"
    width: Annotated[int, Field(ge=16, le=4096)] = 256
    blocks: Annotated[int, Field(ge=0, le=16)] = 1
    anchors: Annotated[int, Field(ge=2, le=65536)] = 2048
    classification: NonNegative = 1.0
    """Weight of the anchors' cross-entropy. It knows what the loss knows: the scene coordinate while a coordinate
    loss acts, under a reprojection loss only the ray through the pixel."""


HeadConfig: TypeAlias = Annotated[AceHead | AnchorHead, Field(discriminator="name")]


class ReprojectionLoss(Settings):
    """ACE's reprojection error with dynamic tanh (ACE, section 3.4 and supplement): needs poses only."""

    name: Literal["reprojection"] = "reprojection"
    soft_clamp_px: Positive = 50.0
    soft_clamp_min_px: Positive = 1.0
    hard_clamp_px: Positive = 1000.0
    depth_min_m: Positive = 0.1
    depth_max_m: Positive = 1000.0
    depth_target_m: Positive = 10.0


class CoordinateLoss(Settings):
    """Euclidean distance to the known scene coordinate: the CAD's privileged supervision."""

    name: Literal["coordinate"] = "coordinate"


class SwitchingLoss(Settings):
    """`coordinate` for the first share `at` of the run, then `reprojection` in units matched at the switch."""

    name: Literal["switching"] = "switching"
    at: OpenFraction = 1 / 3
    schedule: Literal["reset", "continue"] = "reset"
    """Whether the clamp's schedule starts at the switch, or runs from the beginning as in the source work."""
    reprojection: ReprojectionLoss = ReprojectionLoss()


LossConfig: TypeAlias = Annotated[ReprojectionLoss | CoordinateLoss | SwitchingLoss, Field(discriminator="name")]


class TrainingConfig(Settings):
    """AdamW under one cycle of the learning rate, batches drawn across all views."""

    iterations: Count = 25_000
    batch_size: Count = 5120
    learning_rate: Positive = 5e-3
    weight_decay: NonNegative = 0.01
    precision: Literal["float32", "bfloat16"] = "float32"
    validations: Count = 8
    """How often validation accuracy is measured during training, the end included."""
    checkpoint: bool = True
    """Whether each validation leaves a checkpoint to resume from."""


class LocalizationConfig(Settings):
    """Pose from scene coordinates."""

    solver: Literal["poselib", "opencv"] = "poselib"
    threshold_px: Positive = 10.0
    """Inlier threshold for an image of 480 px short side; scaled with the image."""
    max_iterations: Count = 10_000
    min_iterations: Count = 1_000
    """PoseLib's; OpenCV's solver has no such setting, and a fixed seed of its own."""
    max_cells: Annotated[int, Field(ge=4)] = 5_000


class SiftFeatures(Settings):
    """SIFT at its key points, as RootSIFT (Arandjelović and Zisserman 2012), matched by ratio test both ways."""

    name: Literal["sift"] = "sift"
    keypoints: Count = 4096
    ratio: OpenFraction = 0.85
    upright: bool = True
    """Descriptors without orientation: photos and renders are upright."""
    contrast_limit: Positive | None = None
    """Clip limit of the adaptive histogram equalisation before detection. None: images as they are."""


class EncoderFeatures(Settings):
    """The trial's own encoder: one feature per cell, matched when each is the other's nearest."""

    name: Literal["encoder"] = "encoder"
    min_similarity: Annotated[float, Field(ge=-1, lt=1)] = 0.0


class PluginFeatures(Settings):
    """A matcher installed beside this program under the entry point group `cadloc.matchers`."""

    name: Literal["plugin"] = "plugin"
    entry_point: str
    settings: Mapping[str, Any] = {}


MatcherConfig: TypeAlias = Annotated[SiftFeatures | EncoderFeatures | PluginFeatures, Field(discriminator="name")]


class MatchingConfig(Settings):
    """`render_and_match`: match a query with renders of known depth, lift the matches, solve for the pose.

    The defaults were chosen on mapping photos (herzjesu, fountain, sceaux, reichstag), never on query photos.
    """

    features: MatcherConfig = EncoderFeatures()
    """What finds the first pose, across the gap in viewpoint and appearance."""
    retrieved: Count = 10
    """Renders a query is matched with: the nearest by global descriptor."""
    threshold_px: Positive = 8.0
    """Inlier threshold of the first pose, for an image of 480 px short side; scaled with the image."""
    max_iterations: Count = 20_000
    """Of the pose solver: among matches across the gap from photo to render, few are right."""
    refinements: Annotated[int, Field(ge=0, le=10)] = 2
    """How often the model is rendered at the estimate and matched again."""
    refined_by: MatcherConfig | None = SiftFeatures(ratio=0.9)
    """What matches with those renders, which look like the query but for the gap in appearance. None: `features`."""
    near_px: Positive = 32.0
    """How far from its pixel in such a render a match is looked for, for an image of 480 px short side."""
    refined_threshold_px: Positive = 3.0
    """Inlier threshold of refined poses, likewise."""


class TrialConfig(Settings):
    """One configuration and one seed: all that a trial's result depends on."""

    scene: SceneConfig
    trainable: str = "ace"
    views: ViewsConfig = ViewsConfig()
    train_on: Annotated[tuple[TrainingDomain, ...], AtLeastOne] = ("synthetic",)
    """Whose mapping views teach the map; of several, the samples of all, mixed. `gt_poses` and `real` need photos."""
    domains: tuple[Domain, ...] = ("synthetic", "photo", "gt_poses", "real")
    """Query sets of the test. Those a scene does not have are left out: `photo` (simulated photographs) belongs to
    built-in scenes, `gt_poses` and `real` to scenes with photos. A scene's own `query_sets` are always tested.
    `target` is what the scene's encoder would be tuned towards (`cadloc.catalog.tuning_target`), under one name on all
    scenes; named here, it is validated on, too."""
    encoder: EncoderConfig = SmallEncoder()
    finetuning: FinetuningConfig | None = None
    """How the encoder is tuned on pairs of the scene before anything is encoded. None: it stays as it is."""
    finetuning_pairs: Count = 60
    """Mapping views of a built-in scene's weathered twin, or of another CAD model of the place, that are rendered as
    simulated photos to tune on. Scenes with photos are tuned on their mapping photos."""
    buffer: BufferConfig = BufferConfig()
    head: HeadConfig = AnchorHead()
    loss: LossConfig = ReprojectionLoss()
    training: TrainingConfig = TrainingConfig()
    localization: LocalizationConfig = LocalizationConfig()
    matching: MatchingConfig | None = None
    """Of the trainable `render_and_match` only, which has the defaults unless told otherwise. None for all others:
    what a trial does not read is no part of what it is."""
    seed: Seed = 0

    @model_validator(mode="after")
    def _matching_is_read(self) -> TrialConfig:
        if self.trainable == "ace" and self.matching is not None:
            raise ValueError("matching: the trainable ace does not read it, render_and_match does")
        return self

    @model_validator(mode="after")
    def _can_be_tuned(self) -> TrialConfig:
        if self.finetuning is None:
            return self
        if self.trainable == "render_and_match":
            raise ValueError("finetuning: the trainable render_and_match does not read it, ace does")
        if isinstance(self.encoder, DenseHog):
            raise ValueError("finetuning: the encoder dense-hog has nothing to tune")
        if not (self.scene.built_in or self.scene.photos or self.scene.query_sets):
            raise ValueError(f"finetuning: scene {self.scene.name} has no photos and no other model to tune on")
        return self

    @model_validator(mode="after")
    def _photos_to_train_on(self) -> TrialConfig:
        if self.scene.photos is None and set(self.train_on) - {"synthetic"}:
            raise ValueError(f"train_on {', '.join(self.train_on)}: scene {self.scene.name} has no photos")
        if len(set(self.train_on)) < len(self.train_on):
            raise ValueError(f"train_on {', '.join(self.train_on)}: name each domain once")
        return self

    @model_validator(mode="after")
    def _buffer_suffices(self) -> TrialConfig:
        wanted = {"training.batch_size": self.training.batch_size, "head.anchors": getattr(self.head, "anchors", 0)}
        for key, number in wanted.items():
            if number > self.buffer.samples:
                raise ValueError(f"{key} = {number} is more than buffer.samples = {self.buffer.samples}")
        return self


def with_preset(trial: Mapping[str, Any]) -> dict[str, Any]:
    """The trial's keys on top of its `preset`'s (none: the built-in defaults). Raises KeyError: unknown preset."""
    own = {key: value for key, value in trial.items() if key != "preset"}
    preset = trial.get("preset")
    return merged(PRESETS[preset], own) if preset is not None else dict(own)
