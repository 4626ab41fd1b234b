"""A head that first says which anchor, then where about it: classification is what a CAD scene's features can do.

Scene coordinates of repeated architecture are ambiguous. A regressor answers with the mean of all candidates,
which lies nowhere; a classifier over anchors names one candidate, and a wrong one is an outlier that the pose
solver discards (as in DSAC-style hierarchical and GLACE-style clustered read-outs, but with the mode instead of
the mean).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from cadloc.head_config import AnchorHead
from cadloc.heads.anchors import (
    area_uniform,
    log_likelihood_of_points,
    log_likelihood_of_rays,
    place_anchors,
    spacing_m,
)
from cadloc.heads.head import Head, HeadOutput, TrainingOutput
from cadloc.heads.linear import Linear
from cadloc.heads.perceptron import DeviationReadOut
from cadloc.heads.prototypes import Discriminant, discriminant
from cadloc.losses.phase import Evidence
from cadloc.samples import Batch, Samples

CODE = 64
"""Numbers per cell from which every anchor reads its own offset."""

DEVIATION = 0.45
"""Standard deviation of a point about its anchor, in anchor spacings: neighbours share what lies between them."""

PROTOTYPE_SAMPLES = 60_000
MOST_DIRECTIONS = 128
"""Features are reduced to so many directions, those that tell the anchors apart best: scoring costs in proportion."""

PRIOR_WEIGHT = 0.5
START_TEMPERATURE = 0.3
"""The Gaussian classifier is over-confident, as cells of one view are not independent: its scores are tempered."""


class AnchorClassifier(Head):
    """Whitened features, residual blocks, one score per anchor, and a small linear offset of each anchor's own.

    `anchors` (K, 3) are relative to `centre` (3,); both are float32 and in `cad` axes, and so is the read-out.
    """

    centre: Tensor
    anchors: Tensor

    def __init__(self, config: AnchorHead, dimensions: int, deviation: bool = False) -> None:
        super().__init__()
        self.dimensions = dimensions
        self.classification = config.classification
        self._anchors_of, self._evidence = config.anchors_of, config.evidence
        directions = min(dimensions, MOST_DIRECTIONS)
        self.whitening = Linear(dimensions, directions)
        self.blocks = nn.ModuleList(_block(directions, config.width) for _ in range(config.blocks))
        self.scores = Linear(directions, config.anchors)
        self.code = nn.Linear(directions, CODE)
        self.offsets = nn.Parameter(torch.zeros(config.anchors, 3, CODE))
        self.deviation = DeviationReadOut(directions) if deviation else None
        self.register_buffer("centre", torch.zeros(3))
        self.register_buffer("anchors", torch.zeros(config.anchors, 3))
        self.register_buffer("length_m", torch.ones(()))

    def forward(self, features: Tensor, global_features: Tensor | None = None) -> HeadOutput:
        """Coordinates (B, 3) about the best-scored anchor of features (B, C), and all scores (B, K).

        The deviation adds to that about the right anchor what it costs to have chosen a wrong one.
        """
        hidden = self._hidden(features)
        logits = self.scores(hidden)
        chosen = logits.argmax(dim=1)
        deviation_m = self._deviation_m(hidden)
        if deviation_m is not None:
            deviation_m = torch.sqrt(deviation_m**2 + self._variance_of_choice(logits, chosen))
        return HeadOutput(self._coordinates(hidden, chosen), logits, deviation_m)

    def training_output(self, batch: Batch, evidence: Evidence) -> TrainingOutput:
        """Coordinates about the anchor that scores and evidence together find likeliest, and the cross-entropy.

        Its target is the posterior of the anchors under the evidence: one step of expectation maximisation of the
        likelihood Σ_k p(anchor k | feature) p(evidence | anchor k). Choosing the anchor by the posterior keeps
        the offsets from chasing points next to other anchors.
        """
        hidden = self._hidden(batch.features)
        logits = self.scores(hidden).float()
        if self._evidence == "points":
            evidence = "points"
        posterior = torch.softmax(self._log_likelihood(batch, evidence).add_(logits.detach()), dim=1)
        cross_entropy = nn.functional.cross_entropy(logits, posterior)
        chosen = posterior.argmax(dim=1)
        coordinates = self._coordinates(hidden, chosen)
        return TrainingOutput(coordinates, self.classification * cross_entropy, self._deviation_m(hidden))

    @torch.no_grad()
    def fit(self, samples: Samples, seed: int, evidence: Evidence = "rays") -> None:
        """Places the anchors by k-means of the samples' scene coordinates and starts the classifier.

        The classifier starts from the samples' points or, by expectation maximisation, from their rays. Raises
        InputError when there are fewer samples than anchors.
        """
        points = samples.known_points.cpu().numpy()
        if self._anchors_of == "surface":
            points = area_uniform(points, len(self.anchors))
        centres = place_anchors(points, len(self.anchors), seed)
        self.centre.copy_(torch.from_numpy(centres.mean(axis=0)))
        self.anchors.copy_(torch.from_numpy(centres) - self.centre.double().cpu())
        self.length_m.fill_(spacing_m(centres))
        some = _some(samples, PROTOTYPE_SAMPLES, seed)
        shape = (len(self.anchors), self.whitening.out_features)
        if "points" in (evidence, self._evidence):
            start = discriminant(samples, some, *shape, lambda batch: self._log_likelihood(batch, "points"))
        else:
            rays = discriminant(samples, some, *shape, lambda batch: self._log_likelihood(batch, "rays"))
            start = discriminant(samples, some, *shape, lambda batch: self._informed(rays, batch))
        self._start_from(start)
        if self.deviation is not None:
            self.deviation.fit(samples)

    def _hidden(self, features: Tensor) -> Tensor:
        hidden: Tensor = self.whitening(features)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return hidden

    def _coordinates(self, hidden: Tensor, chosen: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            code = torch.tanh(self.code(START_TEMPERATURE * hidden.float()))
            offset = torch.einsum("bik,bk->bi", self.offsets[chosen], code)
            return self.centre + self.anchors[chosen] + self.length_m * offset

    @torch.no_grad()
    def _log_likelihood(self, batch: Batch, evidence: Evidence) -> Tensor:
        """(B, K), in float32 whatever the network computes in: squared metres do not fit less."""
        deviation_m = DEVIATION * self.length_m
        with torch.autocast(self.anchors.device.type, enabled=False):
            if evidence == "rays":
                return log_likelihood_of_rays(self.anchors, batch, self.centre, deviation_m)
            of_points = log_likelihood_of_points(self.anchors, batch.targets - self.centre, deviation_m)
            if batch.complete:
                return of_points
            of_rays = log_likelihood_of_rays(self.anchors, batch, self.centre, deviation_m)
            return torch.where(batch.known[:, None], of_points, of_rays)

    def _deviation_m(self, hidden: Tensor) -> Tensor | None:
        if self.deviation is None:
            return None
        with torch.autocast(hidden.device.type, enabled=False):
            deviation_m: Tensor = self.deviation(hidden.float())
            return deviation_m

    def _variance_of_choice(self, logits: Tensor, chosen: Tensor) -> Tensor:
        """(B,) along each axis, in m²: how far from the chosen anchor the others are, by their probabilities."""
        distances_m = torch.cdist(
            self.anchors[chosen], self.anchors, compute_mode="donot_use_mm_for_euclid_dist"
        )  # of neighbours in a large scene, to the millimetre
        return (torch.softmax(logits.float(), dim=1) * distances_m**2).sum(dim=1) / 3

    def _informed(self, rays: Discriminant, batch: Batch) -> Tensor:
        """Of the anchors along a ray, those come first whose prototypes the feature resembles."""
        return self._log_likelihood(batch, "rays").add_(rays.scores(batch.features), alpha=PRIOR_WEIGHT)

    def _start_from(self, start: Discriminant) -> None:
        self.whitening.weight.copy_(start.whitening)
        self.whitening.bias.copy_(-(start.whitening @ start.mean))
        self.scores.weight.copy_(START_TEMPERATURE * start.prototypes)
        self.scores.bias.copy_(START_TEMPERATURE * start.bias)


def _block(dimensions: int, width: int) -> nn.Sequential:
    """A residual branch that starts at zero: training begins at the classifier that the prototypes make."""
    branch = nn.Sequential(Linear(dimensions, width), nn.ReLU(inplace=True), Linear(width, dimensions))
    for parameter in branch[2].parameters():
        nn.init.zeros_(parameter)
    return branch


def _some(samples: Samples, count: int, seed: int) -> Tensor:
    """Indices of `count` samples with a known point (all, if there are fewer), in the order of the buffer."""
    generator = np.random.default_rng([seed, 1])
    known = samples.known
    chosen = generator.choice(len(known), min(count, len(known)), replace=False)
    return known[torch.from_numpy(np.sort(chosen)).to(samples.features.device)]
