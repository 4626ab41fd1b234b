"""Every setting of a trial, typed and bounded. Pydantic only: the platform reads this without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from cadloc.presets import PRESETS

Domain: TypeAlias = Literal["synthetic", "photo", "gt_poses", "real"]
TrainingDomain: TypeAlias = Literal["synthetic", "gt_poses", "real"]
BUILT_IN_SCENES: tuple[str, ...] = ("gate", "rotunda", "cathedral")

Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Fraction = Annotated[float, Field(ge=0, le=1)]
OpenFraction = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Degrees = Annotated[float, Field(ge=0, le=180)]
Azimuth = Annotated[float, Field(ge=-360, le=360)]
Scale = Annotated[float, Field(ge=0.1, le=4)]
JpegQuality = Annotated[int, Field(ge=20, le=100)]


def _ascending(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] > ends[1]:
        raise ValueError(f"a range from {ends[0]:g} down to {ends[1]:g}; write the smaller end first")
    return ends


Ascending = AfterValidator(_ascending)
AtLeastOne = Field(min_length=1)


class Settings(BaseModel):
    """Frozen, and a key nobody reads is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


# --- scene ------------------------------------------------------------------------------------------------


class CadConfig(Settings):
    """A CAD file, and what its file format does not say."""

    path: str
    up: Literal["x", "y", "z", "-x", "-y", "-z"]
    """The model's axis that points to the sky; it becomes `cad` z. Reconstructions often have `-y` or `-z`."""
    units: Literal["m", "cm", "mm", "in", "ft"] | Positive | None = None
    """The model's length unit (a number: metres per unit). Only formats that state their own may leave it out."""


class QuerySetConfig(Settings):
    """A second CAD model of the same place: its renders, expressed in the scene's frame, are one more query set."""

    cad: CadConfig
    registration: str | None = None
    """Text file, 4×4 similarity: scene_from_this (x_scene = M · x_this), both in metres, own axes. None: identity."""


RECONSTRUCTION_FORMATS = ("colmap", "phototourism", "ace", "poses_json", "pose_list")


class SplitsConfig(Settings):
    """Which photos teach, which decide, which test. Files hold one photo name per line.

    Without a `query` file: the split that the reconstruction states, else a seeded share. Without a `mapping` file:
    every other photo. Validation photos are a seeded share of the mapping photos unless a file names them.
    """

    mapping: str | None = None
    validation: str | None = None
    query: str | None = None
    validation_share: OpenFraction = 0.2
    query_share: OpenFraction = 0.3
    seed: Seed = 0


class PhotosConfig(Settings):
    """Real photographs with poses, and where their frame lies in the CAD model's."""

    images: str
    """Folder that the photos' names are relative to."""
    reconstruction: str
    """The poses: a folder or file in one of `RECONSTRUCTION_FORMATS`."""
    format: Literal["colmap", "phototourism", "ace", "poses_json", "pose_list"] | None = None
    """None: found out by looking at what `reconstruction` is."""
    registration: str | None = None
    """Text file, 4×4 similarity: X_reconstruction = M · X_cad, the CAD in its file's own axes, in metres.
    None: the CAD file's own coordinates, unscaled, are the reconstruction's."""
    splits: SplitsConfig = SplitsConfig()


