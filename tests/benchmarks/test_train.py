"""What training is compared with does the same work, and what it is measured by is counted as it should be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.ace_baseline import AceLoop
from benchmarks.made_buffer import made_buffer
from benchmarks.shared_buffer import buffers_held
from benchmarks.train_workers import flops_per_sample, our_loop
from cadloc.buffer import Buffer
from cadloc.head_config import AceHead
from cadloc.losses.phase import Prediction
from cadloc.samples import Samples
from cadloc.shuffling import Shuffled


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished stage `buffer`, of 50 MB."""
    directory = tmp_path_factory.mktemp("buffer")
    made_buffer(directory, 100_000, 256)
    return directory


def test_the_baseline_minimises_the_same_loss(stage: Path) -> None:
    """With the weights of our head, the same batch costs it what ours costs us, to rounding."""
    samples = Samples.from_buffer(Buffer.open(stage))
    config = AceHead(width=64)
    learner, baseline = our_loop(samples, config, 512), AceLoop(samples, config, 512)
    convolutions = [each for each in baseline._head.modules() if isinstance(each, torch.nn.Conv2d)]
    layers = [each for each in learner.head.modules() if isinstance(each, torch.nn.Linear)]
    for convolution, layer in zip(convolutions, layers, strict=True):
        convolution.weight.data.copy_(layer.weight.data[:, :, None, None])
        convolution.bias.data.copy_(layer.bias.data)  # type: ignore[union-attr]
    baseline._head.mean.copy_(learner.head.centre.reshape(1, 3, 1, 1))  # type: ignore[operator, union-attr]
    batch = samples.batch(torch.randperm(len(samples), generator=torch.Generator().manual_seed(0))[:512])
    ours = learner.phase(0).loss(Prediction(learner.head(batch.features).coordinates), batch)
    assert baseline.step(0) == pytest.approx(float(ours.detach()), rel=1e-4)


def test_the_baseline_learns(stage: Path) -> None:
    """On one batch again and again, its loss falls."""
    samples = Samples.from_buffer(Buffer.open(stage)).subset(torch.arange(0, 100_000, 195)[:512])
    baseline = AceLoop(samples, AceHead(width=32), 512, iterations=100)
    losses = [baseline.step(iteration) for iteration in range(100)]
    assert losses[-1] < 0.7 * losses[0]


def test_operations_are_counted_as_the_notes_count_them(tmp_path: Path) -> None:
    """ACE's head takes 12.07 MFLOP a sample, forward and backward, its features having no gradient."""
    samples = Samples.from_buffer(made_buffer(tmp_path, 10_000, 512))
    assert flops_per_sample(samples, AceHead(), 512) == 6 * (8 * 512**2 + 4 * 512) - 2 * 512**2


def test_samples_of_a_buffer_are_its_files(stage: Path) -> None:
    """Nothing that grows with the buffer is copied, a batch's rows are right, and nobody may write to them."""
    buffer = Buffer.open(stage)
    samples = Samples.from_buffer(buffer)
    for name in ("features", "pixels", "view", "scene_coordinates"):
        assert getattr(samples, name).data_ptr() == getattr(buffer, name).ctypes.data
    assert samples.known_points.data_ptr() == samples.scene_coordinates.data_ptr()
    drawn = Shuffled(samples, 512, seed=0).batch(7)
    rows = (torch.from_numpy(buffer.pixels.copy())[:, None] == drawn.pixels[:8]).all(dim=2).nonzero()
    row = int(rows[rows[:, 1] == 0][0, 0])
    assert torch.equal(drawn.features[0], torch.from_numpy(buffer.features[row].astype("float32")))


def test_many_trials_hold_one_buffer(tmp_path: Path) -> None:
    """Four processes that each read all of it share its pages: together they hold it about once, not four times."""
    large, small = tmp_path / "large", tmp_path / "small"
    for directory, dimensions in ((large, 1024), (small, 64)):
        directory.mkdir()
        made_buffer(directory, 100_000, 1)
        (directory / "features.npy").unlink()  # a file of zeros takes no time to write
        np.lib.format.open_memmap(directory / "features.npy", "w+", np.float16, (100_000, dimensions))
    assert 0.9 < buffers_held(large, small, 4, "fork") < 2
