"""The `scene export` command: a scene's photos, posed in the CAD's frame, for hloc, nerfstudio, COLMAP and ACE."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from cadloc.contract import Fault, InputError
from cadloc.scene_config import PhotosConfig, SceneConfig

if TYPE_CHECKING:
    from cadloc.cad import CadModel
    from cadloc.datasets.reconstruction import Reconstruction

EXPORT_FORMATS = ("colmap", "colmap_text", "ace")


def export_scene(scene: SceneConfig, to: Path, format: str) -> list[str]:
    """Writes the scene's photos into the new or empty folder `to`; returns lines that say what and in which frame.

    Poses and points are in the scene's `cad` frame: z up, metres, a far origin taken off. Formats: `colmap` (binary)
    and `colmap_text` with lists of the splits, `ace`. Raises InputError with every fault of scene and folder.
    """
    photos = _photos(scene, format)
    # The mesh readers and OpenCV take seconds to import.
    from cadloc.datasets.exporting import export_ace, export_photos
    from cadloc.datasets.reading import read_reconstruction
    from cadloc.datasets.splitting import assign_splits
    from cadloc.scene_models import load_scene_model

    reconstruction = read_reconstruction(photos)
    splits = assign_splits(reconstruction, photos.splits)
    model = load_scene_model(scene, "synthetic")
    in_cad = _in_cad(reconstruction, photos, model)
    if format == "ace":
        export_ace(to, in_cad, splits)
    else:
        export_photos(to, in_cad, splits, text=format == "colmap_text")
    counts = Counter(splits.values())
    points = 0 if in_cad.points is None or format == "ace" else len(in_cad.points.positions)
    origin = " ".join(f"{value:.3f}" for value in model.origin_m)
    return [
        f"{to}: {', '.join(f'{count} {split}' for split, count in sorted(counts.items()))} photos, {points} points",
        f"frame: the CAD model's, z up, metres; its file's coordinates, turned upright, less ({origin}) m",
    ]


def export_dataset(dataset: Path, to: Path, format: str) -> list[str]:
    """Writes a dataset in the ACE layout, rendered or not, as a COLMAP model with its images; lines that say so.

    Raises InputError for a folder that is no dataset, and for the format `ace`, which it has already.
    """
    if format not in EXPORT_FORMATS or format == "ace":
        raise InputError(Fault("--format", "format", repr(format), "for a dataset: colmap, colmap_text"))
    from cadloc.datasets.ace_layout import Dataset
    from cadloc.datasets.exporting import export_colmap

    opened = Dataset.open(dataset)
    export_colmap(to, opened, text=format == "colmap_text")
    return [f"{to}: {', '.join(f'{len(opened.views(split))} {split}' for split in opened.splits)} views"]


def _photos(scene: SceneConfig, format: str) -> PhotosConfig:
    faults = []
    if format not in EXPORT_FORMATS:
        faults.append(Fault("--format", "format", repr(format), ", ".join(EXPORT_FORMATS)))
    if scene.photos is None:
        faults.append(Fault(scene.name, "photos", "nothing", "a scene with photos"))
    if faults or scene.photos is None:
        raise InputError(faults)
    return scene.photos


def _in_cad(reconstruction: Reconstruction, photos: PhotosConfig, model: CadModel) -> Reconstruction:
    """The reconstruction moved and scaled into the CAD's frame."""
    from dataclasses import replace

    from cadloc.geometry import inverse
    from cadloc.registration import posed_in_cad, rec_from_cad

    registration = rec_from_cad(photos, model)
    posed = tuple(
        replace(photo, cam_from_rec=inverse(posed_in_cad(registration, photo.cam_from_rec)))
        for photo in reconstruction.photos
    )
    points = reconstruction.points
    if points is not None:
        points = replace(points, positions=registration.inverse().transform_points(points.positions))
    return replace(reconstruction, photos=posed, points=points)
