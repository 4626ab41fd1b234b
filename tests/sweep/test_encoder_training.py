"""The command that pre-trains encoders: here and on Ray the same, and recorded in MLflow."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from cadloc.contract import DivergenceError, InputError
from cadloc.geometry import cell_pixels, pinhole, rigid
from cadloc.pretraining import pretrain
from cadloc.pretraining_config import Contrastive, PoolConfig, PretrainingConfig
from cadloc.pretraining_history import History, Row
from cadloc.pretraining_pairs import PooledBuilding
from cadloc_sweep.cli import run_command
from cadloc_sweep.encoder_progress import RunLines, followed
from cadloc_sweep.encoder_training import TrainingPlace, pretrain_encoder, read_config
from cadloc_sweep.failures import OutOfResources
from cadloc_sweep.lock import SweepLock

SETTINGS = """\
pool: {buildings: 2, held_out: 1}
method: {name: contrastive, pairs: 4, pairs_per_building: 2, matches: 12}
steps: 3
width_px: 64
height_px: 64
precision: float32
learning_rate: 0.0001
warm_up: 30
validation_pairs: 2
validate_every: 2
"""


def wall() -> PooledBuilding:
    """Two views of a textured wall, which see one another and themselves."""
    generator, K = np.random.default_rng(0), pinhole(128, 96, 60)
    texture = cv2.resize(generator.integers(0, 256, (60, 60, 3)).astype(np.float32), (400, 400))
    images, poses = [], []
    for x in (0.0, 1.0):
        points = (cell_pixels(96, 128, 1).reshape(-1, 2) - K[:2, 2]) / K[0, 0] * 8 + [x, 0]
        u, v = ((points + 8) * 400 / 16).astype(np.float32).reshape(96, 128, 2).transpose(2, 0, 1)
        images.append(np.clip(cv2.remap(texture, u, v, cv2.INTER_LINEAR), 0, 255).astype(np.uint8))
        poses.append(rigid(np.eye(3), [x, 0, -8]))
    pairs = np.array([[0, 1], [1, 0], [0, 0]])
    depths_m = np.full((2, 96, 128), 8, np.float16)
    return PooledBuilding(np.stack(images), depths_m, np.stack(poses), np.stack([K, K]), np.zeros(2, int), pairs)


def place(folder: Path, name: str) -> Path:
    """A run's directory whose pool is made already: two walls, and photographs that equal the second."""
    for building in ("building_0000", "building_0001", "photographs_0001"):
        directory = folder / name / "pool" / building
        directory.mkdir(parents=True)
        wall().save(directory)
    return folder / name


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    """A settings file."""
    path = tmp_path / "settings.yaml"
    path.write_text(SETTINGS)
    return path


@pytest.fixture
def _local_ray() -> Iterator[None]:
    ray = pytest.importorskip("ray")
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}},
    )
    yield
    ray.shutdown()


def state(directory: Path, key: str) -> dict[str, torch.Tensor]:
    """The encoder's weights and statistics, or Adam's means of the gradients, of a run's checkpoint."""
    stored = torch.load(directory / "checkpoint.pt", weights_only=True)
    if key == "encoder":
        return dict(stored[key])
    return {f"mean gradient {index}": value["exp_avg"] for index, value in stored["optimizer"]["state"].items()}


@pytest.mark.usefixtures("_local_ray")
def test_two_workers_on_ray_end_where_one_does(tmp_path: Path, settings: Path) -> None:
    """Two gloo workers with half the batch each: losses and weights of one worker to 1e-5.

    What fits nowhere is said before anything starts.
    """
    alone, shared = place(tmp_path, "alone"), place(tmp_path, "shared")
    card = pretrain_encoder(alone, settings, mlflow=False)
    card_of_two = pretrain_encoder(shared, settings, TrainingPlace(workers=2), mlflow=False)
    assert card_of_two["training"] == card["training"]
    losses = [History.read(directory / "history.csv").losses for directory in (alone, shared)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    one, two = (state(directory, "encoder") for directory in (alone, shared))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-5, msg=name)
    # Adam's first steps are signs: gradients of other data would hide in weights that moved as far elsewhere.
    one, two = (state(directory, "gradients") for directory in (alone, shared))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=0.02 * value.abs().max().item(), msg=name)
    with pytest.raises(OutOfResources, match="64 CPU"):
        pretrain_encoder(place(tmp_path, "large"), settings, TrainingPlace(workers=2, loaders=31), mlflow=False)


