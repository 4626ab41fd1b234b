"""What is measured of an encoder on validation views: do photo and render agree, and is anything forgotten.

Whole images as they are, neither cropped nor developed, as a trial would encode them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from cadloc.augmentation import sample_depth_m
from cadloc.encoders import Encoder
from cadloc.encoders.images import STRIDE
from cadloc.finetuning.cells import CellBatch, read_cells
from cadloc.finetuning.pairs import PairedView, stored
from cadloc.geometry import Array, cell_pixels
from cadloc.pretraining_pairs import SAME_DEPTH

Item = TypeVar("Item")

CUT_SHARE = 6
"""That part of a render's height and width is cut off before it is compared with its photo."""

MOST_CELLS = 256
"""Cells per image that are matched."""


def pair_measures(encoder: Encoder, pairs: Sequence[PairedView], device: str) -> dict[str, float]:
    """`agreement`: mean cosine of a photo's and its render's cell; `precision`: share of photo cells whose most
    similar render cell is the right one or next to it. Means over the pairs that show any of the model."""
    found = [_pair_measure(encoder, pair, device) for pair in pairs]
    agreement, precision = np.mean([one for one in found if one is not None] or [(np.nan, np.nan)], axis=0)
    return {"agreement": float(agreement), "precision": float(precision)}


def _pair_measure(encoder: Encoder, pair: PairedView, device: str) -> tuple[float, float] | None:
    """Of one pair. The render loses its first rows and columns, so that the place in the picture tells nothing."""
    image, depth_m = stored(pair.render).images[0], stored(pair.render).depths_m[0]
    cut = [side // STRIDE // CUT_SHARE * STRIDE for side in image.shape[:2]]
    photo = feature_map(encoder, stored(pair.photo).images[0], device)
    render = feature_map(encoder, image[cut[0] :, cut[1] :], device)
    pixels = cell_pixels(*photo.shape[1:]).reshape(-1, 2)
    inside = (pixels >= cut[::-1]).all(axis=1)
    depths_m = sample_depth_m(stored(pair.photo).depths_m[0], pixels), sample_depth_m(depth_m, pixels)
    with np.errstate(invalid="ignore"):  # NaN: sees nothing of the model
        alike = np.abs(depths_m[0] / depths_m[1] - 1) < SAME_DEPTH
    known = np.array(evenly_spread(np.flatnonzero(inside & alike).tolist(), MOST_CELLS), int)
    if not len(known):
        return None
    there = pixels[known] - cut[::-1]
    column, row = (there // STRIDE).astype(int).T
    cells, targets = photo.flatten(1).T[known], render[:, row, column].T
    return float(cosine_similarity(cells, targets).mean()), _hit_share(cells, render, there)


def kept_measures(encoder: Encoder, original: Encoder, replay: tuple[CellBatch, CellBatch]) -> dict[str, float]:
    """`kept`: mean cosine of synthetic cells' features with the original encoder's; `synthetic_precision`: as
    `precision` between two synthetic views of the same points. What tuning for photos forgets, these two lose."""
    first, second = replay
    maps_a, maps_b, maps_0 = encoder.encode(first.images), encoder.encode(second.images), original.encode(first.images)
    rows, rows_0 = (read_cells(maps, list(first.pixels)) for maps in (maps_a, maps_0))
    count = first.pixels.shape[1]
    shares = [
        _hit_share(rows[i * count : (i + 1) * count], maps_b[i], second.pixels[i].cpu().numpy().astype(np.float64))
        for i in range(len(first))
    ]
    kept = float(cosine_similarity(rows, rows_0).mean())
    return {"kept": kept, "synthetic_precision": float(np.mean(shares))}


def feature_map(encoder: Encoder, image: NDArray[np.uint8], device: str) -> Tensor:
    """Features (C, rows, columns) of an image (H, W, 3), on the encoder's device."""
    rows, columns = image.shape[0] // STRIDE, image.shape[1] // STRIDE
    cropped = torch.from_numpy(np.ascontiguousarray(image[: rows * STRIDE, : columns * STRIDE]))
    return encoder.encode(cropped.permute(2, 0, 1)[None].to(device))[0]


def evenly_spread(items: Sequence[Item], count: int) -> tuple[Item, ...]:
    """At most `count` of the items, evenly spread."""
    if len(items) <= count:
        return tuple(items)
    return tuple(items[int(index)] for index in np.linspace(0, len(items) - 1, count).round())


def _hit_share(cells: Tensor, features: Tensor, pixels: Array) -> float:
    """Share of cells (N, C) whose most similar of all features (C, rows, columns) is within a cell of pixels (N, 2)."""
    columns = features.shape[2]
    best = (normalize(cells, dim=1) @ normalize(features.flatten(1), dim=0)).argmax(dim=1).cpu().numpy()
    found = STRIDE * (np.stack([best % columns, best // columns], axis=1) + 0.5)
    return float(np.mean(np.abs(found - pixels).max(axis=1) <= STRIDE))
