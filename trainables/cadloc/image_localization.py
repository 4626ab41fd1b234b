"""A photograph against a trial's map."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from cadloc.artifacts import load_map
from cadloc.encoding import encode_image
from cadloc.evaluation import localize_guesses
from cadloc.geometry import Array, cell_pixels
from cadloc.localization import Estimate


def localize_image(map_path: Path, image: NDArray[np.uint8], intrinsics: Array, seed: int = 0) -> Estimate:
    """Pose of the camera that took an RGB image (H, W, 3) with `intrinsics` (3, 3), against a trial's map.

    The image is resized so that its short side is that of the views the map was trained on: features know one
    scale only. Raises InputError for what is no map, ValueError for an image too small.
    """
    scene = load_map(map_path)
    scale = min(scene.image_size_px) / min(image.shape[:2])
    width_px, height_px = (max(8, round(side * scale)) for side in image.shape[1::-1])
    resized = cv2.resize(image, (width_px, height_px), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    # Each side by its own factor: rounding to whole pixels changes their ratio.
    factors = np.array([width_px / image.shape[1], height_px / image.shape[0], 1.0])
    # Half precision, as the queries of a trial are stored: the map says the same here as there.
    features = encode_image(scene.encoder, np.asarray(resized, np.uint8)).astype(np.float16)
    cells = torch.from_numpy(features.reshape(-1, features.shape[-1]))
    told = None if scene.candidates is None else torch.from_numpy(scene.candidates.of(np.asarray(resized, np.uint8)))
    guesses = scene.head.guesses(cells, told)
    camera = cell_pixels(*features.shape[:2]).reshape(-1, 2), factors[:, None] * intrinsics, width_px, height_px
    return localize_guesses(guesses, *camera, scene.localization, seed)[1]
