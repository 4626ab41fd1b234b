"""The text files beside an image: a pose, a calibration. Faults are collected, not raised, to be told all at once."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from cadloc.contract import Fault, InputError
from cadloc.geometry import Array

_ROLE_SUFFIXES = (".color", ".pose", ".calibration", ".depth")
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


def files_by_name(folder: Path) -> dict[str, Path]:
    """The images of a folder `rgb` or `depth`, the text files of any other, by the name of their view."""
    suffixes = _IMAGE_SUFFIXES if folder.name in ("rgb", "depth") else (".txt",)
    files = folder.iterdir() if folder.is_dir() else ()
    return {_name(path): path for path in files if path.suffix.lower() in suffixes}


def _name(path: Path) -> str:
    name = path.stem
    for suffix in _ROLE_SUFFIXES:
        name = name.removesuffix(suffix)
    return name


def read_numbers(path: Path, key: str, shapes: Iterable[tuple[int, ...]], faults: list[Fault]) -> Array | None:
    """The file's table of numbers, float64 in one of `shapes` (`()`: a single number); None after adding a fault."""
    try:
        lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
        numbers = np.array([[float(word) for word in line] for line in lines])
    except ValueError as error:
        faults.append(Fault(str(path), key, str(error), _shape_words(shapes)))
        return None
    numbers = numbers.reshape(()) if numbers.size == 1 else numbers
    if numbers.shape not in shapes:
        faults.append(Fault(str(path), key, f"numbers in shape {numbers.shape}", _shape_words(shapes)))
        return None
    return numbers


def _shape_words(shapes: Iterable[tuple[int, ...]]) -> str:
    return " or ".join("×".join(map(str, shape)) + " numbers" if shape else "one number" for shape in shapes)


def check_pose(pose: Array, path: Path, faults: list[Fault]) -> None:
    """Adds a fault when the matrix (4, 4) is no rigid transform."""
    rotation = pose[:3, :3]
    # 1e-3: poses in text files of other tools carry as few as four digits.
    rigid = np.abs(rotation @ rotation.T - np.eye(3)).max() < 1e-3 and np.linalg.det(rotation) > 0
    if not rigid or not np.array_equal(pose[3], [0, 0, 0, 1]):
        allowed = "a rotation and a translation, last row 0 0 0 1"
        faults.append(Fault(str(path), "poses", "a matrix that is not rigid", allowed))


def read_intrinsics(numbers: Array, rgb: Path, path: Path, faults: list[Fault]) -> Array | None:
    """Intrinsics (3, 3) of a calibration's numbers; a single one is the focal length, the principal point the
    image's middle. None after adding a fault."""
    if numbers.shape == ():
        width, height = image_size_px(rgb)
        numbers = np.array([[numbers, 0, width / 2], [0, numbers, height / 2], [0, 0, 1]], dtype=np.float64)
    off_pinhole = numbers[[0, 1, 2, 2, 2], [1, 0, 0, 1, 2]] - np.array([0, 0, 0, 0, 1])
    if not np.isfinite(numbers).all() or off_pinhole.any() or min(numbers[0, 0], numbers[1, 1]) <= 0:
        allowed = "fx 0 cx / 0 fy cy / 0 0 1 with focal lengths > 0"
        faults.append(Fault(str(path), "calibration", "no pinhole matrix", allowed))
        return None
    return numbers


def image_size_px(path: Path) -> tuple[int, int]:
    """Width and height from the image file's header; raises InputError when it has none."""
    try:
        with Image.open(path) as image:
            return image.size
    except OSError as error:
        raise InputError(Fault(str(path), "rgb", "an unreadable image", "a JPEG or PNG image")) from error
