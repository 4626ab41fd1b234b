"""Names of everything a trial reports. No heavy import: the platform checks a space's objective by them."""

from __future__ import annotations

import importlib

from cadloc.catalog import PAIRED_DOMAINS, REGRESSORS, source_of, test_sets, validation_domains
from cadloc.config import TrialConfig

POSE_METRICS: tuple[str, ...] = (
    "translation_error_median_m",
    "translation_error_median_pct",
    "rotation_error_median_deg",
    *("recall_5cm_5deg", "recall_10cm_5deg", "recall_25cm_2deg", "recall_50cm_5deg", "recall_5m_10deg"),
    "recall_1pct_2deg",
    "scene_coordinate_error_median_m",
    "inlier_share_median",
    "failures",
)
"""Metrics of every query set (`cadloc.metrics` computes them)."""

DCRE_METRICS: tuple[str, ...] = (
    *("dcre_mean_median_pct", "dcre_max_median_pct"),
    *("dcre_recall_5pct", "dcre_recall_10pct", "dcre_recall_20pct", "dcre_recall_30pct"),
    *("dcre_max_recall_5pct", "dcre_max_recall_10pct", "dcre_max_recall_20pct", "dcre_max_recall_30pct"),
    *("dcre_cadloc_recall_10pct", "dcre_cadloc_recall_20pct", "dcre_cadloc_recall_30pct"),
)
"""Metrics of photos and of renders at their poses, beside `POSE_METRICS` (`cadloc.dcre` computes them)."""

TUNING_MEASURES = ("agreement", "precision", "kept", "synthetic_precision")
"""What is measured of an encoder before and after it is tuned (`cadloc.finetuning.measures`)."""


def reported_metrics(config: TrialConfig) -> frozenset[str] | None:
    """Names of all metrics that the trial reports, during training or at its end; None: not known.

    A user's own trainable may say so by a function `reported_metrics(config)` of its module.
    """
    if ":" in config.trainable:
        module = importlib.import_module(config.trainable.split(":", 1)[0])
        return frozenset(module.reported_metrics(config)) if hasattr(module, "reported_metrics") else None
    tests = {f"test/{name}/{metric}" for name in test_sets(config) for metric in POSE_METRICS}
    pairs = [name for name in test_sets(config) if source_of(config.scene, name) in PAIRED_DOMAINS]
    tests |= {f"test/{name}/{metric}" for name in pairs for metric in DCRE_METRICS}
    regresses = config.trainable in REGRESSORS
    kinds = (*POSE_METRICS, *(("loss_m", "loss_px") if regresses else ()))
    validations = {f"validation/{name}/{metric}" for name in validation_domains(config) for metric in kinds}
    times = {"time/training_s", *(f"time/{name}/localization_median_s" for name in test_sets(config))}
    training: set[str] = set()
    if regresses:
        constraints = (f"constraint_{constraint.name}_px" for constraint in config.constraints)
        names = ("loss_m", "loss_px", "loss_nat", "own_loss", "samples_seen", *constraints)
        training = {"map/size_mb", *(f"train/{name}" for name in names)}
    if config.finetuning is not None:
        training |= {f"tuning/{when}/{name}" for when in ("before", "after") for name in TUNING_MEASURES}
    return frozenset({*training, *times, *tests, *validations})
