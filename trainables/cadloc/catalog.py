"""What exists: trainables, stages and how a trial's configuration leads to the stages it needs. No heavy import."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel

from cadloc.config import Domain, TrialConfig
from cadloc.constraint_config import SurfaceConstraint
from cadloc.contract import StageBuilder, StageSpec, Trainable
from cadloc.global_config import GlobalFeaturesConfig, GlobalPlugin
from cadloc.head_config import GlaceHead
from cadloc.input_files import photo_files, scene_files
from cadloc.projection_config import NoProjection
from cadloc.scene_config import SceneConfig, scene_viewpoints


@dataclass(frozen=True)
class TrainableEntry:
    """A trainable's generator function as `module:name`."""

    function: str


TRAINABLES: dict[str, TrainableEntry] = {
    "ace": TrainableEntry("cadloc.ace:train"),
    "glace": TrainableEntry("cadloc.glace:train"),
    "render_and_match": TrainableEntry("cadloc.render_and_match:train"),
}

_WEIGHTS = Path(__file__).parent / "encoders" / "weights"
SHIPPED_GLOBAL = (_WEIGHTS / "small_global.safetensors", _WEIGHTS / "small_global.json")

REGRESSORS = frozenset({"ace", "glace"})
"""Trainables that train a head on a buffer."""

# kind -> (module that builds it, version of its code: raise it when its output changes)
STAGES: dict[str, tuple[str, str]] = {
    "views": ("cadloc.datasets.building", "1"),
    "photos": ("cadloc.datasets.photos", "1"),
    "gt_poses": ("cadloc.datasets.gt_poses", "1"),
    "encoder": ("cadloc.finetuning.stage", "1"),
    "projection": ("cadloc.projection", "1"),
    "distance_field": ("cadloc.distance_field", "1"),
    "global_features": ("cadloc.global_features", "2"),
    "buffer": ("cadloc.buffer", "3"),
    "queries": ("cadloc.queries", "3"),
    "trunk": ("cadloc.trunk", "1"),
}
RESUMABLE = frozenset({"encoder", "trunk"})  # kinds, of one chunk, that go on from what an earlier attempt left

PAIRED_DOMAINS: tuple[Domain, ...] = ("real", "gt_poses")
"""Domains that only scenes with photos have: the photos, and renders at their poses."""


def trainable(name: str) -> Trainable:
    """The trainable's function, imported now; a name `module:function` is a user's own.

    Raises KeyError for a name that is neither in `TRAINABLES` nor of that form, ImportError or AttributeError
    where a user's module or function cannot be found.
    """
    return cast(Trainable, _named_object(name if ":" in name else TRAINABLES[name].function))


def stage_builder(kind: str) -> StageBuilder:
    """The module that makes stages of this kind, imported now; a kind `module:object` is a user's own builder."""
    if ":" in kind:
        return cast(StageBuilder, _named_object(kind))
    return cast(StageBuilder, importlib.import_module(STAGES[kind][0]))


def needs_gpu(spec: StageSpec) -> bool:
    """Whether a stage's configuration says that it is made on a GPU."""
    settings = (spec.config, *(part for part in spec.config.values() if isinstance(part, Mapping)))
    return any(part.get("device") == "cuda" for part in settings)


def _named_object(place: str) -> Any:
    module, name = place.split(":", 1)
    return getattr(importlib.import_module(module), name)


def stages_of(config: TrialConfig) -> dict[str, StageSpec]:
    """The stages a trial reads, by role.

    `views/D` for every domain and query set D that it trains or is tested on (`views/synthetic` always), `encoder`
    where it is fine-tuned, `projection` where its features are projected, `buffer/D` for every domain it trains on,
    `queries/D` for every test set, and `queries/validation/D` for every domain it is validated on; `render_and_match`
    reads views only. A user's own trainable `module:function` reads what `stages_of(config)` of its module says, or
    nothing where there is none.
    """
    if ":" in config.trainable:
        module = importlib.import_module(config.trainable.split(":", 1)[0])
        return dict(module.stages_of(config)) if hasattr(module, "stages_of") else {}
    wanted = ("synthetic", *config.train_on, *validation_domains(config), *test_sets(config))
    views = {name: views_stage(config, name) for name in dict.fromkeys(wanted)}
    stages = {f"views/{name}": spec for name, spec in views.items()}
    if config.trainable == "render_and_match":
        return stages  # it describes images in its own way
    if config.finetuning is not None:
        stages["encoder"] = _tuned_encoder(config, views["synthetic"])
    stages |= _projection_input(config)
    if any(isinstance(constraint, SurfaceConstraint) for constraint in config.constraints):
        stages["distance_field"] = _distance_field(config)
    stages |= {f"buffer/{name}": _buffer(config, views[name]) for name in config.train_on}
    queries = {f"validation/{name}": _validation_views(config, name) for name in validation_domains(config)}
    queries |= {name: views[name] for name in test_sets(config)}
    splits = {name: "validation" if name.startswith("validation/") else "query" for name in queries}
    stages |= {f"queries/{name}": _queries(config, of, splits[name]) for name, of in queries.items()}
    if isinstance(config.head, GlaceHead) and config.head.global_features is not None:
        told = config.head.global_features
        first = _global_features(config, told, views[config.train_on[0]], "mapping")
        stages |= {f"global_features/{config.train_on[0]}": first}
        for domain in config.train_on[1:]:
            stages[f"global_features/{domain}"] = _global_features(config, told, views[domain], "mapping", first)
        for name, of in queries.items():
            role = f"global_features/queries/{name}"
            stages[role] = _global_features(config, told, of, splits[name], first)
    return stages


