"""One head per cluster of mapping cameras: what one map cannot hold, several can (ACE, "Poker" and its larger kin)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2
from torch import Tensor, nn

from cadloc.contract import Fault, InputError
from cadloc.heads.head import Guess, Head, HeadOutput, TrainingOutput
from cadloc.heads.perceptron import camera_centres, seeing_centres
from cadloc.losses.phase import Evidence
from cadloc.samples import Batch, Samples

ATTEMPTS = 10
"""Starts of 2-means, the best of which splits a cluster."""


class Ensemble(Head):
    """Members that each know the views about one of `places` (M, 3); a query is shown to all of them."""

    places: Tensor

    def __init__(self, members: Sequence[Head]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.dimensions = members[0].dimensions
        self.register_buffer("places", torch.zeros(len(members), 3))
        self.register_buffer("length_m", torch.ones(()))

    def forward(self, features: Tensor, global_features: Tensor | None = None) -> HeadOutput:
        """Raises TypeError: which member is right, only a pose can tell; see `guesses`."""
        raise TypeError("an ensemble has one answer per member: ask for its guesses")

    def training_output(self, batch: Batch, evidence: Evidence) -> TrainingOutput:
        """Output of the member whose samples the batch was drawn from."""
        return self._member(batch.part).training_output(batch, evidence)

    def output_for(self, batch: Batch) -> HeadOutput:
        """Coordinates (B, 3) of the member whose place is nearest to each sample's camera."""
        nearest = self._nearest_place(batch.centres_cad)
        outputs = [self._member(m).output_for(batch).coordinates for m in range(len(self.members))]
        return HeadOutput(torch.stack(outputs, dim=1)[torch.arange(len(batch), device=nearest.device), nearest])

    def fit(self, samples: Samples, seed: int, evidence: Evidence = "rays") -> None:
        """Splits the cameras into clusters and fits every member to its own."""
        self.places.copy_(torch.from_numpy(split(seeing_centres(samples).cpu().numpy(), len(self.members), seed)))
        for m, indices in enumerate(self.parts(samples)):
            if not len(indices):
                allowed = "fewer: a cluster of mapping cameras has no samples"
                raise InputError(Fault("configuration", "head.members", str(len(self.members)), allowed))
            self._member(m).fit(samples.subset(indices), seed, evidence)

    def parts(self, samples: Samples) -> Sequence[Tensor]:
        """Indices of the samples of each member: those of the views nearest to its place."""
        place = self._nearest_place(camera_centres(samples).float())[samples.view]
        return [(place == m).nonzero()[:, 0] for m in range(len(self.members))]

    def length_of_part_m(self, part: int) -> Tensor:
        """That of the member."""
        return self._member(part).length_m

    @torch.no_grad()
    def guesses(self, features: Tensor, global_features: Tensor | None = None) -> Iterator[Guess]:
        """One guess per member."""
        for m in range(len(self.members)):
            yield from self._member(m).guesses(features, global_features)

    def _nearest_place(self, centres: Tensor) -> Tensor:
        """Index (V,) of the place nearest to each camera centre (V, 3)."""
        # By differences: as a product of matrices, distances far from the origin are off by metres in float32.
        return torch.cdist(centres, self.places, compute_mode="donot_use_mm_for_euclid_dist").argmin(dim=1)

    def predict(self, features: Tensor) -> Tensor:
        """Raises TypeError, as `forward`."""
        return self(features).coordinates

    def _member(self, index: int) -> Head:
        member = self.members[index]
        assert isinstance(member, Head)
        return member


def split(centres: NDArray[np.float64], clusters: int, seed: int) -> NDArray[np.float64]:
    """Mean positions (clusters, 3) of groups of camera centres (V, 3): the largest is halved by 2-means, each time.

    Raises InputError where there are fewer distinct centres, to the millimetre, than clusters.
    """
    groups = [centres]
    while len(groups) < clusters:
        by_size = sorted(range(len(groups)), key=lambda g: -len(groups[g]))
        largest = next((g for g in by_size if len(np.unique(groups[g].round(3), axis=0)) > 1), None)
        if largest is None:
            allowed = f"at most {len(groups)}: the mapping cameras stand in no more places"
            raise InputError(Fault("configuration", "head.members", str(clusters), allowed))
        groups += _halves(groups.pop(largest), seed)
    return np.stack([group.mean(axis=0) for group in groups])


def _halves(points: NDArray[np.float64], seed: int) -> list[NDArray[np.float64]]:
    generator = np.random.default_rng(seed)
    best, labels = np.inf, np.zeros(len(points), int)
    for _ in range(ATTEMPTS):
        means, found = kmeans2(points, 2, minit="++", rng=generator)
        cost = float(((points - means[found]) ** 2).sum())
        if cost < best and 0 < found.sum() < len(points):
            best, labels = cost, found
    return [points[labels == half] for half in (0, 1)]
