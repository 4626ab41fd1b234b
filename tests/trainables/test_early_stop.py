"""Early stop: it comes when the map fits its samples, not before; what is left is cooled down and stays resumable."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cadloc.config import TrialConfig
from cadloc.geometry import inverse, look_at, pinhole, project, transform_points
from cadloc.head_config import AceHead
from cadloc.heads import build
from cadloc.heads.head import Head, HeadOutput, TrainingOutput
from cadloc.loss_config import CoordinateLoss
from cadloc.losses.phase import Evidence
from cadloc.samples import Batch, Samples
from cadloc.scene_config import SceneConfig
from cadloc.training import Training
from cadloc.training_config import EarlyStop, Plateau, TrainingConfig

CHANNELS = 24
RULE = EarlyStop(share=0.7, within_px=10, window=20)


def wall_samples(views: int = 8, per_view: int = 60) -> Samples:
    """Cells of cameras before a wavy wall of 8 × 4 m; features are smooth functions of the point."""
    generator = np.random.default_rng(0)
    waves, phases = generator.normal(0, 0.6, (3, CHANNELS)), generator.uniform(0, 6, CHANNELS)
    x, z = generator.uniform(-4, 4, (views, per_view)), generator.uniform(0, 4, (views, per_view))
    xyz = np.stack([x, 0.5 * np.sin(2 * x), z], axis=-1)
    K = pinhole(480, 360, 65)
    cam_from_cad = inverse(np.stack([look_at([eye, -10, 1.6], [0, 0, 2]) for eye in np.linspace(-5, 5, views)]))
    return Samples(
        torch.from_numpy(np.cos(xyz @ waves + phases).reshape(-1, CHANNELS).astype(np.float16)),
        torch.from_numpy(project(transform_points(cam_from_cad, xyz), K).reshape(-1, 2).astype(np.float32)),
        torch.arange(views).repeat_interleave(per_view),
        torch.from_numpy(xyz.reshape(-1, 3).astype(np.float32)),
        torch.from_numpy(cam_from_cad.astype(np.float32)),
        torch.from_numpy(np.stack([K] * views).astype(np.float32)),
    )


class Sudden(Head):
    """Learns nothing: from its `right_from`-th step on, all it says is right; before, all is a metre off."""

    def __init__(self, right_from: int) -> None:
        super().__init__()
        self.dimensions, self.right_from, self.steps = CHANNELS, right_from, 0
        self.shift_m = nn.Parameter(torch.zeros(3))
        self.register_buffer("length_m", torch.ones(()))

    def forward(self, features: torch.Tensor, global_features: torch.Tensor | None = None) -> HeadOutput:
        """Nowhere."""
        return HeadOutput(torch.zeros(len(features), 3) + self.shift_m)

    def training_output(self, batch: Batch, evidence: Evidence) -> TrainingOutput:
        """Counts its calls."""
        self.steps += 1
        off_m = torch.tensor([0.0, 0.0, 0.0 if self.steps > self.right_from else 1.0])
        return TrainingOutput(batch.targets + off_m + 0 * self.shift_m, torch.zeros(()))

    def fit(self, samples: Samples, seed: int, evidence: Evidence = "rays") -> None:
        """Nothing to fit."""


def trial(rule: EarlyStop | None, **training: object) -> TrialConfig:
    """240 steps at most, a quarter of them to cool down, six milestones."""
    settings = {"iterations": 240, "batch_size": 64, "learning_rate": 3e-3, "validations": 6, **training}
    schedule = Plateau(warm_up=0.05, cool_down=0.25, early_stop=rule)
    return TrialConfig(
        scene=SceneConfig(name="gate", built_in=True),
        head=AceHead(width=24, blocks=0),
        loss=CoordinateLoss(),
        training=TrainingConfig.model_validate({**settings, "schedule": schedule}),
    )


def nothing(_: Head) -> Mapping[str, float]:
    """A validation that measures nothing."""
    return {}


def begin(config: TrialConfig, directory: Path, head: Head | None = None) -> Training:
    """A training as a trial starts it."""
    training = Training(head or build(config.head, CHANNELS, 0), wall_samples(), config, directory)
    training.start()
    return training


def test_the_share_counts_points_that_are_seen_near_their_pixels() -> None:
    """As a slow reference counts them; a point behind the camera that would project there is not near."""
    samples = wall_samples()
    batch = samples.batch(torch.arange(200))
    points = batch.scene_coordinates + torch.from_numpy(np.random.default_rng(1).normal(0, 0.2, (200, 3))).float()
    points[::5] = 2 * batch.centres_cad[::5] - points[::5]  # mirrored at the camera
    near = 0
    for b in range(200):
        point = transform_points(batch.cam_from_cad[b].double().numpy(), points[b].double().numpy()[None])[0]
        pixel = (batch.intrinsics[b].double().numpy() @ point / point[2])[:2]
        near += int(point[2] > 0 and np.linalg.norm(pixel - batch.pixels[b].numpy()) < 5)
    assert 20 < near < 160
    assert float(batch.share_within(points, 5.0)) == pytest.approx(near / 200)


@pytest.mark.parametrize(("right_from", "cooling_from"), [(0, 40), (35, 50), (36, 80), (230, None), (240, None)])
def test_a_run_cools_down_once_the_last_steps_fit(right_from: int, cooling_from: int | None, tmp_path: Path) -> None:
    """More than 70 % of 20 steps, looked at every 50 steps and at milestones; then a quarter of the run, and no more.

    The history ends where the run does, and counts the samples that were seen.
    """
    training = begin(trial(RULE), tmp_path, Sudden(right_from))
    rows = list(training.run(nothing))
    end = 240 if cooling_from is None else cooling_from + 60
    assert training.progression.cooling_from == cooling_from
    assert [row["step"] for row in rows] == [*range(40, end, 40), end]
    assert [row["train/samples_seen"] for row in rows] == [64 * row["step"] for row in rows]
    assert training.progression.history == rows
    assert isinstance(training.head, Sudden)
    assert training.head.steps == end


def test_a_rule_that_is_never_met_changes_nothing(tmp_path: Path) -> None:
    """Waiting in vain for all samples to be within a hundredth of a pixel, a run ends in the bits of one that does
    not wait."""
    waiting = begin(trial(EarlyStop(share=0.99, within_px=0.01, window=20), iterations=60), tmp_path / "a")
    plain = begin(trial(None, iterations=60), tmp_path / "b")
    assert [row["step"] for row in waiting.run(nothing)] == [row["step"] for row in plain.run(nothing)]
    expected = plain.head.state_dict()
    assert all(torch.equal(expected[name], value) for name, value in waiting.head.state_dict().items())


@pytest.mark.parametrize("milestones", [1, 3], ids=["before the stop", "while cooling down"])
def test_an_interrupted_run_stops_at_the_same_step_in_the_same_bits(milestones: int, tmp_path: Path) -> None:
    """Resumed, the window of steps that fit, the rate and the progress of the losses are those of an unbroken run."""
    config = trial(EarlyStop(share=0.5, within_px=25, window=60))
    unbroken = begin(config, tmp_path / "a")
    steps = [row["step"] for row in unbroken.run(nothing)]
    stopped_at = unbroken.progression.cooling_from
    assert stopped_at is not None
    assert 40 < stopped_at < 120 < steps[-1] < 240
    interrupted = begin(config, tmp_path / "b").run(nothing)
    for _ in range(milestones):
        next(interrupted)
    interrupted.close()  # type: ignore[attr-defined]
    resumed = begin(config, tmp_path / "b")
    assert [row["step"] for row in resumed.run(nothing)] == steps[milestones:]
    assert resumed.progression.cooling_from == stopped_at
    expected = unbroken.head.state_dict()
    assert all(torch.equal(expected[name], value) for name, value in resumed.head.state_dict().items())
    losses = [[row["train/loss_m"] for row in run.progression.history] for run in (unbroken, resumed)]
    assert losses[0] == losses[1]
