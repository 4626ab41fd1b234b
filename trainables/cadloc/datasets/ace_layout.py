"""Datasets on disk: posed images in the ACE layout, plus `dataset.json`, which says what the layout does not.

```
DIR/dataset.json                       this project's; absent in datasets prepared by others
DIR/{train,validation,test}/rgb/NAME.jpg           the splits mapping, validation, query
                            poses/NAME.txt         4×4 `cad_from_cam` (camera to world), row by row
                            calibration/NAME.txt   3×3 intrinsics, or one focal length with a centred principal point
                            depth/NAME.png         16 bit, optional; steps of `depth_step_m` along z, 0 = unknown
```
The four files of a view belong together by NAME (what is left without `.color`, `.pose`, `.calibration`, `.depth`
and the suffix), never by their order.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from cadloc.contract import Fault, InputError
from cadloc.datasets.posed_files import check_pose, files_by_name, image_size_px, read_intrinsics, read_numbers
from cadloc.geometry import Array, inverse, transform_points, unproject

Split: TypeAlias = Literal["mapping", "validation", "query"]

FOLDERS: Mapping[Split, str] = {"mapping": "train", "validation": "validation", "query": "test"}
SCHEMA_VERSION = 1
JPEG_QUALITY = 95
MILLIMETRE_M = 0.001
LARGEST_STEP = 65535
"""Largest 16-bit depth. 7Scenes and its kin write it where the sensor saw nothing."""

_ROLES = ("rgb", "poses", "calibration", "depth")
_DEPTH_STEPS_M = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


@dataclass(frozen=True, eq=False)
class View:
    """A posed image: `cad_from_cam` (4, 4) and `intrinsics` (3, 3) float64; pixels are read when asked for."""

    name: str
    cad_from_cam: Array
    intrinsics: Array
    image_path: Path
    depth_path: Path | None
    depth_step_m: float
    largest_step: int = LARGEST_STEP
    """Largest stored depth that is one; what lies above is unknown."""

    @property
    def image_size_px(self) -> tuple[int, int]:
        """Width and height, from the image file's header; raises InputError when it has none."""
        return image_size_px(self.image_path)

    def read_image(self) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB; raises InputError when the file is no image."""
        image = cv2.imread(str(self.image_path), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
        if image is None:
            raise InputError(Fault(str(self.image_path), "rgb", "an unreadable image", "a JPEG or PNG image"))
        return np.asarray(image, dtype=np.uint8)

    def read_depth_m(self) -> NDArray[np.float32]:
        """Depth z along the optical axis at every pixel centre, (H, W) float32 metres, 0 = unknown.

        Raises InputError when the view has no depth or the file is no 16-bit image.
        """
        if self.depth_path is None:
            raise InputError(Fault(str(self.image_path), "depth", f"no depth for {self.name}", "a dataset with depth"))
        steps = cv2.imread(str(self.depth_path), cv2.IMREAD_UNCHANGED)
        if steps is None or steps.dtype != np.uint16 or steps.ndim != 2:
            raise InputError(Fault(str(self.depth_path), "depth", "no 16-bit image", "a 16-bit PNG of one channel"))
        known = np.where(steps > self.largest_step, 0, steps)
        return np.asarray(known * self.depth_step_m, dtype=np.float32)

    def scene_coordinates(self, pixels: ArrayLike) -> Array:
        """What the pixels (..., 2) see, (..., 3) float64 in `cad`; NaN where unknown or outside the image.

        Depth is that of the pixel a position lies in, never interpolated: across an edge there is nothing between.
        """
        positions = np.asarray(pixels, dtype=np.float64)
        depth_m = self.read_depth_m()
        # 12Scenes' depth images are half as large as its photos.
        depth_from_image = np.array(depth_m.shape[::-1]) / self.image_size_px
        column, row = np.moveaxis(np.floor(positions * depth_from_image).astype(int), -1, 0)
        inside = (row >= 0) & (row < depth_m.shape[0]) & (column >= 0) & (column < depth_m.shape[1])
        depths = np.where(inside, depth_m[np.where(inside, row, 0), np.where(inside, column, 0)], 0.0)
        depths = np.where(depths > 0, depths, np.nan).reshape(-1)
        points_cam = unproject(positions.reshape(-1, 2), depths, self.intrinsics)
        return transform_points(self.cad_from_cam, points_cam).reshape(*positions.shape[:-1], 3)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Posed images by split. `card` is the content of `dataset.json`, empty where there is none."""

    directory: Path
    card: Mapping[str, Any]
    _views: Mapping[Split, tuple[View, ...]]

    @classmethod
    def open(cls, directory: Path) -> Dataset:
        """The dataset below `directory`, every pose and calibration read, no pixels.

        Views with non-finite poses (how some datasets mark lost frames) are left out. Raises InputError with all
        faults: no splits, views without all their files, unreadable poses or calibrations, an unknown card.
        """
        directory = Path(directory)
        card = _read_card(directory)
        splits: dict[Split, tuple[View, ...]] = {}
        faults: list[Fault] = []
        for split, folder in FOLDERS.items():
            if (directory / folder / "rgb").is_dir():
                splits[split] = _read_split(directory / folder, card, faults)
        if not splits:
            faults.append(Fault(str(directory), "dataset", "no split", "train/rgb, validation/rgb or test/rgb"))
        if faults:
            raise InputError(faults)
        return cls(directory, card, splits)

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits this dataset has."""
        return tuple(self._views)

    def views(self, split: Split) -> tuple[View, ...]:
        """The split's views, sorted by name; raises InputError for a split that the dataset does not have."""
        if split not in self._views:
            allowed = ", ".join(self._views)
            raise InputError(Fault(str(self.directory), "split", repr(split), allowed))
        return self._views[split]

    def verify(self) -> None:
        """Raises InputError when files differ from those that `dataset.json` has the digests of."""
        faults = [
            Fault(str(self.directory), f"splits.{split}", "files changed after they were made", "the files as made")
            for split, entry in self.card.get("splits", {}).items()
            if content_digest(self.directory, split) != entry["sha256"]
        ]
        if faults:
            raise InputError(faults)


