"""A trainable of milliseconds with a stage of its own, named in spaces as `toy_trainable:train`.

The configuration's `training.learning_rate` is its quality, `training.iterations` its length; seeds add noise.
`training.weight_decay` asks for trouble: 0.25 loses a helper, 0.5 raises, 0.75 reports a number that is not finite,
1 never finishes.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cadloc.config import TrialConfig
from cadloc.contract import Json, Progress, StageSpec, TrialContext, WorkerLost

METRIC = "test/synthetic/translation_error_median_m"
VALIDATION = "validation/synthetic/translation_error_median_m"


def train(config: TrialConfig, context: TrialContext) -> Iterator[Progress]:
    """One progress per iteration and one for the end, at the last one's step; resumes from `step.txt`."""
    numbers = json.loads((context.stages["numbers"] / "numbers.json").read_text())
    checkpoint = context.directory / "step.txt"
    start = int(checkpoint.read_text()) if checkpoint.is_file() else 0
    for step in range(min(start + 1, config.training.iterations), config.training.iterations + 1):
        if config.training.weight_decay == 0.5:
            raise RuntimeError("asked for trouble")
        if config.training.weight_decay == 0.25:
            raise WorkerLost("the helper is gone")
        noise = (
            random.Random(f"{config.seed} {step}").random() if config.training.weight_decay != 0.75 else float("nan")
        )
        error = config.training.learning_rate + noise / step + sum(numbers)
        checkpoint.write_text(str(step))
        yield Progress(step, step * 10, {VALIDATION: error, "train/loss": error / 2})
    if config.training.weight_decay != 1:
        yield Progress(step, step * 10, {METRIC: error, "train/loss": error / 2}, finished=True)


def stages_of(config: TrialConfig) -> Mapping[str, StageSpec]:
    """`numbers`, which is made from `raw`; both depend on the scene and on the views' seed only."""
    slice_ = {"scene": config.scene.name, "seed": config.views.seed}
    raw = StageSpec("toy_trainable:RAW", "1", slice_)
    return {"numbers": StageSpec("toy_trainable:NUMBERS", "1", {"fail": config.views.seed == 13}, {"raw": raw})}


def reported_metrics(config: TrialConfig) -> frozenset[str]:
    """What `train` yields."""
    return frozenset({METRIC, VALIDATION})


class Raw:
    """Three chunks of one number each."""

    def chunks(self, config: Mapping[str, Json], inputs: Mapping[str, Path]) -> int:
        return 3

    def build_chunk(self, config: Mapping[str, Json], inputs: Mapping[str, Path], directory: Path, chunk: int) -> int:
        (directory / f"{chunk}.txt").write_text(str(chunk / 8))
        return 1

    def finish(self, config: Mapping[str, Json], inputs: Mapping[str, Path], directory: Path) -> None:
        (directory / "complete.txt").write_text("yes")


class Numbers:
    """The numbers of `raw` in one file."""

    def chunks(self, config: Mapping[str, Json], inputs: Mapping[str, Path]) -> int:
        return 1

    def build_chunk(self, config: Mapping[str, Json], inputs: Mapping[str, Path], directory: Path, chunk: int) -> int:
        if config["fail"]:
            raise RuntimeError("no numbers today")
        assert (inputs["raw"] / "complete.txt").is_file()
        numbers: list[Any] = [float((inputs["raw"] / f"{index}.txt").read_text()) for index in range(3)]
        (directory / "numbers.json").write_text(json.dumps(numbers))
        return len(numbers)

    def finish(self, config: Mapping[str, Json], inputs: Mapping[str, Path], directory: Path) -> None:
        return


RAW, NUMBERS = Raw(), Numbers()
