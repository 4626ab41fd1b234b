"""Poses in files that are not a tool's own: one JSON of frames, or the text lists of visuallocalization.net."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import get_args

import numpy as np
from numpy.typing import ArrayLike

from cadloc.contract import Fault, Json
from cadloc.datasets.ace_layout import Split
from cadloc.datasets.colmap import parameter_counts
from cadloc.datasets.reconstruction import Camera, Photo, Reconstruction
from cadloc.geometry import Array, rigid

_FRAME = "name, width, height, K (3×3), R (3×3), t (3): world to camera"
_SPLIT_WORDS: tuple[str, ...] = get_args(Split)


def read_poses_json(file: Path, images: Path, faults: list[Fault]) -> Reconstruction | None:
    """A JSON object with `frames`, each with `name`, `width`, `height`, `K`, `R`, `t`, and maybe `split`.

    `R`, `t` are world to camera (x_cam = R · x_world + t, OpenCV's axes), `K` belongs to the image as it is, without
    distortion, the centre of the first pixel at (0.5, 0.5). Other keys are not looked at. None after adding faults.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        faults.append(Fault(str(file), "reconstruction", f"no readable JSON ({error})", "a JSON file with frames"))
        return None
    frames = content.get("frames") if isinstance(content, dict) else None
    if not isinstance(frames, list):
        faults.append(Fault(str(file), "frames", "no list", f"a list of frames with {_FRAME}"))
        return None
    before = len(faults)
    photos = [_frame_photo(frame, f"frames.{index}", file, images, faults) for index, frame in enumerate(frames)]
    posed = sorted((photo for photo in photos if photo is not None), key=lambda photo: photo.name)
    return Reconstruction(file, tuple(posed)) if posed or len(faults) == before else None


def _frame_photo(frame: Json, key: str, file: Path, images: Path, faults: list[Fault]) -> Photo | None:
    name = frame.get("name") if isinstance(frame, dict) else None
    if not isinstance(name, str):
        faults.append(Fault(str(file), key, "no frame with a name", _FRAME))
        return None
    where = f"{key} ({name})"
    before = len(faults)
    K, R, t = (_numbers(frame, word, shape, where, file, faults) for word, shape in _FRAME_SHAPES.items())
    sides = [frame.get("width"), frame.get("height")]
    if not all(type(side) is int and side > 0 for side in sides):
        faults.append(Fault(str(file), where, f"width and height {sides}", "whole numbers of pixels"))
    split = frame.get("split")
    if split is not None and split not in _SPLIT_WORDS:
        faults.append(Fault(str(file), f"{where}.split", repr(split), ", ".join(_SPLIT_WORDS)))
    if K is not None and not np.array_equal(K[[0, 1, 2, 2, 2], [1, 0, 0, 1, 2]], [0, 0, 0, 0, 1]):
        faults.append(Fault(str(file), f"{where}.K", "no pinhole matrix", "fx 0 cx / 0 fy cy / 0 0 1"))
    if len(faults) > before or K is None or R is None or t is None:
        return None
    camera = Camera("PINHOLE", sides[0], sides[1], (float(K[0, 0]), float(K[1, 1]), float(K[0, 2]), float(K[1, 2])))
    return Photo(name, images / name, camera, rigid(R, t), split)


_FRAME_SHAPES = {"K": (3, 3), "R": (3, 3), "t": (3,)}


def _numbers(
    frame: dict[str, Json], word: str, shape: tuple[int, ...], where: str, file: Path, faults: list[Fault]
) -> Array | None:
    try:
        numbers = np.array(frame.get(word), dtype=np.float64)
    except (TypeError, ValueError):
        numbers = np.zeros(0)
    if numbers.shape == shape:
        return numbers
    allowed = "×".join(map(str, shape)) + " numbers"
    faults.append(Fault(str(file), f"{where}.{word}", "nothing" if word not in frame else "something else", allowed))
    return None


@dataclass(frozen=True)
class _Line:
    """A line of a list: words, and where they stand."""

    file: Path
    number: int
    words: tuple[str, ...]

    def fault(self, found: str, allowed: str) -> Fault:
        return Fault(str(self.file), self.words[0], found, allowed, line=self.number)


_POSE_LINE = "NAME QW QX QY QZ TX TY TZ, world to camera"
_CAMERA_LINE = "NAME MODEL WIDTH HEIGHT PARAMETERS…, as COLMAP names models and orders parameters"


def is_pose_list(path: Path) -> bool:
    """Whether a file is a list of poses, or a folder holds one: told by the first line, not by a file's name."""
    return bool(pose_files(path))


def read_pose_list(path: Path, images: Path, faults: list[Fault]) -> Reconstruction | None:
    """Lists as visuallocalization.net and CadLoc have them; `path` is the list of poses or the folder it is in.

    * poses: `NAME QW QX QY QZ TX TY TZ` per line, world to camera; of a folder, all such lists together
    * cameras, in other `.txt` files of the same folder: `NAME MODEL WIDTH HEIGHT PARAMETERS…` per line

    A file's kind is told by its first line that is no comment; others (such as lists of names) are not looked at.
    Names that have no camera or no file as they are written are looked up without their suffix. None after faults.
    """
    pose_lists = pose_files(path)
    if not pose_lists:
        faults.append(Fault(str(path), "reconstruction", "no list of poses", _POSE_LINE))
        return None
    folder = path if path.is_dir() else path.parent
    camera_files = [file for file in _texts(folder) if file not in pose_lists and _is_camera_line(_first(file))]
    if not camera_files:
        faults.append(Fault(str(folder), "reconstruction", "no list of cameras beside the poses", _CAMERA_LINE))
        return None
    cameras = _cameras(camera_files, faults)
    files = _image_names(images)
    photos = [_listed_photo(line, cameras, files, images, faults) for file in pose_lists for line in _lines(file)]
    posed = sorted((photo for photo in photos if photo is not None), key=lambda photo: photo.name)
    return Reconstruction(path, tuple(posed))


def pose_files(path: Path) -> list[Path]:
    """The lists of poses that a file is or a folder holds, told by their first lines."""
    return [file for file in (_texts(path) if path.is_dir() else [path]) if _is_pose_line(_first(file))]


def _texts(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*.txt") if file.is_file())


def _lines(file: Path) -> Iterator[_Line]:
    for number, text in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        words = tuple(text.split())
        if words and not words[0].startswith("#"):
            yield _Line(file, number, words)


def _first(file: Path) -> tuple[str, ...]:
    if not file.is_file():
        return ()
    return next((line.words for line in _lines(file)), ())


def _is_pose_line(words: tuple[str, ...]) -> bool:
    return len(words) == 8 and _floats(words[1:]) is not None


def _is_camera_line(words: tuple[str, ...]) -> bool:
    return len(words) >= 5 and _floats(words[1:2]) is None and _floats(words[2:]) is not None


def _floats(words: tuple[str, ...]) -> tuple[float, ...] | None:
    try:
        return tuple(float(word) for word in words)
    except ValueError:
        return None


def _cameras(files: list[Path], faults: list[Fault]) -> dict[str, Camera]:
    """The cameras by photo name, and by name without suffix where that is not a name itself."""
    cameras: dict[str, Camera] = {}
    for line in (line for file in files for line in _lines(file)):
        camera = _camera(line, faults)
        if camera is None:
            continue
        if cameras.setdefault(line.words[0], camera) != camera:
            faults.append(line.fault("a second, different camera of the same photo", "one camera per photo"))
    return {**{_stem(name): camera for name, camera in cameras.items()}, **cameras}


def _camera(line: _Line, faults: list[Fault]) -> Camera | None:
    numbers = _floats(line.words[2:])
    if len(line.words) < 5 or numbers is None or not all(side.is_integer() and side > 0 for side in numbers[:2]):
        faults.append(line.fault("something else", _CAMERA_LINE))
        return None
    model, params = line.words[1], numbers[2:]
    count = parameter_counts().get(model)
    if count is None:
        faults.append(line.fault(f"the camera model '{model}'", ", ".join(parameter_counts())))
    elif count != len(params):
        faults.append(line.fault(f"{len(params)} parameters", f"the {count} of {model}"))
    return Camera(model, int(numbers[0]), int(numbers[1]), params) if count == len(params) else None


def _listed_photo(
    line: _Line, cameras: dict[str, Camera], files: dict[str, str], images: Path, faults: list[Fault]
) -> Photo | None:
    listed = line.words[0]
    numbers = _floats(line.words[1:])
    camera = cameras.get(listed) or cameras.get(_stem(listed))
    if len(line.words) != 8 or numbers is None:
        faults.append(line.fault("something else", _POSE_LINE))
    if camera is None:
        faults.append(line.fault("a photo without camera", "a line in the list of cameras too"))
    if len(line.words) != 8 or numbers is None or camera is None:
        return None
    name = listed if (images / listed).is_file() else files.get(_stem(listed), listed)
    return Photo(name, images / name, camera, rigid(_rotation(numbers[:4]), numbers[4:]))


def _rotation(quaternion: ArrayLike) -> Array:
    """Rotation (3, 3) of a quaternion w, x, y, z of any length; NaN for one of no length."""
    wxyz = np.asarray(quaternion, np.float64)
    length = np.linalg.norm(wxyz)
    w, x, y, z = wxyz / length if length > 0 else np.full(4, np.nan)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def _image_names(images: Path) -> dict[str, str]:
    """Files below the folder, relative to it, by their names without suffix."""
    found = (file.relative_to(images).as_posix() for file in images.rglob("*") if file.is_file())
    return {_stem(name): name for name in sorted(found)}


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix("")) if name else name
