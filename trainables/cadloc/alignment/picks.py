"""Named points known in a reconstruction and on a CAD model: from a table, or clicked in photos."""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cadloc.contract import Fault, InputError, Json
from cadloc.datasets.colmap import colmap_camera
from cadloc.datasets.reconstruction import Photo, Reconstruction
from cadloc.geometry import Array

COLUMNS = ("name", "rec_x", "rec_y", "rec_z", "cad_x", "cad_y", "cad_z")
LEAST_PARALLAX_DEG = 1.0

_PAIR = '{"name": …, "cad": [x, y, z], "rec": [x, y, z]} or with "clicks": [{"photo": …, "pixel": [u, v]}, …]'


@dataclass(frozen=True, eq=False)
class Picks:
    """Points (N, 3) of the reconstruction, in its units, and (N, 3) of the CAD: its file's own axes, in metres."""

    names: tuple[str, ...]
    points_rec: Array
    points_own: Array


def read_picks(path: Path, reconstruction: Reconstruction, *, queries: Collection[str] = ()) -> Picks:
    """Reads a `.csv` with `COLUMNS`, or a `.json` object whose `pairs` also may be clicks in two photos or more.

    A click's pixel is of the photo as it is, distorted or not, (0.5, 0.5) being the centre of the first one. Clicks
    in photos named in `queries` are refused: those test, and decide nothing. Raises InputError with every fault of
    the file.
    """
    readers = {".csv": _csv_pairs, ".json": _json_pairs}
    if path.suffix.lower() not in readers:
        raise InputError(Fault(str(path), "--pairs", f"the suffix '{path.suffix}'", " or ".join(readers)))
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(Fault(str(path), "--pairs", f"unreadable ({error})", "a text file of point pairs")) from error
    faults: list[Fault] = []
    clickable = {photo.name: None if photo.name in queries else photo for photo in reconstruction.photos}
    pairs = [_pair(path, where, entry, clickable, faults) for where, entry in readers[path.suffix.lower()](path, text)]
    names = [pair[0] for pair in pairs if pair is not None]
    faults += [
        Fault(str(path), name, "this name a second time", "each name once")
        for name in sorted({name for name in names if names.count(name) > 1})
    ]
    if faults:
        raise InputError(faults)
    known = [pair for pair in pairs if pair is not None]
    points = np.array([(rec, own) for _, rec, own in known]).reshape(-1, 2, 3)
    return Picks(tuple(names), points[:, 0], points[:, 1])


def triangulate(clicks: Sequence[tuple[Photo, Array]]) -> Array:
    """The point (3,) of the reconstruction nearest to the rays of pixels (2,) in photos, in the least-squares sense.

    Raises ValueError for fewer than two, or rays within `LEAST_PARALLAX_DEG` of each other.
    """
    if len(clicks) < 2:
        raise ValueError("a click in one photo only")
    rays = [_ray(photo, pixel) for photo, pixel in clicks]
    centres, directions = (np.array(values) for values in zip(*rays, strict=True))
    parallax_deg = np.rad2deg(np.arccos(np.clip(directions @ directions.T, -1, 1))).max()
    if not parallax_deg >= LEAST_PARALLAX_DEG:
        raise ValueError(f"clicks that see it from within {parallax_deg:.2g} degrees")
    across = np.eye(3) - directions[:, :, None] * directions[:, None, :]
    return np.asarray(np.linalg.solve(across.sum(axis=0), (across @ centres[:, :, None]).sum(axis=0))[:, 0])


def _ray(photo: Photo, pixel: Array) -> tuple[Array, Array]:
    """Centre (3,) and unit direction (3,) in the reconstruction."""
    on_plane = np.asarray(colmap_camera(photo.camera).cam_from_img(pixel[None])).reshape(-1)[:2]
    direction = photo.cam_from_rec[:3, :3].T @ np.append(on_plane, 1.0)
    centre = -photo.cam_from_rec[:3, :3].T @ photo.cam_from_rec[:3, 3]
    return centre, direction / np.linalg.norm(direction)


def _csv_pairs(path: Path, text: str) -> Iterator[tuple[str, Json]]:
    lines = list(csv.reader(text.splitlines()))
    if not lines or tuple(word.strip() for word in lines[0]) != COLUMNS:
        found = "an empty file" if not lines else f"the columns {','.join(lines[0])}"
        raise InputError(Fault(str(path), "--pairs", found, ",".join(COLUMNS)))
    for number, words in enumerate(lines[1:], start=2):
        if words:
            row = [word.strip() for word in words]
            yield f"line {number}", {"name": row[0], "rec": row[1:4], "cad": row[4:7]} if len(row) == 7 else row


def _json_pairs(path: Path, text: str) -> Iterator[tuple[str, Json]]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(Fault(str(path), "--pairs", f"no JSON ({error})", "a JSON object")) from error
    if not isinstance(data, dict) or not isinstance(data.get("pairs"), list):
        raise InputError(Fault(str(path), "pairs", "nothing", f"a list of {_PAIR}"))
    yield from ((f"pairs[{index}]", entry) for index, entry in enumerate(data["pairs"]))


def _pair(
    path: Path, where: str, entry: Json, clickable: Mapping[str, Photo | None], faults: list[Fault]
) -> tuple[str, Array, Array] | None:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str) or not entry["name"]:
        faults.append(Fault(str(path), where, str(entry)[:80], _PAIR))
        return None
    try:
        own = _numbers(entry.get("cad"), 3)
        rec = _numbers(entry["rec"], 3) if "rec" in entry else triangulate(_clicks(entry.get("clicks"), clickable))
    except ValueError as error:
        faults.append(Fault(str(path), f"{where} {entry['name']}", str(error), _PAIR))
        return None
    return entry["name"], rec, own


def _clicks(entry: Json, clickable: Mapping[str, Photo | None]) -> list[tuple[Photo, Array]]:
    if not isinstance(entry, list) or not all(isinstance(click, Mapping) for click in entry):
        raise ValueError("neither rec nor clicks")
    found = []
    for click in entry:
        name = str(click.get("photo"))
        if name not in clickable:
            raise ValueError(f"the photo {name!r}, which is not in the reconstruction")
        photo = clickable[name]
        if photo is None:
            raise ValueError(f"a click in {name!r}, a query photo: those test, and decide nothing")
        found.append((photo, _numbers(click.get("pixel"), 2)))
    return found


def _numbers(values: Json, count: int) -> Array:
    try:
        numbers = np.array([float(value) for value in values])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{values!r} instead of {count} numbers") from error
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise ValueError(f"{values!r} instead of {count} finite numbers")
    return numbers
