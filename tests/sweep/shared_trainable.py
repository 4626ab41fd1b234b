"""A trainable whose steps several workers share, named in spaces as `shared_trainable:train`.

`training.weight_decay` asks for trouble at the second step: 0.125 kills the second worker the first time, 0.25 every
time; 0.5 raises in all workers, 0.75 in the second one only.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import torch

from cadloc.config import TrialConfig
from cadloc.contract import Progress, TrialContext
from cadloc.workers import Workers

METRIC = "test/synthetic/translation_error_median_m"
VALIDATION = "validation/synthetic/translation_error_median_m"


def train(config: TrialConfig, context: TrialContext) -> Iterator[Progress]:
    """One progress per iteration, the mean of what each worker knows; the first one goes on from `step.txt`."""
    workers = Workers(context.worker, context.workers)
    file, first = context.directory / "step.txt", workers.rank == 0
    start = int(workers.told(file.read_bytes() if first and file.is_file() else b"0"))
    (context.directory / f"pid-{workers.rank}.txt").write_text(str(os.getpid()))
    for step in range(start + 1, config.training.iterations + 1):
        if step == 2:
            trouble(config.training.weight_decay, workers.rank, again=start > 0)
        value = workers.mean(torch.tensor(float(step + workers.rank))).item()
        if first:
            file.write_text(str(step))
            last = step == config.training.iterations
            yield Progress(step, step, {VALIDATION: value, **({METRIC: value} if last else {})}, finished=last)


def trouble(asked: float, rank: int, *, again: bool) -> None:
    """What happens at the second step."""
    if rank == 1 and (asked == 0.25 or (asked == 0.125 and not again)):
        os.kill(os.getpid(), signal.SIGKILL)
    if asked == 0.5 or (asked == 0.75 and rank == 1):
        raise RuntimeError("asked for trouble")


def reported_metrics(config: TrialConfig) -> frozenset[str]:
    """What `train` yields."""
    return frozenset({METRIC, VALIDATION})
