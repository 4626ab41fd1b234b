"""SIFT at its key points (Lowe 2004), descriptors as RootSIFT (Arandjelović and Zisserman 2012)."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from cadloc.config import SiftFeatures
from cadloc.matching.local_features import LocalFeatures, Matches, ratio_tested, similarities

_DIMENSIONS = 128
_CONTRAST_TILES = (8, 8)


class SiftMatcher:
    """Key points of OpenCV's SIFT, matched by a ratio test both ways."""

    def __init__(self, config: SiftFeatures) -> None:
        self._config = config
        # No threshold on contrast: renders of plain walls are faint, and `keypoints` keeps the strongest anyway.
        # Precise: otherwise the doubled first octave moves every key point by a quarter of a pixel.
        self._sift = cv2.SIFT.create(config.keypoints, contrastThreshold=0.0, enable_precise_upscale=True)

    def describe(self, image: NDArray[np.uint8], known: NDArray[np.bool_] | None = None) -> LocalFeatures:
        """The strongest key points of an RGB image (H, W, 3), within `known` (H, W) if that is given."""
        gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        if self._config.contrast_limit is not None:
            gray = cv2.createCLAHE(self._config.contrast_limit, _CONTRAST_TILES).apply(gray)
        mask = None if known is None else known.astype(np.uint8)
        points = self._sift.detect(gray, mask)
        points = _upright(points) if self._config.upright else points
        points, histograms = self._sift.compute(gray, points)
        if histograms is None:
            return LocalFeatures(image, np.zeros((0, 2)), np.zeros((0, _DIMENSIONS), np.float32))
        # OpenCV's centre of the first pixel is (0, 0).
        pixels = np.array([point.pt for point in points], dtype=np.float64) + 0.5
        sums = np.maximum(histograms.sum(axis=1, keepdims=True), 1e-12)
        return LocalFeatures(image, pixels, np.sqrt(histograms / sums).astype(np.float32))

    def match(self, query: LocalFeatures, render: LocalFeatures, near_px: float | None = None) -> Matches:
        """Pairs that pass the ratio test both ways."""
        rows, columns = ratio_tested(similarities(query, render, near_px), self._config.ratio)
        return Matches(query.pixels[rows], render.pixels[columns])


def _upright(points: Sequence[cv2.KeyPoint]) -> list[cv2.KeyPoint]:
    """One key point per place and size, all with orientation 0; a place may come with several orientations."""
    single = {(point.pt, point.size): point for point in points}
    for point in single.values():
        point.angle = 0.0
    return list(single.values())
