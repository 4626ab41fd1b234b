"""What we read or made, for other tools: COLMAP models and ACE-layout folders, images as they were, byte by byte."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
import pycolmap

from cadloc.contract import Fault, InputError
from cadloc.datasets.ace_layout import FOLDERS, Dataset, Split
from cadloc.datasets.colmap import colmap_camera
from cadloc.datasets.reading import reconstruction_of
from cadloc.datasets.reconstruction import Photo, Reconstruction
from cadloc.datasets.undistortion import intrinsics_of, is_pinhole, undistorted
from cadloc.geometry import inverse

MODEL_FOLDER = Path("sparse", "0")
IMAGES_FOLDER = "images"

_LAYOUT_SUFFIXES = (".jpg", ".jpeg", ".png")


def write_colmap(directory: Path, reconstruction: Reconstruction, *, text: bool) -> None:
    """Writes the reconstruction as a COLMAP model (binary, or `text`) into a new or empty folder.

    Cameras keep their models, points their positions, errors and observations; a track length without observations
    cannot be told, nor can colours. Raises InputError when the folder is not empty or cannot be written.
    """
    model = _colmap_model(reconstruction)
    with _whole(directory) as folder:
        _write_model(model, folder, text=text)


def export_photos(directory: Path, reconstruction: Reconstruction, splits: Mapping[str, Split], *, text: bool) -> None:
    """Writes `sparse/0` (a COLMAP model), `images` (the files, byte by byte) and `mapping.txt`, `query.txt` …

    This is what COLMAP, hloc and nerfstudio read; the lists hold one name per line, as `SplitsConfig` reads them.
    Raises InputError when the folder is not empty or cannot be written.
    """
    model = _colmap_model(reconstruction)
    with _whole(directory) as folder:
        (folder / MODEL_FOLDER).mkdir(parents=True)
        _write_model(model, folder / MODEL_FOLDER, text=text)
        for photo in reconstruction.photos:
            copy = folder / IMAGES_FOLDER / photo.name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(photo.image_path, copy)
        for split in dict.fromkeys(splits.values()):
            names = sorted(name for name, its in splits.items() if its == split)
            (folder / f"{split}.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


def export_colmap(directory: Path, dataset: Dataset, *, text: bool) -> None:
    """Writes an ACE-layout dataset as `export_photos` does: its frame, its splits, a model without points."""
    reconstruction = reconstruction_of(dataset)
    splits = {photo.name: photo.split for photo in reconstruction.photos if photo.split is not None}
    export_photos(directory, reconstruction, splits, text=text)


def export_ace(directory: Path, reconstruction: Reconstruction, splits: Mapping[str, Split]) -> None:
    """Writes the photos that have a split as a dataset in the ACE layout, in the reconstruction's frame and units.

    Pinhole cameras' JPEG and PNG files are copied byte by byte; others are undistorted and written as PNG, which
    loses nothing more. Folders in names become `__`. There is no depth. Raises InputError with all faults: a folder
    that is not empty or cannot be written, names that become the same, unreadable images.
    """
    photos = [photo for photo in reconstruction.photos if photo.name in splits]
    names = {photo.name: "__".join(PurePosixPath(photo.name).with_suffix("").parts) for photo in photos}
    _check_distinct(names, str(reconstruction.source))
    with _whole(directory) as folder:
        for photo in photos:
            _write_ace_view(folder / FOLDERS[splits[photo.name]], names[photo.name], photo)


def _write_ace_view(folder: Path, name: str, photo: Photo) -> None:
    for role in ("rgb", "poses", "calibration"):
        (folder / role).mkdir(parents=True, exist_ok=True)
    suffix = photo.image_path.suffix
    if is_pinhole(photo.camera) and suffix.lower() in _LAYOUT_SUFFIXES:
        shutil.copyfile(photo.image_path, folder / "rgb" / f"{name}{suffix}")
    else:
        _write_undistorted(photo, folder / "rgb" / f"{name}.png")
    np.savetxt(folder / "poses" / f"{name}.txt", inverse(photo.cam_from_rec), fmt="%.17g")
    np.savetxt(folder / "calibration" / f"{name}.txt", intrinsics_of(photo.camera), fmt="%.17g")


def _write_undistorted(photo: Photo, path: Path) -> None:
    image = cv2.imread(str(photo.image_path), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise InputError(Fault(str(photo.image_path), photo.name, "an unreadable image", "a JPEG or PNG image"))
    straight, _ = undistorted(np.asarray(image, np.uint8), photo.camera)
    # Encoded in memory: imwrite answers a full disk with False and no reason.
    ok, data = cv2.imencode(".png", cv2.cvtColor(straight, cv2.COLOR_RGB2BGR))
    assert ok, f"{path}: not encodable: {straight.shape} {straight.dtype}"
    path.write_bytes(data.tobytes())


def _check_distinct(names: Mapping[str, str], source: str) -> None:
    owners: dict[str, str] = {}
    faults = []
    for photo, name in names.items():
        if owners.setdefault(name, photo) != photo:
            faults.append(Fault(source, photo, f"the same name as {owners[name]} in the ACE layout", "distinct names"))
    if faults:
        raise InputError(faults)


def _colmap_model(reconstruction: Reconstruction) -> Any:
    """pycolmap's reconstruction: cameras, images and points numbered from 1 in our order."""
    model = pycolmap.Reconstruction()
    numbers = {camera: number for number, camera in enumerate(_cameras(reconstruction), start=1)}
    for camera, number in numbers.items():
        model.add_camera_with_trivial_rig(colmap_camera(camera, number))
    for number, photo in enumerate(reconstruction.photos, start=1):
        image = pycolmap.Image(
            name=photo.name,
            keypoints=_pixels_seen(reconstruction, photo.name),
            camera_id=numbers[photo.camera],
            image_id=number,
        )
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(photo.cam_from_rec[:3]))
    _add_points(model, reconstruction)
    return model


def _cameras(reconstruction: Reconstruction) -> list[Any]:
    return list(dict.fromkeys(photo.camera for photo in reconstruction.photos))


def _pixels_seen(reconstruction: Reconstruction, name: str) -> Any:
    points = reconstruction.points
    return points.seen_in[name][0] if points is not None and name in points.seen_in else np.zeros((0, 2))


def _add_points(model: Any, reconstruction: Reconstruction) -> None:
    if reconstruction.points is None:
        return
    tracks = [pycolmap.Track() for _ in reconstruction.points.positions]
    for number, photo in enumerate(reconstruction.photos, start=1):
        _, rows = reconstruction.points.seen_in.get(photo.name, (None, ()))
        for index, row in enumerate(rows):
            tracks[row].add_element(number, index)
    for position, track, error_px in zip(
        reconstruction.points.positions, tracks, reconstruction.points.errors_px, strict=True
    ):
        point_id = model.add_point3D(position, track)
        model.point3D(point_id).error = error_px if np.isfinite(error_px) else -1.0


def _write_model(model: Any, folder: Path, *, text: bool) -> None:
    write = model.write_text if text else model.write_binary
    write(str(folder))


@contextmanager
def _whole(directory: Path) -> Iterator[Path]:
    """A folder beside `directory` that becomes it when all went well, and vanishes when not: never half of one."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise InputError(Fault(str(directory), "to", "a folder that is not empty", "a new or empty folder"))
    directory = directory.resolve()
    aside = directory.with_name(f".{directory.name}.{os.getpid()}.part")
    try:
        aside.mkdir(parents=True)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise InputError(Fault(str(directory), "to", str(error), "a folder that can be written")) from error
    try:
        yield aside
        aside.rename(directory)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
