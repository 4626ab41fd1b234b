"""A stage of four steps that goes on from its own checkpoint, named as `resumable_stage:STEPS`, and a trainable on it.

Where the file that its configuration names as `trouble` exists, the third step raises the error that stands in it.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterator, Mapping
from pathlib import Path

from cadloc.config import TrialConfig
from cadloc.contract import Json, Progress, StageSpec, TrialContext

KIND = "resumable_stage:STEPS"
METRIC = "test/synthetic/translation_error_median_m"
COUNT = 4


def train(config: TrialConfig, context: TrialContext) -> Iterator[Progress]:
    """Ends at once: its metric is the number of the stage's steps."""
    steps = len((context.stages["steps"] / "steps.txt").read_text())
    yield Progress(1, 1, {METRIC: float(steps)}, finished=True)


def stages_of(config: TrialConfig) -> Mapping[str, StageSpec]:
    """The stage; its trouble lies in the current folder."""
    return {"steps": StageSpec(KIND, "1", {"trouble": "trouble.txt"})}


def reported_metrics(config: TrialConfig) -> frozenset[str]:
    """What `train` yields."""
    return frozenset({METRIC})


class Steps:
    """`steps.txt` has a character per step done, in this attempt or before."""

    def chunks(self, config: Mapping[str, Json], inputs: Mapping[str, Path]) -> int:
        return 1

    def build_chunk(self, config: Mapping[str, Json], inputs: Mapping[str, Path], directory: Path, chunk: int) -> int:
        """Returns the number of steps that were left to do."""
        done, trouble = directory / "steps.txt", Path(config["trouble"])
        start = len(done.read_text()) if done.is_file() else 0
        for step in range(start, COUNT):
            if step == 2 and trouble.is_file():
                (directory / ".steps.txt.123").write_text("half of a file")
                raise getattr(builtins, trouble.read_text())
            done.write_text("." * (step + 1))
        return COUNT - start

    def finish(self, config: Mapping[str, Json], inputs: Mapping[str, Path], directory: Path) -> None:
        return


STEPS = Steps()
