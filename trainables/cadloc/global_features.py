"""Stage `global_features`: one vector per image of a split, and how images are found by it.

Images are described as they are, without augmentation. Whatever describes them is stored with the vectors, so that a
photograph can be described later as the mapping views were.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, assert_never

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from cadloc.contract import Fault, InputError, Json
from cadloc.datasets.ace_layout import Dataset, View
from cadloc.encoders import Encoder
from cadloc.encoders.global_gem import SHIPPED, GlobalGem
from cadloc.encoding import encode_image, stage_encoder
from cadloc.global_config import GemFeatures, GlobalFeaturesConfig, GlobalPlugin
from cadloc.matching.retrieval import nearest_first
from cadloc.parts import join_parts, write_part
from cadloc.plugins import installed_plugin

GROUP = "cadloc.global_features"
VIEWS_PER_CHUNK = 50
SCHEMA_VERSION = 1
WEIGHTS, CARD = "global_gem.safetensors", "global_features.json"

_POOLED = "pooled"
_SETTINGS: TypeAdapter[GlobalFeaturesConfig] = TypeAdapter(GlobalFeaturesConfig)

ImageModel: TypeAlias = Callable[..., Any]
"""`model(image_rgb, **settings)`: a vector (G,) of an image (H, W, 3) uint8; G is the same for all images."""


class Describer(Protocol):
    """What turns an image into its global feature."""

    def describe(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The unit vector (G,) of an RGB image (H, W, 3)."""
        ...


