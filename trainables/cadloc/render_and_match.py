"""Localization by matching with renders, as in MeshLoc (Panek et al., ECCV 2022) and CadLoc (CVPR 2023): no learning.

A query is matched with the renders that look most like it, the matches are lifted by the renders' depth, and a robust
solver finds the pose. Then the model is rendered at that pose and matched again, which repairs what a far viewpoint
made of the matches.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

import numpy as np
import torch

from cadloc.catalog import test_sets, validation_domains
from cadloc.config import TrialConfig
from cadloc.contract import Fault, InputError, Progress, TrialContext
from cadloc.datasets.ace_layout import Dataset, Split, View
from cadloc.geometry import inverse
from cadloc.matching.database import Database
from cadloc.matching.localizer import Localizer
from cadloc.metrics import PoseErrors, coordinate_error_median_m, summary
from cadloc.rendering import process_renderer
from cadloc.scene_models import kept_scene_model
from cadloc.testing import Answer, keep_answers


def train(config: TrialConfig, context: TrialContext) -> Iterator[Progress]:
    """Describes the mapping views of the domains in `train_on`, then localizes every query set against them.

    Yields the validation's metrics, then the test's, under the names that `cadloc.ace` reports. Leaves poses in
    `context.directory`. Raises InputError for a plug-in that is not installed and for views without depth.
    """
    torch.set_num_threads(1)  # the same bits whoever runs it; more cores run more trials
    start_s = time.perf_counter()
    database = Database.of(config, [view for name in config.train_on for view in _views(context, name, "mapping")])
    localizer = Localizer(config, database, kept_scene_model(config.scene), process_renderer(config.views.backend))
    diameter_m = float(Dataset.open(context.stages["views/synthetic"]).card["building_diameter_m"])
    times = {"time/training_s": time.perf_counter() - start_s}

    metrics: dict[str, float] = dict(times)
    for domain in validation_domains(config):
        views = _views(context, domain, "validation")
        metrics |= _named(f"validation/{domain}", _metrics(views, _answers(localizer, views), diameter_m))
    yield Progress(0, len(database), metrics)

    metrics = dict(times)
    for name in test_sets(config):
        views = _views(context, name, "query")
        answers = _answers(localizer, views)
        metrics |= _named(f"test/{name}", _metrics(views, answers, diameter_m))
        metrics |= _named(f"test/{name}", keep_answers(config, context, name, answers))
        metrics[f"time/{name}/localization_median_s"] = float(np.median([a.estimate.runtime_s for a in answers]))
    yield Progress(1, len(database), metrics, finished=True)


def _views(context: TrialContext, name: str, split: Split) -> tuple[View, ...]:
    place = context.stages[f"views/{name}"]
    views = Dataset.open(place).views(split)
    if not views:
        raise InputError(Fault(str(place), split, "no views", "at least one"))
    return views


def _answers(localizer: Localizer, views: tuple[View, ...]) -> list[Answer]:
    return [localizer.localize(view.read_image(), view.intrinsics) for view in views]


def _metrics(views: tuple[View, ...], answers: list[Answer], diameter_m: float) -> dict[str, float]:
    """Those of `cadloc.metrics`; the scene coordinates measured are those of the matches behind each pose."""
    estimates = [answer.estimate for answer in answers]
    errors = PoseErrors.of(estimates, inverse(np.stack([view.cad_from_cam for view in views])))
    true = np.concatenate([view.scene_coordinates(answer.pixels) for view, answer in zip(views, answers, strict=True)])
    matched = np.concatenate([answer.points_cad for answer in answers])
    return summary(errors, estimates, coordinate_error_median_m(matched, true), diameter_m)


def _named(prefix: str, metrics: Mapping[str, float]) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in metrics.items()}
