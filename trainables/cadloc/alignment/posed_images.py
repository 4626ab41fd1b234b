"""Photos of a reconstruction, opened for matching: without distortion, at one scale, poses as they are."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from cadloc.contract import Fault, InputError
from cadloc.datasets.photos import at_scale
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
    image = cv2.imread(str(photo.image_path), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise InputError(Fault(str(photo.image_path), "photos.images", "unreadable", "a complete image file"))
    pixels, intrinsics = at_scale(*undistorted(np.asarray(image, np.uint8), photo.camera), short_side_px)
    return PosedImage(photo.name, pixels, intrinsics, photo.cam_from_rec)
