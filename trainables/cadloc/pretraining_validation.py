"""Whether features find the same point again: matching precision on buildings that training never sees.

The set is fixed: the same pairs under the same skies at every measurement, so that numbers of one run compare.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize

from cadloc.encoders import Encoder
from cadloc.encoders.images import STRIDE
from cadloc.geometry import Array
from cadloc.pretraining_pairs import Match, PooledBuilding, WarpedView, grid_of, match_cells, plain_views, under_sky

KINDS = ("same_appearance", "across_appearance", "photo")
"""Two renders with the same materials, two with other ones, and a render with a photograph of the same materials."""

Candidate: TypeAlias = tuple[WarpedView, WarpedView]


@dataclass(frozen=True)
class Question:
    """A picture, another one (both (H, W, 3)), the cells of the first that the second sees, and the second's grid."""

    kind: str
    picture_a: NDArray[np.uint8]
    picture_b: NDArray[np.uint8]
    match: Match
    pixels_b: Array


@dataclass(frozen=True)
class ValidationSet:
    """Pairs of views whose correspondence is known."""

    questions: tuple[Question, ...]

    @classmethod
    def drawn(
        cls, buildings: Sequence[PooledBuilding], photographs: Sequence[PooledBuilding], pairs: int, seed: int
    ) -> ValidationSet:
        """Up to `pairs` pairs of each kind; `photographs` are those of `buildings`, one for one, or empty."""
        generator = np.random.default_rng([seed, 1])
        questions = []
        for kind, candidates in _candidates(buildings, photographs).items():
            order = generator.permutation(len(candidates))
            drawn = (_question(kind, a, b, generator) for a, b in (candidates[i] for i in order))
            questions += list(islice((question for question in drawn if len(question.match.cells_a)), pairs))
        return cls(tuple(questions))

    def precision(self, encoder: Encoder) -> dict[str, float]:
        """Share of cells whose best match lies within one cell of the truth, mean over the pairs of each kind.

        The encoder answers as it is, in training or in evaluation mode.
        """
        shares: dict[str, list[float]] = {}
        for question in self.questions:
            shares.setdefault(question.kind, []).append(_precision(encoder, question))
        return {kind: float(np.mean(values)) for kind, values in shares.items()}


def _candidates(
    buildings: Sequence[PooledBuilding], photographs: Sequence[PooledBuilding]
) -> dict[str, list[Candidate]]:
    found: dict[str, list[Candidate]] = {kind: [] for kind in KINDS}
    for building in buildings:
        views = plain_views(building)
        for i, j in building.pairs:
            same = building.appearance[i] == building.appearance[j]
            found[KINDS[0] if same else KINDS[1]].append((views[i], views[j]))
    if photographs:
        for building, taken in zip(buildings, photographs, strict=True):
            found[KINDS[2]] += _with_photographs(building, taken)
    return found


def _with_photographs(building: PooledBuilding, taken: PooledBuilding) -> Iterator[Candidate]:
    views, photographs = plain_views(building), plain_views(taken)
    for i, j in taken.pairs:
        yield views[i], photographs[j]


def _question(kind: str, a: WarpedView, b: WarpedView, generator: np.random.Generator) -> Question:
    # A photograph has a sky of its own, and people in front of the building.
    picture_b = b.image()[0] if kind == "photo" else under_sky(b, generator)
    return Question(kind, under_sky(a, generator), picture_b, match_cells(a, b), grid_of(b))


def _precision(encoder: Encoder, question: Question) -> float:
    pictures = np.stack([question.picture_a, question.picture_b])
    features = encoder.encode(torch.from_numpy(pictures).permute(0, 3, 1, 2))
    features_a, features_b = normalize(features, dim=1).flatten(2)
    cells = torch.from_numpy(question.match.cells_a).to(features.device)
    best = (features_a.T[cells] @ features_b).argmax(1).cpu().numpy()
    off_px = np.abs(question.pixels_b[best] - question.match.pixels_b).max(axis=1)
    return float(np.mean(off_px <= STRIDE))
