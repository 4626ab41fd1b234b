"""Photographs with cameras and poses, as somebody's reconstruction has them: before any of it is moved or resized."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cadloc.datasets.ace_layout import Split
from cadloc.geometry import Array


@dataclass(frozen=True)
class Camera:
    """A camera in COLMAP's terms: `model` is COLMAP's name (`PINHOLE`, `OPENCV` …), `params` are in its order.

    Pixel (0.5, 0.5) is the centre of the first pixel, as in COLMAP and everywhere here.
    """

    model: str
    width_px: int
    height_px: int
    params: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Photo:
    """A posed photograph. `name` is what the reconstruction calls it; `image_path` is where its file is.

    `cam_from_rec` (4, 4) is rigid, world to camera, its translation in the reconstruction's units.
    `split` is set where the source says so.
    """

    name: str
    image_path: Path
    camera: Camera
    cam_from_rec: Array
    split: Split | None = None


@dataclass(frozen=True, eq=False)
class SparsePoints:
    """Triangulated points (N, 3) in the reconstruction's frame and units, and what is known of them.

    `track_lengths` (N,) counts the photos that see a point (0: not known), `errors_px` (N,) is its mean
    reprojection error (NaN: not known). `seen_in` gives, by photo name, the pixels (M, 2) and the rows (M,) of the
    points seen there; empty where the source has no observations.
    """

    positions: Array
    track_lengths: NDArray[np.int64]
    errors_px: Array
    seen_in: Mapping[str, tuple[Array, NDArray[np.int64]]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """Photos sorted by name, and the sparse points where the source has any."""

    source: Path
    photos: tuple[Photo, ...]
    points: SparsePoints | None = None

    def photo(self, name: str) -> Photo:
        """The photo of that name; raises KeyError."""
        for photo in self.photos:
            if photo.name == name:
                return photo
        raise KeyError(name)
