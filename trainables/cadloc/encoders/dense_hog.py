"""Dense gradient histograms at two scales: nothing learned, the baseline that learning must beat.

The descriptor is SIFT's layout (Lowe, IJCV 2004, section 6) on a fixed grid with box windows in place of Gaussians,
and the Hellinger normalisation of RootSIFT (Arandjelović and Zisserman, CVPR 2012).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d, pad

from cadloc.encoders.images import STRIDE, grayscale

_ORIENTATIONS = 8
_BINS = 4  # per side
_BLOCK = STRIDE // 2  # bin edges of both scales fall on multiples of 4 px around a cell's middle
_BIN_BLOCKS = (2, 4)  # bins of 8 and of 16 px: windows of 32 and of 64 px
_FLOOR = 1e-3  # mean gradient, in full scales per pixel, below which a descriptor fades to zero


class DenseHogFeatures(nn.Module):
    """256 features per cell: 8 orientations × 4 × 4 bins × 2 window sizes, standardised per window."""

    stride = STRIDE
    dimensions = _ORIENTATIONS * _BINS * _BINS * len(_BIN_BLOCKS)

    def encode(self, images: Tensor) -> Tensor:
        """Features (B, 256, H/8, W/8) float32 of RGB images (B, 3, H, W) uint8."""
        blocks = avg_pool2d(oriented_gradients(grayscale(images)), _BLOCK)
        rows, columns = images.shape[2] // STRIDE, images.shape[3] // STRIDE
        return torch.cat([_window(blocks, size, rows, columns) for size in _BIN_BLOCKS], dim=1)


def oriented_gradients(gray: Tensor) -> Tensor:
    """Gradient magnitude (B, 8, H, W) shared among the nearest of eight directions, from luma (B, 1, H, W)."""
    smooth = torch.tensor([0.25, 0.5, 0.25])
    slope = torch.tensor([-0.5, 0.0, 0.5])
    kernels = torch.stack([torch.outer(smooth, slope), torch.outer(slope, smooth)]).unsqueeze(1).to(gray)
    gradient = conv2d(pad(gray, (1, 1, 1, 1), mode="replicate"), kernels)
    angles = torch.arange(_ORIENTATIONS, device=gray.device) * (2 * math.pi / _ORIENTATIONS)
    directions = torch.stack([angles.cos(), angles.sin()], dim=1)[:, :, None, None]
    along = conv2d(gradient, directions)
    # A raised cosine that reaches zero at the neighbouring directions: soft bins without an arc tangent.
    edge = math.cos(2 * math.pi / _ORIENTATIONS)
    magnitude = gradient.square().sum(1, keepdim=True).sqrt()
    return (along - edge * magnitude).clamp_min(0) / (1 - edge)


def _window(blocks: Tensor, size: int, rows: int, columns: int) -> Tensor:
    """Standardised histograms (B, 128, rows, columns) of the 4 × 4 bins of `size` blocks around each cell."""
    margin = _BINS // 2 * size - 1  # the window starts this many blocks before the cell's first one
    means = avg_pool2d(pad(blocks, (margin, margin, margin, margin)), size, stride=1)
    bins = [
        means[:, :, i : i + 2 * rows - 1 : 2, j : j + 2 * columns - 1 : 2]
        for i in range(0, _BINS * size, size)
        for j in range(0, _BINS * size, size)
    ]
    return _standardised(torch.cat(bins, dim=1))


def _standardised(histograms: Tensor) -> Tensor:
    shares = histograms / (histograms.mean(1, keepdim=True) + _FLOOR / _ORIENTATIONS)
    roots = shares.sqrt()
    centred = roots - roots.mean(1, keepdim=True)
    return centred / centred.square().mean(1, keepdim=True).add(1e-2).sqrt()
