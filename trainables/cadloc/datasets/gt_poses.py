"""The stage `gt_poses`: the CAD model rendered at the poses of the photos, so that photo and render are pairs.

Each photo has a render of its own name, intrinsics and size; mapping photos have jittered copies `NAME_jNN` besides,
so that a map can be taught from about the right places without a single photograph. How far the photo and its
render are displaced is measured and kept in `dataset.json`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Set
from functools import lru_cache
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from cadloc.appearance import draw_light, randomised, view_generator
from cadloc.cad import CadModel
from cadloc.catalog import STAGES
from cadloc.contract import Fault, InputError, Json, identity
from cadloc.datasets.ace_layout import (
    LARGEST_STEP,
    Dataset,
    Split,
    View,
    depth_step_m,
    farthest_m,
    write_card,
    write_view,
)
from cadloc.datasets.building import Render, smooth_render
from cadloc.datasets.photos import within
from cadloc.geometry import Array, rigid
from cadloc.pair_offsets import measure_offset
from cadloc.rendering import Light, depth_m, process_renderer
from cadloc.scene_config import SceneConfig
from cadloc.scene_models import kept_scene_model
from cadloc.views_config import GtPosesConfig, RandomisationConfig

PHOTOS_PER_CHUNK = 4
TRIES = 20
LEAST_SHARE = 0.5
"""A jittered view shows at least this share of what the photo's own pose shows."""
FARTHEST_JITTER = 1.5
"""Room for jittered cameras, which may stand farther off than any photo: greater depths are stored as unknown."""
_OFFSETS = "offsets"


