"""A trainable whose process may die, named in spaces as `deadly_trainable:train`.

`training.weight_decay` 0.25 kills the process at the second step, every time; 0.125 the first time only.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

from cadloc.config import TrialConfig
from cadloc.contract import Progress, TrialContext

METRIC = "test/synthetic/translation_error_median_m"
VALIDATION = "validation/synthetic/translation_error_median_m"


def train(config: TrialConfig, context: TrialContext) -> Iterator[Progress]:
    """One progress per iteration; `pids.txt` tells which processes worked on the trial."""
    with open(context.directory / "pids.txt", "a") as file:
        file.write(f"{os.getpid()}\n")
    checkpoint = context.directory / "step.txt"
    start = int(checkpoint.read_text()) if checkpoint.is_file() else 0
    for step in range(start + 1, config.training.iterations + 1):
        dies_again = config.training.weight_decay == 0.25
        dies_once = config.training.weight_decay == 0.125 and start == 0
        if step == 2 and (dies_again or dies_once):
            os.kill(os.getpid(), signal.SIGKILL)
        checkpoint.write_text(str(step))
        value = config.training.learning_rate + config.seed + 1 / step
        last = step == config.training.iterations
        yield Progress(step, step, {VALIDATION: value, **({METRIC: value} if last else {})}, finished=last)


def reported_metrics(config: TrialConfig) -> frozenset[str]:
    """What `train` yields."""
    return frozenset({METRIC, VALIDATION})
