"""Several workers train one head: every step is that of one worker on the whole batch, and all of them stay alike."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed, multiprocessing

from cadloc.config import TrialConfig
from cadloc.constraint_config import FreeSpaceConstraint
from cadloc.constraints import Constraints
from cadloc.constraints.free_space import FreeSpace, ZBuffers
from cadloc.contract import InputError, WorkerLost
from cadloc.geometry import inverse, look_at, pinhole, project, transform_points
from cadloc.head_config import AceHead, AnchorHead, EnsembleHead, GlaceHead, HeadConfig
from cadloc.heads import build
from cadloc.loss_config import LossConfig, PerSampleSwitchLoss, ReprojectionLoss, UncertainCoordinateLoss
from cadloc.samples import Samples
from cadloc.scene_config import SceneConfig
from cadloc.shuffling import Shuffled
from cadloc.training import CHECKPOINT, Training
from cadloc.training_config import EarlyStop, Plateau, TrainingConfig
from cadloc.workers import ALONE, Workers

CHANNELS, GLOBAL = 16, 8
PERCEPTRON = AceHead(width=24, blocks=1)
ANCHORS = AnchorHead(anchors=8, width=16)
GLACE = GlaceHead(width=24, blocks=1, centres=3, diffusion=0.1)
ARMS: dict[str, tuple[HeadConfig, LossConfig]] = {
    "anchors": (ANCHORS, ReprojectionLoss()),
    "ensemble": (EnsembleHead(member=PERCEPTRON, members=2), PerSampleSwitchLoss()),
    "glace": (GLACE, UncertainCoordinateLoss()),
}


def wall_samples() -> Samples:
    """Cells of eight cameras before a wavy wall; of the first half of each view nine in ten have no coordinate."""
    generator = np.random.default_rng(0)
    K = pinhole(480, 360, 65)
    x, z = generator.uniform(-4, 4, (8, 80)), generator.uniform(0, 4, (8, 80))
    xyz = np.stack([x, 0.5 * np.sin(2 * x), z], axis=-1)
    eyes = np.stack([np.linspace(-5, 5, 8), np.full(8, -10.0), np.full(8, 1.6)], axis=1)
    cam_from_cad = inverse(np.stack([look_at(eye, [0, 0, 2]) for eye in eyes]))
    pixels = project(transform_points(cam_from_cad, xyz), K)
    features = np.cos(xyz @ generator.normal(0, 0.8, (3, CHANNELS)))
    xyz[:, :40][generator.random((8, 40)) < 0.9] = np.nan
    return Samples(
        torch.from_numpy(features.reshape(-1, CHANNELS).astype(np.float16)),
        torch.from_numpy(pixels.reshape(-1, 2).astype(np.float32)),
        torch.arange(8).repeat_interleave(80),
        torch.from_numpy(xyz.reshape(-1, 3).astype(np.float32)),
        torch.from_numpy(cam_from_cad.astype(np.float32)),
        torch.from_numpy(np.stack([K] * 8).astype(np.float32)),
        torch.nn.functional.normalize(torch.from_numpy(generator.normal(size=(8, GLOBAL)).astype(np.float32))),
    )


def free_space(samples: Samples) -> Constraints:
    """Every view sees nothing nearer than 30 m; of which view a sample is looked at from is drawn in every step."""
    z_buffers = ZBuffers(torch.full((8, 360, 480), 30.0), samples.cam_from_cad, samples.intrinsics)
    return Constraints({"free_space": FreeSpace(FreeSpaceConstraint(), z_buffers, 0.01)}, {"free_space": 1.0})


def training_of(arm: str, directory: Path, workers: Workers, **training: Any) -> Training:
    """An arm's training, started; without scheduled early stop unless `training` asks for one."""
    head, loss = ARMS[arm]
    samples = wall_samples() if arm == "glace" else replace(wall_samples(), global_features=None)
    settings = TrainingConfig(batch_size=64, learning_rate=2e-3, **training)
    config = TrialConfig(scene=SceneConfig(name="gate", built_in=True), head=head, loss=loss, training=settings, seed=5)
    told = GLOBAL if arm == "glace" else 0
    made = build(head, CHANNELS, 5, global_dimensions=told, deviation=arm == "glace")
    directory.mkdir(exist_ok=True)
    result = Training(made, samples, config, directory, free_space(samples), workers)
    result.start()
    return result


def ended(training: Training, copied_to: Path | None = None) -> dict[str, Any]:
    """What a run came to, in this worker; the first milestone's checkpoint is copied."""
    for _ in training.run(lambda head: {}):
        if copied_to is not None and len(training.progression.history) == 1:
            copied_to.mkdir()
            shutil.copy(training._directory / CHECKPOINT, copied_to)
    history = [{k: v for k, v in row.items() if k != "time/training_s"} for row in training.progression.history]
    gradients = {name: None if p.grad is None else p.grad.numpy() for name, p in training.head.named_parameters()}
    weights = {name: value.numpy() for name, value in training.head.state_dict().items()}
    stopped = training.progression.step, training.progression.cooling_from
    return {"history": history, "gradients": gradients, "weights": weights, "stopped": stopped}