def test_the_command_is_the_library(tmp_path: Path, settings: Path) -> None:
    """Without Ray and MLflow the command does what `pretrain` does with the file's settings."""
    config = PretrainingConfig(
        pool=PoolConfig(buildings=2, held_out=1), method=Contrastive(pairs=4, matches=12), steps=3, width_px=64,
        height_px=64, precision="float32", learning_rate=1e-4, warm_up=30, validation_pairs=2, validate_every=2,
    )  # fmt: skip
    assert read_config(settings) == config
    command, library = place(tmp_path, "command"), place(tmp_path, "library")
    assert pretrain_encoder(command, settings, mlflow=False) == pretrain(config, library)
    weights = [(directory / "small.safetensors").read_bytes() for directory in (command, library)]
    assert weights[0] == weights[1]


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    """Settings, options that contradict one another, and the folder; nothing has been made then."""
    path = tmp_path / "wrong.yaml"
    path.write_text("method: {name: regression, images: 0}\nstep: 3\n")
    place = TrainingPlace(workers=0, gpus_per_worker=2, loaders=-1, device="cuda")
    with pytest.raises(InputError) as error:
        pretrain_encoder(path, path, place)
    options = ["--workers", "--gpus-per-worker", "--loaders", "--device"]
    assert sorted(fault.key for fault in error.value.faults) == sorted([*options, "method.images", "step", str(path)])
    with pytest.raises(InputError):
        pretrain_encoder(tmp_path / "new", path)
    assert not (tmp_path / "new").exists()
    assert not TrainingPlace().on_ray
    assert TrainingPlace(workers=2).on_ray


def test_what_a_method_cannot_do_is_said_before_anything_is_rendered(tmp_path: Path) -> None:
    """An absent teacher, and a batch that the workers cannot share: both, with the file they stand in."""
    path = tmp_path / "wrong.yaml"
    path.write_text("method: {name: distillation, teacher: nowhere, images: 8}\n")
    with pytest.raises(InputError) as error:
        pretrain_encoder(tmp_path / "new", path, TrainingPlace(workers=3))
    assert {(fault.file, fault.key) for fault in error.value.faults} == {
        (str(path), "method.teacher"), (str(path), "method.images"),
    }  # fmt: skip
    assert not (tmp_path / "new").exists()


def test_a_device_that_is_not_there_is_refused(tmp_path: Path, settings: Path) -> None:
    """A GPU that this machine lacks is a fault of the command line."""
    with pytest.raises(InputError, match="--device"):
        pretrain_encoder(place(tmp_path, "run"), settings, TrainingPlace(device="cuda:63"), mlflow=False)


def test_lines_tell_of_first_last_and_measured_steps() -> None:
    """Besides those, the newest of the rest once per interval, with the time that the pace so far leaves."""
    lines, seconds = [], iter(range(0, 10_000, 4))
    told = RunLines(40, lines.append, every_s=60, clock=lambda: next(seconds))
    told.rendered(3, 3)
    told.heard([{"step": step, "loss": 1 / step} for step in range(11, 31)])
    told.heard([{"step": 31, "loss": 0.5, "precision/photo": 0.25}])
    for step in range(32, 41):
        told.heard([{"step": step, "loss": 0.5}])
    assert [line.split("  ")[0] for line in lines] == [
        "rendered 3 of 3 buildings", "step 11 of 40", "step 31 of 40", "step 40 of 40",
    ]  # fmt: skip
    assert "precision: photo 0.250" in lines[2]
    assert "left" in lines[2]
    assert "left" not in lines[1] + lines[3]


def test_time_left_is_told_at_the_pace_of_rows_that_come_together() -> None:
    """Fifty steps every minute leave as many minutes as fifties, from the first time that there is a pace."""
    lines, seconds = [], [0.0]
    told = RunLines(1000, lines.append, clock=lambda: seconds[0])
    for first in range(1, 1000, 50):
        told.heard([{"step": step, "loss": 0.5} for step in range(first, first + 50)])
        seconds[0] += 60
    left = [line.split("  ")[-1] for line in lines]
    assert left == ["loss 0.5000", *(f"({n} min left)" for n in range(18, 0, -1)), "loss 0.5000"]


