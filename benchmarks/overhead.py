"""What a trial costs beside its work: sweeps of trials that do nothing, through the whole platform on Ray.

Plan, ledger, results and Tune are as in any sweep, tracking is off, and Ray is there already. The baseline is Ray Tune
by itself with actors that are used again, which writes no results of its own and can resume nothing.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import tune

from benchmarks.measurement import Measurement
from cadloc.config import TrialConfig
from cadloc.contract import Progress, StageSpec, TrialContext
from cadloc_sweep.displays import Silent
from cadloc_sweep.executors.on_ray import RayExecutor, worker_environment
from cadloc_sweep.executors.on_ray_trials import TUNE_ENVIRONMENT
from cadloc_sweep.plan import make_plan
from cadloc_sweep.spaces import load_space
from cadloc_sweep.stages import StageStore
from cadloc_sweep.sweep import run_sweep
from cadloc_sweep.trials import SweepPaths

FEW, SOME, MANY = 50, 200, 500
_ARMS = 10
_METRIC = "test/synthetic/translation_error_median_m"
_SPACE = """\
# What does a trial cost that does nothing?
name: nothing
scenes: [gate]
trial: {trainable: "benchmarks.overhead:train"}
factors:
  training.learning_rate: [0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.007, 0.008, 0.009, 0.01]
"""


def measure() -> Iterator[Measurement]:
    """Seconds per trial of 200, against bare Tune; and of 500 against 50."""
    with _one_ray():
        _sweep_s(_ARMS)  # actors are there, modules imported
        few_s, tune_s = _sweep_s(FEW) / FEW, _bare_tune_s(SOME) / SOME
        some_s, many_s = _sweep_s(SOME) / SOME, _sweep_s(MANY) / MANY
    yield Measurement(
        "overhead per trial",
        some_s,
        "s",
        baseline=tune_s,
        what=f"bare Ray Tune, {SOME} trials",
        better="less",
        target=f"≤ 0.15 s at {SOME}",
    )
    yield Measurement(
        f"overhead at {MANY}",
        many_s,
        "s",
        baseline=few_s,
        what=f"per trial of a sweep of {FEW}",
        better="less",
        target=f"flat from {FEW}",
    )


# --- trials that do nothing ----------------------------------------------------------------------------------


def train(config: TrialConfig, context: TrialContext) -> Iterator[Progress]:
    """One finished progress."""
    yield Progress(1, 1, {_METRIC: config.training.learning_rate}, finished=True)


def stages_of(config: TrialConfig) -> Mapping[str, StageSpec]:
    """None."""
    return {}


def reported_metrics(config: TrialConfig) -> frozenset[str]:
    """What `train` yields."""
    return frozenset({_METRIC})


class Nothing(tune.Trainable):
    """The same for Tune by itself."""

    def step(self) -> dict[str, Any]:
        """One finished result."""
        return {_METRIC: 0.0, "done": True}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Ready for the next."""
        return True


# --- where they run ------------------------------------------------------------------------------------------


def _sweep_s(trials: int) -> float:
    """Wall seconds of a sweep of so many trials, from the plan to its outcome."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "nothing.yaml"
        file.write_text(_SPACE, encoding="utf-8")
        start_s = time.perf_counter()
        space = load_space(str(file), [f"repeats={trials // _ARMS}"])
        paths, display = SweepPaths(Path(folder) / "sweeps", space.name), Silent()
        store = StageStore(paths.store, display.note)
        outcome = run_sweep(space, make_plan(space), paths, store, RayExecutor, (), display)
        seconds = time.perf_counter() - start_s
    assert outcome.counts == {"finished": trials}, outcome.counts
    return seconds


def _bare_tune_s(trials: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        start_s = time.perf_counter()
        results = tune.Tuner(
            tune.with_resources(Nothing, {"CPU": 1}),
            param_space={"seed": tune.grid_search(list(range(trials)))},
            tune_config=tune.TuneConfig(reuse_actors=True),
            run_config=tune.RunConfig(
                storage_path=folder, verbose=0, checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False)
            ),
        ).fit()
        seconds = time.perf_counter() - start_s
    assert results.num_errors == 0
    return seconds


@contextmanager
def _one_ray() -> Iterator[None]:
    """A Ray of this machine's cores, joined by every sweep; its workers import what this process can."""
    before = dict(os.environ)
    os.environ.update(TUNE_ENVIRONMENT)  # for both alike
    path = os.pathsep.join(dict.fromkeys(os.path.abspath(folder) for folder in sys.path))
    variables = {**worker_environment(), "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"env_vars": variables},
    )
    try:
        yield
    finally:
        ray.shutdown()
        os.environ.clear()
        os.environ.update(before)
