"""Scene coordinate regression as in GLACE (Wang et al., CVPR 2024): a head that is told which image a cell is of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cadloc.config import TrialConfig
from cadloc.contract import Progress, TrialContext
from cadloc.global_candidates import candidates_of, keep_candidates
from cadloc.global_features import GlobalFeatures
from cadloc.head_config import GlaceHead
from cadloc.regression import NothingTold, Told, train_head


def train(config: TrialConfig, context: TrialContext) -> Iterator[Progress]:
    """Trains a head on the features of cells and the global features of their images, one map per scene.

    Global features are computed once per image, as it is; the head sees them through noise. A query is read with its
    own, or with those of the mapping views that resemble it most. Yields and leaves what `cadloc.ace.train` does.
    """
    assert isinstance(config.head, GlaceHead)
    told: Told = NothingTold() if config.head.global_features is None else ImagesTold(config.head, config, context)
    yield from train_head(config, context, told)


class ImagesTold:
    """Global features of all images of a trial, read from its stages."""

    def __init__(self, head: GlaceHead, config: TrialConfig, context: TrialContext) -> None:
        self._head, self._context, self._domains = head, context, config.train_on

    def dimensions(self) -> int:
        """Numbers G of an image's global feature."""
        return int(self.of_mapping(self._domains[0]).shape[1])

    def of_mapping(self, domain: str) -> NDArray[np.float32]:
        """Global features (V, G) of a domain's mapping views."""
        return GlobalFeatures.open(self._context.stages[f"global_features/{domain}"]).vectors

    def of_queries(self, name: str) -> NDArray[np.float32]:
        """Own global features (V, G) of a query set, or of `validation/D`."""
        return GlobalFeatures.open(self._context.stages[f"global_features/queries/{name}"]).vectors

    def candidates(self, name: str) -> NDArray[np.float32]:
        """(V, H, G): each query's own alone, or the nearest mapping views'."""
        mapping = self._all_mapping() if self._head.query == "retrieved" else None
        return np.stack([candidates_of(own, mapping, self._head.retrieved) for own in self.of_queries(name)])

    def keep(self, directory: Path) -> None:
        """Leaves with a map in `directory` what it needs to be told of photographs."""
        stage = self._context.stages[f"global_features/{self._domains[0]}"]
        keep_candidates(directory, self._head, stage, self._all_mapping())

    def _all_mapping(self) -> NDArray[np.float32]:
        """Of the mapping views (V, G) of all domains that the head is trained on."""
        return np.concatenate([self.of_mapping(domain) for domain in self._domains])
