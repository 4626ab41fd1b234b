"""Global descriptors: which renders of a database look most like a query."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from cadloc.matching.local_features import LocalFeatures

WORDS = 64
"""Visual words of the codebook, as in DenseVLAD and NetVLAD."""

_SAMPLE = 20_000
_ROUNDS = 12


class Vocabulary:
    """Vectors of locally aggregated descriptors (Jégou et al. 2010), normalised per word (Arandjelović 2013)."""

    def __init__(self, words: NDArray[np.float32]) -> None:
        self._words = torch.from_numpy(words)

    @classmethod
    def learned(cls, descriptors: NDArray[np.floating], seed: int = 0) -> Vocabulary:
        """k-means words of descriptors (N, C); fewer descriptors than words are their own words."""
        rng = np.random.default_rng(seed)
        count = min(len(descriptors), _SAMPLE)
        sample = torch.from_numpy(
            np.asarray(descriptors[np.sort(rng.choice(len(descriptors), count, replace=False))], np.float32)
        )
        words = sample[torch.from_numpy(rng.choice(count, min(WORDS, count), replace=False))]
        for _ in range(_ROUNDS):
            nearest = _nearest(sample, words)
            sums = torch.zeros_like(words).index_add_(0, nearest, sample)
            counts = torch.bincount(nearest, minlength=len(words))[:, None]
            words = torch.where(counts > 0, sums / counts.clamp_min(1), words)
        return cls(words.numpy())

    def describe(self, features: LocalFeatures) -> NDArray[np.float32]:
        """Unit vector (words · C,) of an image; zero where it has no features."""
        descriptors = torch.from_numpy(np.asarray(features.descriptors, np.float32))
        nearest = _nearest(descriptors, self._words)
        residuals = torch.zeros_like(self._words).index_add_(0, nearest, descriptors - self._words[nearest])
        return np.asarray(_unit(_unit(residuals).reshape(-1)).numpy())


def nearest_first(query: NDArray[np.float32], database: Sequence[NDArray[np.float32]]) -> list[int]:
    """Database indices by falling similarity of their global descriptors to the query's; ties keep their order."""
    return [int(index) for index in np.argsort(-(np.stack(database) @ query), kind="stable")]


def _nearest(descriptors: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    return (words.square().sum(1) / 2 - descriptors @ words.T).argmin(1)


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(vectors, dim=-1)
