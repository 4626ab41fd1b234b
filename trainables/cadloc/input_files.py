"""Files whose content decides what the stages of a scene are. Pydantic only: the platform reads this."""

from __future__ import annotations

from pathlib import Path

from cadloc.cad_files import referenced_files
from cadloc.scene_config import CadConfig, PhotosConfig, SceneConfig


def scene_files(scene: SceneConfig) -> tuple[Path, ...]:
    """CAD models of a scene and of its query sets, with what they refer to, and registrations."""
    files = list(_cad_files(scene.cad)) if scene.cad else []
    for query_set in scene.query_sets.values():
        files += _cad_files(query_set.cad)
        files += [Path(query_set.registration)] if query_set.registration else []
    return tuple(files)


def photo_files(photos: PhotosConfig) -> tuple[Path, ...]:
    """Files and folders whose content decides what the photos are: images, reconstruction, registration, splits.

    The cameras of a list of poses are in another text file beside it.
    """
    named = (photos.registration, photos.splits.mapping, photos.splits.validation, photos.splits.query)
    poses = Path(photos.reconstruction)
    lists = sorted(poses.parent.glob("*.txt")) if poses.suffix == ".txt" and poses.is_file() else [poses]
    return (Path(photos.images), *lists, *(Path(place) for place in named if place is not None))


def _cad_files(cad: CadConfig) -> tuple[Path, ...]:
    return (Path(cad.path), *referenced_files(Path(cad.path)))
