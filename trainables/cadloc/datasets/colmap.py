"""COLMAP models, binary or text, through pycolmap; their structure is verified first: a cut file makes pycolmap hang.

The layout of the binary files is that of COLMAP's `src/colmap/scene/reconstruction_io_binary.cc` (4.x, with
`rigs` and `frames`; files from before have neither).
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Callable
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
from numpy.typing import NDArray

from cadloc.contract import Fault
from cadloc.datasets.reconstruction import Camera, Photo, Reconstruction, SparsePoints
from cadloc.geometry import Array, rigid

REQUIRED_FILES = ("cameras", "images", "points3D")
OPTIONAL_FILES = ("rigs", "frames")
SUFFIXES = {".bin": 1, ".txt": 2}

_ALLOWED = "the file as COLMAP wrote it"
_POSE_BYTES = 7 * 8
_OBSERVATION_BYTES = 24
_ANNOUNCED = re.compile(r"^# Number of \w+: (\d+)", re.MULTILINE)


class _Damaged(Exception):
    """Why a binary file is not one of COLMAP's."""


def find_model(folder: Path) -> Path | None:
    """The folder, `sparse` or `sparse/0` in it or `0` in it: the first that holds files of a model."""
    places = (folder, folder / "sparse", folder / "sparse" / "0", folder / "0")
    return next((place for place in places if _suffix(place) is not None), None)


def read_model(folder: Path, images: Path, faults: list[Fault]) -> Reconstruction | None:
    """The registered photos of a COLMAP model and its points; None after adding faults. Poses are not judged here.

    Images that COLMAP listed but could not place are not part of the result.
    """
    model = find_model(folder)
    if model is None:
        allowed = "cameras, images and points3D as .bin or .txt, here or in sparse or sparse/0"
        faults.append(Fault(str(folder), "reconstruction", "no COLMAP model", allowed))
        return None
    before = len(faults)
    faults += [*(_ambiguous(model) if model != folder else ()), *_structure_faults(model)]
    loaded = None if len(faults) > before else _loaded(model, faults)
    if loaded is None:
        return None
    photos = [_photo(image, images) for image in loaded.images.values() if image.has_pose]
    return Reconstruction(model, tuple(sorted(photos, key=lambda photo: photo.name)), _points(loaded))


@cache
def parameter_counts() -> dict[str, int]:
    """Number of parameters of every camera model that COLMAP knows, by its name, in the order of COLMAP's numbers."""
    return {name: len(_example(name).params) for name in pycolmap.CameraModelId.__members__ if name != "INVALID"}


def colmap_camera(camera: Camera, camera_id: int = 1) -> Any:
    """pycolmap's camera with these parameters; raises ValueError for a model or a number of them it does not know."""
    if len(camera.params) != parameter_counts().get(camera.model):
        raise ValueError(f"no COLMAP camera {camera.model} with {len(camera.params)} parameters")
    made = _example(camera.model)
    made.camera_id = camera_id
    made.width, made.height, made.params = camera.width_px, camera.height_px, list(camera.params)
    return made


@cache
def _counts_by_number() -> dict[int, int]:
    return {int(pycolmap.CameraModelId.__members__[name]): count for name, count in parameter_counts().items()}


def _example(model: str) -> Any:
    return pycolmap.Camera.create_from_model_name(1, model, 1.0, 1, 1)


def _suffix(folder: Path) -> str | None:
    """The suffix of the model's files, binary first as COLMAP has it; None where there are none.

    Of the text files there must be two: others, too, call a list `cameras.txt`.
    """
    for suffix, fewest in SUFFIXES.items():
        if sum((folder / f"{name}{suffix}").is_file() for name in REQUIRED_FILES) >= fewest:
            return suffix
    return None


def numbered_models(folder: Path) -> list[str]:
    """Names of the models in a folder that COLMAP numbered because it could not join them."""
    return [place.name for place in sorted(folder.iterdir()) if place.name.isdigit() and _suffix(place)]


def _ambiguous(model: Path) -> list[Fault]:
    """Which of several models is meant is not for us to guess."""
    beside = numbered_models(model.parent)
    if model.name != "0" or len(beside) < 2:
        return []
    found = f"{len(beside)} separate models: {', '.join(beside)}"
    return [Fault(str(model.parent), "reconstruction", found, "one model", f"name one, such as {model}")]


def _structure_faults(model: Path) -> list[Fault]:
    suffix = _suffix(model)
    missing = [name for name in REQUIRED_FILES if not (model / f"{name}{suffix}").is_file()]
    faults = [Fault(str(model / f"{name}{suffix}"), "reconstruction", "no such file", _ALLOWED) for name in missing]
    for name in (*REQUIRED_FILES, *OPTIONAL_FILES):
        path = model / f"{name}{suffix}"
        if path.is_file():
            reason = _damage(path) if suffix == ".bin" else _text_damage(path)
            faults += [Fault(str(path), "reconstruction", reason, _ALLOWED, "copy it again")] if reason else []
    return faults


def _damage(path: Path) -> str:
    """What is wrong with a binary file's structure; empty when every record lies within it and nothing is left."""
    if path.stat().st_size < 8:
        return "a truncated file (shorter than its header)"
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            end = _walk(data, _RECORDS[path.stem])
        except _Damaged as damage:
            return str(damage)
        return f"{len(data) - end} bytes after its last record" if end < len(data) else ""


