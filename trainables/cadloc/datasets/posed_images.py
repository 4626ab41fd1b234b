"""Photos of a reconstruction, opened for matching: without distortion, at one scale, poses as they are."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from cadloc.contract import Fault, InputError
from cadloc.datasets.reconstruction import Photo
from cadloc.datasets.undistortion import undistorted
from cadloc.geometry import Array

SHORT_SIDE_PX = 480


@dataclass(frozen=True, eq=False)
class PosedImage:
    """A photo without distortion: `image` (H, W, 3) uint8 RGB, `intrinsics` (3, 3), `cam_from_rec` (4, 4) rigid."""

    name: str
    image: NDArray[np.uint8]
    intrinsics: Array
    cam_from_rec: Array


def open_posed(photo: Photo, short_side_px: int = SHORT_SIDE_PX) -> PosedImage:
    """The photo, undistorted, its short side at `short_side_px`. Raises InputError for an image that is unreadable."""
    return PosedImage(photo.name, *opened(photo, short_side_px), photo.cam_from_rec)


def opened(photo: Photo, short_side_px: int) -> tuple[NDArray[np.uint8], Array]:
    """Pixels (H, W, 3) RGB without lens distortion at that size, and intrinsics (3, 3). InputError: unreadable."""
    image = cv2.imread(str(photo.image_path), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise InputError(Fault(str(photo.image_path), "photos.images", "an unreadable image", "a JPEG or PNG image"))
    return at_scale(*undistorted(np.asarray(image, np.uint8), photo.camera), short_side_px)


def at_scale(image: NDArray[np.uint8], intrinsics: Array, short_side_px: int) -> tuple[NDArray[np.uint8], Array]:
    """The image (H, W, 3) with its short side at `short_side_px`, and the intrinsics (3, 3) of that.

    Features know one scale only. Each side is scaled by its own factor, as whole pixels change their ratio.
    """
    scale = short_side_px / min(image.shape[:2])
    width_px, height_px = (round(side * scale) for side in image.shape[1::-1])
    if (height_px, width_px) == image.shape[:2]:
        return image, intrinsics
    resized = cv2.resize(image, (width_px, height_px), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    factors = np.array([width_px / image.shape[1], height_px / image.shape[0], 1.0])
    return np.asarray(resized, np.uint8), factors[:, None] * intrinsics
