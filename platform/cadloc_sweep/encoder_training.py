"""The `encoder pretrain` command: settings become weights with a card, here or on a Ray, recorded in MLflow."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cadloc.contract import Fault, InputError, Json
from cadloc_sweep.durable_files import make_folder
from cadloc_sweep.encoder_progress import RunLines, followed, history_rows
from cadloc_sweep.lock import SweepLock

if TYPE_CHECKING:
    from cadloc.pretraining_config import PretrainingConfig
    from cadloc.pretraining_history import Row
    from cadloc_sweep.trackers.encoder_run import EncoderTracking

LOCAL = "local"

COMMAND_LINE, SETTINGS = "command line", "configuration"
"""What faults call the options, and settings whose file they do not know."""

FINISHED, FAILED, KILLED = "FINISHED", "FAILED", "KILLED"
"""How MLflow calls a run's end: as it should, with an error, after Ctrl-C."""


@dataclass(frozen=True)
class TrainingPlace:
    """Where a run trains: in this process on `device`, or (`workers`, `gpus_per_worker`, `address`) on a Ray.

    Ray is used when any of the three says so. `loaders`: processes per worker that draw data ahead.
    """

    workers: int = 1
    gpus_per_worker: int = 0
    address: str = LOCAL
    loaders: int = 0
    device: str = "cpu"

    @property
    def on_ray(self) -> bool:
        """Whether Ray starts the workers."""
        return self.workers > 1 or self.gpus_per_worker > 0 or self.address != LOCAL

    def faults(self) -> list[Fault]:
        """Options out of range, and those that contradict one another."""
        faults = []
        if self.workers < 1:
            faults.append(Fault(COMMAND_LINE, "--workers", str(self.workers), "1 or more"))
        if self.gpus_per_worker not in (0, 1):
            found, allowed = str(self.gpus_per_worker), "0, or 1: a worker trains on one GPU; ask for more workers"
            faults.append(Fault(COMMAND_LINE, "--gpus-per-worker", found, allowed))
        if self.loaders < 0:
            faults.append(Fault(COMMAND_LINE, "--loaders", str(self.loaders), "0 or more"))
        if self.on_ray and self.device != "cpu":
            allowed, action = "nothing beside workers on Ray", "--gpus-per-worker says where they train"
            faults.append(Fault(COMMAND_LINE, "--device", self.device, allowed, action))
        return faults


def read_config(path: Path | None) -> PretrainingConfig:
    """The settings of a YAML file; None: the defaults. Raises InputError with all its faults."""
    from cadloc.documents import Document, load_document
    from cadloc.faults import validate
    from cadloc.pretraining_config import PretrainingConfig

    return validate(PretrainingConfig, Document("defaults", {}) if path is None else load_document(path))


def read_request(out: Path, config: Path | None, place: TrainingPlace) -> PretrainingConfig:
    """The settings, once nothing is wrong with them, with the place or with the folder, which is then made.

    Raises InputError with the faults of all three; nothing has been made then.
    """
    faults, settings = place.faults(), None
    with _added_to(faults):
        settings = read_config(config)
    with _added_to(faults):
        _check_device(place)
    for workers in {1, max(1, place.workers)} if settings is not None else ():
        with _added_to(faults, config):
            _check_method(settings, workers)
    if not faults or out.exists():
        with _added_to(faults):
            make_folder(out, "--out")
            _check_claim(out, settings)
    if faults or settings is None:
        raise InputError(faults)
    return settings


