"""Training samples in memory: cells of all views side by side, and batches of them drawn across the views."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cadloc.buffer import Buffer
from cadloc.queries import Queries
from cadloc.workers import ALONE, Workers

_JOINED = ("features", "pixels", "scene_coordinates", "cam_from_cad", "intrinsics")
_PIECE = 2**16
"""Samples that are looked at together."""


class SceneScale(NamedTuple):
    """How large a scene is, and how its samples see it: what thresholds of losses and constraints follow.

    `diameter_m` is the diagonal of the box of its samples, `metres_per_pixel` the median of depth by focal length (how
    far one pixel of error moves a scene coordinate), `farthest_m` the largest depth of a sample.
    """

    diameter_m: float
    metres_per_pixel: float
    farthest_m: float


@dataclass(frozen=True)
class Batch:
    """B samples with the camera of each; coordinates in `cad`, metres. Everything float32.

    `features` (B, C), `pixels` (B, 2), `scene_coordinates` (B, 3), NaN where unknown, `cam_from_cad` (B, 4, 4),
    `intrinsics` (B, 3, 3). `global_features` (B, G) are those of the images, if a head asks for any. `seed`
    is for what is drawn anew in this very step; `part` is the part of the samples that the batch was drawn from
    (`Head.parts`); `complete` says that no scene coordinate is unknown. The step's batch has as many samples from each
    of the `workers`; these are one worker's.
    """

    features: Tensor
    pixels: Tensor
    scene_coordinates: Tensor
    cam_from_cad: Tensor
    intrinsics: Tensor
    global_features: Tensor | None = None
    seed: int = 0
    part: int = 0
    complete: bool = True
    workers: Workers = ALONE

    def __len__(self) -> int:
        return len(self.features)

    @property
    def size_of_step(self) -> int:
        """Samples of the whole step."""
        return len(self) * self.workers.size

    def own(self, drawn: Tensor) -> Tensor:
        """These samples' rows (B, ...) of what was drawn for the whole step, (`size_of_step`, ...)."""
        return drawn[self.workers.rank * len(self) : (self.workers.rank + 1) * len(self)]

    @cached_property
    def known(self) -> Tensor:
        """Whether the scene coordinate is known, (B,) bool."""
        return torch.isfinite(self.scene_coordinates).all(dim=1)

    @cached_property
    def targets(self) -> Tensor:
        """Scene coordinates (B, 3), zeros where unknown: finite, so that no NaN reaches a gradient."""
        return torch.nan_to_num(self.scene_coordinates)

    @cached_property
    def depth_m(self) -> Tensor:
        """Depth (B,) of the scene coordinates in their cameras, 1 where unknown."""
        return torch.where(self.known, self.in_camera(self.targets)[:, 2], 1.0)

    @cached_property
    def focal_px(self) -> Tensor:
        """Geometric mean of the two focal lengths, (B,)."""
        return (self.intrinsics[:, 0, 0] * self.intrinsics[:, 1, 1]).sqrt()

    @cached_property
    def rays_cam(self) -> Tensor:
        """Points (B, 3) in `cam` at depth 1 m behind the pixels."""
        focal_px = self.intrinsics.diagonal(dim1=1, dim2=2)[:, :2]
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

    def share_within(self, points_cad: Tensor, error_px: float) -> Tensor:
        """Share of predicted points (B, 3) that project to less than `error_px` from their pixels, a scalar."""
        points_cam = self.in_camera(points_cad)
        pixels = torch.einsum("bij,bj->bi", self.intrinsics[:, :2], points_cam / points_cam[:, 2:])
        near = torch.linalg.vector_norm(pixels - self.pixels, dim=1) < error_px
        share: Tensor = (near & (points_cam[:, 2] > 0)).float().mean()
        return share


