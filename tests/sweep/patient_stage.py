"""A stage that waits for a trial of another scene to end, and a trainable on it, named as `patient_stage:train`.

Where the views have seed 13 it waits in vain.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from cadloc.config import TrialConfig
from cadloc.contract import Json, Progress, StageSpec, TrialContext

METRIC = "test/synthetic/translation_error_median_m"
PATIENCE_S = 60.0


def train(config: TrialConfig, context: TrialContext) -> Iterator[Progress]:
    """Ends at once."""
    yield Progress(1, 1, {METRIC: 0.0}, finished=True)


def stages_of(config: TrialConfig) -> Mapping[str, StageSpec]:
    """That of `rotunda` waits."""
    waited_for = "nothing" if config.views.seed == 13 else "result.json"
    slice_ = {"waits": config.scene.name == "rotunda", "for": waited_for}
    return {"trial": StageSpec("patient_stage:TRIAL", "1", slice_)}


def reported_metrics(config: TrialConfig) -> frozenset[str]:
    """What `train` yields."""
    return frozenset({METRIC})


class Trial:
    """Two pieces; the first one waits for the first result of a sweep beside the store."""

    def chunks(self, config: Mapping[str, Json], inputs: Mapping[str, Path]) -> int:
        return 2

    def build_chunk(self, config: Mapping[str, Json], inputs: Mapping[str, Path], directory: Path, chunk: int) -> int:
        end_s = time.monotonic() + PATIENCE_S
        while config["waits"] and chunk == 0 and not any(directory.parents[2].glob(f"*/trials/*/{config['for']}")):
            if time.monotonic() > end_s:
                raise TimeoutError("no trial ends while this stage is built")
            time.sleep(0.01)
        return 1

    def finish(self, config: Mapping[str, Json], inputs: Mapping[str, Path], directory: Path) -> None:
        (directory / "complete.txt").write_text("yes")


TRIAL = Trial()
