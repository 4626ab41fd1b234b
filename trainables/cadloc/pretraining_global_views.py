"""Encoded views of made-up buildings, which of them see the same surface, and whether a vector finds those.

Global features are trained and measured on them: whole views, not crops, for it is whole images that are retrieved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cadloc.augmentation import Warp
from cadloc.encoders import Encoder
from cadloc.encoders.images import STRIDE
from cadloc.encoding import encode_image
from cadloc.geometry import Array, project, transform_points
from cadloc.pretraining_pairs import SAME_DEPTH, PooledBuilding, WarpedView, grid_of, plain_views, points_of, under_sky
from cadloc.pretraining_photos import photographed
from cadloc.pretraining_validation import KINDS

_EVERY = 3
_SMALLEST = 0.6
_TURN_DEG = 5.0

Describe = Callable[[NDArray[np.float16]], NDArray[np.float32]]
"""Vectors (V, G) of length 1, or near, of the cells (V, N, C) of V images."""


@dataclass(frozen=True)
class EncodedViews:
    """V views: their cells' features (V, N, C) float16, the `covisibility` (V, V) of each two, and the appearance (V,)
    that each was rendered in. Views of different buildings have nothing in common."""

    cells: NDArray[np.float16]
    covisibility: NDArray[np.float32]
    appearance: NDArray[np.int_]

    def pairs(self, min_covisibility: float) -> NDArray[np.int_]:
        """Pairs (P, 2) of different views that have so much in common; both orders."""
        common = self.covisibility.copy()
        np.fill_diagonal(common, 0)
        return np.argwhere(common > min_covisibility)


def covisibility(building: PooledBuilding) -> NDArray[np.float32]:
    """How much (V, V) each two views have in common, from 0 to 1.

    The share of one view's surface cells that the other sees, and the other way round, in their harmonic mean: it is
    small where a close-up shows a small part of a wide view. Every third cell of a row and of a column is asked.
    """
    views = plain_views(building)
    if not views:
        return np.zeros((0, 0), np.float32)
    points = [_some_points(view) for view in views]
    seen = np.array([[_share_seen(cad, view) for view in views] for cad in points])
    return np.asarray(2 * seen * seen.T / np.maximum(seen + seen.T, 1e-9), np.float32)


def _some_points(view: WarpedView) -> Array:
    rows, columns = view.warp.height_px // STRIDE, view.warp.width_px // STRIDE
    pixels = grid_of(view).reshape(rows, columns, 2)[1::_EVERY, 1::_EVERY].reshape(-1, 2)
    points_cad, _ = points_of(view, pixels)
    return points_cad[np.isfinite(points_cad).all(axis=1)]


def _share_seen(points_cad: Array, view: WarpedView) -> float:
    """Share of surface points (N, 3) that a view sees; 0 of none."""
    if not len(points_cad):
        return 0.0
    points_cam = transform_points(view.warped_from_cad, points_cad)
    pixels = project(points_cam, view.warp.intrinsics)
    with np.errstate(invalid="ignore"):
        inside = ((pixels >= 0) & (pixels < [view.warp.width_px, view.warp.height_px])).all(axis=1)
        same = np.abs(view.depth_m(pixels) / points_cam[:, 2] - 1) < SAME_DEPTH
    return float(np.mean(inside & (points_cam[:, 2] > 0) & same))


def to_learn_from(encoder: Encoder, buildings: Sequence[PooledBuilding], kept: int, seed: int) -> EncodedViews:
    """Every view once, as a random camera takes it under a random sky: 0.6 to 1 times its size, turned by up to 5°.

    `kept` cells of each are drawn, with repetition where there are fewer. A draw depends on seed, building and view.
    """
    cells = [
        _drawn_cells(encoder, view, kept, np.random.default_rng([seed, index, number]))
        for index, building in enumerate(buildings)
        for number, view in enumerate(plain_views(building))
    ]
    return EncodedViews(np.stack(cells), _all_covisibilities(buildings), _appearances(buildings))


def _drawn_cells(encoder: Encoder, view: WarpedView, kept: int, generator: np.random.Generator) -> NDArray[np.float16]:
    scale = float(np.exp(generator.uniform(np.log(_SMALLEST), 0)))
    width, height = (max(STRIDE, int(side * scale) // STRIDE * STRIDE) for side in view.building.size_px)
    K = view.warp.intrinsics.copy()
    K[:2] *= scale
    turned = WarpedView(
        view.building, view.index, Warp(K, float(generator.uniform(-_TURN_DEG, _TURN_DEG)), width, height)
    )
    image, _ = photographed(*turned.image(), generator)
    cells = _cells(encoder, image)
    return cells[generator.choice(len(cells), kept, replace=len(cells) < kept)]


def _cells(encoder: Encoder, image: NDArray[np.uint8]) -> NDArray[np.float16]:
    features = encode_image(encoder, image)
    return features.reshape(-1, features.shape[-1]).astype(np.float16)


def _all_covisibilities(buildings: Sequence[PooledBuilding]) -> NDArray[np.float32]:
    ends = np.cumsum([0, *(len(building.images) for building in buildings)])
    whole = np.zeros((ends[-1], ends[-1]), np.float32)
    for building, first, end in zip(buildings, ends[:-1], ends[1:], strict=True):
        whole[first:end, first:end] = covisibility(building)
    return whole


def _appearances(buildings: Sequence[PooledBuilding]) -> NDArray[np.int_]:
    return np.concatenate([building.appearance for building in buildings])


@dataclass(frozen=True)
class Retrieval:
    """Held-out views, their photographs' cells (V, N, C), and from how much in common on one view finds another.

    `photographs` may be of no building (0, N, C).
    """

    views: EncodedViews
    photographs: NDArray[np.float16]
    min_covisibility: float

    @classmethod
    def encoded(
        cls,
        encoder: Encoder,
        buildings: Sequence[PooledBuilding],
        photographs: Sequence[PooledBuilding],
        min_covisibility: float,
        seed: int,
    ) -> Retrieval:
        """Views as rendered, each under a sky of its own, and photographs as they are, those of `buildings`."""
        plain = [view for building in buildings for view in plain_views(building)]
        skies = (np.random.default_rng([seed, 3, number]) for number in range(len(plain)))
        cells = np.stack([_cells(encoder, under_sky(view, sky)) for view, sky in zip(plain, skies, strict=True)])
        taken = [_cells(encoder, view.image()[0]) for building in photographs for view in plain_views(building)]
        views = EncodedViews(cells, _all_covisibilities(buildings), _appearances(buildings))
        return cls(views, np.stack(taken) if taken else cells[:0], min_covisibility)

    def recall(self, describe: Describe) -> dict[str, float]:
        """Recall at 1 of each kind: the share of queries whose nearest view has enough in common with them.

        A view is looked for among all held-out views of its own appearance, or of the others; a photograph among all
        renders. The view at the query's own pose is left out, and so are queries that no other view has enough in
        common with.
        """
        right = self.views.covisibility > self.min_covisibility
        database = describe(self.views.cells)
        return {
            kind: recall_at_1(queries @ database.T, allowed, right)
            for kind, queries, allowed in self._questions(describe, database)
        }

    def _questions(
        self, describe: Describe, rendered: NDArray[np.float32]
    ) -> Iterator[tuple[str, NDArray[np.float32], NDArray[np.bool_]]]:
        """Kind, vectors of the queries (V, G), and among which views (V, V) each is looked for."""
        look = self.views.appearance
        other = ~np.eye(len(look), dtype=bool)
        same = look[:, None] == look
        yield KINDS[0], rendered, other & same
        yield KINDS[1], rendered, other & ~same
        if len(self.photographs):
            yield KINDS[2], describe(self.photographs), other


def recall_at_1(likeness: NDArray[np.float32], allowed: NDArray[np.bool_], right: NDArray[np.bool_]) -> float:
    """Share of queries whose likest allowed view is right; all are (Q, V). NaN where no query has a right one."""
    answerable = (right & allowed).any(axis=1)
    best = np.where(allowed, likeness, -np.inf).argmax(axis=1)
    found = right[np.arange(len(best)), best][answerable]
    return float(found.mean()) if len(found) else float("nan")


def mean_pooled(cells: NDArray[np.float16]) -> NDArray[np.float32]:
    """The simplest global feature, to compare with: the cells' mean (V, C) of (V, N, C), at unit length."""
    means = cells.mean(axis=1, dtype=np.float32)
    return np.asarray(means / np.linalg.norm(means, axis=1, keepdims=True), np.float32)


def rounded(recalls: Mapping[str, float]) -> dict[str, float | None]:
    """Recalls for a card; None where there was nothing to find."""
    return {kind: None if np.isnan(value) else round(value, 4) for kind, value in recalls.items()}
