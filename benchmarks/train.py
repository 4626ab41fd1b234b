"""Training on this machine's cores: samples per second of a step's loop, and what many trials on one buffer hold."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from benchmarks.limits import gemm_flops
from benchmarks.made_buffer import made_buffer
from benchmarks.measurement import Measurement
from benchmarks.shared_buffer import buffers_held
from benchmarks.train_workers import Job, TrainWorkers, flops_per_sample, train_workers
from cadloc.head_config import AceHead, AnchorHead, HeadConfig
from cadloc.presets import QUICK
from cadloc.samples import Samples
from cadloc_sweep.executors.on_ray import worker_environment

SAMPLES, DIMENSIONS = 400_000, 512
"""As many as preset `quick` has."""
ROUNDS = 3
TRIALS = 16


def measure() -> Iterator[Measurement]:
    """Our loop and ACE's in turns, as sweeps run: one single-threaded process per core; and ACE's on all threads."""
    with tempfile.TemporaryDirectory() as folder:
        stage = Path(folder)
        samples = Samples.from_buffer(made_buffer(stage, SAMPLES, DIMENSIONS))
        cores = os.cpu_count() or 1
        with train_workers(cores, stage, worker_environment()) as workers:
            for width in (256, 512):
                for batch_size in (5120, 1024):
                    yield from _ace(workers, samples, width, batch_size, cores)
            yield _quick(workers, samples, cores)
        yield _memory(stage)


def _ace(workers: TrainWorkers, samples: Samples, width: int, batch_size: int, cores: int) -> Iterator[Measurement]:
    """Equal settings are equal processes and threads; a single trial might have all threads to itself, though."""
    head = AceHead(width=width)
    arrangements = {
        "ours": (Job(head, batch_size, "ours"), cores),
        "a loop like ACE's in a process per core": (Job(head, batch_size, "like ACE's"), cores),
        "one loop like ACE's on all threads": (Job(head, batch_size, "like ACE's", threads=cores), 1),
    }
    rates: dict[str, list[float]] = {name: [] for name in arrangements}
    for _ in range(ROUNDS):
        for name, (job, processes) in arrangements.items():
            rates[name].append(workers.samples_per_s(job, processes))
    medians = {name: median(each) for name, each in rates.items()}
    name, ours = f"train.ace{width}.batch{batch_size}", medians.pop("ours")
    limit = _limit(samples, head, batch_size)
    (equal, equally), (threads, threaded) = medians.items()
    target = "≥ 1.1 times the baseline, ≥ 65 % of the limit" if batch_size == 5120 else ""
    yield Measurement(name, ours, "samples/s", equally, limit, equal, "the best matrix product", target=target)
    yield Measurement(f"{name}.threads", ours, "samples/s", threaded, what=threads)


def _quick(workers: TrainWorkers, samples: Samples, cores: int) -> Measurement:
    """Of the default preset's head: scores over all anchors, of which most is not matrix products."""
    head = AnchorHead.model_validate(QUICK["head"])
    batch_size = QUICK["training"]["batch_size"]
    rates = [workers.samples_per_s(Job(head, batch_size, "ours"), cores) for _ in range(ROUNDS)]
    limit = _limit(samples, head, batch_size)
    return Measurement(
        "train.quick", median(rates), "samples/s", limit=limit, limit_is="the best matrix product of its width"
    )


def _limit(samples: Samples, head: HeadConfig, batch_size: int) -> float:
    """Samples per second, were a step nothing but its linear layers, at the best rate of products of its width."""
    return gemm_flops(head.width, batch_size) / flops_per_sample(samples, head, batch_size)


def _memory(stage: Path) -> Measurement:
    with tempfile.TemporaryDirectory() as small:
        made_buffer(Path(small), 10_000, DIMENSIONS)
        held = buffers_held(stage, Path(small), TRIALS)
    return Measurement(
        f"train.memory_of_{TRIALS}_trials",
        held,
        "buffers",
        baseline=float(TRIALS),
        limit=1.0,
        what="a copy each",
        limit_is="one buffer",
        better="less",
        target="at most 1.2",
    )
