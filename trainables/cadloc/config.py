"""Every setting of a trial, typed and bounded. Pydantic only: the platform reads this without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, model_validator

from cadloc.constraint_config import ConstraintConfig
from cadloc.finetuning.settings import FinetuningConfig
from cadloc.global_config import misfit
from cadloc.head_config import AnchorHead, EnsembleHead, GlaceHead, HeadConfig
from cadloc.loss_config import LossConfig, ReprojectionLoss, SwitchingLoss, predicts_deviation
from cadloc.presets import PRESETS
from cadloc.projection_config import NoProjection, ProjectionConfig
from cadloc.projection_config import misfit as projection_misfit
from cadloc.scene_config import (
    SceneConfig,
)
from cadloc.settings import (
    Ascending,
    AtLeastOne,
    Count,
    Degrees,
    Fraction,
    OpenFraction,
    Positive,
    Scale,
    Seed,
    Settings,
    merged,
)
from cadloc.training_config import LocalizationConfig, OneCycle, TrainingConfig
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
    """Training samples: features of cells, encoded once and shared by all trials."""

    samples: Count = 1_000_000
    """At most: a view gives no more than the cells in which it sees the model, or `any`."""
    passes: Count | Literal["enough"] = 2
    """How often every mapping view is encoded, each time with fresh augmentation; the first pass is plain. `enough`:
    as often as `samples` needs, however few the views are (`cadloc.buffer.passes_of`)."""
    cells: Literal["model", "any"] = "model"
    """Which cells of a view become samples: those that see the model, or any, the background's among them. These have
    no scene coordinate; only reprojection errors learn from them."""
    augmentation: AugmentationConfig = AugmentationConfig()
    seed: Seed = 0
    device: Literal["cpu", "cuda"] = "cpu"
    """Where images are warped and encoded. Features differ slightly between the two: it is part of what a buffer is."""


# --- matching -------------------------------------------------------------------------------------------


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
    """`glace` with the head `glace`, which implies it; `render_and_match`; or a user's own, `module:function`."""
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
    projection: ProjectionConfig = NoProjection()
    """What is kept of the encoder's features, tuned or not, in buffer and queries. Global features see them whole."""
    buffer: BufferConfig = BufferConfig()
    head: HeadConfig = AnchorHead()
    loss: LossConfig = ReprojectionLoss()
    constraints: tuple[ConstraintConfig, ...] = ()
    """What the CAD model says of predicted points, added to the loss."""
    training: TrainingConfig = TrainingConfig()
    localization: LocalizationConfig = LocalizationConfig()
    matching: MatchingConfig | None = None
    """Of the trainable `render_and_match` only, which has the defaults unless told otherwise. None for all others:
    what a trial does not read is no part of what it is."""
    seed: Seed = 0

    @model_validator(mode="after")
    def _trainable_of_the_head(self) -> TrialConfig:
        if isinstance(self.head, GlaceHead) and "trainable" not in self.model_fields_set:
            self.__dict__["trainable"] = "glace"  # frozen for everybody else
        return self

    @model_validator(mode="after")
    def _head_is_read(self) -> TrialConfig:
        if (self.trainable, isinstance(self.head, GlaceHead)) in (("ace", True), ("glace", False)):
            raise ValueError(f"head.name = {self.head.name}: the trainable {self.trainable} does not train it")
        told = self.head.global_features if isinstance(self.head, GlaceHead) else None
        wrong = None if told is None else misfit(told, self.encoder.model_dump(), self.finetuning is not None)
        if wrong is not None:
            raise ValueError(f"head.global_features: {wrong}")
        return self

    @model_validator(mode="after")
    def _projection_is_read(self) -> TrialConfig:
        wrong = projection_misfit(self.projection, self.encoder.model_dump(), self.trainable)
        if wrong is not None:
            raise ValueError(f"projection.{wrong}")
        return self

    @model_validator(mode="after")
    def _cameras_suffice(self) -> TrialConfig:
        head, there = self.head, self.views.counts.mapping
        wanted = {"members": head.members} if isinstance(head, EnsembleHead) else {}
        if isinstance(head, GlaceHead) and head.centres_of == "cameras":
            wanted = {"centres": head.centres}
        for key, number in wanted.items():
            if self.train_on == ("synthetic",) and number > there:
                raise ValueError(f"head.{key} = {number} is more than views.counts.mapping = {there}")
        return self

    @model_validator(mode="after")
    def _constraints_make_sense(self) -> TrialConfig:
        names = [constraint.name for constraint in self.constraints]
        if names and self.trainable == "render_and_match":
            raise ValueError("constraints: the trainable render_and_match does not read them, ace does")
        if len(set(names)) < len(names):
            raise ValueError("constraints: name each kind once")
        if self.buffer.cells == "any" and "surface" in names:
            raise ValueError("constraints surface with buffer.cells = any: background is not on the surface")
        return self

    @model_validator(mode="after")
    def _sampling_has_an_order(self) -> TrialConfig:
        if self.localization.sampling == "uniform":
            return self
        if self.localization.solver != "poselib":
            raise ValueError("localization.sampling = prosac: only the solver poselib does that")
        head = self.head.member if isinstance(self.head, EnsembleHead) else self.head
        if not isinstance(head, AnchorHead) and not predicts_deviation(self.loss):
            raise ValueError(
                "localization.sampling = prosac: nothing says how sure a cell is; take the head anchor, "
                "or the loss uncertain_coordinate"
            )
        return self

    @model_validator(mode="after")
    def _one_cycle_can_restart(self) -> TrialConfig:
        restarts = isinstance(self.loss, SwitchingLoss) and self.loss.learning_rate == "restart"
        if restarts and not isinstance(self.training.schedule, OneCycle):
            raise ValueError("loss.learning_rate = restart: only training.schedule one_cycle can start anew")
        return self

    @model_validator(mode="after")
    def _matching_is_read(self) -> TrialConfig:
        if self.trainable in ("ace", "glace") and self.matching is not None:
            raise ValueError(f"matching: the trainable {self.trainable} does not read it, render_and_match does")
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
        head = self.head.member if isinstance(self.head, EnsembleHead) else self.head
        wanted = {"training.batch_size": self.training.batch_size, "head.anchors": getattr(head, "anchors", 0)}
        for key, number in wanted.items():
            if number > self.buffer.samples:
                raise ValueError(f"{key} = {number} is more than buffer.samples = {self.buffer.samples}")
        return self


def with_preset(trial: Mapping[str, Any]) -> dict[str, Any]:
    """The trial's keys on top of its `preset`'s (none: the built-in defaults). Raises KeyError: unknown preset."""
    own = {key: value for key, value in trial.items() if key != "preset"}
    preset = trial.get("preset")
    return merged(PRESETS[preset], own) if preset is not None else dict(own)
