"""How far a render lies from the photo it should coincide with, in pixels, over many places of the picture.

A photo and a render of a CAD model share edges more than grey values. So places with structure in the render are
described by the orientations of gradients around them (the layout of SIFT, Lowe, IJCV 2004, upright and at one scale,
with the Hellinger normalisation of RootSIFT, Arandjelović and Zisserman, CVPR 2012) and looked for in the photo at
every position within a radius: the pose is roughly known, so nothing else competes. A match is kept when its peak
stands out from the rest of the radius, when searching back from the photo returns to where it started, and when
neighbouring matches moved alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from cadloc.geometry import Array

Maps: TypeAlias = NDArray[np.float32]
Image: TypeAlias = NDArray[np.uint8]

FEWEST_MATCHES = 8
"""Fewer matches say nothing about a picture: its median is NaN."""

SEARCH_SHARE = 0.03
"""How far is looked unless told otherwise, as a share of the longer image side: what is farther is not found."""

_SHORT_SIDE_PX = 480  # larger pictures are measured at this size
_ORIENTATIONS = 8
_WIDE_TAPS_PX = np.array([-12.0, -4.0, 4.0, 12.0])
_NARROW_TAPS_PX = np.array([-6.0, -2.0, 2.0, 6.0])
_POOLING_SHARE = 0.375  # standard deviation of the pooling, in spacings of the taps
_FINE_STEPS_PX = np.arange(-3.0, 4.0)
_MOST_POINTS = 500
_POINT_SPACING_PX = 8
_COARSE_PX = 2
_PEAK_RADIUS_PX = 5  # what lies closer to the peak belongs to it
_LEAST_LEAD = 0.02  # of the best score over the best elsewhere
_LEAST_SCORE = 0.6
_RETURN_PX = 1.5
_NEIGHBOURS = 8
_LEAST_AGREEING = 3
_AGREEMENT_PX = 3.0
_BLOCK = 64


@dataclass(frozen=True, eq=False)
class PairOffset:
    """Displacements between a render and its photo.

    `pixels` (M, 2) are positions in the render, `displacements` (M, 2) lead from there to the same thing in the
    photo: photo position = pixels + displacements. `median_px` and `p90_px` are of the displacements' lengths, NaN
    below `FEWEST_MATCHES` matches. Lengths beyond the search radius cannot be found: a pair that is far off shows
    as few matches, not as a large median.
    """

    median_px: float
    p90_px: float
    matches: int
    displacements: Array
    pixels: Array


def measure_offset(photo: Image, render: Image, mask: NDArray[np.bool_], max_share: float = SEARCH_SHARE) -> PairOffset:
    """Displacements between a photo and a render (both (H, W, 3) uint8 RGB), at places where `mask` (H, W) is true.

    Searches up to `max_share` of the longer image side around each place. Pictures whose shorter side exceeds 480 px
    are measured at that size; all results are in pixels of the pictures given. Raises ValueError for other shapes.
    """
    if photo.shape != render.shape or photo.shape[:2] != mask.shape or photo.ndim != 3:
        raise ValueError(f"photo {photo.shape}, render {render.shape} and mask {mask.shape} are not of one size")
    small, factor = _at_working_size(photo, render, mask)
    radius_px = max(_COARSE_PX * 2, max_share * max(small[2].shape))
    pixels, displacements = _matches(*small, radius_px)
    return _summary(pixels / factor, displacements / factor)


def _summary(pixels: Array, displacements: Array) -> PairOffset:
    lengths_px = np.linalg.norm(displacements, axis=-1)
    known = len(lengths_px) >= FEWEST_MATCHES
    median_px, p90_px = np.percentile(lengths_px, [50, 90]) if known else (np.nan, np.nan)
    return PairOffset(float(median_px), float(p90_px), len(lengths_px), displacements, pixels)


def _at_working_size(
    photo: Image, render: Image, mask: NDArray[np.bool_]
) -> tuple[tuple[Image, Image, NDArray[np.bool_]], Array]:
    """The three at working size, and the factors (2,) of width and height that brought them there."""
    height, width = mask.shape
    share = min(1.0, _SHORT_SIDE_PX / min(height, width))
    size = (round(width * share), round(height * share))
    if size == (width, height):
        return (photo, render, mask), np.ones(2)
    images = [np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8) for image in (photo, render)]
    fewer = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
    return (images[0], images[1], fewer), np.array([size[0] / width, size[1] / height])


def _matches(photo: Image, render: Image, mask: NDArray[np.bool_], radius_px: float) -> tuple[Array, Array]:
    """Positions in the render (M, 2) and displacements to the photo (M, 2)."""
    photo_layers, render_layers = _layers(photo), _layers(render)
    starts = _structured_places(render, mask)
    ends, clear = _search(render_layers, photo_layers, starts, starts, radius_px)
    starts, ends = starts[clear], ends[clear]
    back, clear = _search(photo_layers, render_layers, ends, starts, radius_px)
    returned = clear & (np.linalg.norm(back - starts, axis=-1) <= _RETURN_PX)
    starts, displacements = starts[returned], ends[returned] - starts[returned]
    agreeing = _agree_with_neighbours(starts, displacements)
    return starts[agreeing], displacements[agreeing]


@dataclass(frozen=True, eq=False)
class _Layer:
    """Gradients by direction (H, W, 8), pooled for descriptors of 4 × 4 taps at these distances."""

    maps: Maps
    taps_px: Array


_Layers: TypeAlias = tuple[_Layer, _Layer]


def _layers(image: Image) -> _Layers:
    """The wide layer that finds a place, and the narrow one that says exactly where it is."""
    directions = _oriented_gradients(image)
    return _pooled(directions, _WIDE_TAPS_PX), _pooled(directions, _NARROW_TAPS_PX)


def _pooled(directions: Maps, taps_px: Array) -> _Layer:
    pooled = cv2.GaussianBlur(directions, (0, 0), _POOLING_SHARE * (taps_px[1] - taps_px[0]))
    return _Layer(np.asarray(pooled, np.float32), taps_px)


def _oriented_gradients(image: Image) -> Maps:
    """Gradient magnitude by direction, (H, W, 8), directions with their sign.

    The gradient is that of the square root of luma: shade hides less.
    """
    luma = np.sqrt(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255)
    luma = cv2.GaussianBlur(luma, (0, 0), 1.0)
    across, down = cv2.Sobel(luma, cv2.CV_32F, 1, 0, scale=0.125), cv2.Sobel(luma, cv2.CV_32F, 0, 1, scale=0.125)
    magnitude = np.hypot(across, down)
    edge = np.cos(2 * np.pi / _ORIENTATIONS)
    maps = []
    for angle in np.arange(_ORIENTATIONS) * (2 * np.pi / _ORIENTATIONS):
        along = np.cos(angle) * across + np.sin(angle) * down
        maps.append(np.maximum(along - edge * magnitude, 0))
    return np.stack(maps, axis=-1).astype(np.float32)


def _structured_places(render: Image, mask: NDArray[np.bool_]) -> Array:
    """Centres (N, 2) of pixels of the model around which gradients have more than one direction."""
    gray = cv2.cvtColor(render, cv2.COLOR_RGB2GRAY)
    found = cv2.goodFeaturesToTrack(
        gray, _MOST_POINTS, 1e-3, _POINT_SPACING_PX, mask=mask.astype(np.uint8), blockSize=9
    )
    return np.empty((0, 2)) if found is None else found.reshape(-1, 2).astype(np.float64) + 0.5


def _search(
    source: _Layers, target: _Layers, places: Array, middles: Array, radius_px: float
) -> tuple[Array, NDArray[np.bool_]]:
    """Where in `target` each place (N, 2) of `source` is, within a square about `middles` (N, 2); and how clearly."""
    reach = int(radius_px // _COARSE_PX)
    steps = np.arange(-reach, reach + 1, dtype=np.float64) * _COARSE_PX
    found, clear = [np.empty((0, 2))], [np.empty(0, bool)]
    for block in _blocks(len(places)):
        coarse = _scores(source[0], target[0], places[block], middles[block], steps)
        peak = _peaks(coarse, steps)
        fine = _scores(source[1], target[1], places[block], middles[block] + peak, _FINE_STEPS_PX)
        found.append(middles[block] + peak + _subpixel_peaks(fine, _FINE_STEPS_PX))
        clear.append(_stand_out(coarse, peak, steps))
    return np.concatenate(found), np.concatenate(clear)


def _blocks(count: int) -> Iterator[slice]:
    for start in range(0, count, _BLOCK):
        yield slice(start, start + _BLOCK)


def _scores(source: _Layer, target: _Layer, places: Array, middles: Array, steps: Array) -> Maps:
    """Cosines (N, S, S) of the descriptors at `places` (N, 2) with those at `middles` (N, 2) plus all steps."""
    shifts = np.stack(np.meshgrid(steps, steps), axis=-1)  # [row, column] -> (across, down)
    candidates = _descriptors(target, middles[:, None, None] + shifts)
    return np.asarray(np.einsum("nijd,nd->nij", candidates, _descriptors(source, places)), np.float32)


def _descriptors(layer: _Layer, places: Array) -> Maps:
    """Unit descriptors (..., 128) at places (..., 2): the square roots of 4 × 4 taps, standardised.

    Taps beyond the border repeat it.
    """
    taps = np.stack(np.meshgrid(layer.taps_px, layer.taps_px), axis=-1).reshape(-1, 2)
    columns, rows = np.moveaxis(np.floor(places[..., None, :] + taps).astype(np.intp), -1, 0)
    height, width = layer.maps.shape[:2]
    taken = layer.maps[np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1)]
    roots = np.sqrt(taken.reshape(*places.shape[:-1], -1))
    roots -= roots.mean(axis=-1, keepdims=True)
    return np.asarray(roots / (np.linalg.norm(roots, axis=-1, keepdims=True) + 1e-3), np.float32)


def _peaks(scores: Maps, steps: Array) -> Array:
    """Shift (N, 2) of the best score."""
    row, column = np.divmod(scores.reshape(len(scores), -1).argmax(axis=1), len(steps))
    return np.stack([steps[column], steps[row]], axis=-1)


def _subpixel_peaks(scores: Maps, steps: Array) -> Array:
    """Shift (N, 2) of the best score, by the parabola through it and its neighbours in each direction."""
    index = np.arange(len(scores))
    row, column = np.divmod(scores.reshape(len(scores), -1).argmax(axis=1), len(steps))
    row, column = np.clip(row, 1, len(steps) - 2), np.clip(column, 1, len(steps) - 2)
    middle = scores[index, row, column]
    across = _vertex(scores[index, row, column - 1], middle, scores[index, row, column + 1])
    down = _vertex(scores[index, row - 1, column], middle, scores[index, row + 1, column])
    return np.stack([steps[column] + across, steps[row] + down], axis=-1)


def _vertex(before: Maps, middle: Maps, after: Maps) -> Array:
    curvature = np.maximum(2 * middle - before - after, 1e-6)
    return np.asarray(np.clip(0.5 * (after - before) / curvature, -1.0, 1.0), np.float64)


def _stand_out(scores: Maps, peak: Array, steps: Array) -> NDArray[np.bool_]:
    """Whether the best score leads all those outside its own hill, is high, and not at the search's border."""
    across = np.abs(steps[None, None, :] - peak[:, 0, None, None])
    down = np.abs(steps[None, :, None] - peak[:, 1, None, None])
    elsewhere = np.where(np.maximum(across, down) > _PEAK_RADIUS_PX, scores, -1.0).max(axis=(1, 2))
    best = scores.max(axis=(1, 2))
    inside = np.abs(peak).max(axis=-1) < steps[-1]
    return np.asarray((best - elsewhere >= _LEAST_LEAD) & (best >= _LEAST_SCORE) & inside)


def _agree_with_neighbours(starts: Array, displacements: Array) -> NDArray[np.bool_]:
    """Whether enough of the nearest matches moved alike: true for smooth fields with jumps, false for chance."""
    if len(starts) <= _LEAST_AGREEING:
        return np.zeros(len(starts), bool)
    distances = np.linalg.norm(starts[:, None] - starts, axis=-1)
    nearest = np.argsort(distances, axis=1)[:, 1 : _NEIGHBOURS + 1]
    differences_px = np.linalg.norm(displacements[nearest] - displacements[:, None], axis=-1)
    return np.asarray((differences_px <= _AGREEMENT_PX).sum(axis=1) >= _LEAST_AGREEING)