def test_rows_that_another_process_writes_are_heard_once(tmp_path: Path) -> None:
    """Of a history that grows, what came after the beginning is told, in order, the last of it at the end."""
    path, heard = tmp_path / "history.csv", []
    rows = [{"step": float(step), "loss": 1.0} for step in range(1, 6)]
    History(rows[:2]).write(path)
    with followed(path, 2, heard.extend):
        History(rows).write(path)
    assert heard == rows[2:]


@pytest.fixture
def _program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["cadloc-sweep"])


@pytest.mark.usefixtures("_program")
def test_the_card_is_printed_and_progress_told(
    tmp_path: Path, settings: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stdout is the card; stderr tells steps and precision; after Ctrl-C (code 4) it tells how to go on, and does."""
    directory = place(tmp_path, "run")
    command = ["encoder", "pretrain", "--out", str(directory), "--config", str(settings), "--no-mlflow"]

    def interrupted(lines: RunLines, rows: Sequence[Row]) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunLines, "heard", interrupted)
        assert run_command(command) == 4
    assert "the same command goes on after step 0" in capsys.readouterr().err
    assert run_command(command) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["training"]["config"]["steps"] == 3
    assert "step 1 of 3  loss" in printed.err
    assert "precision: same_appearance" in printed.err
    with SweepLock(directory / "lock"):
        assert run_command(command) == 7
    assert run_command(command) == 0
    assert "going on after step 3 of 3" in capsys.readouterr().err


def test_a_run_is_in_mlflow_once(tmp_path: Path, settings: Path) -> None:
    """Curves, settings, final precision, card, history and weights; going on with a finished run adds no second one."""
    mlflow = pytest.importorskip("mlflow")
    directory, said = place(tmp_path, "run"), []
    for _ in range(2):
        card = pretrain_encoder(directory, settings, say=said.append)
    assert said[-1].endswith(f"ui --out {directory}")
    client = mlflow.MlflowClient(f"sqlite:///{directory / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("encoders")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["method.pairs"] == "4"
    curve = client.get_metric_history(run.info.run_id, "train/loss")
    assert [point.value for point in curve] == History.read(directory / "history.csv").losses
    assert [point.step for point in client.get_metric_history(run.info.run_id, "validation/precision/photo")] == [2, 3]
    assert run.data.metrics["final/precision/photo"] == card["validation"]["photo"]
    names = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert names >= {"small.json", "small.safetensors", "history.csv", "config.json"}


def status_in_mlflow(directory: Path) -> str:
    """How MLflow says that the directory's one run ended."""
    mlflow = pytest.importorskip("mlflow")
    client = mlflow.MlflowClient(f"sqlite:///{directory / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("encoders").experiment_id])
    return str(run.info.status)


def test_mlflow_tells_errors_from_interruptions(tmp_path: Path, settings: Path) -> None:
    """A run that diverges has failed, one that is interrupted was killed, even before the first checkpoint.

    Of a run that ends before its first step MLflow hears nothing.
    """
    pytest.importorskip("mlflow")
    unsteady = tmp_path / "unsteady.yaml"
    unsteady.write_text(SETTINGS.replace("0.0001", "1e38"))
    failed, killed, unbegun = (place(tmp_path, name) for name in ("failed", "killed", "unbegun"))
    with pytest.raises(DivergenceError):
        pretrain_encoder(failed, unsteady)
    assert status_in_mlflow(failed) == "FAILED"

    def interrupt(line: str) -> None:
        if line.startswith("step 2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain_encoder(killed, settings, say=interrupt)
    assert status_in_mlflow(killed) == "KILLED"
    pretrain_encoder(killed, settings)
    assert status_in_mlflow(killed) == "FINISHED"
    (unbegun / "pool" / "building_0000" / "pairs.npy").unlink()
    with pytest.raises(InputError, match="remove this folder"):
        pretrain_encoder(unbegun, settings)
    assert not (unbegun / "mlflow.db").exists()


def test_an_mlflow_that_is_broken_stops_nothing(tmp_path: Path, settings: Path) -> None:
    """Where MLflow's database is none, the run ends as ever, and says once that it is not recorded."""
    pytest.importorskip("mlflow")
    directory, said = place(tmp_path, "run"), []
    (directory / "mlflow.db").write_bytes(b"no database" * 100)
    assert pretrain_encoder(directory, settings, say=said.append)["final_loss"] > 0
    assert sum("is unreachable" in line for line in said) == 1
