"""Processes that train side by side, as a sweep's do: one per core, and what they get done in a while, together."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal, Protocol, assert_never

import torch
from torch import Tensor, nn

from benchmarks.ace_baseline import AceLoop
from cadloc.buffer import Buffer
from cadloc.config import TrialConfig
from cadloc.head_config import AceHead, HeadConfig
from cadloc.heads import build
from cadloc.learner import Learner
from cadloc.loss_config import ReprojectionLoss
from cadloc.samples import Samples
from cadloc.scene_config import SceneConfig
from cadloc.training_config import TrainingConfig

FITTED_TO = 8192
"""Samples that a head is fitted to: what its fit costs is not what is measured."""


@dataclass(frozen=True)
class Job:
    """Steps of our loop, or of one like ACE's, on `threads` threads, for some seconds."""

    head: HeadConfig
    batch_size: int
    what: Literal["ours", "like ACE's"]
    threads: int = 1
    seconds: float = 1.0


class _Loop(Protocol):
    def step(self, step: int) -> object: ...


class TrainWorkers:
    """The processes, each with the same samples; used by `train_workers`."""

    def __init__(self, pipes: list[Connection]) -> None:
        self._pipes = pipes

    def samples_per_s(self, job: Job, processes: int) -> float:
        """Of the first `processes` of them, together; they prepare first, and start at once."""
        pipes = self._pipes[:processes]
        for pipe in pipes:
            pipe.send(job)
        for pipe in pipes:
            pipe.recv()
        for pipe in pipes:
            pipe.send("go")
        return float(sum(pipe.recv() for pipe in pipes))


@contextmanager
def train_workers(count: int, stage: Path, environment: dict[str, str]) -> Iterator[TrainWorkers]:
    """So many processes in such an environment, with the samples of the stage `buffer` in `stage`."""
    before = dict(os.environ)
    os.environ.update(environment)
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    try:
        for _ in range(count):
            ours, theirs = context.Pipe()
            processes.append(context.Process(target=_serve, args=(theirs, stage), daemon=True))
            processes[-1].start()
            pipes.append(ours)
        yield TrainWorkers(pipes)
        for pipe in pipes:
            pipe.send(None)
        for process in processes:
            process.join()
    finally:
        os.environ.clear()
        os.environ.update(before)


def our_loop(samples: Samples, head: HeadConfig, batch_size: int) -> Learner:
    """A learner of reprojection, ready for its first step."""
    config = TrialConfig(
        scene=SceneConfig(name="gate", built_in=True),
        head=head,
        loss=ReprojectionLoss(),
        training=TrainingConfig(iterations=25_000, batch_size=batch_size),
    )
    made = build(head, samples.dimensions, 0)
    made.fit(samples.subset(torch.arange(0, len(samples), max(1, len(samples) // FITTED_TO))), 0, "points")
    learner = Learner(made, samples, config)
    learner.begin()
    return learner


def flops_per_sample(samples: Samples, head: HeadConfig, batch_size: int) -> float:
    """Floating-point operations of the linear layers in a step, forward and backward, by sample: an input that has no
    gradient costs none."""
    learner = our_loop(samples, head, batch_size)
    counted: list[int] = []

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        assert isinstance(layer, nn.Linear)
        counted.append(2 * layer.in_features * layer.out_features * (2 + inputs[0].requires_grad))

    for layer in learner.head.modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(count)
    learner.step(0)
    return float(sum(counted))


def _serve(pipe: Connection, stage: Path) -> None:
    samples = Samples.from_buffer(Buffer.open(stage))
    known: tuple[object, ...] = ()
    loops: dict[str, _Loop] = {}
    steps = 0
    while (job := pipe.recv()) is not None:
        torch.set_num_threads(job.threads)
        if known != (job.head, job.batch_size):
            known, loops = (job.head, job.batch_size), {}
        if job.what not in loops:
            loops[job.what] = _loop(samples, job)
            loops[job.what].step(steps)
        pipe.send("ready")
        pipe.recv()
        start_s, first = time.perf_counter(), steps
        while time.perf_counter() - start_s < job.seconds:
            loops[job.what].step(steps)
            steps += 1
        pipe.send((steps - first) * job.batch_size / (time.perf_counter() - start_s))


def _loop(samples: Samples, job: Job) -> _Loop:
    match job.what:
        case "ours":
            return our_loop(samples, job.head, job.batch_size)
        case "like ACE's":
            assert isinstance(job.head, AceHead)
            return AceLoop(samples, job.head, job.batch_size)
        case _:
            assert_never(job.what)