def _text_damage(path: Path) -> str:
    """What is wrong with a text file as a whole; its header, where it has one, says how many records there are."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return "no text"
    announced = _ANNOUNCED.search(text)
    if text and not text.endswith("\n") and not (announced and _is_whole(path.stem, text.splitlines()[-1].split())):
        return "a truncated file (its last line has no end)"
    held, is_cut = _records_in(text, lines_each=2 if path.stem == "images" else 1)
    if is_cut:  # pycolmap would leave it out without a word
        return "a truncated file (its last photo lacks the line of observations, which may be empty)"
    if announced and int(announced[1]) != held:
        return f"a truncated file ({held} records; its header says {announced[1]})"
    return ""


def _is_whole(kind: str, words: list[str]) -> bool:
    """Whether the last line of a text file has as many words as such a line has; digits missing cannot be told."""
    match kind, len(words):
        case "cameras", count:
            return count > 1 and count == 4 + parameter_counts().get(words[1], 0)
        case "images", count:
            return count > 0 and count % 3 == 0
        case "points3D", count:
            return count >= 8 and count % 2 == 0
    return False


def _records_in(text: str, lines_each: int) -> tuple[int, bool]:
    """Records, each a line with words in it and the `lines_each` - 1 lines after it, which may be empty.

    And whether the last one lacks such a line.
    """
    lines = iter(text.splitlines())
    records, is_cut = 0, False
    for line in lines:
        if line.strip() and not line.lstrip().startswith("#"):
            records += 1
            is_cut = len(list(islice(lines, lines_each - 1))) < lines_each - 1
    return records, is_cut


def _walk(data: mmap.mmap, end_of_record: Callable[[mmap.mmap, int], int]) -> int:
    (count,) = struct.unpack_from("<Q", data)
    at = 8
    for index in range(count):
        try:
            at = end_of_record(data, at)
        except struct.error:
            at = len(data) + 1
        if at > len(data):
            raise _Damaged(f"a truncated file (it ends within record {index + 1} of {count})")
    return at


def _camera_end(data: mmap.mmap, at: int) -> int:
    (model,) = struct.unpack_from("<i", data, at + 4)
    if model not in _counts_by_number():
        raise _Damaged(f"a camera model of unknown number {model}")
    return at + 24 + 8 * _counts_by_number()[model]


def _image_end(data: mmap.mmap, at: int) -> int:
    end_of_name = data.find(b"\0", at + 8 + _POSE_BYTES)
    if end_of_name < 0:
        return len(data) + 1
    (observations,) = struct.unpack_from("<Q", data, end_of_name + 1)
    return end_of_name + 9 + _OBSERVATION_BYTES * int(observations)


def _point_end(data: mmap.mmap, at: int) -> int:
    (length,) = struct.unpack_from("<Q", data, at + 43)
    return at + 51 + 8 * int(length)


def _rig_end(data: mmap.mmap, at: int) -> int:
    (sensors,) = struct.unpack_from("<I", data, at + 4)
    at += 8 + (8 if sensors else 0)
    for _ in range(sensors - 1):
        (posed,) = struct.unpack_from("<B", data, at + 8)
        at += 9 + (_POSE_BYTES if posed else 0)
    return at


def _frame_end(data: mmap.mmap, at: int) -> int:
    (measurements,) = struct.unpack_from("<I", data, at + 8 + _POSE_BYTES)
    return at + 12 + _POSE_BYTES + 16 * int(measurements)


_RECORDS: dict[str, Callable[[mmap.mmap, int], int]] = {
    "cameras": _camera_end,
    "images": _image_end,
    "points3D": _point_end,
    "rigs": _rig_end,
    "frames": _frame_end,
}


def _loaded(model: Path, faults: list[Fault]) -> Any | None:
    try:
        return pycolmap.Reconstruction(str(model))
    except (ValueError, IndexError, RuntimeError, KeyError, MemoryError) as error:
        found = f"files that do not belong together or are damaged (pycolmap: {str(error).splitlines()[0]})"
        faults.append(Fault(str(model), "reconstruction", found, "a model as COLMAP wrote it", "copy it again"))
        return None


def _photo(image: Any, images: Path) -> Photo:
    camera = image.camera
    seen_by = Camera(camera.model_name, camera.width, camera.height, tuple(float(value) for value in camera.params))
    cam_from_rec = np.asarray(image.cam_from_world().matrix(), np.float64)
    return Photo(image.name, images / image.name, seen_by, rigid(cam_from_rec[:, :3], cam_from_rec[:, 3]))


def _points(loaded: Any) -> SparsePoints | None:
    points = dict(sorted(loaded.points3D.items()))
    if not points:
        return None
    rows = {point_id: row for row, point_id in enumerate(points)}
    errors = np.array([point.error if point.has_error() else np.nan for point in points.values()], np.float64)
    seen_in = {image.name: _seen(image, rows) for image in loaded.images.values() if image.num_points3D}
    return SparsePoints(
        np.array([point.xyz for point in points.values()], np.float64),
        np.array([point.track.length() for point in points.values()], np.int64),
        errors,
        seen_in,
    )


def _seen(image: Any, rows: dict[int, int]) -> tuple[Array, NDArray[np.int64]]:
    seen = image.get_observation_points2D()
    pixels = np.array([point.xy for point in seen], np.float64).reshape(-1, 2)
    return pixels, np.array([rows[point.point3D_id] for point in seen], np.int64)