def chunks(config: Mapping[str, Json], inputs: Mapping[str, Path]) -> int:
    """Groups of four photos with all their renders."""
    return -(-len(_photos(inputs)) // PHOTOS_PER_CHUNK)


def build_chunk(config: Mapping[str, Json], inputs: Mapping[str, Path], directory: Path, chunk: int) -> int:
    """Renders at the poses of one group of photos; returns how many views that made."""
    group = _photos(inputs)[chunk * PHOTOS_PER_CHUNK : (chunk + 1) * PHOTOS_PER_CHUNK]
    settings = GtPosesConfig.model_validate(config["gt_poses"])
    names = {view.name for _, view in _photos(inputs)}
    offsets, made = {}, 0
    for split, view in group:
        offset = _offset(config, view)
        offsets[view.name] = offset
        if split == "mapping" and _displaced(offset["median_px"], settings.max_offset_px):
            continue
        for name, cad_from_cam in _poses(config, settings, split, view, names):
            _write(config, inputs, directory, split, view, name, cad_from_cam)
            made += 1
    (directory / _OFFSETS).mkdir(exist_ok=True)
    (directory / _OFFSETS / f"{chunk:05d}.json").write_text(json.dumps(offsets))
    return made


def finish(config: Mapping[str, Json], inputs: Mapping[str, Path], directory: Path) -> None:
    """Writes `dataset.json` with the offsets of all pairs. Raises InputError when every mapping photo was left out."""
    offsets: dict[str, Json] = {}
    for path in sorted((directory / _OFFSETS).iterdir()):
        offsets |= json.loads(path.read_text())
    limit_px = GtPosesConfig.model_validate(config["gt_poses"]).max_offset_px
    mapping = {view.name for split, view in _photos(inputs) if split == "mapping"}
    left_out = sorted(name for name in mapping if _displaced(offsets[name]["median_px"], limit_px))
    if len(left_out) == len(mapping):
        found = f"{limit_px} px: no mapping photo is that close to its render"
        raise InputError(Fault(config["scene"]["name"], "views.gt_poses.max_offset_px", found, "a larger limit"))
    shutil.rmtree(directory / _OFFSETS)
    write_card(
        directory,
        {
            "scene": config["scene"]["name"],
            "domain": "gt_poses",
            "depth_step_m": _step_m(config, inputs),
            "origin_m": _model(config).origin_m.tolist(),
            "pair_offsets": offsets,
            "left_out": left_out,
            "provenance": {"config": identity(config), "code_version": STAGES["gt_poses"][1]},
        },
    )


def jittered(cad_from_cam: Array, median_depth_m: float, settings: GtPosesConfig, rng: np.random.Generator) -> Array:
    """The pose (4, 4) moved by a share of the depth and turned, both normally distributed along each camera axis."""
    rotation = Rotation.from_rotvec(settings.jitter_rotation_deg * rng.standard_normal(3), degrees=True).as_matrix()
    translation_m = settings.jitter_translation_pct / 100 * median_depth_m * rng.standard_normal(3)
    return cad_from_cam @ rigid(rotation, translation_m)


def _photos(inputs: Mapping[str, Path]) -> tuple[tuple[Split, View], ...]:
    return _opened(inputs["photos"])


# A finished stage does not change: opened once per process, not once per view.
@lru_cache(maxsize=2)
def _opened(photos: Path) -> tuple[tuple[Split, View], ...]:
    dataset = Dataset.open(photos)
    return tuple((split, view) for split in dataset.splits for view in dataset.views(split))


def _poses(
    config: Mapping[str, Json], settings: GtPosesConfig, split: Split, view: View, names: Set[str]
) -> Iterator[tuple[str, Array]]:
    """Names and poses: the photo's own, then for mapping photos the jittered ones that still see the building."""
    yield view.name, view.cad_from_cam
    depths_m = view.read_depth_m()
    if split != "mapping" or not depths_m.any():
        return
    seen, median_m = float((depths_m > 0).mean()), float(np.median(depths_m[depths_m > 0]))
    for copy in range(1, settings.copies):
        name = f"{view.name}_j{copy:02d}"
        if name in names:
            found, allowed = f"a photo {name} beside {view.name}", "names that no jittered copy has"
            raise InputError(Fault(config["scene"]["name"], "photos.images", found, allowed))
        rng = view_generator(config["seed"], view.name, f"jitter {copy}")
        for _ in range(TRIES):
            pose = jittered(view.cad_from_cam, median_m, settings, rng)
            if _share(config, view, pose) >= LEAST_SHARE * seen:
                yield name, pose
                break


def _share(config: Mapping[str, Json], view: View, cad_from_cam: Array) -> float:
    """Share of a small image that shows the model within the scene's depth range."""
    width_px, height_px = (side // 8 for side in view.image_size_px)
    small_from_image = np.diag([width_px / view.image_size_px[0], height_px / view.image_size_px[1], 1.0])
    intrinsics = small_from_image @ view.intrinsics
    renderer = process_renderer(config["backend"])
    render = renderer.render(_model(config), cad_from_cam, intrinsics, width_px, height_px, Light())
    return float((within(depth_m(render, cad_from_cam), _range_m(config)) > 0).mean())


def _offset(config: Mapping[str, Json], view: View) -> dict[str, Json]:
    """How far the photo is displaced from a plain render at its pose; `median_px` None where nothing matched."""
    renderer = process_renderer(config["backend"])
    render = renderer.render(_model(config), view.cad_from_cam, view.intrinsics, *view.image_size_px, Light())
    offset = measure_offset(view.read_image(), render.image, render.mask)
    median_px = float(offset.median_px)
    return {"median_px": median_px if np.isfinite(median_px) else None, "matches": int(offset.matches)}


def _displaced(offset_px: float | None, limit_px: float | None) -> bool:
    return limit_px is not None and (offset_px is None or offset_px > limit_px)


def _write(
    config: Mapping[str, Json],
    inputs: Mapping[str, Path],
    directory: Path,
    split: Split,
    view: View,
    name: str,
    cad_from_cam: Array,
) -> None:
    look, seed = RandomisationConfig.model_validate(config["randomisation"]), config["seed"]
    light = draw_light(look, view_generator(seed, name, "light"))
    render = _smooth(config, view, cad_from_cam, light)
    camera = view_generator(seed, name, "camera")
    step_m = _step_m(config, inputs)
    depths_m = within(render.depth_m, _range_m(config))
    write_view(
        directory,
        split,
        name,
        image=randomised(render.image, render.coverage, cad_from_cam, view.intrinsics, look, camera),
        depth_m=np.where(depths_m <= LARGEST_STEP * step_m, depths_m, np.float32(0)),
        cad_from_cam=cad_from_cam,
        intrinsics=view.intrinsics,
        step_m=step_m,
    )


def _smooth(config: Mapping[str, Json], view: View, cad_from_cam: Array, light: Light) -> Render:
    renderer = process_renderer(config["backend"])
    return smooth_render(renderer, _model(config), cad_from_cam, view.intrinsics, view.image_size_px, light)


def _range_m(config: Mapping[str, Json]) -> tuple[float, float] | None:
    return SceneConfig.model_validate(config["scene"]).depth_range_m


def _step_m(config: Mapping[str, Json], inputs: Mapping[str, Path]) -> float:
    poses = np.stack([view.cad_from_cam for _, view in _photos(inputs)])
    return depth_step_m(FARTHEST_JITTER * farthest_m(_model(config).bounds, poses))


def _model(config: Mapping[str, Json]) -> CadModel:
    return kept_scene_model(SceneConfig.model_validate(config["scene"]))
