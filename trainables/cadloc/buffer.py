"""Stage `buffer`: the training samples of a head, encoded once for all trials with the same views and encoder.

A sample is a cell, of those that see the model unless background is asked for: its feature, its pixel, the view it is
of, and the scene coordinate behind it (ACE, section 3.2). Poses and intrinsics are stored per view, not per sample. The
first pass encodes the views as they are; each further pass encodes them anew under random scale, rotation, brightness
and contrast.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cadloc.augmented_views import AugmentedView, augmented_views
from cadloc.cell_features import features_in_batches, features_one_by_one
from cadloc.config import BufferConfig
from cadloc.contract import Fault, InputError, Json
from cadloc.datasets.ace_layout import Dataset, View
from cadloc.encoders.images import STRIDE
from cadloc.encoding import stage_encoder
from cadloc.geometry import Array
from cadloc.parts import join_parts, write_part

VIEWS_PER_CHUNK = 25
CELL_SHARE = 0.25
MOST_PASSES = 64
SCHEMA_VERSION = 1
_SAMPLE_ARRAYS = ("features", "pixels", "view", "scene_coordinates")
_VIEW_ARRAYS = ("cam_from_cad", "intrinsics")


@dataclass(frozen=True)
class Buffer:
    """N samples of V augmented views, memory-mapped; view `passes · i + p` is the i-th mapping view in pass p.

    `features` (N, C) float16, `pixels` (N, 2) float32, `view` (N,) int32, `scene_coordinates` (N, 3) float32 in
    `cad`, NaN for background cells, if any was asked for; `cam_from_cad` (V, 4, 4) and `intrinsics` (V, 3, 3) float64
    are those of the augmented views.
    """

    features: NDArray[np.float16]
    pixels: NDArray[np.float32]
    view: NDArray[np.int32]
    scene_coordinates: NDArray[np.float32]
    cam_from_cad: Array
    intrinsics: Array

    @classmethod
    def open(cls, directory: Path) -> Buffer:
        """The finished stage below `directory`."""
        samples = (np.load(directory / f"{name}.npy", mmap_mode="r") for name in _SAMPLE_ARRAYS)
        return cls(*samples, *(np.load(directory / f"{name}.npy") for name in _VIEW_ARRAYS))

    def __len__(self) -> int:
        return len(self.view)


def chunks(config: Mapping[str, Json], inputs: Mapping[str, Path]) -> int:
    """Groups of up to 25 views, every pass of them."""
    return -(-len(_views(inputs)) // VIEWS_PER_CHUNK)


def build_chunk(config: Mapping[str, Json], inputs: Mapping[str, Path], directory: Path, chunk: int) -> int:
    """Encodes every pass of one group of views into `directory/parts`; returns how many samples that made."""
    settings = BufferConfig.model_validate(config["buffer"])
    encoder = stage_encoder(config, inputs, settings.device)
    views = _views(inputs)
    passes = passes_of(settings, views)
    first = chunk * VIEWS_PER_CHUNK
    shares = [quota(settings.samples, k, len(views) * passes) for k in range(len(views) * passes)]
    group = [
        partial(augmented_views, views[i], settings, shares[i * passes : (i + 1) * passes])
        for i in range(first, min(first + VIEWS_PER_CHUNK, len(views)))
    ]
    encode = features_one_by_one if settings.device == "cpu" else partial(features_in_batches, device=settings.device)
    encoded = [
        _samples(view, index, features) for index, (view, features) in enumerate(encode(encoder, group), first * passes)
    ]
    part = {name: np.concatenate([item[name] for item in encoded]) for name in _SAMPLE_ARRAYS}
    write_part(directory, chunk, part | {name: np.stack([item[name] for item in encoded]) for name in _VIEW_ARRAYS})
    return len(part["view"])


def finish(config: Mapping[str, Json], inputs: Mapping[str, Path], directory: Path) -> None:
    """Joins the groups and writes `buffer.json`. Raises InputError when no cell of any view sees the model."""
    join_parts(directory, chunks(config, inputs), (*_SAMPLE_ARRAYS, *_VIEW_ARRAYS))
    buffer = Buffer.open(directory)
    if not np.isfinite(buffer.scene_coordinates).any():
        raise InputError(Fault(str(inputs["views"]), "mapping", "no cell with a known depth", "views of the model"))
    card = {
        "schema_version": SCHEMA_VERSION,
        "samples": len(buffer),
        "dimensions": buffer.features.shape[1],
        "views": len(buffer.intrinsics),
        **config,
    }
    (directory / "buffer.json").write_text(json.dumps(card, indent=2) + "\n")


def passes_of(settings: BufferConfig, views: Sequence[View]) -> int:
    """How often each view is encoded. `enough` are two passes, or as many as give the samples, up to `MOST_PASSES`.

    A pass is counted on for a quarter of a view's cells: more of one augmented image would teach little new.
    """
    if settings.passes != "enough":
        return settings.passes
    cells = sum(int(np.prod([side // STRIDE for side in view.image_size_px])) for view in views)
    wanted = -(-settings.samples // max(1, int(cells * CELL_SHARE)))
    return max(2, min(wanted, MOST_PASSES))


def quota(samples: int, view: int, views: int) -> int:
    """How many of the samples the augmented view contributes: equal shares, the remainder spread evenly."""
    return (view + 1) * samples // views - view * samples // views


def _views(inputs: Mapping[str, Path]) -> tuple[View, ...]:
    return Dataset.open(inputs["views"]).views("mapping")


def _samples(view: AugmentedView, index: int, features: NDArray[np.float16]) -> dict[str, NDArray[Any]]:
    """What is stored of augmented view `index` of all: its samples, and its pose and intrinsics."""
    return {
        "features": features,
        "pixels": view.pixels,
        "view": np.full(len(view.cells), index, np.int32),
        "scene_coordinates": view.scene_coordinates,
        "cam_from_cad": view.cam_from_cad,
        "intrinsics": view.warp.intrinsics,
    }
