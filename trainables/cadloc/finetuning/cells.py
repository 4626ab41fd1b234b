"""What a step of fine-tuning learns from: pictures, the cells of them that count, and what those cells see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from cadloc.encoders.images import STRIDE
from cadloc.samples import Batch

Role: TypeAlias = Literal["photos", "renders", "first", "second"]
"""Cells of `photos` and `renders` see the same points, in order; so do those of two synthetic views, `first` and
`second`."""


@dataclass(frozen=True)
class CellBatch:
    """M pictures of one size with n cells each, and the cameras they were taken by.

    `images` (M, 3, H, W) uint8, `pixels` (M, n, 2), `points_cad` (M, n, 3), `cam_from_cad` (M, 4, 4), `intrinsics`
    (M, 3, 3), all float32 but for the images.
    """

    images: Tensor
    pixels: Tensor
    points_cad: Tensor
    cam_from_cad: Tensor
    intrinsics: Tensor

    @classmethod
    def stacked(cls, items: Sequence[CellBatch]) -> CellBatch:
        """Several batches, with equal sizes and numbers of cells, as one."""
        return cls(*(torch.cat([getattr(item, field.name) for item in items]) for field in fields(cls)))

    def to(self, device: str) -> CellBatch:
        """The batch on a device."""
        return CellBatch(*(getattr(self, field.name).to(device) for field in fields(self)))

    def __len__(self) -> int:
        return len(self.images)

    def with_features(self, rows: Tensor) -> Batch:
        """The cells as samples of a head, with their features (M · n, C)."""
        count = self.pixels.shape[1]
        return Batch(
            rows,
            self.pixels.flatten(0, 1),
            self.points_cad.flatten(0, 1),
            self.cam_from_cad.repeat_interleave(count, dim=0),
            self.intrinsics.repeat_interleave(count, dim=0),
        )


@dataclass(frozen=True)
class Step:
    """The pictures of one step by role. With `tolerance_cells` t, each cell of a render is read with the
    (2t + 1)² − 1 cells about it, that a photo's cell may be paired with the most similar."""

    cells: Mapping[Role, CellBatch]
    tolerance_cells: int = 0

    def __len__(self) -> int:
        return sum(len(batch) for batch in self.cells.values())

    @property
    def images(self) -> Tensor:
        """All pictures (images, 3, H, W), role by role."""
        return torch.cat([batch.images for batch in self.cells.values()])

    @property
    def pixels(self) -> list[Tensor]:
        """Where each picture is read, (n, 2) or, of renders with tolerance, (n · K, 2)."""
        return [
            neighbourhood(pixels, self.tolerance_cells) if role == "renders" else pixels
            for role, batch in self.cells.items()
            for pixels in batch.pixels
        ]

    def by_role(self, rows: Tensor) -> dict[Role, Tensor]:
        """Rows (N, C) of all pictures, apart: (M · n, C), or (M · n, K, C) of renders with tolerance."""
        candidates = (2 * self.tolerance_cells + 1) ** 2
        counts = [
            batch.pixels.shape[0] * batch.pixels.shape[1] * (candidates if role == "renders" else 1)
            for role, batch in self.cells.items()
        ]
        parts = dict(zip(self.cells, torch.split(rows, counts), strict=True))
        if self.tolerance_cells and "renders" in parts:
            parts["renders"] = parts["renders"].view(-1, candidates, rows.shape[1])
        return parts


def neighbourhood(pixels: Tensor, tolerance_cells: int) -> Tensor:
    """Pixels (n · K, 2) of the cells up to so many rows and columns from pixels (n, 2), those themselves included."""
    shifts = STRIDE * torch.arange(-tolerance_cells, tolerance_cells + 1, device=pixels.device, dtype=pixels.dtype)
    offsets = torch.cartesian_prod(shifts, shifts).view(-1, 2)
    return (pixels[:, None] + offsets).flatten(0, 1)


def read_cells(maps: Tensor, pixels: Sequence[Tensor]) -> Tensor:
    """Features (Σ n_i, C) at pixels (n_i, 2) of each of the maps (M, C, rows, columns).

    Interpolated between the cells around; at a cell's centre they are the cell's own. Beyond the border they are
    those of the border.
    """
    size_px = torch.tensor([maps.shape[3], maps.shape[2]], device=maps.device) * STRIDE
    rows = []
    for index, places in enumerate(pixels):
        grid = (2 * places / size_px - 1)[None, :, None]
        sampled = grid_sample(maps[index : index + 1], grid, align_corners=False, padding_mode="border")
        rows.append(sampled[0, :, :, 0].T)
    return torch.cat(rows)
