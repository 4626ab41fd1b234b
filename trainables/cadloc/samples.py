"""Training samples in memory: cells of all views side by side, and batches of them drawn across the views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cadloc.buffer import Buffer
from cadloc.contract import Fault, InputError
from cadloc.queries import Queries

_JOINED = ("features", "pixels", "scene_coordinates", "cam_from_cad", "intrinsics")
_SHUFFLE_SALT = 8191
"""Sets the generator of the order of samples apart from all others that start from the same seed."""


@dataclass(frozen=True)
class Batch:
    """B samples with the camera of each; coordinates in `cad`, metres. Everything float32.

    `features` (B, C), `pixels` (B, 2), `scene_coordinates` (B, 3), `cam_from_cad` (B, 4, 4), `intrinsics` (B, 3, 3).
    """

    features: Tensor
    pixels: Tensor
    scene_coordinates: Tensor
    cam_from_cad: Tensor
    intrinsics: Tensor

    def __len__(self) -> int:
        return len(self.features)

    @cached_property
    def rays_cam(self) -> Tensor:
        """Points (B, 3) in `cam` at depth 1 m behind the pixels."""
        focal_px = self.intrinsics[:, [0, 1], [0, 1]]
        xy = (self.pixels - self.intrinsics[:, :2, 2]) / focal_px
        return torch.cat([xy, torch.ones_like(xy[:, :1])], dim=1)

    @cached_property
    def centres_cad(self) -> Tensor:
        """Camera centres (B, 3) in `cad`."""
        return -torch.einsum("bji,bj->bi", self.cam_from_cad[:, :3, :3], self.cam_from_cad[:, :3, 3])

    @cached_property
    def directions_cad(self) -> Tensor:
        """Unit viewing directions (B, 3) in `cad`."""
        rays = torch.einsum("bji,bj->bi", self.cam_from_cad[:, :3, :3], self.rays_cam)
        return torch.nn.functional.normalize(rays, dim=1)

    def in_camera(self, points_cad: Tensor) -> Tensor:
        """Points (B, 3) of `cad`, one per sample, in that sample's `cam`."""
        return torch.einsum("bij,bj->bi", self.cam_from_cad[:, :3, :3], points_cad) + self.cam_from_cad[:, :3, 3]


@dataclass(frozen=True)
class Samples:
    """N samples of V cameras. `features` (N, C) float16, `view` (N,) int64 into the cameras, the rest as in `Batch`."""

    features: Tensor
    pixels: Tensor
    view: Tensor
    scene_coordinates: Tensor
    cam_from_cad: Tensor
    intrinsics: Tensor

    @classmethod
    def from_buffer(cls, buffer: Buffer, device: str = "cpu") -> Samples:
        """The buffer, read from disk once."""
        return cls._of(
            device,
            buffer.features,
            buffer.pixels,
            buffer.view,
            buffer.scene_coordinates,
            buffer.cam_from_cad,
            buffer.intrinsics,
        )

    @classmethod
    def joined(cls, parts: Sequence[Samples]) -> Samples:
        """The samples of several buffers as one: cameras are numbered on."""
        if len(parts) == 1:
            return parts[0]
        starts = np.cumsum([0, *(len(part.cam_from_cad) for part in parts)])
        view = torch.cat([part.view + int(start) for part, start in zip(parts, starts[:-1], strict=True)])
        joined = (torch.cat([getattr(part, name) for part in parts]) for name in _JOINED)
        features, pixels, scene_coordinates, cam_from_cad, intrinsics = joined
        return cls(features, pixels, view, scene_coordinates, cam_from_cad, intrinsics)

    @classmethod
    def from_queries(cls, queries: Queries, device: str = "cpu") -> Samples:
        """The cells of encoded images whose scene coordinate is known: on them, losses can be validated."""
        known = np.isfinite(queries.scene_coordinates).all(axis=-1)  # (N,)
        pixels = np.concatenate([queries.pixels(image) for image in range(len(queries))])
        view = np.repeat(np.arange(len(queries)), queries.grids.prod(axis=1))
        return cls._of(
            device,
            queries.features[known],
            pixels[known],
            view[known],
            queries.scene_coordinates[known],
            queries.cam_from_cad,
            queries.intrinsics,
        )

    @classmethod
    def _of(cls, device: str, features: object, *arrays: object) -> Samples:
        pixels, view, scene_coordinates, cam_from_cad, intrinsics = (np.asarray(array) for array in arrays)
        return cls(
            torch.from_numpy(np.array(features)).to(device),
            _float32(pixels, device),
            torch.from_numpy(view.astype(np.int64)).to(device),
            _float32(scene_coordinates, device),
            _float32(cam_from_cad, device),
            _float32(intrinsics, device),
        )

    def __len__(self) -> int:
        return len(self.features)

    @property
    def dimensions(self) -> int:
        """Channels C of a feature."""
        return self.features.shape[1]

    def batch(self, indices: Tensor) -> Batch:
        """The samples at `indices` (B,)."""
        view = self.view[indices]
        return Batch(
            self.features[indices].float(),
            self.pixels[indices],
            self.scene_coordinates[indices],
            self.cam_from_cad[view],
            self.intrinsics[view],
        )

    @cached_property
    def metres_per_pixel(self) -> float:
        """Median over the samples of depth by focal length: how far one pixel of error moves a scene coordinate."""
        some = torch.arange(0, len(self), -(-len(self) // 20_000), device=self.features.device)
        batch = self.batch(some)
        depth_m = batch.in_camera(batch.scene_coordinates)[:, 2]
        return float((depth_m / batch.intrinsics[:, 0, 0]).median())


def _float32(array: NDArray[Any], device: str) -> Tensor:
    return torch.from_numpy(array.astype(np.float32)).to(device)


class Shuffled:
    """Batches in an order drawn anew in every pass over the samples.

    Step `s` has the same batch whatever was asked for before: resuming needs no state but the step.
    """

    def __init__(self, samples: Samples, batch_size: int, seed: int) -> None:
        if batch_size > len(samples):
            allowed = f"at most the {len(samples)} samples of the buffer"
            raise InputError(Fault("configuration", "training.batch_size", str(batch_size), allowed))
        self._samples, self._batch_size, self._seed = samples, batch_size, seed
        self._pass, self._order = -1, torch.empty(0, dtype=torch.int64)

    def batch(self, step: int) -> Batch:
        """Batch number `step`, counted from 0; the samples left over at the end of a pass are skipped."""
        pass_, place = divmod(step, len(self._samples) // self._batch_size)
        if pass_ != self._pass:
            generator = torch.Generator().manual_seed(self._seed * 1_000_003 + pass_ + _SHUFFLE_SALT)
            order = torch.randperm(len(self._samples), generator=generator)
            self._pass, self._order = pass_, order.to(self._samples.features.device)
        return self._samples.batch(self._order[place * self._batch_size : (place + 1) * self._batch_size])
