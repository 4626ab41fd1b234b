"""Settings of what is kept of an encoder's features. Pydantic only: the platform reads this without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field

from cadloc.settings import Count, Seed, Settings

_CHANNELS = {"small": 128, "dense-hog": 256, "ace": 512}


class NoProjection(Settings):
    """Features as the encoder says them."""

    name: Literal["none"] = "none"


class PcaProjection(Settings):
    """The principal components of the mapping views' features: fewer channels, so a smaller buffer.

    R-SCoRe (Jiang et al., 2025) keeps 128 of its local features' channels so, which fits more samples into the memory.
    """

    name: Literal["pca"] = "pca"
    dimensions: Count
    """Channels that are left."""
    views: Count = 50
    """Mapping views of the first domain of `train_on` whose features it is fitted on, drawn at random; all of them
    where there are no more."""
    seed: Seed = 0
    """Of that draw. Not the trial's: trials of all seeds share a projection."""


ProjectionConfig: TypeAlias = Annotated[NoProjection | PcaProjection, Field(discriminator="name")]


def misfit(projection: ProjectionConfig, encoder: Mapping[str, Any], trainable: str) -> str | None:
    """What is wrong with a projection of the features of an encoder of these settings; None where nothing is.

    The channels of weights of one's own are known when they are read (`cadloc.projection`).
    """
    if isinstance(projection, NoProjection):
        return None
    if trainable == "render_and_match":
        return f"name = {projection.name}: the trainable render_and_match does not read it, ace and glace do"
    known = encoder["name"] != "ace" or encoder.get("weights") == "random"
    channels = _CHANNELS[encoder["name"]]
    if known and projection.dimensions > channels:
        return f"dimensions = {projection.dimensions} is more than the {channels} channels of {encoder['name']}"
    return None
