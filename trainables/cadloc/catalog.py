"""What exists: trainables, stages and how a trial's configuration leads to the stages it needs. No heavy import."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from cadloc.cad_files import referenced_files
from cadloc.config import CadConfig, SceneConfig, TrialConfig
from cadloc.contract import StageBuilder, StageSpec, Trainable


@dataclass(frozen=True)
class TrainableEntry:
    """A trainable's generator function as `module:name`."""

    function: str


TRAINABLES: dict[str, TrainableEntry] = {"ace": TrainableEntry("cadloc.ace:train")}

# kind -> (module that builds it, version of its code: raise it when its output changes)
STAGES: dict[str, tuple[str, str]] = {
    "views": ("cadloc.datasets.building", "1"),
    "buffer": ("cadloc.buffer", "1"),
    "queries": ("cadloc.queries", "1"),
}

POSE_METRICS: tuple[str, ...] = (
    "translation_error_median_m",
    "translation_error_median_pct",
    "rotation_error_median_deg",
    "recall_5cm_5deg",
    "recall_10cm_5deg",
    "recall_25cm_2deg",
    "recall_50cm_5deg",
    "recall_5m_10deg",
    "recall_1pct_2deg",
    "scene_coordinate_error_median_m",
    "inlier_share_median",
    "failures",
)
"""Metrics of every query set (`cadloc.metrics` computes them)."""


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


def _named_object(place: str) -> Any:
    module, name = place.split(":", 1)
    return getattr(importlib.import_module(module), name)


def stages_of(config: TrialConfig) -> dict[str, StageSpec]:
    """The stages a trial reads, by role.

    `views` (mapping, validation, query splits), `buffer`, `queries/validation`, and for each test set D
    `views/D` and `queries/D`, D being a domain or one of the scene's own query sets. A user's own trainable
    `module:function` reads what `stages_of(config)` of its module says, or nothing where there is no such function.
    """
    if ":" in config.trainable:
        module = importlib.import_module(config.trainable.split(":", 1)[0])
        return dict(module.stages_of(config)) if hasattr(module, "stages_of") else {}
    views = {name: _views(config, name) for name in ("synthetic", *test_sets(config))}
    stages = {f"views/{name}": spec for name, spec in views.items()}
    stages["buffer"] = _stage(
        "buffer",
        {"encoder": _dump(config.encoder), "buffer": _dump(config.buffer)},
        {"views": views["synthetic"]},
        _weights(config),
    )
    stages["queries/validation"] = _queries(config, views["synthetic"], "validation")
    for name in test_sets(config):
        stages[f"queries/{name}"] = _queries(config, views[name], "query")
    return stages


def test_sets(config: TrialConfig) -> tuple[str, ...]:
    """Names of the query sets a trial is tested on: its domains, then the scene's own query sets."""
    domains = [name for name in config.domains if name != "photo" or config.scene.built_in]
    return (*domains, *config.scene.query_sets)


def reported_metrics(config: TrialConfig) -> frozenset[str] | None:
    """Names of all metrics that the trial reports, during training or at its end; None: not known.

    A user's own trainable may say so by a function `reported_metrics(config)` of its module.
    """
    if ":" in config.trainable:
        module = importlib.import_module(config.trainable.split(":", 1)[0])
        return frozenset(module.reported_metrics(config)) if hasattr(module, "reported_metrics") else None
    tests = {f"test/{name}/{metric}" for name in test_sets(config) for metric in POSE_METRICS}
    validations = {f"validation/synthetic/{metric}" for metric in (*POSE_METRICS, "loss_m", "loss_px")}
    times = {"time/training_s", *(f"time/{name}/localization_median_s" for name in test_sets(config))}
    training = {f"train/{name}" for name in ("loss_m", "loss_px", "own_loss", "samples_seen")}
    return frozenset({*training, *times, *tests, *validations})


def _views(config: TrialConfig, name: str) -> StageSpec:
    # Only the query set that is rendered: another one added to the scene leaves these views as they are.
    sets = {key: value for key, value in config.scene.query_sets.items() if key == name}
    scene = config.scene.model_copy(update={"query_sets": sets})
    slice_ = {"scene": _dump(scene), "views": _dump(config.views), "source": name}
    return _stage("views", slice_, {}, _scene_files(scene))


def _queries(config: TrialConfig, views: StageSpec, split: str) -> StageSpec:
    return _stage("queries", {"encoder": _dump(config.encoder), "split": split}, {"views": views}, _weights(config))


def _stage(kind: str, config: Mapping[str, Any], inputs: Mapping[str, StageSpec], files: tuple[Path, ...]) -> StageSpec:
    return StageSpec(kind, STAGES[kind][1], config, inputs, files)


def _dump(settings: Any) -> Any:
    return settings.model_dump(mode="json")


def _weights(config: TrialConfig) -> tuple[Path, ...]:
    place = getattr(config.encoder, "weights", "")
    if place == "shipped":
        return (Path(__file__).parent / "encoders" / "weights" / f"{config.encoder.name}.safetensors",)
    return (Path(place),) if "/" in place else ()


def _scene_files(scene: SceneConfig) -> tuple[Path, ...]:
    files = list(_cad_files(scene.cad)) if scene.cad else []
    for query_set in scene.query_sets.values():
        files += _cad_files(query_set.cad)
        files += [Path(query_set.registration)] if query_set.registration else []
    return tuple(files)


def _cad_files(cad: CadConfig) -> tuple[Path, ...]:
    return (Path(cad.path), *referenced_files(Path(cad.path)))
