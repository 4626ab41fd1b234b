"""One photograph from outside: its pixels, its intrinsics, and where it was taken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from cadloc.contract import Fault, InputError, Json

FULL_FRAME_DIAGONAL_MM = float(np.hypot(36.0, 24.0))
"""EXIF's focal length in 35 mm film spans the same diagonal angle on a full frame."""


def locate(image: Path, map_place: Path, focal_px: float | None, intrinsics: Path | None, seed: int) -> dict[str, Json]:
    """Pose of the camera that took `image`, as JSON; `cad_from_cam` is None where the map does not explain it.

    Its translation is in metres in `cad`; add `origin_m` for the CAD file's own metres. Raises InputError.
    """
    if focal_px is not None and intrinsics is not None:
        both = f"{intrinsics} and --focal-px {focal_px:g}"
        raise InputError(Fault("--intrinsics", "intrinsics", both, "one of the two: the file holds the focal length"))
    from cadloc.artifacts import load_map
    from cadloc.image_localization import localize_image

    pixels, exif_focal_px = read_photograph(image)
    matrix = _intrinsics(image, pixels.shape[1], pixels.shape[0], focal_px or exif_focal_px, intrinsics)
    scene = load_map(map_place)
    found = localize_image(map_place, pixels, matrix, seed)
    pose = None if found.cad_from_cam is None else found.cad_from_cam.tolist()
    return {
        "image": str(image),
        "scene": scene.scene,
        "cad_from_cam": pose,
        "origin_m": scene.origin_m.tolist(),
        "intrinsics": matrix.tolist(),
        "inliers": int(found.inliers),
        "inlier_share": float(found.inlier_share),
        "coverage": float(found.coverage),
        "runtime_s": float(found.runtime_s),
    }


def read_photograph(path: Path) -> tuple[NDArray[np.uint8], float | None]:
    """Upright RGB pixels (H, W, 3), and the focal length in pixels that EXIF states, if it does. Raises InputError."""
    try:
        with Image.open(path) as opened:
            upright = ImageOps.exif_transpose(opened).convert("RGB")
            stated_mm = opened.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.FocalLengthIn35mmFilm)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise InputError(Fault(str(path), "the whole file", str(error), "a readable image")) from error
    diagonal_px = float(np.hypot(*upright.size))
    focal_px = float(stated_mm) / FULL_FRAME_DIAGONAL_MM * diagonal_px if stated_mm else None
    return np.asarray(upright, dtype=np.uint8), focal_px


def _intrinsics(
    image: Path, width_px: int, height_px: int, focal_px: float | None, intrinsics: Path | None
) -> NDArray[np.float64]:
    """Intrinsics (3, 3) from a file, or of a camera with its principal point in the middle. Raises InputError."""
    if intrinsics is not None:
        return read_intrinsics(intrinsics)
    if focal_px is None:
        action = "pass --focal-px, or --intrinsics with a 3×3 text file"
        raise InputError(Fault(str(image), "focal length", "none in its EXIF", "a known focal length", action))
    return np.array([[focal_px, 0, width_px / 2], [0, focal_px, height_px / 2], [0, 0, 1]], dtype=np.float64)


def read_intrinsics(path: Path) -> NDArray[np.float64]:
    """The 3×3 matrix in a text file. Raises InputError."""
    try:
        matrix = np.loadtxt(path, dtype=np.float64)
    except (OSError, ValueError) as error:
        raise InputError(Fault(str(path), "the whole file", str(error), "three rows of three numbers")) from error
    valid = matrix.shape == (3, 3) and np.isfinite(matrix).all() and matrix[0, 0] > 0 and matrix[1, 1] > 0
    if not valid or not np.array_equal(matrix[2], [0, 0, 1]):
        found = f"{matrix.shape} numbers: {matrix.tolist()}"
        raise InputError(Fault(str(path), "the matrix", found[:200], "fx 0 cx / 0 fy cy / 0 0 1, in pixels"))
    return matrix