def views_stage(config: TrialConfig, name: str) -> StageSpec:
    """The stage that makes the views of a domain or of one of the scene's query sets."""
    match source_of(config.scene, name):
        case "real":
            return _photos(config)
        case "gt_poses":
            return _renders_at_photo_poses(config)
        case source:
            return _renders(config, source)


def validation_domains(config: TrialConfig) -> tuple[Domain, ...]:
    """Domains whose validation views a trial is measured on during training."""
    photos: tuple[Domain, ...] = () if config.scene.photos is None else ("real",)
    # What render_and_match reads of a target that is rendered are its queries.
    readable = config.trainable != "render_and_match" or config.scene.photos is not None
    target: tuple[Domain, ...] = ("target",) if readable and "target" in test_sets(config) else ()
    return ("synthetic", *photos, *target)


def test_sets(config: TrialConfig) -> tuple[str, ...]:
    """Names of the query sets a trial is tested on: its domains as far as the scene has them, then its query sets."""
    scene = config.scene
    exist = {"synthetic": True, "photo": scene.built_in, **dict.fromkeys(PAIRED_DOMAINS, scene.photos is not None)}
    exist["target"] = tuning_target(scene) is not None
    return (*(name for name in config.domains if exist[name]), *scene.query_sets)


def _renders(config: TrialConfig, name: str, pairs: int | None = None) -> StageSpec:
    # Only the query set that is rendered: another one added to the scene leaves these views as they are.
    sets = {key: value for key, value in config.scene.query_sets.items() if key == name}
    plain: dict[str, Any] = {"query_sets": sets, "photos": None, "metric": True, "depth_range_m": None}
    scene = config.scene.model_copy(update={**plain, "viewpoints": {}})
    viewpoints = scene_viewpoints(config.views.viewpoints, config.scene)
    views = _dump(config.views.model_copy(update={"viewpoints": viewpoints}), exclude={"gt_poses"})
    slice_ = {"scene": _dump(scene), "views": views, "source": name, **({} if pairs is None else {"pairs": pairs})}
    return _stage("views", slice_, {}, scene_files(scene))


def _photos(config: TrialConfig) -> StageSpec:
    photos = config.scene.photos
    assert photos is not None
    scene = _place_of_photos(config.scene).model_copy(update={"photos": photos})
    image = config.views.image
    slice_ = {
        "scene": _dump(scene),
        "short_side_px": min(image.width_px, image.height_px),
        "backend": config.views.backend,
    }
    return _stage("photos", slice_, {}, (*scene_files(scene), *photo_files(photos)))


def _renders_at_photo_poses(config: TrialConfig) -> StageSpec:
    views = config.views
    slice_ = {
        "scene": _dump(_place_of_photos(config.scene), exclude={"photos"}),
        "gt_poses": _dump(views.gt_poses),
        "randomisation": _dump(views.randomisation),
        "backend": views.backend,
        "seed": views.seed,
    }
    return _stage("gt_poses", slice_, {"photos": _photos(config)}, scene_files(_place_of_photos(config.scene)))


def _place_of_photos(scene: SceneConfig) -> SceneConfig:
    """The scene as far as its photos depend on it."""
    return SceneConfig(name=scene.name, cad=scene.cad, depth_range_m=scene.depth_range_m)


def tuning_target(scene: SceneConfig) -> str | None:
    """What an encoder is tuned towards: the scene's photos, a built-in scene's twin, or its first other model.

    None for a scene that has none of them.
    """
    if scene.photos is not None:
        return "real"
    return "photo" if scene.built_in else next(iter(scene.query_sets), None)


