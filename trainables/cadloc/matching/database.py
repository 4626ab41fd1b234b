"""A database of images of known pose and depth: which look like a query, and what its matches with them see."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from cadloc.config import EncoderFeatures, MatchingConfig, PluginFeatures, TrialConfig
from cadloc.datasets.ace_layout import View
from cadloc.geometry import Array
from cadloc.matching import Matcher, build
from cadloc.matching.local_features import LocalFeatures
from cadloc.matching.retrieval import Vocabulary, nearest_first

_KEPT = 256
"""Images whose local features stay in memory: 1 MB each at 640 × 480; others are described again when retrieved."""

_VOCABULARY_IMAGES = 64


class Database:
    """Described `views` with depth. `global_matcher` describes whole images: `matcher`, or one with descriptors.

    Raises InputError for a view without depth or with an unreadable image.
    """

    def __init__(self, views: Sequence[View], matcher: Matcher, global_matcher: Matcher) -> None:
        self._views = tuple(views)
        self._matcher = matcher
        self._global_matcher = global_matcher
        self._described = lru_cache(maxsize=_KEPT)(lambda index: _described(matcher, self._views[index]))
        chosen = np.unique(np.linspace(0, len(self._views) - 1, _VOCABULARY_IMAGES).astype(int)).tolist()
        self._vocabulary = Vocabulary.learned(np.concatenate([self._globally(i).descriptors for i in chosen]))
        self._global = [self._vocabulary.describe(self._globally(i)) for i in range(len(self._views))]

    @classmethod
    def of(cls, config: TrialConfig, views: Sequence[View]) -> Database:
        """The views described as the trial's settings say; those of a plug-in are retrieved by the encoder's features.

        Raises InputError for a plug-in that is not installed.
        """
        features = (config.matching or MatchingConfig()).features
        matcher = build(features, config.encoder)
        plugged_in = isinstance(features, PluginFeatures)
        return cls(views, matcher, build(EncoderFeatures(), config.encoder) if plugged_in else matcher)

    def __len__(self) -> int:
        return len(self._views)

    def describe(self, image: NDArray[np.uint8]) -> LocalFeatures:
        """A query's features, as `retrieve` and `correspondences` want them."""
        return self._matcher.describe(image)

    def retrieve(self, query: LocalFeatures, number: int) -> list[int]:
        """The `number` views most like the query, the most alike first; all of them where there are not more."""
        features = query
        if self._global_matcher is not self._matcher:
            features = self._global_matcher.describe(query.image)
        return nearest_first(self._vocabulary.describe(features), self._global)[:number]

    def correspondences(self, query: LocalFeatures, index: int) -> tuple[Array, Array]:
        """Pixels (M, 2) of the query and the points (M, 3) of `cad` they see, by its matches with one view."""
        matches = self._matcher.match(query, self._described(index))
        points = self._views[index].scene_coordinates(matches.render_pixels)
        known = np.isfinite(points).all(axis=1)
        return matches.query_pixels[known], points[known]

    def _globally(self, index: int) -> LocalFeatures:
        if self._global_matcher is self._matcher:
            return self._described(index)
        return _described(self._global_matcher, self._views[index])


def _described(matcher: Matcher, view: View) -> LocalFeatures:
    depth_m = view.read_depth_m()
    image = view.read_image()
    return matcher.describe(image, depth_m > 0 if depth_m.shape == image.shape[:2] else None)
