"""The stage `photos`: a scene's real photographs as a dataset in the CAD's frame, undistorted and of one scale.

Poses come from the reconstruction, moved by the registration; depth is that of the CAD model rendered at the true
pose. Whatever stands in front of the building in a photo is not in its depth: nobody knows what hides what.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cadloc.cad import CadModel
from cadloc.catalog import STAGES
from cadloc.contract import Fault, InputError, Json, canonical, identity
from cadloc.datasets.ace_layout import Split, depth_step_m, farthest_m, write_card, write_view
from cadloc.datasets.posed_images import opened
from cadloc.datasets.reading import read_reconstruction
from cadloc.datasets.reconstruction import Photo, Reconstruction
from cadloc.datasets.splitting import assign_splits
from cadloc.geometry import Array
from cadloc.registration import posed_in_cad, rec_from_cad
from cadloc.rendering import Light, depth_m, process_renderer
from cadloc.scene_config import PhotosConfig, SceneConfig
from cadloc.scene_models import load_scene_model

PHOTOS_PER_CHUNK = 10


@dataclass(frozen=True, eq=False)
class PosedPhoto:
    """A photo in the CAD's frame: `name` is its view's, `cad_from_cam` (4, 4) is rigid and in metres."""

    name: str
    split: Split
    photo: Photo
    cad_from_cam: Array


@dataclass(frozen=True, eq=False)
class _Job:
    scene: SceneConfig
    model: CadModel
    photos: tuple[PosedPhoto, ...]
    short_side_px: int
    step_m: float


def chunks(config: Mapping[str, Json], inputs: Mapping[str, Path]) -> int:
    """Groups of ten photos."""
    return -(-len(_job(config).photos) // PHOTOS_PER_CHUNK)


def build_chunk(config: Mapping[str, Json], inputs: Mapping[str, Path], directory: Path, chunk: int) -> int:
    """Writes one group of photos with their depths; returns how many."""
    job = _job(config)
    group = job.photos[chunk * PHOTOS_PER_CHUNK : (chunk + 1) * PHOTOS_PER_CHUNK]
    renderer = process_renderer(config["backend"])
    for posed in group:
        image, intrinsics = opened(posed.photo, job.short_side_px)
        size = (image.shape[1], image.shape[0])
        render = renderer.render(job.model, posed.cad_from_cam, intrinsics, *size, Light())
        depth = within(depth_m(render, posed.cad_from_cam), job.scene.depth_range_m)
        write_view(
            directory,
            posed.split,
            posed.name,
            image=image,
            depth_m=depth,
            cad_from_cam=posed.cad_from_cam,
            intrinsics=intrinsics,
            step_m=job.step_m,
        )
    return len(group)


def finish(config: Mapping[str, Json], inputs: Mapping[str, Path], directory: Path) -> None:
    """Writes `dataset.json`; `photos` in it says which file a view is of."""
    job = _job(config)
    write_card(
        directory,
        {
            "scene": job.scene.name,
            "domain": "real",
            "depth_step_m": job.step_m,
            "origin_m": job.model.origin_m.tolist(),
            "photos": {posed.name: posed.photo.name for posed in job.photos},
            "provenance": {"config": identity(config), "code_version": STAGES["photos"][1]},
        },
    )


def posed_photos(
    photos: PhotosConfig, model: CadModel, reconstruction: Reconstruction | None = None
) -> tuple[PosedPhoto, ...]:
    """The photos of some split, in the CAD's frame; the reconstruction is read unless it is at hand.

    Raises InputError with every fault of the reconstruction, its registration or the splits.
    """
    reconstruction = reconstruction or read_reconstruction(photos)
    splits = assign_splits(reconstruction, photos.splits)
    registration = rec_from_cad(photos, model)
    names = view_names(reconstruction.photos, photos.reconstruction)
    return tuple(
        PosedPhoto(names[photo.name], splits[photo.name], photo, posed_in_cad(registration, photo.cam_from_rec))
        for photo in reconstruction.photos
        if photo.name in splits
    )


def view_names(photos: tuple[Photo, ...], source: str) -> dict[str, str]:
    """The view's name for every photo's: no suffix, folders joined by `__`. InputError where two would be the same."""
    names = {photo.name: "__".join(Path(photo.name).with_suffix("").parts) for photo in photos}
    owners: dict[str, str] = {}
    faults = []
    for photo, view in names.items():
        if view in owners:
            faults.append(Fault(source, photo, f"the same name as {owners[view]} but for its suffix", "distinct names"))
        owners[view] = photo
    if faults:
        raise InputError(faults)
    return names


def within(depths_m: NDArray[np.float32], range_m: tuple[float, float] | None) -> NDArray[np.float32]:
    """Depths (H, W) with those outside the range set to 0, unknown."""
    if range_m is None:
        return depths_m
    known = (depths_m >= range_m[0]) & (depths_m <= range_m[1])
    return np.where(known, depths_m, np.float32(0))


def _job(config: Mapping[str, Json]) -> _Job:
    return _cached_job(canonical(config), canonical(identity(config)))


# The second argument tells a changed file from the one of the same name before.
@lru_cache(maxsize=2)
def _cached_job(config_text: str, _identity: str) -> _Job:
    config = json.loads(config_text)
    scene = SceneConfig.model_validate(config["scene"])
    assert scene.photos is not None
    model = load_scene_model(scene, "synthetic")
    photos = posed_photos(scene.photos, model)
    farthest = farthest_m(model.bounds, np.stack([posed.cad_from_cam for posed in photos]))
    if farthest <= 0:
        found = "the whole model behind every camera"
        action = f"`cadloc-sweep scene check` says more of {scene.name}"
        raise InputError(Fault(scene.name, "photos.registration", found, "photos that see the model", action))
    return _Job(scene, model, photos, config["short_side_px"], depth_step_m(farthest))
