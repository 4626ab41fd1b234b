"""Losses between the features of paired cells: row i of one and row i of the other see the same surface point.

Rows are (N, C) as the encoder gives them. Where only directions count (cosines, InfoNCE) they are normalised here,
and the features themselves stay as a head will read them.
"""

from __future__ import annotations

import math
from typing import assert_never

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy, mse_loss, normalize, relu

from cadloc.finetuning.settings import BarlowTwins, CosineMargin, InfoNce, MeanSquaredError, PairLoss, VicReg

VARIANCE_FLOOR = 1e-4
"""VICReg's and Barlow Twins' guard under the square root of a variance."""


def pair_loss(config: PairLoss, rows_a: Tensor, rows_b: Tensor, points_cad: Tensor, diameter_m: float) -> Tensor:
    """The configured loss of rows (N, C) and (N, C) that see `points_cad` (N, 3), in a scene of that diameter."""
    match config:
        case MeanSquaredError():
            return mse_loss(rows_a, rows_b)
        case CosineMargin():
            return cosine_margin(rows_a, rows_b, points_cad, config)
        case InfoNce():
            near = near_points(points_cad, reach_of(config, diameter_m))
            return symmetric_info_nce(rows_a, rows_b, near, config.temperature)
        case VicReg():
            return vicreg(rows_a, rows_b, config)
        case BarlowTwins():
            return barlow_twins(rows_a, rows_b, config.off_diagonal)
        case _:
            assert_never(config)


def reach_of(config: InfoNce, diameter_m: float) -> float:
    """Distance up to which two points are too near each other to be told apart."""
    return max(config.reach_m, config.reach_share * diameter_m)


def near_points(points_cad: Tensor, reach_m: float) -> Tensor:
    """Which points (N, 3) lie within reach of which: (N, N) bool, the diagonal included."""
    # Without matrix products: their rounding, of coordinates far from the origin, reaches metres.
    return torch.cdist(points_cad, points_cad, compute_mode="donot_use_mm_for_euclid_dist") <= reach_m


def cosine_margin(rows_a: Tensor, rows_b: Tensor, points_cad: Tensor, config: CosineMargin) -> Tensor:
    """Mean of max(0, 1 − cosine − margin) over pairs, and of max(0, cosine + 1 − margin) over as many non-pairs.

    The non-pair of a row is the cell of the batch that sees the farthest point.
    """
    farthest = torch.cdist(points_cad, points_cad).argmax(dim=1)
    same = relu(1 - cosine_similarity(rows_a, rows_b) - config.same_margin)
    other = relu(cosine_similarity(rows_a, rows_b[farthest]) + 1 - config.other_margin)
    return same.mean() + other.mean()


def symmetric_info_nce(rows_a: Tensor, rows_b: Tensor, near: Tensor, temperature: float) -> Tensor:
    """Mean of both directions' −log softmax of the pair's cosine / temperature.

    Negatives of a row are all rows of the other side and of its own, so cells of its own image too, except those
    marked `near` (N, N): they see as good as the same point.
    """
    a, b = normalize(rows_a, dim=1), normalize(rows_b, dim=1)
    others = near & ~torch.eye(len(near), dtype=torch.bool, device=near.device)
    ignored = torch.cat([others, near], dim=1)
    return (_one_way(a, b, ignored, temperature) + _one_way(b, a, ignored, temperature)) / 2


def _one_way(rows: Tensor, paired: Tensor, ignored: Tensor, temperature: float) -> Tensor:
    logits = rows @ torch.cat([paired, rows]).T / temperature
    return cross_entropy(logits.masked_fill(ignored, -math.inf), torch.arange(len(rows), device=rows.device))


def vicreg(rows_a: Tensor, rows_b: Tensor, config: VicReg) -> Tensor:
    """Invariance, variance and covariance terms, weighted (Bardes et al., 2022, equations 1 to 6)."""
    variance = (_variance_hinge(rows_a) + _variance_hinge(rows_b)) / 2
    covariance = _covariance_term(rows_a) + _covariance_term(rows_b)
    invariance = config.invariance * mse_loss(rows_a, rows_b)
    return invariance + config.variance * variance + config.covariance * covariance


def _variance_hinge(rows: Tensor) -> Tensor:
    return relu(1 - (rows.var(dim=0) + VARIANCE_FLOOR).sqrt()).mean()


def _covariance_term(rows: Tensor) -> Tensor:
    centred = rows - rows.mean(dim=0)
    covariance = centred.T @ centred / (len(rows) - 1)
    return _off_diagonal_squares(covariance) / rows.shape[1]


def barlow_twins(rows_a: Tensor, rows_b: Tensor, off_diagonal: float) -> Tensor:
    """Squared distance of the cross-correlation from the identity, off-diagonal entries weighted."""
    correlation = _standardised(rows_a).T @ _standardised(rows_b) / len(rows_a)
    return (correlation.diagonal() - 1).square().sum() + off_diagonal * _off_diagonal_squares(correlation)


def _standardised(rows: Tensor) -> Tensor:
    return (rows - rows.mean(dim=0)) / (rows.var(dim=0, correction=0) + VARIANCE_FLOOR).sqrt()


def _off_diagonal_squares(matrix: Tensor) -> Tensor:
    return (matrix - torch.diag(matrix.diagonal())).square().sum()


def neighbourhood_max(rows: Tensor, candidates: Tensor) -> Tensor:
    """Of candidates (N, K, C), for each row (N, C) the one of the largest cosine: (N, C).

    For pairs that are a cell or so off. The choice is no function to differentiate; the chosen feature is.
    """
    with torch.no_grad():
        best = cosine_similarity(rows[:, None], candidates, dim=2).argmax(dim=1)
    return candidates[torch.arange(len(rows), device=rows.device), best]


def anchor_loss(rows: Tensor, original: Tensor) -> Tensor:
    """|F − F0|² / |F0|² of rows (N, C) and what the original encoder says of the same cells."""
    return (rows - original).square().sum() / original.square().sum()