@dataclass(frozen=True)
class GlobalFeatures:
    """Unit vectors (V, G) float32 of V images, in the order of `names`; G is 256 unless a plug-in says otherwise."""

    names: tuple[str, ...]
    vectors: NDArray[np.float32]

    @classmethod
    def open(cls, directory: Path) -> GlobalFeatures:
        """The finished stage below `directory`."""
        card = json.loads((directory / CARD).read_text())
        return cls(tuple(card["names"]), np.load(directory / "vectors.npy"))

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True, eq=False)
class GemDescriber:
    """The trial's encoder, pooled."""

    encoder: Encoder
    gem: GlobalGem

    def describe(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The unit vector (256,) of an RGB image (H, W, 3)."""
        return self.gem.describe(encode_image(self.encoder, image))


class PluginDescriber:
    """An installed model. Raises InputError where there is none of that name."""

    def __init__(self, config: GlobalPlugin) -> None:
        self._config = config
        self._model: ImageModel = installed_plugin(GROUP, config.entry_point, "global_features")

    def describe(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """What the model says, at unit length. Raises InputError for an answer that is no vector or has no length."""
        vector = np.asarray(self._model(image, **self._config.settings))
        allowed = "a vector (G,) of finite numbers, not all zero"
        if vector.ndim != 1 or not np.issubdtype(vector.dtype, np.number) or not len(vector):
            raise self._fault(f"an answer of shape {vector.shape}, {vector.dtype}", allowed)
        length = float(np.linalg.norm(vector.astype(np.float64)))
        if not 0 < length < np.inf:
            raise self._fault(f"a vector of length {length}", allowed)
        return np.asarray(vector / length, np.float32)

    def _fault(self, found: str, allowed: str) -> InputError:
        return InputError(Fault(self._config.entry_point, "global_features", found, allowed))


def open_describer(config: GlobalFeaturesConfig, encoder: Encoder, directory: Path) -> Describer:
    """What described the images of a finished stage below `directory`, or a copy of its `WEIGHTS` and their card.

    Raises InputError for another encoder than the stage's, or a plug-in that is not installed.
    """
    match config:
        case GemFeatures():
            return GemDescriber(encoder, GlobalGem.from_file(directory / WEIGHTS, encoder))
        case GlobalPlugin():
            return PluginDescriber(config)
        case _:
            assert_never(config)


def retrieve(query: NDArray[np.float32], mapping: NDArray[np.float32], k: int) -> NDArray[np.intp]:
    """Indices (k,) of the mapping vectors (V, G) of largest cosine with the query (G,); all V where k exceeds V.

    All are unit vectors; ties keep their order.
    """
    return np.array(nearest_first(query, list(mapping))[:k], dtype=np.intp)


def chunks(config: Mapping[str, Json], inputs: Mapping[str, Path]) -> int:
    """Groups of up to 50 images. Raises ValueError where what `pca` is fitted on is not there."""
    settings = _SETTINGS.validate_python(config["global_features"])
    if _fitted_on_views(settings) and config["split"] != "mapping" and "mapping" not in inputs:
        raise ValueError(f"global features of split {config['split']} by pca take those of the mapping views as input")
    return -(-len(_views(config, inputs)) // VIEWS_PER_CHUNK)


def build_chunk(config: Mapping[str, Json], inputs: Mapping[str, Path], directory: Path, chunk: int) -> int:
    """Pools one group's features, or asks the plug-in, into `directory/parts`; returns how many images it holds.

    Raises InputError for weights or a plug-in that cannot be used.
    """
    views = _views(config, inputs)[chunk * VIEWS_PER_CHUNK : (chunk + 1) * VIEWS_PER_CHUNK]
    pooled_of = _pooling(config, inputs)
    pooled = [pooled_of(view.read_image()) for view in views]
    lengths = sorted({len(vector) for vector in pooled})
    if len(lengths) > 1:
        raise InputError(Fault(str(inputs["views"]), "global_features", f"vectors of lengths {lengths}", "one length"))
    write_part(directory, chunk, {_POOLED: np.stack(pooled)})
    return len(views)


def finish(config: Mapping[str, Json], inputs: Mapping[str, Path], directory: Path) -> None:
    """Joins and projects; writes `vectors.npy`, the weights of what projects, and the card.

    Raises InputError when all images that `pca` is fitted on are alike.
    """
    join_parts(directory, chunks(config, inputs), (_POOLED,))
    pooled = np.load(directory / f"{_POOLED}.npy")
    np.save(directory / "vectors.npy", _projected(pooled, config, inputs, directory))
    (directory / f"{_POOLED}.npy").unlink()
    card = {"schema_version": SCHEMA_VERSION, "names": [view.name for view in _views(config, inputs)], **config}
    (directory / CARD).write_text(json.dumps(card, indent=2) + "\n")


def _pooling(
    config: Mapping[str, Json], inputs: Mapping[str, Path]
) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    settings = _SETTINGS.validate_python(config["global_features"])
    match settings:
        case GemFeatures():
            encoder = stage_encoder(config, inputs)
            gem = _gem(settings, encoder, inputs)
            return lambda image: gem.pooled(encode_image(encoder, image))
        case GlobalPlugin():
            return PluginDescriber(settings).describe
        case _:
            assert_never(settings)


def _projected(
    pooled: NDArray[np.float32], config: Mapping[str, Json], inputs: Mapping[str, Path], directory: Path
) -> NDArray[np.float32]:
    """Vectors (V, G) of what was pooled (V, ·), one by one: a photograph alone gets the same bits."""
    settings = _SETTINGS.validate_python(config["global_features"])
    if isinstance(settings, GlobalPlugin):
        return pooled
    encoder = stage_encoder(config, inputs)
    gem = _gem(settings, encoder, inputs)
    if _fitted_on_views(settings) and "mapping" not in inputs:
        try:
            gem.whiten(pooled)
        except ValueError as error:
            raise InputError(Fault(str(inputs["views"]), "mapping", str(error), "views that differ")) from error
    gem.save(directory / WEIGHTS, encoder, {"weights": settings.weights, "images": len(pooled)})
    return np.stack([gem.projected(vector) for vector in pooled])


def _gem(settings: GemFeatures, encoder: Encoder, inputs: Mapping[str, Path]) -> GlobalGem:
    """As trained, as fitted on the mapping views, or still to be fitted."""
    if not _fitted_on_views(settings):
        return GlobalGem.from_file(SHIPPED if settings.weights == "shipped" else Path(settings.weights), encoder)
    if "mapping" in inputs:
        return GlobalGem.from_file(inputs["mapping"] / WEIGHTS, encoder)
    return GlobalGem.untrained(encoder.dimensions)


def _fitted_on_views(settings: GlobalFeaturesConfig) -> bool:
    return isinstance(settings, GemFeatures) and settings.weights == "pca"


def _views(config: Mapping[str, Json], inputs: Mapping[str, Path]) -> tuple[View, ...]:
    """The split's views; InputError when there are none."""
    views = Dataset.open(inputs["views"]).views(config["split"])
    if not views:
        raise InputError(Fault(str(inputs["views"]), config["split"], "no views", "at least one"))
    return views
