"""Features of the chosen cells of augmented views: one image after another on the CPU, in batches on a device.

On one CPU core batches gain nothing, they only leave the caches: images are encoded one by one, as they are decoded.
On a device, threads decode first; then batches are interpolated, lit, encoded and gathered there. Images of a batch
are of one size: beside a larger one, cells at the border of a smaller would see what lies outside it, where alone they
see the convolutions' padding. On CUDA, cuDNN's float32 convolutions round their factors to TF32 unless told otherwise:
ten bits, as many as stored features have.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from cadloc.augmented_views import AugmentedView
from cadloc.encoders import Encoder
from cadloc.encoding import encode_image
from cadloc.geometry import Array

IMAGES_AT_ONCE = 8
DECODERS = 8

Decode: TypeAlias = Callable[[], Sequence[AugmentedView]]
"""Reads one view and says what every pass sees of it."""

Encoded: TypeAlias = Iterator[tuple[AugmentedView, NDArray[np.float16]]]
"""Augmented views in order, each with the features (N, C) of its chosen cells."""


def features_one_by_one(encoder: Encoder, views: Sequence[Decode]) -> Encoded:
    """What the encoder says of the augmented views' chosen cells; one view is in memory at a time."""
    for decode in views:
        for view in decode():
            features = encode_image(encoder, view.image())
            yield view, features.reshape(-1, features.shape[-1])[view.cells].astype(np.float16)


def features_in_batches(encoder: Encoder, views: Sequence[Decode], device: str) -> Encoded:
    """The same, on the encoder's `device`, up to the interpolation of pixels and the order of sums.

    Batches are formed of all the views given here, in an order that does not depend on timing. What shares a batch
    with a view changes the order of sums at most.
    """
    with ThreadPoolExecutor(DECODERS) as pool:
        decoded = [view for passes in pool.map(lambda decode: decode(), views) for view in passes]
    found: dict[int, NDArray[np.float16]] = {}
    for batch in _batches(decoded):
        found |= zip(batch, _features(encoder, [decoded[i] for i in batch], device), strict=True)
    yield from ((view, found[i]) for i, view in enumerate(decoded))


def images_together(views: Sequence[AugmentedView], device: str) -> Tensor:
    """Images to encode (B, 3, H, W) uint8 of views that are alike in the sizes of their originals and of their warps.

    One affine interpolation of the originals, reflected about the centres of their border pixels and rounded, then each
    image's own light, as `AugmentedView.image` has them.
    """
    originals = torch.stack([torch.from_numpy(view.original) for view in views]).to(device)
    pixels = originals.permute(0, 3, 1, 2).float()
    # Where corners are aligned, -1 and 1 are the centres of border pixels: OpenCV's BORDER_REFLECT_101 turns there too.
    grid = affine_grid(_normalised_maps(views).to(device), [len(views), 3, *_size(views[0])], align_corners=True)
    warped = grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=True).round_()
    brightness, contrast = (
        torch.tensor(factors, dtype=torch.float32, device=device)[:, None, None, None]
        for factors in zip(*((view.jitter.brightness, view.jitter.contrast) for view in views), strict=True)
    )
    bright = warped.mul_(brightness)
    mean = bright.mean((1, 2, 3), keepdim=True)
    return ((bright - mean) * contrast + mean + 0.5).clamp_(0, 255).to(torch.uint8)


def _batches(views: Sequence[AugmentedView]) -> Iterator[list[int]]:
    """Indices of views that are alike in the sizes of their originals and of their warps, few at once."""
    sizes: defaultdict[object, list[int]] = defaultdict(list)
    for i, view in enumerate(views):
        sizes[view.original.shape, _size(view)].append(i)
    for alike in sizes.values():
        yield from (alike[k : k + IMAGES_AT_ONCE] for k in range(0, len(alike), IMAGES_AT_ONCE))


def _features(encoder: Encoder, views: Sequence[AugmentedView], device: str) -> list[NDArray[np.float16]]:
    maps = encoder.encode(images_together(views, device))
    cells = maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])
    places = np.concatenate([i * len(cells) // len(views) + view.cells for i, view in enumerate(views)])
    chosen = cells[torch.from_numpy(places).to(device)].half().cpu().numpy()
    return np.split(chosen, np.cumsum([len(view.cells) for view in views])[:-1])


def _normalised_maps(views: Sequence[AugmentedView]) -> Tensor:
    """Affine maps (B, 2, 3) from images to their originals, both from -1 to 1 between the centres of border pixels."""
    maps = []
    for view in views:
        original_from_warped = np.linalg.inv(view.warp.warped_from_pixels(view.original_intrinsics))
        unit_from_original = np.linalg.inv(_from_unit(*view.original.shape[:2]))
        maps.append((unit_from_original @ original_from_warped @ _from_unit(*_size(view)))[:2])
    return torch.from_numpy(np.stack(maps)).float()


def _from_unit(height: int, width: int) -> Array:
    """Pixels, the first one's centre at 0.5, from coordinates of -1 to 1 between the centres of border ones: (3, 3)."""
    return np.array([[(width - 1) / 2, 0, width / 2], [0, (height - 1) / 2, height / 2], [0, 0, 1]])


def _size(view: AugmentedView) -> tuple[int, int]:
    return view.warp.height_px, view.warp.width_px