def one_step(folder: Path, workers: Workers) -> dict[str, Any]:
    """The first step of every arm."""
    return {arm: ended(training_of(arm, folder / f"{arm}-{workers}", workers, iterations=1)) for arm in ARMS}


def early_stop(folder: Path, workers: Workers) -> dict[str, Any]:
    """A run that ends before its last iteration."""
    rule = EarlyStop(share=0.01, within_px=400.0, window=3)
    schedule = Plateau(cool_down=0.1, early_stop=rule)
    return ended(training_of("anchors", folder / f"stop-{workers}", workers, iterations=200, schedule=schedule))


def interrupted(folder: Path, workers: Workers) -> dict[str, Any]:
    """A run, and the one that goes on from its first milestone's checkpoint."""
    settings: dict[str, Any] = {"iterations": 6, "validations": 3}
    whole = ended(training_of("glace", folder / f"whole-{workers}", workers, **settings), folder / "resumed")
    workers.wait()
    return {"whole": whole, "resumed": ended(training_of("glace", folder / "resumed", workers, **settings))}


TASKS: dict[str, Callable[[Path, Workers], dict[str, Any]]] = {
    "one_step": one_step,
    "early_stop": early_stop,
    "interrupted": interrupted,
}


def work(rank: int, folder: Path, answers: Any) -> None:
    """One of two processes; each tells what every task came to."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    workers = Workers.joined()
    answers.put((rank, {name: task(folder, workers) for name, task in TASKS.items()}))
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the tasks came to in each of two workers."""
    context = multiprocessing.get_context("fork")
    answers, folder = context.Queue(), tmp_path_factory.mktemp("shared")
    both = [context.Process(target=work, args=(rank, folder, answers), daemon=True) for rank in range(2)]
    for process in both:
        process.start()
    results = dict(answers.get(timeout=30) for _ in both)
    for process in both:
        process.join(timeout=30)
    return [results[rank] for rank in range(2)]


def assert_same(one: Mapping[str, Any], two: Mapping[str, Any]) -> None:
    """To the last bit."""
    assert one.keys() == two.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, two[name], err_msg=name)


@pytest.mark.parametrize("arm", ARMS)
def test_one_step_of_two_workers_is_that_of_one_on_the_same_batch(
    arm: str, told: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Losses and gradients agree but for rounding, with unknown coordinates, noise, drawn views and idle members."""
    alone, shared = ended(training_of(arm, tmp_path, ALONE, iterations=1)), told[0]["one_step"][arm]
    assert shared["history"] == [pytest.approx(row, rel=1e-5) for row in alone["history"]]
    assert arm != "anchors" or shared["history"][0]["train/constraint_free_space_px"] > 1
    gradients = alone["gradients"]
    scale = max(np.abs(gradient).max() for gradient in gradients.values() if gradient is not None)
    assert scale > 0
    for name, gradient in gradients.items():
        if gradient is None:
            assert shared["gradients"][name] is None, name
        else:
            np.testing.assert_allclose(shared["gradients"][name], gradient, atol=1e-5 * scale, rtol=1e-4, err_msg=name)
    idle = any(gradient is None for gradient in gradients.values())
    assert idle == (arm == "ensemble")


def test_all_workers_end_with_the_same_weights(told: list[dict[str, Any]]) -> None:
    """To the last bit, and only the first one has told anything."""
    first, second = told[0]["interrupted"]["whole"], told[1]["interrupted"]["whole"]
    assert_same(first["weights"], second["weights"])
    assert (len(first["history"]), second["history"]) == (3, [])


def test_resuming_leaves_no_trace(told: list[dict[str, Any]]) -> None:
    """Two workers that go on from the first one's checkpoint end in the bits of two that were never interrupted."""
    for worker in told:
        assert_same(worker["interrupted"]["whole"]["weights"], worker["interrupted"]["resumed"]["weights"])
    assert told[0]["interrupted"]["resumed"]["history"] == told[0]["interrupted"]["whole"]["history"]


def test_all_workers_stop_early_together(told: list[dict[str, Any]], tmp_path: Path) -> None:
    """The share that fits is that of the whole batch: they stop where one worker would."""
    alone = early_stop(tmp_path, ALONE)["stopped"]
    assert alone[0] < 200
    assert [worker["early_stop"]["stopped"] for worker in told] == [alone, alone]


def wait_or_die(rank: int, folder: Path, answers: Any) -> None:
    """Of two processes the second one dies; the first one waits for it, and tells what it gets."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    if rank == 1:
        os._exit(1)
    try:
        Workers.joined().wait()
    except WorkerLost as error:
        answers.put(str(error))
    distributed.destroy_process_group()


def test_a_worker_does_not_wait_for_a_dead_one(tmp_path: Path) -> None:
    """Where the other one is gone it raises what says so: nobody takes it for the trial's own fault."""
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    for rank in range(2):
        context.Process(target=wait_or_die, args=(rank, tmp_path, answers), daemon=True).start()
    assert "cannot go on together" in answers.get(timeout=30)


def test_a_batch_that_does_not_divide_is_a_fault() -> None:
    """Three workers cannot share 64 samples."""
    with pytest.raises(InputError, match=r"batch_size: found 64; allowed: a multiple of the 3 workers"):
        Shuffled(wall_samples(), 64, 0, workers=Workers(0, 3))
