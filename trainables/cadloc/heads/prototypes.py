"""Linear discriminant analysis with soft labels: a classifier of cells in closed form, to start a network from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cadloc.samples import Batch, Samples

BATCH_SIZE = 2048
SHRINKAGE = 1e-3
"""Share of a sphere mixed into the covariance, and the least weight a prototype is divided by."""


@dataclass(frozen=True)
class Discriminant:
    """Scores (B, K) of features are `whitened · prototypes.T − |prototypes|² / 2`, up to a constant per cell.

    `whitening` (D, C) and `mean` (C,): whitened = whitening · (feature − mean), in the D directions that tell the
    classes apart best. `prototypes` (K, D), whitened: the mean feature of each class.
    """

    whitening: Tensor
    mean: Tensor
    prototypes: Tensor

    def scores(self, features: Tensor) -> Tensor:
        """Scores (B, K) of features (B, C)."""
        return torch.addmm(self.bias, (features - self.mean) @ self.whitening.T, self.prototypes.T)

    @property
    def bias(self) -> Tensor:
        """What each class's score is at the mean feature, (K,)."""
        return -0.5 * (self.prototypes**2).sum(dim=1)


@torch.no_grad()
def discriminant(
    samples: Samples, indices: Tensor, classes: int, directions: int, log_likelihood: Callable[[Batch], Tensor]
) -> Discriminant:
    """Fitted to the samples at `indices`, whose labels are soft: the softmax of `log_likelihood(batch)` (B, K).

    Whitening by the covariance within classes is what makes the Gaussian classifier linear (Fisher, 1936).
    """
    device, dimensions = samples.features.device, samples.dimensions
    mean = samples.features[indices].float().mean(dim=0)
    sums = torch.zeros(classes, dimensions, device=device)
    weights = torch.zeros(classes, device=device)
    total = torch.zeros(dimensions, dimensions, device=device)
    for some in torch.split(indices, BATCH_SIZE):
        batch = samples.batch(some)
        labels = torch.softmax(log_likelihood(batch), dim=1)
        centred = batch.features - mean
        sums.addmm_(labels.T, centred)
        weights += labels.sum(dim=0)
        total.addmm_(centred.T, centred)
    prototypes = sums / weights.clamp(min=SHRINKAGE)[:, None]
    within = (total - (prototypes * weights[:, None]).T @ prototypes) / len(indices)
    whitening = _inverse_square_root(within)
    between = whitening @ (total / len(indices) - within) @ whitening.T
    best = torch.linalg.eigh(between.double()).eigenvectors[:, -directions:].T.to(whitening.dtype)
    whitening = best @ whitening
    return Discriminant(whitening, mean, prototypes @ whitening.T)


def _inverse_square_root(covariance: Tensor) -> Tensor:
    """Whitening matrix (C, C) of a covariance (C, C), shrunk a little towards a sphere; float64 inside."""
    matrix = covariance.double()
    matrix = matrix + SHRINKAGE * matrix.diagonal().mean() * torch.eye(len(matrix), device=matrix.device)
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = (vectors / values.clamp(min=1e-12).sqrt()).T
    return root.to(covariance.dtype)
