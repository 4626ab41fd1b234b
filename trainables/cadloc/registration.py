"""Where one model's frame lies in another's: similarities from text files, and a reconstruction's in `cad`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cadloc.cad import CadModel
from cadloc.contract import Fault, InputError
from cadloc.geometry import Array, Similarity, inverse
from cadloc.scene_config import PhotosConfig


def own_axes(model: CadModel) -> Array:
    """`cad_from_own` (4, 4), rigid: from the file's own axes, in metres, to `cad`: turned upright, origin taken off."""
    cad_from_own = model.cad_from_file.copy()
    cad_from_own[:3, :3] /= np.cbrt(np.linalg.det(cad_from_own[:3, :3]))
    return cad_from_own


def read_similarity(path: str | None, key: str) -> Similarity:
    """The similarity in a text file of 4×4 numbers, the identity for None; InputError (at `key`) when it is none."""
    if path is None:
        return Similarity.from_matrix(np.eye(4))
    try:
        lines = [line.split() for line in Path(path).read_text().splitlines() if line.strip()]
        matrix = np.array([[float(word) for word in line] for line in lines])
        if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or not np.array_equal(matrix[3], [0, 0, 0, 1]):
            raise ValueError("not a 4×4 matrix of finite numbers with the last row 0 0 0 1")
        return Similarity.from_matrix(matrix)
    except (OSError, ValueError) as error:
        allowed = "a text file with a 4×4 similarity: x_scene = M · x_this"
        raise InputError(Fault(path, key, str(error), allowed)) from error


def rec_from_cad(photos: PhotosConfig, model: CadModel) -> Similarity:
    """Similarity from `cad` to the photos' reconstruction, in that one's units. InputError: no usable registration.

    Without a registration file, the coordinates in the CAD file, unscaled, are the reconstruction's.
    """
    if photos.registration is None:
        return Similarity.from_matrix(np.linalg.inv(model.cad_from_file))
    rec_from_own = read_similarity(photos.registration, "photos.registration")
    return Similarity.from_matrix(rec_from_own.matrix @ inverse(own_axes(model)))


def posed_in_cad(rec_from_cad: Similarity, cam_from_rec: Array) -> Array:
    """`cad_from_cam` (..., 4, 4), rigid and in metres, of cameras `cam_from_rec` (..., 4, 4) of the reconstruction."""
    return rec_from_cad.inverse().transform_pose(inverse(cam_from_rec))
