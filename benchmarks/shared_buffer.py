"""What processes that train on one buffer hold of it together."""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from cadloc.buffer import Buffer
from cadloc.samples import Samples
from cadloc.shuffling import Shuffled

BATCH_SIZE = 1024


def buffers_held(stage: Path, small: Path, processes: int, start: str = "spawn") -> float:
    """By how much the processes' memory grows when each of them has read a pass over a buffer; in sizes of it.

    Proportional set sizes (PSS), as Linux tells them, all processes being alive: a shared page counts once. They first
    read a `small` buffer, for what any first use of a library costs. `start` is how processes are started.
    """
    context = multiprocessing.get_context(start)
    pipes, members = [], []
    for _ in range(processes):
        ours, theirs = context.Pipe()
        members.append(context.Process(target=_read, args=(theirs, (small, stage)), daemon=True))
        members[-1].start()
        pipes.append(ours)
    before = _together(pipes)
    after = _together(pipes)
    for pipe in pipes:
        pipe.send("end")
    for member in members:
        member.join()
    size = sum(path.stat().st_size for path in stage.glob("*.npy"))
    return (after - before) / size


def _together(pipes: Sequence[Connection]) -> float:
    """Sum of what the processes say when all of them stand at the same place."""
    for pipe in pipes:
        pipe.send("on")
    return float(sum(pipe.recv() for pipe in pipes))


def _read(pipe: Connection, stages: Sequence[Path]) -> None:
    torch.set_num_threads(1)
    gc.disable()  # a collection touches all that a forked process has in common with others
    kept = []
    for stage in stages:
        samples = Samples.from_buffer(Buffer.open(stage))
        batches = Shuffled(samples, BATCH_SIZE, seed=0)
        for step in range(len(samples) // BATCH_SIZE):
            batches.batch(step)
        kept.append(batches)
        pipe.recv()
        pipe.send(_pss_bytes())
    pipe.recv()


def _pss_bytes() -> float:
    rollup = Path("/proc/self/smaps_rollup").read_text()
    return 1024.0 * int(next(line for line in rollup.splitlines() if line.startswith("Pss:")).split()[1])