def source_of(scene: SceneConfig, name: str) -> str:
    """The domain or query set that a name stands for: `target` for the scene's own, every other for itself."""
    source = tuning_target(scene) if name == "target" else name
    assert source is not None, "test_sets names no target where there is none"
    return source


def _pictures_to_tune_on(config: TrialConfig) -> StageSpec:
    """Mapping and validation views of the target; of one that is rendered, so many as tuning asks for."""
    target = source_of(config.scene, "target")
    return _photos(config) if target == "real" else _renders(config, target, pairs=config.finetuning_pairs)


def _validation_views(config: TrialConfig, domain: str) -> StageSpec:
    return _pictures_to_tune_on(config) if domain == "target" else views_stage(config, domain)


def _tuned_encoder(config: TrialConfig, synthetic: StageSpec) -> StageSpec:
    photos = _pictures_to_tune_on(config)
    renders = _renders_at_photo_poses(config) if config.scene.photos is not None else synthetic
    assert config.finetuning is not None
    slice_ = {"encoder": _dump(config.encoder), "finetuning": _dump(config.finetuning)}
    return _stage("encoder", slice_, {"photos": photos, "renders": renders, "synthetic": synthetic}, _weights(config))


def _encoder_input(config: TrialConfig) -> dict[str, StageSpec]:
    return {} if config.finetuning is None else {"encoder": _tuned_encoder(config, _renders(config, "synthetic"))}


def _projection_input(config: TrialConfig) -> dict[str, StageSpec]:
    """The projection of features, fitted on what the trial first trains on; none where they stay as they are."""
    if isinstance(config.projection, NoProjection):
        return {}
    slice_ = {"encoder": _dump(config.encoder), "projection": _dump(config.projection)}
    inputs = {"views": views_stage(config, config.train_on[0]), **_encoder_input(config)}
    return {"projection": _stage("projection", slice_, inputs, _weights(config))}


def _features_input(config: TrialConfig) -> dict[str, StageSpec]:
    return {**_encoder_input(config), **_projection_input(config)}


def _buffer(config: TrialConfig, views: StageSpec) -> StageSpec:
    # What a setting has always been is no part of the key: buffers were stored before it could be asked for.
    settled = {name for name, usual in (("cells", "model"), ("device", "cpu")) if getattr(config.buffer, name) == usual}
    buffer = _dump(config.buffer, exclude=settled)
    slice_ = {"encoder": _dump(config.encoder), "buffer": buffer}
    return _stage("buffer", slice_, {"views": views, **_features_input(config)}, _weights(config))


def _distance_field(config: TrialConfig) -> StageSpec:
    scene = SceneConfig(name=config.scene.name, built_in=config.scene.built_in, cad=config.scene.cad)
    resolution = next(each.resolution for each in config.constraints if isinstance(each, SurfaceConstraint))
    return _stage("distance_field", {"scene": _dump(scene), "resolution": resolution}, {}, scene_files(scene))


def _queries(config: TrialConfig, views: StageSpec, split: str) -> StageSpec:
    slice_ = {"encoder": _dump(config.encoder), "split": split}
    return _stage("queries", slice_, {"views": views, **_features_input(config)}, _weights(config))


def _global_features(
    config: TrialConfig, told: GlobalFeaturesConfig, views: StageSpec, split: str, first: StageSpec | None = None
) -> StageSpec:
    """Of the views' split; `first` are those of the first mapping views, by which some are fitted."""
    slice_ = {"global_features": _dump(told), "split": split}
    if isinstance(told, GlobalPlugin):  # it looks at images, whatever encodes their cells
        return _stage("global_features", slice_, {"views": views}, ())
    slice_["encoder"] = _dump(config.encoder)
    fitted = {"mapping": first} if first is not None and getattr(told, "weights", "") == "pca" else {}
    own = SHIPPED_GLOBAL if getattr(told, "weights", "") == "shipped" else _file(getattr(told, "weights", ""))
    files = (*_weights(config), *own)
    return _stage("global_features", slice_, {"views": views, **fitted, **_encoder_input(config)}, files)


def _stage(kind: str, config: Mapping[str, Any], inputs: Mapping[str, StageSpec], files: tuple[Path, ...]) -> StageSpec:
    return StageSpec(kind, STAGES[kind][1], config, inputs, files)


def _dump(settings: BaseModel, exclude: set[str] | None = None) -> Any:
    return settings.model_dump(mode="json", exclude=exclude)


def _weights(config: TrialConfig) -> tuple[Path, ...]:
    place = getattr(config.encoder, "weights", "")
    if place == "shipped":
        return (_WEIGHTS / f"{config.encoder.name}.safetensors",)
    return _file(place)


def _file(place: str) -> tuple[Path, ...]:
    return (Path(place),) if "/" in place else ()