def depth_step_m(farthest_m: float) -> float:
    """The finest round step, 1 mm at best, with which 16 bits reach `farthest_m`; ValueError beyond 655 km."""
    for step in _DEPTH_STEPS_M:
        if farthest_m <= step * LARGEST_STEP:
            return step
    raise ValueError(f"a depth of {farthest_m:.0f} m does not fit 16 bits in steps of {_DEPTH_STEPS_M[-1]} m")


def farthest_m(bounds: Array, cad_from_cam: Array) -> float:
    """Depth that nothing within `bounds` (2, 3) exceeds in the views (V, 4, 4): that of the farthest corner."""
    corners = np.array(np.meshgrid(*bounds.T)).reshape(3, -1).T
    return float(transform_points(inverse(cad_from_cam), corners)[..., 2].max())


def write_view(
    directory: Path,
    split: Split,
    name: str,
    *,
    image: NDArray[np.uint8],
    depth_m: NDArray[np.floating[Any]],
    cad_from_cam: Array,
    intrinsics: Array,
    step_m: float,
) -> None:
    """Writes one view: image (H, W, 3) RGB as JPEG, depth (H, W) metres (0 = unknown), pose and intrinsics exactly.

    Poses and intrinsics get 17 digits, so reading gives back the same float64. Raises OSError when the disk is
    full and ValueError for a depth that 16 bits of `step_m` cannot hold.
    """
    folder = Path(directory) / FOLDERS[split]
    for role in _ROLES:
        (folder / role).mkdir(parents=True, exist_ok=True)
    jpeg = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    _write_image(folder / "rgb" / f"{name}.jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), jpeg)
    png = [cv2.IMWRITE_PNG_COMPRESSION, 1]
    _write_image(folder / "depth" / f"{name}.png", _depth_steps(depth_m, step_m), png)
    np.savetxt(folder / "poses" / f"{name}.txt", cad_from_cam, fmt="%.17g")
    np.savetxt(folder / "calibration" / f"{name}.txt", intrinsics, fmt="%.17g")


def _depth_steps(depth_m: NDArray[np.floating[Any]], step_m: float) -> NDArray[np.uint16]:
    steps = np.rint(depth_m.astype(np.float64) / step_m)
    if not (np.isfinite(steps).all() and steps.min() >= 0 and steps.max() <= LARGEST_STEP):
        raise ValueError(f"depths must be finite and within [0, {LARGEST_STEP * step_m:g}] m")
    return steps.astype(np.uint16)


def _write_image(path: Path, image: NDArray[Any], settings: Sequence[int]) -> None:
    # Encoded in memory: imwrite answers a full disk with False and no reason.
    ok, data = cv2.imencode(path.suffix, image, settings)
    assert ok, f"{path}: not encodable: {image.shape} {image.dtype}"
    path.write_bytes(data.tobytes())


def write_card(directory: Path, card: Mapping[str, Any]) -> None:
    """Writes `dataset.json`: `card` under the schema version, with views and digest of every split found below.

    Written aside and renamed: a dataset with a card is a complete one.
    """
    splits = {
        split: {
            "folder": folder,
            "views": len(list((directory / folder / "rgb").iterdir())),
            "sha256": content_digest(directory, split),
        }
        for split, folder in FOLDERS.items()
        if (directory / folder / "rgb").is_dir()
    }
    conventions = {
        "schema_version": SCHEMA_VERSION,
        "camera_model": "pinhole",
        "poses": "camera to world, x right, y down, z forward",
        "pixels": "centre of the first pixel is (0.5, 0.5)",
        "units": "m",
    }
    text = json.dumps({**conventions, **card, "splits": splits}, indent=2, sort_keys=True, allow_nan=False)
    aside = directory / "dataset.json.part"
    aside.write_text(text + "\n")
    os.replace(aside, directory / "dataset.json")


def content_digest(directory: Path, split: Split) -> str:
    """SHA-256 over the names and bytes of all files of a split, in the order of their names."""
    folder = Path(directory) / FOLDERS[split]
    whole = hashlib.sha256()
    for path in sorted(path for role in _ROLES for path in (folder / role).glob("*")):
        whole.update(f"{path.parent.name}/{path.name}\0".encode())
        whole.update(hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()


def _read_card(directory: Path) -> dict[str, Any]:
    path = directory / "dataset.json"
    if not directory.is_dir():
        raise InputError(Fault(str(directory), "dataset", "no such directory", "a dataset directory"))
    if not path.exists():
        return {}
    try:
        card = json.loads(path.read_text())
    except ValueError as error:
        fault = Fault(str(path), "dataset.json", f"no JSON ({error})", "the file as it was written")
        raise InputError(fault) from error
    version = card.get("schema_version") if isinstance(card, dict) else None
    if not isinstance(card, dict) or version != SCHEMA_VERSION:
        raise InputError(Fault(str(path), "schema_version", repr(version), str(SCHEMA_VERSION)))
    step = card.get("depth_step_m")
    if not isinstance(step, int | float) or not step > 0:
        raise InputError(Fault(str(path), "depth_step_m", repr(step), "metres per step of the depth images, > 0"))
    return card


def _read_split(folder: Path, card: Mapping[str, Any], faults: list[Fault]) -> tuple[View, ...]:
    files = {role: files_by_name(folder / role) for role in _ROLES}
    names = set(files["rgb"]) | set(files["poses"]) | set(files["calibration"]) | set(files["depth"])
    required = _ROLES if files["depth"] else _ROLES[:3]
    views = []
    for name in sorted(names):
        missing = [role for role in required if name not in files[role]]
        faults += [Fault(str(folder / role), name, "no file of that name", "one per view") for role in missing]
        if not missing:
            view = _read_view(name, {role: files[role].get(name) for role in _ROLES}, card, faults)
            views += [view] if view is not None else []
    return tuple(views)


def _read_view(
    name: str, files: Mapping[str, Path | None], card: Mapping[str, Any], faults: list[Fault]
) -> View | None:
    rgb, poses, calibration = files["rgb"], files["poses"], files["calibration"]
    assert rgb is not None
    assert poses is not None
    assert calibration is not None
    pose = read_numbers(poses, "poses", ((4, 4),), faults)
    numbers = read_numbers(calibration, "calibration", ((3, 3), ()), faults)
    if pose is None or numbers is None or not np.isfinite(pose).all():
        return None
    before = len(faults)
    check_pose(pose, poses, faults)
    intrinsics = read_intrinsics(numbers, rgb, calibration, faults)
    if intrinsics is None or len(faults) > before:
        return None
    step_m = card.get("depth_step_m", MILLIMETRE_M)
    return View(name, pose, intrinsics, rgb, files["depth"], step_m, LARGEST_STEP if card else LARGEST_STEP - 1)