class SceneConfig(Settings):
    """What is localized against. `built_in` scenes are made in code; others come from a scene file."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
    built_in: bool = False
    cad: CadConfig | None = None
    ground_z_m: float | None = None
    """Height of the ground people stand on, in `cad`; None: found in the model (`CadModel.ground_height_m`)."""
    query_sets: Mapping[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")], QuerySetConfig] = {}
    photos: PhotosConfig | None = None
    metric: bool = True
    """Whether the CAD's metres are metres on the ground. If not, only shares of its size and DCRE mean something."""
    depth_range_m: Annotated[tuple[NonNegative, Positive], Ascending] | None = None
    """Depths of photos, and of renders at their poses, that are taken for true; others count as unknown."""
    viewpoints: Mapping[str, Any] = {}
    """Keys of `views.viewpoints` that this place decides (such as the sector to stand in); they win over a space's."""

    @model_validator(mode="after")
    def _viewpoints_exist(self) -> SceneConfig:
        scene_viewpoints(ViewpointsConfig(), self)
        return self

    @model_validator(mode="after")
    def _one_source(self) -> SceneConfig:
        if self.built_in and self.name not in BUILT_IN_SCENES:
            raise ValueError(f"no built-in scene {self.name!r}; built-in are {', '.join(BUILT_IN_SCENES)}")
        if self.built_in == (self.cad is not None):
            raise ValueError("a scene is either built_in or has a cad, not both and not neither")
        if self.built_in and self.photos is not None:
            raise ValueError("photos need a cad; a built-in scene has none")
        taken = {"synthetic", "photo", "real", "gt_poses"} & set(self.query_sets)
        if taken:
            raise ValueError(f"query set names {sorted(taken)} are domains already")
        return self


# --- views ------------------------------------------------------------------------------------------------


class ImageConfig(Settings):
    """Size of the rendered images; both sides are multiples of the encoders' stride 8."""

    width_px: Annotated[int, Field(ge=64, le=4096, multiple_of=8)] = 640
    height_px: Annotated[int, Field(ge=64, le=4096, multiple_of=8)] = 480


class OrbitConfig(Settings):
    """Cameras on rings about the model, all looking at it."""

    elevations_deg: Annotated[tuple[Annotated[float, Field(ge=-30, le=85)], ...], AtLeastOne] = (4.0, 15.0, 30.0)
    distances: Annotated[tuple[Positive, ...], AtLeastOne] = (0.4, 0.55)
    """Multiples of the distance from which the building's bounding sphere fills the smaller field of view."""
    target_spread: Fraction = 0.15
    """How far from the building's middle cameras aim at most, as a share of the sphere's radius."""


class GroundConfig(Settings):
    """Cameras where people stand: eye height, free space, looking at a random surface point."""

    eye_height_m: Positive = 1.6
    eye_height_spread_m: NonNegative = 0.3
    distances: Annotated[tuple[Positive, Positive], Ascending] = (0.25, 0.7)
    """Range of distances to the building's middle, in the multiples of `OrbitConfig.distances`, drawn log-uniformly."""
    aim_spread_deg: Annotated[float, Field(ge=0, le=45)] = 2.0
    """Standard deviation of the aim about the surface point looked at."""
    max_pitch_deg: Annotated[float, Field(gt=0, le=90)] = 40.0
    """No surface point farther above or below the horizon is looked at: heads turn, but not all the way."""


class ViewpointsConfig(Settings):
    """Where the virtual cameras stand and how they see."""

    ground_share: Fraction = 0.6
    """Share of ground-level viewpoints; the rest are orbit views."""
    orbit: OrbitConfig = OrbitConfig()
    ground: GroundConfig = GroundConfig()
    azimuth_deg: Annotated[tuple[Azimuth, Azimuth], Ascending] = (-180.0, 180.0)
    """Sector the cameras stand in, seen from the building's middle, counter-clockwise from +x."""
    fields_of_view_deg: Annotated[tuple[Annotated[float, Field(gt=10, lt=120)], ...], AtLeastOne] = (55.0, 65.0, 75.0)
    """Angles that the longer image side may span (phones: 50 to 75)."""
    roll_deg: Degrees = 3.0
    """Standard deviation of the in-plane rotation."""
    clearance_m: Positive = 2.0
    """Nothing but the ground is closer to the camera than this."""
    min_hit_share: Fraction = 0.3
    """A viewpoint is accepted when this share of its cells sees the building (not the ground, not the sky)."""
    min_separation_m: NonNegative = 0.5
    min_separation_deg: NonNegative = 5.0
    """Two viewpoints of different splits differ by more than at least one of these two: no near-duplicates."""


