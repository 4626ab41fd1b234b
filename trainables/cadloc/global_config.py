"""Settings of the global features: one vector per image, for heads that are told which image a cell is of.

And of how they are trained. Pydantic only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field

from cadloc.pretraining_config import PoolConfig
from cadloc.settings import Count, NonNegative, OpenFraction, Positive, Seed, Settings


class GemFeatures(Settings):
    """Our own: generalised-mean pooling of the encoder's features (Radenović et al. 2018), projected to 256 numbers.

    What is trained for one encoder is refused for any other, a fine-tuned one included: no weights take their place
    unasked. `pca` serves every encoder.
    """

    name: Literal["gem"] = "gem"
    weights: str = "shipped"
    """`shipped` (for the encoder `small` as shipped), `pca` (whitened on the scene's own mapping views, nothing
    learned), or the place of a .safetensors file made by `cadloc-sweep encoder pretrain-global`."""


class GlobalPlugin(Settings):
    """A model installed beside this program under the entry point group `cadloc.global_features`.

    It is called with an RGB image (H, W, 3) uint8 and the `settings`, and answers with a vector (G,) of any length G.
    """

    name: Literal["global_plugin"] = "global_plugin"
    entry_point: str
    settings: Mapping[str, Any] = {}


GlobalFeaturesConfig: TypeAlias = Annotated[GemFeatures | GlobalPlugin, Field(discriminator="name")]


def misfit(features: GlobalFeaturesConfig, encoder: Mapping[str, Any], tuned: bool) -> str | None:
    """What is wrong with the shipped weights for the encoder of these settings; None where nothing is.

    Weights of one's own are checked when they are read (`cadloc.encoders.global_gem`).
    """
    if not isinstance(features, GemFeatures) or features.weights != "shipped":
        return None
    if encoder["name"] == "small" and encoder.get("weights") == "shipped" and not tuned:
        return None
    which = f"a fine-tuned encoder {encoder['name']}" if tuned else f"another encoder ({encoder['name']})"
    return (
        f"weights: shipped were trained for the encoder small as shipped, not for {which}; pca serves every encoder, "
        "cadloc-sweep encoder pretrain-global makes weights for one of your own"
    )


class GlobalPretrainingConfig(Settings):
    """How global features are trained: contrast of whole views of made-up buildings, under a frozen encoder."""

    pool: PoolConfig = PoolConfig()
    """As for `cadloc-sweep encoder pretrain`, whose pool is taken where it lies in the same folder."""
    hidden: Annotated[int, Field(ge=8, le=4096)] = 256
    """Channels that are pooled."""
    steps: Count = 1_200
    pairs: Annotated[int, Field(ge=2)] = 64
    """Pairs of views per step; the second views of the others are a view's negatives."""
    kept_cells: Count = 512
    """Cells of a view that are kept in memory, drawn at random; `cells` of them take part in a step."""
    cells: Count = 128
    min_covisibility: OpenFraction = 0.3
    """From how much common surface on two views are a pair (`cadloc.pretraining_global_views.covisibility`)."""
    temperature: Positive = 0.07
    learning_rate: Positive = 2e-3
    weight_decay: NonNegative = 0.01
    warm_up: Count = 30
    seed: Seed = 0
