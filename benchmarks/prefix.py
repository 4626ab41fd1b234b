"""A switching study: runs that go together up to the first switch, take those steps once."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measurement import Measurement
from cadloc_sweep.costs import Sharing, cost_of
from cadloc_sweep.displays import Silent
from cadloc_sweep.executors.inline import InlineExecutor
from cadloc_sweep.plan import make_plan
from cadloc_sweep.spaces import load_space
from cadloc_sweep.stages import StageStore
from cadloc_sweep.sweep import run_sweep
from cadloc_sweep.trials import SweepPaths

POINTS = (1 / 3, 1 / 2, 2 / 3, 0.8, 0.9)
ITERATIONS = 2000
_SPACE = f"""\
# When to switch?
name: prefix
scenes: [gate]
trial:
  preset: smoke
  domains: []
  views: {{counts: {{mapping: 20, validation: 1, query: 1}}}}
  loss: {{name: switching}}
  training: {{iterations: {ITERATIONS}, validations: 1}}
objective: {{metric: validation/synthetic/translation_error_median_m, mode: min}}
factors:
  loss.at: {list(POINTS)}
"""


def measure() -> Iterator[Measurement]:
    """Seconds of this process's one thread for a study of five switching points, views, buffer and encoded queries
    there before; with shared prefixes, against each trial by itself."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "prefix.yaml").write_text(_SPACE, encoding="utf-8")
        _study(folder, "warm", "factors.loss.at=[0.5]", "trial.training.iterations=2", "trial.training.validations=1")
        alone_s, _ = _study(folder, "alone", "share_prefixes=false")
        shared_s, sharing = _study(folder, "shared")
    yield Measurement(
        name="prefix study",
        value=shared_s,
        unit="s",
        baseline=alone_s,
        limit=alone_s * sharing.steps / sharing.steps_alone,
        what=f"{len(POINTS)} trials, each by itself",
        limit_is=f"the cost of {sharing.steps} of {sharing.steps_alone} steps",
        better="less",
        target="at most 60 % of each by itself",
    )


def _study(folder: Path, name: str, *settings: str) -> tuple[float, Sharing]:
    """Runs the space under a name; returns the seconds of work that it took, and what its trials share."""
    space = load_space(str(folder / "prefix.yaml"), [f"name={name}", *settings])
    plan, paths, store = make_plan(space), SweepPaths(folder, name), StageStore(folder / "store")
    start_s = time.process_time()
    outcome = run_sweep(space, plan, paths, store, InlineExecutor, (), Silent())
    seconds = time.process_time() - start_s
    if outcome.exit_code:
        raise RuntimeError(f"the study {name} did not finish: {outcome.counts}")
    return seconds, cost_of(plan, paths, store).sharing
