"""Other people's photographs and poses, whatever the format: read, and refused with every reason when not sound."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np

from cadloc.contract import Fault, InputError
from cadloc.datasets.ace_layout import FOLDERS, Dataset
from cadloc.datasets.colmap import colmap_camera, find_model, parameter_counts, read_model
from cadloc.datasets.phototourism import is_phototourism, read_phototourism
from cadloc.datasets.pose_lists import is_pose_list, read_pose_list, read_poses_json
from cadloc.datasets.posed_files import image_size_px
from cadloc.datasets.reconstruction import Camera, Photo, Reconstruction
from cadloc.datasets.undistortion import is_one_to_one, undistorted_camera
from cadloc.geometry import Array, inverse
from cadloc.scene_config import RECONSTRUCTION_FORMATS, PhotosConfig

ROTATION_TOLERANCE = 1e-3
"""How far R·Rᵀ may be off 1: poses in text files of other tools carry as few as four digits."""

_ROUNDING = 1e-9
_SMALLEST_SIDE_PX = 16
_LARGEST_SIDE_PX = 65535  # JPEG's; damaged files claim more, and undistortion walks along every side


def detect_format(path: Path) -> str | None:
    """Which of `RECONSTRUCTION_FORMATS` a file or folder is, by what is in it; None for anything else."""
    if path.is_file():
        return "poses_json" if path.suffix.lower() == ".json" else "pose_list" if is_pose_list(path) else None
    if not path.is_dir():
        return None
    tests: dict[str, Callable[[Path], bool]] = {
        "ace": lambda folder: any((folder / split / "rgb").is_dir() for split in FOLDERS.values()),
        "phototourism": is_phototourism,
        "colmap": lambda folder: find_model(folder) is not None,
        "pose_list": is_pose_list,
    }
    return next((name for name, test in tests.items() if test(path)), None)


def read_reconstruction(photos: PhotosConfig) -> Reconstruction:
    """All posed photos, sorted by name; `split` is what the source says, files of names are `assign_splits`' affair.

    Rotations rounded by their source are replaced by the nearest true ones. Raises InputError with all faults:
    unreadable or damaged files; photos without a file, outside the folder, twice, or of another size than their
    camera's; poses that are not finite or not rigid; cameras that no pinhole can stand in for.
    """
    path, images = Path(photos.reconstruction), Path(photos.images)
    kind = photos.format or detect_format(path)
    if kind is None:
        found = "something else" if path.exists() else "no such file or folder"
        raise InputError(Fault(str(path), "photos.reconstruction", found, ", ".join(RECONSTRUCTION_FORMATS)))
    faults: list[Fault] = []
    if not images.is_dir():
        faults.append(Fault(str(images), "photos.images", "no such folder", "the folder that photos' names start from"))
    reconstruction = _READERS[kind](path, images, faults)
    if reconstruction is not None:
        faults += _faults(reconstruction, images)
    if faults or reconstruction is None:
        raise InputError(faults)
    return replace(reconstruction, photos=tuple(map(_upright, reconstruction.photos)))


def reconstruction_of(dataset: Dataset) -> Reconstruction:
    """A dataset in the ACE layout as a reconstruction in its own frame: `cam_from_rec` is the inverse of its poses.

    A photo is called as its view, with its file's suffix; those of the same name in two splits get the split's
    folder before it.
    """
    views = [(split, view) for split in dataset.splits for view in dataset.views(split)]
    counts = Counter(view.name for _, view in views)
    photos = []
    for split, view in views:
        name = f"{view.name}{view.image_path.suffix}"
        name = name if counts[view.name] == 1 else f"{FOLDERS[split]}/{name}"
        K = view.intrinsics
        params = (float(K[0, 0]), float(K[1, 1]), float(K[0, 2]), float(K[1, 2]))
        camera = Camera("PINHOLE", *view.image_size_px, params)
        photos.append(Photo(name, view.image_path, camera, inverse(_nearest_rigid(view.cad_from_cam)), split))
    return Reconstruction(dataset.directory, tuple(sorted(photos, key=lambda photo: photo.name)))


def _read_ace(directory: Path, images: Path, faults: list[Fault]) -> Reconstruction | None:
    """The layout's own folders hold the images, wherever `images` is."""
    try:
        return reconstruction_of(Dataset.open(directory))
    except InputError as error:
        faults += error.faults
        return None


_READERS: dict[str, Callable[[Path, Path, list[Fault]], Reconstruction | None]] = {
    "colmap": read_model,
    "phototourism": read_phototourism,
    "ace": _read_ace,
    "poses_json": read_poses_json,
    "pose_list": read_pose_list,
}