def pretrain_encoder(
    out: Path,
    config: Path | None,
    place: TrainingPlace = TrainingPlace(),
    *,
    mlflow: bool = True,
    tracking_uri: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Json]:
    """Trains the encoder of a settings file in `out`, or goes on with it; returns its card. `say` hears of progress.

    Raises InputError, DivergenceError, MissingSystemLibrary, SweepLocked, ExecutorUnreachable, OutOfResources, and
    KeyboardInterrupt after having said how to go on.
    """
    settings = read_request(out, config, place)
    out = out.resolve()
    with SweepLock(out / "lock"):
        done = len(history_rows(out / "history.csv"))
        say(_beginning(settings, out, done))
        tracking = _tracking(out, settings, tracking_uri) if mlflow else None
        lines = RunLines(settings.steps, say)
        card: dict[str, Json] | None = None
        status = FAILED
        try:
            train = _on_ray if place.on_ray else _here
            card = train(settings, out, place, tracking, lines)
            status = FINISHED
        except KeyboardInterrupt:
            status = KILLED
            say(f"interrupted; the same command goes on after step {len(history_rows(out / 'history.csv'))}")
            raise
        finally:
            if tracking is not None:
                _record(tracking, out, status, card, say)
    say(_ending(out, mlflow, tracking_uri))
    return card


def _here(
    config: PretrainingConfig, out: Path, place: TrainingPlace, tracking: EncoderTracking | None, lines: RunLines
) -> dict[str, Json]:
    from cadloc.pretraining import Site, pretrain

    tell = tracking.listener() if tracking is not None else None

    def listener(row: Row) -> None:
        lines.heard([row])
        if tell is not None:
            tell(row)

    site = Site(device=place.device, loaders=place.loaders, listener=listener, on_building=lines.rendered)
    return pretrain(config, out, site)


def _on_ray(
    config: PretrainingConfig, out: Path, place: TrainingPlace, tracking: EncoderTracking | None, lines: RunLines
) -> dict[str, Json]:
    from cadloc_sweep.executors.on_ray_training import RayTraining, TrainingJob

    listener = None if tracking is None else tracking.listener
    job = TrainingJob(config, out, place.workers, place.gpus_per_worker, place.loaders, listener)
    training = RayTraining(place.address)
    history = out / "history.csv"
    try:
        with followed(history, len(history_rows(history)), lines.heard):
            return training.pretrain(job, lines.rendered)
    finally:
        training.close()


@contextmanager
def _added_to(faults: list[Fault], file: Path | None = None) -> Iterator[None]:
    """Keeps the faults of an InputError; those of settings are said to be in `file`."""
    try:
        yield
    except InputError as error:
        for fault in error.faults:
            told = replace(fault, file=str(file)) if file is not None and fault.file == SETTINGS else fault
            if told not in faults:
                faults.append(told)


def _check_device(place: TrainingPlace) -> None:
    from cadloc.pretraining import Site

    if not place.on_ray:
        Site(device=place.device)


def _check_method(settings: PretrainingConfig, workers: int) -> None:
    """Whether the workers can share the batches, and the teacher is there: now, not when the pool is rendered."""
    from cadloc.pretraining import make_objective
    from cadloc.pretraining_objective import Material
    from cadloc.workers import Workers

    make_objective(Material((), settings, Workers(size=workers)))


def _check_claim(out: Path, settings: PretrainingConfig | None) -> None:
    from cadloc.pretraining import check_claim

    if settings is not None:
        check_claim(out, settings)


def _beginning(settings: PretrainingConfig, out: Path, done: int) -> str:
    if done:
        return f"{out}: going on after step {done} of {settings.steps}"
    name, buildings = settings.method.name, settings.pool.buildings
    return f"{out}: {settings.steps} steps, {name}, {settings.architecture} encoder, {buildings} buildings"


def _ending(out: Path, mlflow: bool, uri: str | None) -> str:
    from cadloc_sweep.running import program
    from cadloc_sweep.trackers.own_store import without_password

    ended = f"weights, card and history are in {out}"
    if not mlflow:
        return ended
    return f"{ended}; curves: {without_password(uri) if uri else shlex.join([program(), 'ui', '--out', str(out)])}"


def _tracking(out: Path, config: PretrainingConfig, uri: str | None) -> EncoderTracking:
    from cadloc_sweep.trackers.encoder_run import EncoderTracking

    return EncoderTracking(out, config.model_dump(mode="json"), uri)


def _record(
    tracking: EncoderTracking, out: Path, status: str, card: dict[str, Json] | None, say: Callable[[str], None]
) -> None:
    from cadloc_sweep.trackers.encoder_run import EncoderRun

    EncoderRun(tracking, say).ended(history_rows(out / "history.csv"), status, card)
