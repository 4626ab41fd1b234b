"""What processes that train on one buffer hold of it together."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor

from cadloc.buffer import Buffer
from cadloc.samples import Samples
from cadloc.shuffling import Shuffled


def buffers_held(stage: Path, processes: int, batch_size: int = 1024) -> float:
    """Growth of the processes' memory, shared pages counted by share, once each has read a pass; in sizes of the buffer.

    Proportional set sizes (PSS) as Linux tells them, all processes being alive.
    """
    context = multiprocessing.get_context("spawn")
    pipes, members = [], []
    for _ in range(processes):
        ours, theirs = context.Pipe()
        members.append(context.Process(target=_read, args=(theirs, stage, batch_size), daemon=True))
        members[-1].start()
        pipes.append(ours)
    before = _together(pipes)
    _together(pipes)  # each has read all
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


def _read(pipe: Connection, stage: Path, batch_size: int) -> None:
    torch.set_num_threads(1)
    pipe.recv()
    pipe.send(_pss_bytes())
    pipe.recv()
    samples = Samples.from_buffer(Buffer.open(stage))
    batches = Shuffled(samples, batch_size, seed=0)
    total: Tensor = torch.zeros(())
    for step in range(len(samples) // batch_size):
        total += batches.batch(step).features[0, 0]
    pipe.send(0.0)
    pipe.recv()
    pipe.send(_pss_bytes())
    pipe.recv()


def _pss_bytes() -> float:
    rollup = Path("/proc/self/smaps_rollup").read_text()
    return 1024.0 * int(next(line for line in rollup.splitlines() if line.startswith("Pss:")).split()[1])
