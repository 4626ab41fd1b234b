"""What all scene coordinate regression has in common: train a head on a buffer, then localize with it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from cadloc import constraints
from cadloc.artifacts import map_size_mb, save_map
from cadloc.buffer import Buffer
from cadloc.catalog import test_sets, validation_domains
from cadloc.config import TrialConfig
from cadloc.contract import DivergenceError, Progress, TrialContext
from cadloc.datasets.ace_layout import Dataset
from cadloc.evaluation import Evaluation, evaluate
from cadloc.figures import draw_curves, draw_queries
from cadloc.finetuning.stage import tuning_measures
from cadloc.heads import build as build_head
from cadloc.heads.head import Head
from cadloc.loss_config import predicts_deviation
from cadloc.losses import YARDSTICKS
from cadloc.packing.remote import PackedRunner
from cadloc.prefixes import TRUNK
from cadloc.queries import Queries
from cadloc.samples import Samples
from cadloc.testing import keep_answers
from cadloc.training import Training, mean_loss
from cadloc.workers import Workers

_LOG = logging.getLogger(__name__)


class Told(Protocol):
    """What a head is told of whole images, beside the features of their cells; None where it is told nothing."""

    def dimensions(self) -> int:
        """Numbers G of an image's global feature."""
        ...

    def of_mapping(self, domain: str) -> NDArray[np.float32] | None:
        """Global features (V, G) of a domain's mapping views."""
        ...

    def of_queries(self, name: str) -> NDArray[np.float32] | None:
        """Own global features (V, G) of a query set, or of `validation/D`."""
        ...

    def candidates(self, name: str) -> NDArray[np.float32] | None:
        """Global features (V, H, G) to read each query with, in turn; the guess with most inliers wins."""
        ...

    def keep(self, directory: Path) -> None:
        """Leaves with a map in `directory` what it needs to be told of photographs."""
        ...


class NothingTold:
    """Of heads that read cells alone."""

    def dimensions(self) -> int:
        """0."""
        return 0

    def of_mapping(self, domain: str) -> None:
        """None."""

    def of_queries(self, name: str) -> None:
        """None."""

    def candidates(self, name: str) -> None:
        """None."""

    def keep(self, directory: Path) -> None:
        """Nothing."""


def train_head(config: TrialConfig, context: TrialContext, told: Told) -> Iterator[Progress]:
    """Trains the configured head on the buffer, then localizes every query set with it.

    Yields the validation's metrics at every milestone and, at the end, the test's. Leaves map, poses, history
    and figures in `context.directory`; started there again, it resumes from its last checkpoint. Several workers share
    the steps of training, and worker 0 does all else: in the others nothing is yielded.

    Where there is a stage `trunk` and no checkpoint, it goes on from where the trunk ends, and first yields what
    that has reached: all is as if it had taken these steps itself.
    """
    torch.set_num_threads(1)  # the same bits whoever runs it; more cores run more trials
    training = _training(config, context, told)
    before = training.start(context.stages.get(TRUNK))
    if context.worker > 0:
        training.follow()
        return
    head, examination = training.head, Examination(config, context, told)
    for row in before:
        yield _progress(row)
    for row in training.run(examination.validate):
        yield _progress(row)

    head.eval()
    card = examination.card
    size_px = (config.views.image.width_px, config.views.image.height_px)
    told.keep(context.directory)
    made = (context.stages.get(role) for role in ("encoder", "projection"))
    save_map(context.directory, head, config, size_px, np.array(card["origin_m"]), *made)
    metrics = tuning_measures(context.stages["encoder"]) if config.finetuning is not None else {}
    metrics["map/size_mb"] = map_size_mb(context.directory)
    for name in test_sets(config):
        queries = Queries.open(context.stages[f"queries/{name}"])
        metrics |= _kept(config, context, name, queries, examination.of(head, name, queries))
    draw_curves(context.directory / "figures" / "curves.png", training.progression.history)
    yield _progress(training.progression.history[-1], metrics)