def _faults(reconstruction: Reconstruction, images: Path) -> Iterator[Fault]:
    source, photos = str(reconstruction.source), reconstruction.photos
    if not photos:
        yield Fault(source, "photos.reconstruction", "no posed photo", "one at least")
    for name, count in Counter(photo.name for photo in photos).items():
        if count > 1:
            yield Fault(source, name, f"the same name {count} times", "each photo once")
    for camera in dict.fromkeys(photo.camera for photo in photos):
        yield from _camera_faults(camera, next(photo for photo in photos if photo.camera == camera), source)
    for photo in photos:
        yield from _pose_faults(photo, source)
    yield from _file_faults(photos, images, source)


def _camera_faults(camera: Camera, photo: Photo, source: str) -> Iterator[Fault]:
    key = f"camera of {photo.name}"
    if len(camera.params) != parameter_counts().get(camera.model):
        yield Fault(source, key, f"{camera.model} with {len(camera.params)} parameters", ", ".join(parameter_counts()))
        return
    sides = (camera.width_px, camera.height_px)
    if not all(0 < side <= _LARGEST_SIDE_PX for side in sides):
        yield Fault(source, key, f"an image of {sides[0]}×{sides[1]} pixels", f"sides of 1 to {_LARGEST_SIDE_PX}")
        return
    known = colmap_camera(camera)
    if known.is_spherical():
        yield Fault(source, key, camera.model, "a camera with an image plane", "cut pinhole images from the panoramas")
    elif not np.isfinite(camera.params).all() or min(camera.params[index] for index in known.focal_length_idxs()) <= 0:
        yield Fault(source, key, f"parameters {list(camera.params)}", "finite ones, focal lengths > 0")
    elif not is_one_to_one(camera):
        found = f"{camera.model} {list(camera.params)}, a distortion that turns back within the image"
        yield Fault(source, key, found, "parameters of a real lens", "calibrate with fewer coefficients")
    elif min(undistorted_camera(camera).width_px, undistorted_camera(camera).height_px) < _SMALLEST_SIDE_PX:
        yield Fault(source, key, f"{camera.model} that leaves no image undistorted", "parameters of a real lens")


def _pose_faults(photo: Photo, source: str) -> Iterator[Fault]:
    if not np.isfinite(photo.cam_from_rec).all():
        yield Fault(source, photo.name, "a pose that is not finite", "numbers", "leave the photo out or pose it")
        return
    rotation = photo.cam_from_rec[:3, :3]
    off = np.abs(rotation @ rotation.T - np.eye(3)).max()
    if off > ROTATION_TOLERANCE:
        yield Fault(source, photo.name, f"a rotation that is none (R·Rᵀ is off 1 by {off:.2g})", "a rotation matrix")
    elif np.linalg.det(rotation) < 0:
        yield Fault(source, photo.name, "a rotation that mirrors (determinant −1)", "a rotation matrix")


def _file_faults(photos: tuple[Photo, ...], images: Path, source: str) -> Iterator[Fault]:
    escaping = {photo.name for photo in photos if _leads_out(PurePosixPath(photo.name))}
    for name in sorted(escaping):
        yield Fault(source, name, "a name that leads out of the images' folder", "names within it")
    within = [photo for photo in photos if photo.name not in escaping]
    missing = [photo.name for photo in within if not photo.image_path.is_file()]
    if len(missing) > 1 and len(missing) == len(photos):
        found = f"none of the {len(missing)} photos ({missing[0]}, {missing[1]}, …)"
        yield Fault(str(images), "photos.images", found, "the folder that photos' names start from")
        return
    for name in missing:
        yield Fault(str(images), name, "no such image", "a file for every posed photo")
    for photo in within:
        if photo.image_path.is_file():
            yield from _size_faults(photo)


def _leads_out(name: PurePosixPath) -> bool:
    return name.is_absolute() or ".." in name.parts


def _size_faults(photo: Photo) -> Iterator[Fault]:
    try:
        size = image_size_px(photo.image_path)
    except InputError as error:
        yield from error.faults
        return
    expected = (photo.camera.width_px, photo.camera.height_px)
    if size != expected:
        found, allowed = f"an image of {size[0]}×{size[1]} pixels", f"{expected[0]}×{expected[1]}, its camera's"
        yield Fault(str(photo.image_path), photo.name, found, allowed, "undo the resizing or scale the intrinsics")


def _upright(photo: Photo) -> Photo:
    return replace(photo, cam_from_rec=_nearest_rigid(photo.cam_from_rec))


def _nearest_rigid(dst_from_src: Array) -> Array:
    """The pose (4, 4) with its rotation made orthonormal; the very same numbers where it is so already."""
    rotation = dst_from_src[:3, :3]
    if np.abs(rotation @ rotation.T - np.eye(3)).max() < _ROUNDING:
        return dst_from_src
    left, _, right = np.linalg.svd(rotation)
    repaired = dst_from_src.copy()
    repaired[:3, :3] = left @ right
    return repaired
