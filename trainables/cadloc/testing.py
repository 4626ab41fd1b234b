"""What every trainable does with the poses it found for a query set: metrics, a CSV, a page of the worst queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cadloc.artifacts import write_poses
from cadloc.cad import CadModel
from cadloc.catalog import PAIRED_DOMAINS, source_of
from cadloc.config import TrialConfig
from cadloc.contract import TrialContext
from cadloc.datasets.ace_layout import Dataset, View
from cadloc.dcre import DcreErrors, dcre_summary, depth_of, measure_dcre
from cadloc.failure_pages import FailureRow, draw_failures, explained_pixels, worst_queries
from cadloc.geometry import Array, inverse
from cadloc.localization import Estimate
from cadloc.metrics import PoseErrors
from cadloc.registration import rec_from_cad
from cadloc.rendering import process_renderer
from cadloc.scene_models import kept_scene_model


@dataclass(frozen=True, eq=False)
class Answer:
    """What a trainable says of one query: its pose, from points (M, 3) of `cad` taken to be at pixels (M, 2).

    `threshold_px` is that of its inliers, for an image of 480 px short side.
    """

    estimate: Estimate
    pixels: Array
    points_cad: Array
    threshold_px: float


def query_views(context: TrialContext, name: str) -> tuple[View, ...]:
    """The query set's views, in the order of the stage `queries` of the same name."""
    return Dataset.open(context.stages[f"views/{name}"]).views("query")


def keep_answers(config: TrialConfig, context: TrialContext, name: str, answers: Sequence[Answer]) -> dict[str, float]:
    """Writes `poses_NAME.csv` of one answer per query view; returns the DCRE metrics where the set has them.

    Photographs get a page of the worst ten, too: `figures/failures_NAME.png`. `target` has what it stands for has.
    """
    views = query_views(context, name)
    estimates = [answer.estimate for answer in answers]
    cam_from_cad = np.stack([inverse(view.cad_from_cam) for view in views])
    errors = PoseErrors.of(estimates, cam_from_cad)
    model = kept_scene_model(config.scene)
    source = source_of(config.scene, name)
    dcre = _dcre(config, model, views, estimates) if source in PAIRED_DOMAINS else None
    share = None if dcre is None else dcre.mean_share
    write_poses(context.directory / f"poses_{name}.csv", [view.name for view in views], estimates, errors, share)
    if source == "real" and share is not None:
        worst = worst_queries(share, errors.translation_m)
        rows = [_row(views[i], answers[i], float(share[i])) for i in worst]
        path = context.directory / "figures" / f"failures_{name}.png"
        draw_failures(path, rows, model, process_renderer(config.views.backend), title=_title(config))
    return {} if dcre is None else dcre_summary(dcre)


def _dcre(config: TrialConfig, model: CadModel, views: Sequence[View], estimates: Sequence[Estimate]) -> DcreErrors:
    photos = config.scene.photos
    return measure_dcre(
        estimates,
        np.stack([inverse(view.cad_from_cam) for view in views]),
        np.stack([view.intrinsics for view in views]),
        [view.image_size_px for view in views],
        depth_of(model, process_renderer(config.views.backend)),
        rec_from_cad=None if photos is None else rec_from_cad(photos, model),
    )


def _row(view: View, answer: Answer, dcre_share: float) -> FailureRow:
    inliers = explained_pixels(
        answer.estimate,
        answer.points_cad,
        answer.pixels,
        view.intrinsics,
        view.image_size_px,
        answer.threshold_px,
    )
    image, pose = view.read_image(), view.cad_from_cam
    return FailureRow(view.name, image, view.intrinsics, pose, answer.estimate, inliers, dcre_share)


def _title(config: TrialConfig) -> str:
    return f"{config.scene.name}, {config.trainable} on {', '.join(config.train_on)}, seed {config.seed}: worst photos"
