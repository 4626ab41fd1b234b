"""Matchers: two images become pairs of pixels that show the same point."""

from __future__ import annotations

from typing import Protocol, assert_never

import numpy as np
from numpy.typing import NDArray

from cadloc.config import EncoderConfig, EncoderFeatures, MatcherConfig, PluginFeatures, SiftFeatures
from cadloc.contract import canonical
from cadloc.encoding import process_encoder
from cadloc.matching.dense import DenseMatcher
from cadloc.matching.local_features import LocalFeatures, Matches
from cadloc.matching.plugin import PluginMatcher
from cadloc.matching.sift import SiftMatcher


class Matcher(Protocol):
    """What finds and pairs local features. The same images give the same pairs."""

    def describe(self, image: NDArray[np.uint8], known: NDArray[np.bool_] | None = None) -> LocalFeatures:
        """Features of an RGB image (H, W, 3); those where `known` (H, W) is False may be left out."""
        ...

    def match(self, query: LocalFeatures, render: LocalFeatures, near_px: float | None = None) -> Matches:
        """Pairs of pixels. With `near_px`, the render was made at about the query's pose: pairs lie that close.

        `near_px` is for a short image side of 480 px and scales with the image.
        """
        ...


def build(config: MatcherConfig, encoder: EncoderConfig) -> Matcher:
    """The configured matcher; `encoder` is whose features `EncoderFeatures` means.

    Raises InputError for a plug-in that is not installed, or for an encoder's weights that cannot be used.
    """
    match config:
        case SiftFeatures():
            return SiftMatcher(config)
        case EncoderFeatures():
            return DenseMatcher(config, process_encoder(canonical(encoder.model_dump(mode="json"))))
        case PluginFeatures():
            return PluginMatcher(config)
        case _:
            assert_never(config)
