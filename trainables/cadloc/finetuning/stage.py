"""The stage `encoder`: an encoder tuned on a scene's pairs of photo and render, once for all trials that use it.

Inputs: `photos` (mapping and validation splits), `renders` (of the same names) and `synthetic` (the ordinary views).
No picture of a query split is ever read. It leaves `encoder.safetensors`, `card.json` and `history.csv`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from cadloc.config import EncoderConfig
from cadloc.contract import Fault, InputError, Json
from cadloc.datasets.ace_layout import Dataset, Split
from cadloc.encoders import build
from cadloc.finetuning.adapters import CARD, parameters_of, save_tuned
from cadloc.finetuning.material import Material
from cadloc.finetuning.measures import evenly_spread
from cadloc.finetuning.pairs import SyntheticViews, paired_views
from cadloc.finetuning.settings import FinetuningConfig
from cadloc.finetuning.tuning import CHECKPOINT, TunedEncoder, tune
from cadloc.metric_names import TUNING_MEASURES

MOST_READERS = 12
"""Threads that draw steps ahead of a GPU, which would wait for one."""


def chunks(config: Mapping[str, Json], inputs: Mapping[str, Path]) -> int:
    """One: each step builds on the one before."""
    return 1


def build_chunk(config: Mapping[str, Json], inputs: Mapping[str, Path], directory: Path, chunk: int) -> int:
    """Tunes the encoder, going on from a checkpoint below `directory`; returns the number of steps.

    Raises InputError for inputs that are no pairs or lack a split, a device that is not there, or an encoder
    without weights.
    """
    torch.set_num_threads(1)  # a stage is shared by all who ask for it: it may not depend on who made it
    settings = finetuning_of(config)
    _check_device(settings.device)
    adapter: TypeAdapter[Any] = TypeAdapter(EncoderConfig)
    encoder = build(adapter.validate_python(config["encoder"]))
    material, validation = (read_material(inputs, split, settings) for split in ("mapping", "validation"))
    readers = 1 if settings.device == "cpu" else max(1, min(MOST_READERS, (os.cpu_count() or 1) - 1))
    tuned = tune(encoder, material, validation, settings, directory, readers=readers)
    save_tuned(directory, tuned.encoder, _card(config, settings, tuned, material, validation))
    return settings.steps


def finish(config: Mapping[str, Json], inputs: Mapping[str, Path], directory: Path) -> None:
    """Removes the checkpoint."""
    (directory / CHECKPOINT).unlink(missing_ok=True)


def tuning_measures(directory: Path) -> dict[str, float]:
    """What tuning did to the encoder of a finished stage: `tuning/before/NAME` and `tuning/after/NAME`, for those of
    `cadloc.metric_names.TUNING_MEASURES` that exist."""
    card = json.loads((directory / CARD).read_text(encoding="utf-8"))
    found = {
        f"tuning/{when}/{name}": card[when].get(f"validation/{name}")
        for when in ("before", "after")
        for name in TUNING_MEASURES
    }
    return {name: float(value) for name, value in found.items() if value is not None}


def finetuning_of(config: Mapping[str, Json]) -> FinetuningConfig:
    """The settings in a stage's configuration."""
    adapter: TypeAdapter[Any] = TypeAdapter(FinetuningConfig)
    settings: FinetuningConfig = adapter.validate_python(config["finetuning"])
    return settings


def read_material(inputs: Mapping[str, Path], split: Split, settings: FinetuningConfig) -> Material:
    """Pairs and synthetic views of a split. Validation takes some, evenly spread; synthetic sets without a
    validation split are validated on mapping views."""
    photos, renders, synthetic = (Dataset.open(inputs[role]) for role in ("photos", "renders", "synthetic"))
    pairs = paired_views(photos, renders, split)
    if split == "validation":
        pairs = evenly_spread(pairs, settings.validation_pairs)
    views = synthetic.views(split if split in synthetic.splits else "mapping")
    diameter_m = synthetic.card.get("building_diameter_m")
    if not diameter_m:
        place = str(synthetic.directory / "dataset.json")
        raise InputError(Fault(place, "building_diameter_m", "nothing", "the diameter of the model", "render anew"))
    return Material(pairs, SyntheticViews(views), float(diameter_m))


def _check_device(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        found, allowed = "cuda, and no CUDA device here", "cpu"
        raise InputError(Fault("configuration", "finetuning.device", found, allowed))


def _card(
    config: Mapping[str, Json],
    settings: FinetuningConfig,
    tuned: TunedEncoder,
    material: Material,
    validation: Material,
) -> dict[str, Json]:
    first, last = tuned.history[0], tuned.history[-1]
    named = {"before": first, "after": last}
    metrics = {
        when: {name: _number(value) for name, value in row.items() if name.startswith("validation/")}
        for when, row in named.items()
    }
    return {
        "pairs": {"mapping": len(material.pairs), "validation": len(validation.pairs)},
        "parameters_tuned": sum(p.numel() for p in parameters_of(tuned.encoder, settings.parameters).values()),
        **metrics,
        "config": dict(config),
    }


def _number(value: float) -> float | None:
    return value if value == value else None  # JSON has no NaN