class GtPosesConfig(Settings):
    """Renders at the poses of the scene's photos: pairs of a photo and a render, and jittered ones about them."""

    copies: Count = 16
    """Renders per mapping photo: the first at its very pose, the others jittered. Other splits have the first only."""
    jitter_translation_pct: NonNegative = 5.0
    """Standard deviation, in % of the median depth seen."""
    jitter_rotation_deg: Degrees = 3.0
    max_offset_px: Positive | None = None
    """Mapping photos whose render is displaced by more than this (median over matches) are left out. None: none is."""


class CountsConfig(Settings):
    """Views per split. Choices are made on `validation`; `query` is looked at once."""

    mapping: Count = 600
    validation: Count = 32
    query: Count = 100


class RandomisationConfig(Settings):
    """Appearance of synthetic views, drawn anew for each one (domain randomisation)."""

    light: Fraction = 0.7
    """Share of views with a random sun; the others have one fixed, soft light."""
    shadows: Fraction = 0.5
    """Share of the views with a random sun in which it casts shadows."""
    exposure_ev: NonNegative = 0.6
    """Standard deviations, in stops and in natural logarithms of gamma and white-balance gains."""
    gamma: NonNegative = 0.15
    white_balance: NonNegative = 0.08
    background: Fraction = 0.8
    """Share of views with a random sky instead of plain grey."""
    blur_px: NonNegative = 0.6
    noise: NonNegative = 0.015
    """Largest standard deviations, uniformly drawn: of the blur, and of the noise as a share of full scale."""
    jpeg_quality: Annotated[tuple[JpegQuality, JpegQuality], Ascending] = (70, 97)


class ViewsConfig(Settings):
    """Synthetic views: where from, how many, how large, how they look. `seed` is not the trial's seed."""

    image: ImageConfig = ImageConfig()
    viewpoints: ViewpointsConfig = ViewpointsConfig()
    counts: CountsConfig = CountsConfig()
    randomisation: RandomisationConfig = RandomisationConfig()
    gt_poses: GtPosesConfig = GtPosesConfig()
    backend: Literal["gl", "raycasting"] = "gl"
    """`raycasting` needs no OpenGL and is slower."""
    seed: Seed = 1


def scene_viewpoints(viewpoints: ViewpointsConfig, scene: SceneConfig) -> ViewpointsConfig:
    """The viewpoints with the scene's own keys on top. Raises ValueError for keys or values that are none."""
    over = merged(viewpoints.model_dump(mode="json"), scene.viewpoints)
    return ViewpointsConfig.model_validate(over)


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
    """Whose mapping views teach the map; of several, equally many samples. `gt_poses` and `real` need photos."""
    domains: tuple[Domain, ...] = ("synthetic", "photo", "gt_poses", "real")
    """Query sets of the test. Those a scene does not have are left out: `photo` (simulated photographs) belongs to
    built-in scenes, `gt_poses` and `real` to scenes with photos. A scene's own `query_sets` are always tested."""
    encoder: EncoderConfig = SmallEncoder()
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


# --- presets ----------------------------------------------------------------------------------------------


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the keys of `over` laid on top, mapping by mapping.

    A choice (a mapping with `name`) that names another variant replaces the whole mapping: the other
    variant's settings mean nothing to it.
    """
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping) and not _other_choice(old, value):
            result[key] = merged(old, value)
        else:
            result[key] = value
    return result


def _other_choice(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return "name" in new and new["name"] != old.get("name", new["name"])


def with_preset(trial: Mapping[str, Any]) -> dict[str, Any]:
    """The trial's keys on top of its `preset`'s (none: the built-in defaults). Raises KeyError: unknown preset."""
    own = {key: value for key, value in trial.items() if key != "preset"}
    preset = trial.get("preset")
    return merged(PRESETS[preset], own) if preset is not None else dict(own)
