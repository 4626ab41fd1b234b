"""Stage `projection`: the principal components of an encoder's features on some of a scene's mapping views.

One projection serves buffer, queries and photographs. It is fitted on the cells of plain views that see the model: what
is stored of other cells differs in ways that say nothing of places. Sums are float64, view by view, in order; chunks
may be made apart, and give the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cadloc.contract import Fault, InputError, Json
from cadloc.datasets.ace_layout import Dataset, View
from cadloc.encoders import Encoder
from cadloc.encoders.projected import save_projection
from cadloc.encoding import encode_image, image_depth_m, stage_encoder
from cadloc.geometry import cell_pixels
from cadloc.parts import join_parts, write_part
from cadloc.projection_config import PcaProjection

VIEWS_PER_CHUNK = 25
_SUMS = ("cells", "first", "second")


class Moments(NamedTuple):
    """Of N features of C channels, float64: N as (), their sum (C,) and the sum of their outer products (C, C)."""

    cells: NDArray[np.float64]
    first: NDArray[np.float64]
    second: NDArray[np.float64]


class Components(NamedTuple):
    """`mean` (C,), `directions` (D, C) of most variance, orthonormal, and all C variances in falling order; float64."""

    mean: Tensor
    directions: Tensor
    variances: Tensor


def chunks(config: Mapping[str, Json], inputs: Mapping[str, Path]) -> int:
    """Groups of up to 25 of the views it is fitted on."""
    return -(-len(_views(config, inputs)) // VIEWS_PER_CHUNK)


def build_chunk(config: Mapping[str, Json], inputs: Mapping[str, Path], directory: Path, chunk: int) -> int:
    """Sums the features of one group of views into `directory/parts`; returns how many views it holds.

    Raises InputError for more dimensions than the encoder has channels.
    """
    settings, encoder = _settings(config), stage_encoder(config, inputs)
    if settings.dimensions > encoder.dimensions:
        allowed = f"at most the {encoder.dimensions} channels of the encoder"
        raise InputError(Fault("configuration", "projection.dimensions", str(settings.dimensions), allowed))
    group = _views(config, inputs)[chunk * VIEWS_PER_CHUNK : (chunk + 1) * VIEWS_PER_CHUNK]
    sums = reduce(_added, (moments(_features(encoder, view)) for view in group))
    write_part(directory, chunk, {name: each[None] for name, each in zip(_SUMS, sums, strict=True)})
    return len(group)


def finish(config: Mapping[str, Json], inputs: Mapping[str, Path], directory: Path) -> None:
    """Writes `projection.safetensors` and its card, which says how much of the variance is left.

    Raises InputError where fewer cells than dimensions see the model.
    """
    torch.set_num_threads(1)  # a stage is shared by all who ask for it: it may not depend on who made it
    settings = _settings(config)
    join_parts(directory, chunks(config, inputs), _SUMS)
    sums = Moments(*(np.load(directory / f"{name}.npy").sum(axis=0) for name in _SUMS))
    if sums.cells <= settings.dimensions:
        found = f"{int(sums.cells)} cells that see the model"
        raise InputError(Fault(str(inputs["views"]), "mapping", found, f"more than {settings.dimensions}"))
    components = principal_components(sums, settings.dimensions)
    card = {
        "channels": len(components.mean),
        "cells": int(sums.cells),
        "views": [view.name for view in _views(config, inputs)],
        "explained_variance_share": explained_share(components),
        "variances": components.variances.tolist(),
        "config": dict(config),
    }
    save_projection(directory, components.mean, components.directions, card)
    for name in _SUMS:
        (directory / f"{name}.npy").unlink()


def moments(features: NDArray[np.float32]) -> Moments:
    """Of features (N, C)."""
    doubled = features.astype(np.float64)
    return Moments(np.array(float(len(features))), doubled.sum(axis=0), doubled.T @ doubled)


def principal_components(sums: Moments, dimensions: int) -> Components:
    """The directions of most variance about the mean; of each, the largest entry is positive."""
    mean = torch.from_numpy(sums.first / sums.cells)
    covariance = torch.from_numpy(sums.second / sums.cells) - torch.outer(mean, mean)
    variances, vectors = torch.linalg.eigh(covariance)
    directions = vectors.flip(1).T[:dimensions].contiguous()
    largest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))
    return Components(mean, directions * largest.sign(), variances.flip(0).clamp(min=0))


def explained_share(components: Components) -> float:
    """Share of the variance that lies along the directions, from 0 to 1; 1 where nothing varies."""
    kept, whole = components.variances[: len(components.directions)].sum(), components.variances.sum()
    return float(kept / whole) if whole > 0 else 1.0


def _added(one: Moments, other: Moments) -> Moments:
    return Moments(*(np.asarray(a + b) for a, b in zip(one, other, strict=True)))


def _settings(config: Mapping[str, Json]) -> PcaProjection:
    return PcaProjection.model_validate(config["projection"])


def _views(config: Mapping[str, Json], inputs: Mapping[str, Path]) -> tuple[View, ...]:
    """The mapping views it is fitted on, in their order; InputError when there are none."""
    settings, views = _settings(config), Dataset.open(inputs["views"]).views("mapping")
    if not views:
        raise InputError(Fault(str(inputs["views"]), "mapping", "no views", "at least one"))
    drawn = np.random.default_rng(settings.seed).permutation(len(views))[: settings.views]
    return tuple(views[i] for i in sorted(drawn.tolist()))


def _features(encoder: Encoder, view: View) -> NDArray[np.float32]:
    """Of the view's cells that see the model (N, C)."""
    features = encode_image(encoder, view.read_image())
    depth_m = image_depth_m(view, cell_pixels(*features.shape[:2]).reshape(-1, 2))
    return features.reshape(len(depth_m), -1)[np.isfinite(depth_m)]