@dataclass(frozen=True)
class Samples:
    """N samples of V cameras. `features` (N, C) float16, `view` (N,) int32 or int64 into the cameras, `global_features`
    (V, G) of the cameras where a head asks for any, the rest as in `Batch`.

    On a CPU, those of a buffer lie in its files, mapped into memory: all processes share one copy, to which nobody may
    write. Nothing else here grows with N and lasts.
    """

    features: Tensor
    pixels: Tensor
    view: Tensor
    scene_coordinates: Tensor
    cam_from_cad: Tensor
    intrinsics: Tensor
    global_features: Tensor | None = None

    @classmethod
    def from_buffer(
        cls, buffer: Buffer, device: str = "cpu", global_features: NDArray[np.float32] | None = None
    ) -> Samples:
        """The buffer where it lies, on other devices than the CPU a copy of it. Its mapping views' `global_features`
        (M, G) serve all passes over a view."""
        samples = cls._of(
            device,
            buffer.features,
            buffer.pixels,
            buffer.view,
            buffer.scene_coordinates,
            buffer.cam_from_cad,
            buffer.intrinsics,
        )
        return samples._told(global_features)

    @classmethod
    def joined(cls, parts: Sequence[Samples]) -> Samples:
        """The samples of several buffers as one, a copy of them: cameras are numbered on."""
        if len(parts) == 1:
            return parts[0]
        starts = np.cumsum([0, *(len(part.cam_from_cad) for part in parts)])
        view = torch.cat([part.view + int(start) for part, start in zip(parts, starts[:-1], strict=True)])
        joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in _JOINED}
        told = [part.global_features for part in parts if part.global_features is not None]
        return cls(view=view, global_features=torch.cat(told) if told else None, **joined)

    @classmethod
    def from_queries(
        cls, queries: Queries, device: str = "cpu", global_features: NDArray[np.float32] | None = None
    ) -> Samples:
        """The cells of encoded images whose scene coordinate is known: on them, losses can be validated."""
        known = np.isfinite(queries.scene_coordinates).all(axis=-1)  # (N,)
        pixels = np.concatenate([queries.pixels(image) for image in range(len(queries))])
        view = np.repeat(np.arange(len(queries)), queries.grids.prod(axis=1))
        samples = cls._of(
            device,
            queries.features[known],
            pixels[known],
            view[known],
            queries.scene_coordinates[known],
            queries.cam_from_cad,
            queries.intrinsics,
        )
        return samples._told(global_features)

    @classmethod
    def _of(cls, device: str, features: object, *arrays: object) -> Samples:
        pixels, view, *rest = (np.asarray(array) for array in arrays)
        return cls(
            _tensor(np.asarray(features), device),
            _float32(pixels, device),
            _tensor(np.asarray(view, np.int32), device),
            *(_float32(array, device) for array in rest),
        )

    def _told(self, global_features: NDArray[np.float32] | None) -> Samples:
        """With the global features (I, G) of images; cameras come in equal groups, one group per image."""
        if global_features is None:
            return self
        repeated = np.repeat(global_features, len(self.cam_from_cad) // len(global_features), axis=0)
        return replace(self, global_features=_float32(repeated, str(self.features.device)))

    def __len__(self) -> int:
        return len(self.features)

    @property
    def dimensions(self) -> int:
        """Channels C of a feature."""
        return self.features.shape[1]

    def batch(self, indices: Tensor, seed: int = 0, part: int = 0, workers: Workers = ALONE) -> Batch:
        """The samples at `indices` (B,); `seed`, `part` and `workers` are the batch's."""
        # `index_select` copies whole rows, a few times faster than indexing by brackets on a CPU.
        view = self.view.index_select(0, indices)
        return Batch(
            self.features.index_select(0, indices).float(),
            self.pixels.index_select(0, indices),
            self.scene_coordinates.index_select(0, indices),
            self.cam_from_cad.index_select(0, view),
            self.intrinsics.index_select(0, view),
            None if self.global_features is None else self.global_features.index_select(0, view),
            seed,
            part,
            self.complete,
            workers,
        )

    def subset(self, indices: Tensor) -> Samples:
        """The samples at `indices` (P,) and all cameras."""
        return replace(
            self,
            features=self.features.index_select(0, indices),
            pixels=self.pixels.index_select(0, indices),
            view=self.view.index_select(0, indices),
            scene_coordinates=self.scene_coordinates.index_select(0, indices),
        )

    @property
    def known(self) -> Tensor:
        """Indices of the samples whose scene coordinate is known: worked out anew, and not kept."""
        if self.complete:
            return torch.arange(len(self), device=self.features.device)
        return torch.cat([start + finite.nonzero()[:, 0] for start, finite in self._finite()])

    @property
    def known_points(self) -> Tensor:
        """The scene coordinates (K, 3) that are known: where all are, they themselves and no copy."""
        return self.scene_coordinates if self.complete else self.scene_coordinates.index_select(0, self.known)

    @cached_property
    def complete(self) -> bool:
        """Whether every scene coordinate is known."""
        return all(bool(finite.all()) for _, finite in self._finite())

    def _finite(self) -> Iterator[tuple[int, Tensor]]:
        """Piece by piece, where it starts and whether the scene coordinates are known, (P,) bool."""
        for start in range(0, len(self), _PIECE):
            yield start, torch.isfinite(self.scene_coordinates[start : start + _PIECE]).all(dim=1)

    @cached_property
    def scale(self) -> SceneScale:
        """Of the scene, by at most 20,000 of the samples that are known; zeros where none is."""
        known = self.known
        some = known[:: max(1, -(-len(known) // 20_000))]
        if not len(some):
            return SceneScale(0.0, 0.0, 0.0)
        batch = self.batch(some)
        corners = torch.stack([batch.targets.amin(dim=0), batch.targets.amax(dim=0)])
        metres_per_pixel = float((batch.depth_m / batch.intrinsics[:, 0, 0]).median())
        return SceneScale(float((corners[1] - corners[0]).norm()), metres_per_pixel, float(batch.depth_m.max()))

    @property
    def metres_per_pixel(self) -> float:
        """`SceneScale.metres_per_pixel`."""
        return self.scale.metres_per_pixel


def _float32(array: NDArray[Any], device: str) -> Tensor:
    return _tensor(np.asarray(array, np.float32), device)


def _tensor(array: NDArray[Any], device: str) -> Tensor:
    """The array itself where it can be: a map of a file stays one."""
    with warnings.catch_warnings():
        # Nothing here writes to samples; copying to be safe from it would cost every trial a buffer.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array).to(device)
