"""Settings of a scene: its CAD model, other models of the place, its photographs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from cadloc.settings import Ascending, NonNegative, OpenFraction, Positive, Seed, Settings, merged
from cadloc.views_config import ViewpointsConfig

BUILT_IN_SCENES: tuple[str, ...] = ("gate", "rotunda", "cathedral", "campus")
BUILT_IN_VIEWPOINTS: Mapping[str, Mapping[str, Any]] = {
    "campus": {
        "ground_share": 0.8,
        "ground": {"distances": None},
        "orbit": {"elevations_deg": (8.0, 18.0), "target_spread": 0.6},
        "clearance_m": 3.0,
    }
}
"""Keys of `views.viewpoints` that built-in scenes decide, as scene files do with `SceneConfig.viewpoints`."""


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

    @field_validator("viewpoints")
    @classmethod
    def _viewpoints_exist(cls, viewpoints: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            ViewpointsConfig.model_validate(merged(ViewpointsConfig().model_dump(mode="json"), viewpoints))
        except ValidationError as error:
            told = (f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
            raise ValueError(f"keys of views.viewpoints ({'; '.join(told)})") from error
        return viewpoints

    @model_validator(mode="after")
    def _one_source(self) -> SceneConfig:
        if self.built_in and self.name not in BUILT_IN_SCENES:
            raise ValueError(f"no built-in scene {self.name!r}; built-in are {', '.join(BUILT_IN_SCENES)}")
        if self.built_in == (self.cad is not None):
            raise ValueError("a scene is either built_in or has a cad, not both and not neither")
        if self.built_in and self.photos is not None:
            raise ValueError("photos need a cad; a built-in scene has none")
        taken = {"synthetic", "photo", "real", "gt_poses", "target"} & set(self.query_sets)
        if taken:
            raise ValueError(f"query set names {sorted(taken)} are domains already")
        return self


def scene_viewpoints(viewpoints: ViewpointsConfig, scene: SceneConfig) -> ViewpointsConfig:
    """The viewpoints with the scene's own keys on top. Raises ValueError for keys or values that are none."""
    own = BUILT_IN_VIEWPOINTS.get(scene.name, {}) if scene.built_in else {}
    over = merged(merged(viewpoints.model_dump(mode="json"), own), scene.viewpoints)
    return ViewpointsConfig.model_validate(over)
