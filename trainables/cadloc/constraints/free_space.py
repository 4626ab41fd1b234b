"""Free space: where another view sees a surface, nothing stands before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cadloc.constraint_config import FreeSpaceConstraint
from cadloc.constraints.constraint import pixels_per_metre
from cadloc.datasets.ace_layout import View
from cadloc.geometry import inverse
from cadloc.rendering import NEAR_M
from cadloc.samples import Batch

BLOCK_PX = 4
_DRAW_SALT = 0x5EED_F4EE


@dataclass(frozen=True)
class ZBuffers:
    """M views' depths, coarse: `nearest_m` (M, H, W), `cam_from_cad` (M, 4, 4), `intrinsics` (M, 3, 3) of the grid.

    A cell is a block of `BLOCK_PX` pixels squared and holds the smallest depth in it and the eight blocks around it:
    beside a silhouette the nearer surface counts, so that no true point is taken to float. Cells in whose
    neighbourhood nothing is seen hold infinity.
    """

    nearest_m: Tensor
    cam_from_cad: Tensor
    intrinsics: Tensor

    @classmethod
    def of_views(cls, views: Sequence[View], most: int, device: str | torch.device = "cpu") -> ZBuffers:
        """Those of `most` of the views, evenly chosen. Raises InputError for views without depth."""
        held = min(most, len(views))
        chosen = [views[i * len(views) // held] for i in range(held)]
        blocks_from_pixels = np.diag([1 / BLOCK_PX, 1 / BLOCK_PX, 1.0])
        return cls(
            _stacked([coarse_depth_m(view.read_depth_m()) for view in chosen]).to(device),
            torch.tensor(np.stack([inverse(view.cad_from_cam) for view in chosen]), dtype=torch.float32, device=device),
            torch.tensor(
                np.stack([blocks_from_pixels @ view.intrinsics for view in chosen]), dtype=torch.float32, device=device
            ),
        )

    def __len__(self) -> int:
        return len(self.nearest_m)

    def in_views(self, points_cad: Tensor, view: Tensor) -> Tensor:
        """Points (B, 3) of `cad`, each in the `cam` of its view (B,)."""
        cam_from_cad = self.cam_from_cad[view]
        return torch.einsum("bij,bj->bi", cam_from_cad[:, :3, :3], points_cad) + cam_from_cad[:, :3, 3]

    def seen_m(self, points_cam: Tensor, view: Tensor) -> Tensor:
        """Depth (B,) of what views see in the direction of points (B, 3) in their `cam`; infinity outside the image.

        Means nothing for points less than `NEAR_M` before the camera. Piecewise constant: there is no gradient.
        """
        rows, columns = self.nearest_m.shape[1:]
        rays = points_cam.detach() / points_cam.detach()[:, 2:].clamp(min=NEAR_M)
        places = torch.einsum("bij,bj->bi", self.intrinsics[view][:, :2], rays)
        inside = (places >= 0).all(dim=1) & (places[:, 0] < columns) & (places[:, 1] < rows)
        column, row = torch.where(inside[:, None], places, 0.0).long().unbind(dim=1)
        return torch.where(inside, self.nearest_m[view, row, column], torch.inf)


@dataclass(frozen=True)
class FreeSpace:
    """Seen from a mapping view drawn anew for every sample and step, a point does not float before the surface.

    Behind it, it is merely hidden: that costs nothing. Nor does a point before the view's background: nothing says
    how far back it belongs, and in front of photographs stands what no model has.
    """

    config: FreeSpaceConstraint
    z_buffers: ZBuffers
    metres_per_pixel: float

    def penalties_px(self, coordinates: Tensor, batch: Batch) -> Tensor:
        """See `Constraint.penalties_px`; the same for the same `batch.seed`.

        The deviation counts along the view's ray, so that its gradient leads to the surface that the view sees.
        """
        view = self._drawn_views(batch)
        points_cam = self.z_buffers.in_views(coordinates, view)
        seen_m = self.z_buffers.seen_m(points_cam, view)
        free_m = seen_m * (1 - self.config.tolerance_pct / 100) - self.config.tolerance_m
        depth_m = points_cam.detach()[:, 2]
        floats = (depth_m >= NEAR_M) & (depth_m < free_m) & seen_m.isfinite()
        ratio = torch.where(floats, free_m, 0.0) / depth_m.clamp(min=NEAR_M)
        distance_m = torch.linalg.vector_norm(points_cam, dim=1)
        before_m = torch.where(floats, ratio * distance_m.detach() - distance_m, 0.0)
        return pixels_per_metre(batch, self.metres_per_pixel) * before_m

    def _drawn_views(self, batch: Batch) -> Tensor:
        """A view (B,) for each sample, drawn on the CPU: the same on every device."""
        generator = torch.Generator().manual_seed(batch.seed ^ _DRAW_SALT)
        drawn = batch.own(torch.randint(len(self.z_buffers), (batch.size_of_step,), generator=generator))
        return drawn.to(self.z_buffers.nearest_m.device, non_blocking=True)


def coarse_depth_m(depth_m: NDArray[np.float32]) -> NDArray[np.float32]:
    """Smallest known depth in each block and its eight neighbours, from depths (H, W) with 0 = nothing seen.

    (⌈H / 4⌉, ⌈W / 4⌉), infinity where nothing is seen in all nine.
    """
    seen_m = np.where(depth_m > 0, depth_m, np.float32(np.inf))
    rows, columns = (-(-side // BLOCK_PX) for side in depth_m.shape)
    padding = ((0, rows * BLOCK_PX - depth_m.shape[0]), (0, columns * BLOCK_PX - depth_m.shape[1]))
    padded = np.pad(seen_m, padding, constant_values=np.inf)
    smallest = padded.reshape(rows, BLOCK_PX, columns, BLOCK_PX).min(axis=(1, 3))
    # OpenCV's own border value is the largest finite number, which a block beside an empty edge would take over.
    return np.asarray(cv2.erode(smallest, np.ones((3, 3), np.uint8), borderType=cv2.BORDER_REPLICATE), np.float32)


def _stacked(depths_m: Sequence[NDArray[np.float32]]) -> Tensor:
    """(M, H, W); images smaller than the largest see nothing beyond their edges."""
    rows, columns = np.max([depth_m.shape for depth_m in depths_m], axis=0)
    stacked = np.full((len(depths_m), rows, columns), np.inf, np.float32)
    for target, depth_m in zip(stacked, depths_m, strict=True):
        target[: depth_m.shape[0], : depth_m.shape[1]] = depth_m
    return torch.from_numpy(stacked)
