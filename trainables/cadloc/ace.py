"""Scene coordinate regression as in ACE (Brachmann et al., CVPR 2023): a head on frozen features, one map per scene."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from cadloc.artifacts import load_map, save_map
from cadloc.buffer import Buffer
from cadloc.catalog import test_sets, validation_domains
from cadloc.config import TrialConfig
from cadloc.contract import Progress, TrialContext
from cadloc.datasets.ace_layout import Dataset
from cadloc.encoding import encode_image
from cadloc.evaluation import Evaluation, evaluate, predict_cells
from cadloc.figures import draw_curves, draw_queries
from cadloc.finetuning.stage import tuning_measures
from cadloc.geometry import Array, cell_pixels
from cadloc.heads import build as build_head
from cadloc.heads.head import Head
from cadloc.localization import Estimate, localize
from cadloc.losses import YARDSTICKS
from cadloc.queries import Queries
from cadloc.samples import Samples
from cadloc.testing import keep_answers
from cadloc.training import Training, mean_loss


def train(config: TrialConfig, context: TrialContext) -> Iterator[Progress]:
    """Trains a head on the buffer, then localizes every query set with it.

    Yields the validation's metrics at every milestone and, at the end, the test's. Leaves map, poses, history
    and figures in `context.directory`; started there again, it resumes from its last checkpoint.
    """
    torch.set_num_threads(1)  # the same bits whoever runs it; more cores run more trials
    buffers = [Buffer.open(context.stages[f"buffer/{name}"]) for name in config.train_on]
    samples = Samples.joined([Samples.from_buffer(buffer, context.device) for buffer in buffers])
    head = build_head(config.head, samples.dimensions, config.seed).to(context.device)
    training = Training(head, samples, config, context.directory)
    if not training.resume():
        head.fit(samples, config.seed)

    domains = validation_domains(config)
    validations = {name: Queries.open(context.stages[f"queries/validation/{name}"]) for name in domains}
    validation_samples = {name: Samples.from_queries(queries, context.device) for name, queries in validations.items()}
    card = Dataset.open(context.stages["views/synthetic"]).card
    diameter_m = float(card["building_diameter_m"])

    def test(queries: Queries) -> Evaluation:
        return evaluate(
            head, queries, config.localization, diameter_m=diameter_m, seed=config.seed, device=context.device
        )

    def validate(head: Head) -> Mapping[str, float]:
        metrics: dict[str, float] = {}
        for name, queries in validations.items():
            known = validation_samples[name]  # none where validation photos see nothing of the model
            losses = {f"loss_{phase.unit}": mean_loss(head, known, phase) for phase in YARDSTICKS if len(known)}
            metrics |= _named(f"validation/{name}", {**losses, **test(queries).metrics})
        return metrics

    for row in training.run(validate):
        yield _progress(training, row)

    head.eval()
    size_px = (config.views.image.width_px, config.views.image.height_px)
    save_map(context.directory, head, config, size_px, np.array(card["origin_m"]), context.stages.get("encoder"))
    metrics = tuning_measures(context.stages["encoder"]) if config.finetuning is not None else {}
    for name in test_sets(config):
        queries = Queries.open(context.stages[f"queries/{name}"])
        evaluation = test(queries)
        metrics |= _named(f"test/{name}", keep_answers(config, context, name, evaluation.answers(queries)))
        draw_queries(context.directory / "figures" / f"queries_{name}.png", config, context.stages, name, evaluation)
        metrics |= _named(f"test/{name}", evaluation.metrics)
        metrics[f"time/{name}/localization_median_s"] = evaluation.localization_median_s
    draw_curves(context.directory / "figures" / "curves.png", training.progression.history)
    yield _progress(training, metrics, finished=True)


def localize_image(map_path: Path, image: NDArray[np.uint8], intrinsics: Array, seed: int = 0) -> Estimate:
    """Pose of the camera that took an RGB image (H, W, 3) with `intrinsics` (3, 3), against a trial's map.

    The image is resized so that its short side is that of the views the map was trained on: features know one
    scale only. Raises InputError for what is no map, ValueError for an image too small.
    """
    scene = load_map(map_path)
    scale = min(scene.image_size_px) / min(image.shape[:2])
    width_px, height_px = (max(8, round(side * scale)) for side in image.shape[1::-1])
    resized = cv2.resize(image, (width_px, height_px), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    # Each side by its own factor: rounding to whole pixels changes their ratio.
    factors = np.array([width_px / image.shape[1], height_px / image.shape[0], 1.0])
    # Half precision, as the queries of a trial are stored: the map says the same here as there.
    features = encode_image(scene.encoder, np.asarray(resized, np.uint8)).astype(np.float16)
    return localize(
        predict_cells(scene.head, features.reshape(-1, features.shape[-1])),
        cell_pixels(*features.shape[:2]).reshape(-1, 2),
        factors[:, None] * intrinsics,
        width_px,
        height_px,
        scene.localization,
        seed,
    )


def _progress(training: Training, metrics: Mapping[str, float], finished: bool = False) -> Progress:
    last = training.progression.history[-1]
    kept = {name: value for name, value in last.items() if name.startswith(("train/", "time/"))}
    named = {name: value for name, value in metrics.items() if name != "step"}
    return Progress(training.progression.step, int(last["train/samples_seen"]), {**kept, **named}, finished)


def _named(prefix: str, metrics: Mapping[str, float]) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in metrics.items()}