def train_trunk(config: TrialConfig, context: TrialContext, told: Told, until: int) -> None:
    """Trains as `train_head` does, up to step `until`, and leaves a checkpoint there for trials to go on from.

    Where training diverges it leaves that of the last milestone, or none: whoever goes on finds out by itself.
    """
    torch.set_num_threads(1)
    training = _training(config, context, told)
    training.start(context.stages.get(TRUNK))
    try:
        for _ in training.run(Examination(config, context, told).validate, until):
            pass
    except DivergenceError as error:
        _LOG.warning("trunk of %d steps: %s; trials that go on from it will say so", until, error)
        return
    training.store()


class Examination:
    """A trial's query sets, and how a head is measured on them, in training and after it."""

    def __init__(self, config: TrialConfig, context: TrialContext, told: Told) -> None:
        self._config, self._device, self._told, self._solvers = config, context.device, told, context.cpus
        self._validations = {
            name: Queries.open(context.stages[f"queries/validation/{name}"]) for name in validation_domains(config)
        }
        self._samples = {
            name: Samples.from_queries(queries, context.device, told.of_queries(f"validation/{name}"))
            for name, queries in self._validations.items()
        }
        self.card = Dataset.open(context.stages["views/synthetic"]).card

    def of(self, head: Head, name: str, queries: Queries) -> Evaluation:
        """Where the head localizes the queries of a set."""
        return evaluate(
            head,
            queries,
            self._config.localization,
            diameter_m=float(self.card["building_diameter_m"]),
            seed=self._config.seed,
            device=self._device,
            candidates=self._told.candidates(name),
            solvers=self._solvers,
        )

    def validate(self, head: Head) -> Mapping[str, float]:
        """Losses and accuracy on all validation sets, by metric name."""
        metrics: dict[str, float] = {}
        for name, queries in self._validations.items():
            known = self._samples[name]  # none where validation photos see nothing of the model
            losses = {f"loss_{phase.unit}": mean_loss(head, known, phase) for phase in YARDSTICKS if len(known)}
            found = self.of(head, f"validation/{name}", queries).metrics
            metrics |= _named(f"validation/{name}", {**losses, **found})
        return metrics


def _training(config: TrialConfig, context: TrialContext, told: Told) -> Training:
    """The configured head, and the samples that it is to be trained on."""
    buffers = [Buffer.open(context.stages[f"buffer/{name}"]) for name in config.train_on]
    known = (told.of_mapping(name) for name in config.train_on)
    each = zip(buffers, known, strict=True)
    samples = Samples.joined([Samples.from_buffer(buffer, context.device, about) for buffer, about in each])
    head = build_head(
        config.head,
        samples.dimensions,
        config.seed,
        global_dimensions=told.dimensions(),
        deviation=predicts_deviation(config.loss),
    ).to(context.device)
    limits = constraints.build(config.constraints, context.stages, samples)
    workers = Workers(context.worker, context.workers)
    runner = None if context.pack is None else PackedRunner(context.pack, context.stages)
    return Training(head, samples, config, context.directory, limits, workers, runner)


def _kept(
    config: TrialConfig, context: TrialContext, name: str, queries: Queries, evaluation: Evaluation
) -> dict[str, float]:
    """Writes what came of a query set, and draws some of it; returns its metrics."""
    metrics = _named(f"test/{name}", keep_answers(config, context, name, evaluation.answers(queries)))
    draw_queries(context.directory / "figures" / f"queries_{name}.png", config, context.stages, name, evaluation)
    metrics |= _named(f"test/{name}", evaluation.metrics)
    return {**metrics, f"time/{name}/localization_median_s": evaluation.localization_median_s}


def _progress(row: Mapping[str, float], tested: Mapping[str, float] | None = None) -> Progress:
    """What a row of the history says; with the test's metrics, the end of the trial, whose last row it is."""
    step, seen = int(row["step"]), int(row["train/samples_seen"])
    if tested is None:
        return Progress(step, seen, {name: value for name, value in row.items() if name != "step"})
    kept = {name: value for name, value in row.items() if name.startswith(("train/", "time/"))}
    return Progress(step, seen, {**kept, **tested}, finished=True)


def _named(prefix: str, metrics: Mapping[str, float]) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in metrics.items()}
