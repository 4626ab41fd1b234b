"""The `encoder pretrain` command: settings become weights with a card, here or on a Ray, recorded in MLflow."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cadloc.contract import Fault, InputError, Json
from cadloc_sweep.durable_files import make_folder

if TYPE_CHECKING:
    from cadloc.pretraining_config import PretrainingConfig
    from cadloc.pretraining_history import Row
    from cadloc_sweep.trackers.encoder_run import EncoderTracking

LOCAL = "local"


@dataclass(frozen=True)
class TrainingPlace:
    """Where a run trains: in this process on `device`, or (`workers`, `gpus_per_worker`, `address`) on a Ray.

    Ray is used when any of the three says so. `loaders`: processes per worker that draw data ahead. Raises InputError
    for what contradicts itself.
    """

    workers: int = 1
    gpus_per_worker: int = 0
    address: str = LOCAL
    loaders: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        faults = []
        if self.workers < 1:
            faults.append(Fault("command line", "--workers", str(self.workers), "1 or more"))
        if self.gpus_per_worker not in (0, 1):
            found, allowed = str(self.gpus_per_worker), "0, or 1: a worker trains on one GPU; ask for more workers"
            faults.append(Fault("command line", "--gpus-per-worker", found, allowed))
        if self.loaders < 0:
            faults.append(Fault("command line", "--loaders", str(self.loaders), "0 or more"))
        if self.on_ray and self.device != "cpu":
            allowed = "workers on Ray: --gpus-per-worker says where they train"
            faults.append(Fault("command line", "--device", self.device, allowed))
        if faults:
            raise InputError(faults)

    @property
    def on_ray(self) -> bool:
        """Whether Ray starts the workers."""
        return self.workers > 1 or self.gpus_per_worker > 0 or self.address != LOCAL


def read_config(path: Path | None) -> PretrainingConfig:
    """The settings of a YAML file; None: the defaults. Raises InputError with all its faults."""
    from cadloc.documents import Document, load_document
    from cadloc.faults import validate
    from cadloc.pretraining_config import PretrainingConfig

    return validate(PretrainingConfig, Document("defaults", {}) if path is None else load_document(path))


def pretrain_encoder(
    out: Path,
    config: Path | None,
    place: TrainingPlace = TrainingPlace(),
    *,
    mlflow: bool = True,
    tracking_uri: str | None = None,
) -> dict[str, Json]:
    """Trains the encoder of a settings file in `out`, or goes on with it; returns its card.

    Raises InputError, DivergenceError, ExecutorUnreachable, OutOfResources.
    """
    settings = read_config(config)
    make_folder(out, "--out")
    tracking = _tracking(out, settings, tracking_uri) if mlflow else None
    card: dict[str, Json] | None = None
    try:
        card = _on_ray(settings, out, place, tracking) if place.on_ray else _here(settings, out, place, tracking)
    finally:
        if tracking is not None:
            _record(tracking, out, card)
    return card


def _here(
    config: PretrainingConfig, out: Path, place: TrainingPlace, tracking: EncoderTracking | None
) -> dict[str, Json]:
    from cadloc.pretraining import Site, pretrain

    listener = tracking.listener() if tracking is not None else None
    return pretrain(config, out, Site(device=place.device, loaders=place.loaders, listener=listener))


def _on_ray(
    config: PretrainingConfig, out: Path, place: TrainingPlace, tracking: EncoderTracking | None
) -> dict[str, Json]:
    from cadloc_sweep.executors.on_ray_training import RayTraining, TrainingJob

    make_listener: Callable[[], Callable[[Row], None]] | None = None
    if tracking is not None:
        make_listener = tracking.listener
    job = TrainingJob(config, out.resolve(), place.workers, place.gpus_per_worker, place.loaders, make_listener)
    training = RayTraining(place.address)
    try:
        return training.pretrain(job)
    finally:
        training.close()


def _tracking(out: Path, config: PretrainingConfig, uri: str | None) -> EncoderTracking:
    from cadloc_sweep.trackers.encoder_run import EncoderTracking

    return EncoderTracking(out.resolve(), config.model_dump(mode="json"), uri)


def _record(tracking: EncoderTracking, out: Path, card: dict[str, Json] | None) -> None:
    from cadloc.pretraining_history import History
    from cadloc_sweep.trackers.encoder_run import EncoderRun

    history = out / "history.csv"
    rows = History.read(history).rows if history.is_file() else []
    if rows:
        EncoderRun(tracking, partial(print, file=sys.stderr)).ended(rows, card)
