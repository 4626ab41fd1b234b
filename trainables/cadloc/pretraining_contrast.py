"""Contrastive pre-training: the same surface point must give the same feature, another point another one.

Dense correspondence with a symmetric InfoNCE loss (van den Oord et al., 2018) over pairs of views of made-up buildings
whose materials, light, sky and camera differ from view to view. The negatives are cells of the same images and of the
whole batch, all workers' parts included, that see another point; windows and columns of one facade look alike, so
those of the same building are the hard ones. The hardest of the other image may count once more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, grid_sample, normalize

from cadloc.contract import Fault, InputError
from cadloc.encoders.images import STRIDE, features_of
from cadloc.geometry import Array
from cadloc.pretraining_config import Contrastive
from cadloc.pretraining_objective import Material, Objective, Trainee, Update, as_images
from cadloc.pretraining_pairs import Grid, Pair, draw_batch
from cadloc.workers import ALONE, Workers

Pairs: TypeAlias = tuple[list[Pair], NDArray[np.int_]]
"""Pairs and each one's building."""


class Contrast(Objective):
    """Draws pairs, and compares their features."""

    def __init__(self, method: Contrastive, material: Material) -> None:
        super().__init__()
        self._method, self._material = method, material
        groups = -(-method.pairs // method.pairs_per_building)
        self._groups = material.workers.share(groups, "method.pairs / method.pairs_per_building")
        if material.workers.size > 1 and method.pairs % method.pairs_per_building:
            # Groups of one size: every worker's part must weigh the same.
            found, allowed = (
                str(method.pairs),
                f"whole groups of method.pairs_per_building = {method.pairs_per_building}",
            )
            raise InputError(Fault("configuration", "method.pairs", found, f"{allowed} for several workers"))

    def draw(self, step: int) -> Pairs:
        """This worker's groups of pairs, each of one building."""
        method, drawn = self._method, []
        for group in self._groups:
            pairs = min(method.pairs_per_building, method.pairs - group * method.pairs_per_building)
            generator = self._material.generator(step, group)
            drawn.append(
                draw_batch(self._material.buildings, self._material.size_px, pairs, pairs, method.matches, generator)
            )
        return [pair for pairs_, _ in drawn for pair in pairs_], np.concatenate([owners for _, owners in drawn])

    def loss(self, encoder: Trainee, drawn: Pairs, update: Update) -> Tensor:
        """`batch_loss` of the pairs."""
        method = self._method
        hard = method.hard_negatives, method.hard_distance
        workers, precision = self._material.workers, self._material.config.precision
        return batch_loss(encoder, *drawn, method.temperature, hard=hard, workers=workers, precision=precision)


def batch_loss(
    encoder: nn.Module,
    pairs: Sequence[Pair],
    owners: NDArray[np.int_],
    temperature: float,
    *,
    hard: tuple[int, float] = (0, 2.0),
    workers: Workers = ALONE,
    precision: str = "float32",
) -> Tensor:
    """InfoNCE of a batch of pairs with the same number n of matches each; `owners` (pairs,) tells their buildings.

    `hard`: how many hardest negatives of the other image count once more, and how far off they are, in reaches. The
    rows are this worker's matches, the columns all workers'.
    """
    device = next(encoder.parameters()).device
    images = as_images([pair.image_a for pair in pairs] + [pair.image_b for pair in pairs], device)
    features_a, features_b = torch.split(features_of(encoder, images, precision), len(pairs))
    rows_a = at_cells(features_a, [pair.match.cells_a for pair in pairs])
    rows_b = at_pixels(features_b, [pair.match.pixels_b for pair in pairs])
    others_a = at_cells(features_a, [pair.others_a.cells for pair in pairs])
    others_b = at_cells(features_b, [pair.others_b.cells for pair in pairs])
    points = _joined((pair.match.points_cad for pair in pairs), device)
    reach_m = _joined((pair.match.reach_m for pair in pairs), device)
    owner = torch.from_numpy(owners).to(device)
    owner_all, points_all = workers.gathered(owner), workers.gathered(points)
    first = workers.rank * len(points)
    same = same_point(points, reach_m, points_all, owner, owner_all)
    same[torch.arange(len(points)), first + torch.arange(len(points))] = False
    same_b, same_a = (
        same_point(points, reach_m, workers.gathered(_joined((c.points_cad for c in others), device)), owner, owner_all)
        for others in ([pair.others_b for pair in pairs], [pair.others_a for pair in pairs])
    )
    harder_b, harder_a = (
        hardest(rows, features, points, reach_m, grids, hard)
        for rows, features, grids in (
            (rows_a, features_b, [pair.grid_b for pair in pairs]),
            (rows_b, features_a, [pair.grid_a for pair in pairs]),
        )
    )
    columns_b = torch.cat([workers.gathered(rows_b), workers.gathered(others_b)])
    columns_a = torch.cat([workers.gathered(rows_a), workers.gathered(others_a)])
    forward = info_nce(rows_a, columns_b, torch.cat([same, same_b], 1), temperature, first, harder_b)
    backward = info_nce(rows_b, columns_a, torch.cat([same, same_a], 1), temperature, first, harder_a)
    return (forward + backward) / 2


def info_nce(
    rows: Tensor,
    columns: Tensor,
    ignored: Tensor,
    temperature: float,
    first: int = 0,
    harder: Tensor | None = None,
) -> Tensor:
    """Mean over rows i of -log softmax_j(cosine(row i, column j) / temperature) at j = first + i.

    Rows (N, C), columns (M, C) with M >= first + N; columns marked in `ignored` (N, M) are no negatives of that row.
    `harder` (N, k) are cosines with further negatives of each row, -inf for none.
    """
    cosines = normalize(rows, dim=1) @ normalize(columns, dim=1).T
    cosines = cosines.masked_fill(ignored, -math.inf)
    if harder is not None:
        cosines = torch.cat([cosines, harder], 1)
    return cross_entropy(cosines / temperature, first + torch.arange(len(rows), device=rows.device))


def same_point(
    points: Tensor, reach_m: Tensor, others: Tensor, owner: Tensor, owner_of_others: Tensor | None = None
) -> Tensor:
    """Which of `others` (M, 3) lie within reach (N,) of which `points` (N, 3) of the same building: (N, M) bool.

    Points and others come in equal runs per pair; `owner` (pairs,) is each pair's building, and `owner_of_others` the
    others', if their pairs are not the same. NaN is nowhere near.
    """
    columns_owner = owner if owner_of_others is None else owner_of_others
    near = torch.cdist(points, others) < reach_m[:, None]
    rows = owner.repeat_interleave(len(points) // len(owner))
    columns = columns_owner.repeat_interleave(len(others) // len(columns_owner))
    return near & (rows[:, None] == columns[None, :])


def hardest(
    rows: Tensor,
    features: Tensor,
    points: Tensor,
    reach_m: Tensor,
    grids: Sequence[Grid],
    hard: tuple[int, float],
) -> Tensor | None:
    """Largest cosines (pairs · n, k) of rows (pairs · n, C) with cells of their pair's map (pairs, C, rows, columns)
    that see another point, -inf where there are fewer; None for k = 0.

    `hard` is k and how many reaches off a point must be. Cells of which nothing is known are left out.
    """
    count, distance = hard
    if not count:
        return None
    pairs, matches = len(grids), len(rows) // len(grids)
    cells = normalize(features.flatten(2), dim=1)
    cosines = normalize(rows, dim=1).reshape(pairs, matches, -1) @ cells
    seen = torch.from_numpy(np.stack([grid.points_cad for grid in grids])).to(rows.device)
    usable = torch.from_numpy(np.stack([grid.usable for grid in grids])).to(rows.device)
    far_m = (distance * reach_m).reshape(pairs, matches, 1)
    near = torch.cdist(points.reshape(pairs, matches, 3), seen) < far_m
    cosines = cosines.masked_fill(near | ~usable[:, None], -math.inf)
    top: Tensor = cosines.topk(min(count, cosines.shape[2]), dim=2).values
    return top.flatten(0, 1)


def at_cells(features: Tensor, cells: Sequence[NDArray[np.int_]]) -> Tensor:
    """Features (images · n, C) of n cells per image, by flat index, from maps (images, C, rows, columns)."""
    index = torch.from_numpy(np.stack(cells)).to(features.device)[:, None, :].expand(-1, features.shape[1], -1)
    return features.flatten(2).gather(2, index).transpose(1, 2).flatten(0, 1)


def at_pixels(features: Tensor, pixels: Sequence[Array]) -> Tensor:
    """Features (images · n, C) at n pixels (n, 2) per image, interpolated between the cells around."""
    size_px = torch.tensor([features.shape[3], features.shape[2]]) * STRIDE
    grid = (2 * torch.from_numpy(np.stack(pixels)).float() / size_px - 1).to(features.device)
    sampled = grid_sample(features, grid[:, :, None], align_corners=False, padding_mode="border")
    return sampled[..., 0].transpose(1, 2).flatten(0, 1)


def _joined(arrays: Iterable[NDArray[np.float64]], device: torch.device) -> Tensor:
    return torch.from_numpy(np.concatenate(list(arrays))).to(device)
