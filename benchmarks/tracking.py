"""What MLflow costs the driver: trials of 20 progresses of 15 metrics each, told to the database beside the sweeps.

Only the tracker's own time counts; the trials write their files as in any sweep. The baseline writes points one by one,
as training scripts do, to the same database.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from benchmarks.measurement import Measurement
from cadloc.config import TrialConfig
from cadloc.contract import Progress, StageSpec, TrialContext
from cadloc_sweep.executors import TrialTask
from cadloc_sweep.plan import make_plan
from cadloc_sweep.spaces import load_space
from cadloc_sweep.trackers.on_mlflow import MlflowTracker
from cadloc_sweep.trials import SweepPaths, Trial
from cadloc_sweep.worker import run_trial

from mlflow import MlflowClient  # isort: skip  -- after on_mlflow, whose settings MLflow reads when imported

TRIALS, PROGRESSES, METRICS = 20, 20, 15
POINTS_ONE_BY_ONE = 40
"""Written after each trial: it takes turns with the tracker."""

_METRIC = "test/synthetic/translation_error_median_m"
_SPACE = """\
# What does it cost to tell MLflow?
name: told
scenes: [gate]
trial: {trainable: "benchmarks.tracking:train"}
factors: {training.learning_rate: [0.001]}
"""


def measure() -> Iterator[Measurement]:
    """Points per second and seconds per trial of the driver's time, against a call per point."""
    with tempfile.TemporaryDirectory() as folder:
        told_s, one_s = _tracked(Path(folder))
    points = PROGRESSES * (METRICS + 1)  # with the number of samples seen
    yield Measurement(
        "tracking points",
        points / told_s,
        "points/s",
        baseline=1 / one_s,
        what="one log_metric per point",
    )
    yield Measurement(
        "tracking trial",
        told_s,
        "s per trial",
        baseline=points * one_s,
        what="its curves alone, one log_metric per point",
        better="less",
    )


def train(config: TrialConfig, context: TrialContext) -> Iterator[Progress]:
    """Numbers that fall, and one result."""
    for step in range(1, PROGRESSES + 1):
        metrics = {f"validation/measure_{index}": (index + 1) / step for index in range(METRICS - 1)}
        yield Progress(step, 1000 * step, {_METRIC: 1 / step, **metrics}, finished=step == PROGRESSES)


def stages_of(config: TrialConfig) -> Mapping[str, StageSpec]:
    """None."""
    return {}


def reported_metrics(config: TrialConfig) -> frozenset[str]:
    """The one that matters."""
    return frozenset({_METRIC})


def _tracked(folder: Path) -> tuple[float, float]:
    """The tracker's seconds per trial, and the seconds per point written by itself."""
    file = folder / "told.yaml"
    file.write_text(_SPACE, encoding="utf-8")
    space = load_space(str(file), [f"repeats={TRIALS + 1}"])
    plan, paths, notes = make_plan(space), SweepPaths(folder / "sweeps", space.name), list[str]()
    tracker = MlflowTracker(paths, notes.append)
    tracker.start_sweep(space, plan)
    client = MlflowClient(tracker.uri)
    run = client.create_run(client.create_experiment("one by one", (folder / "artifacts").as_uri())).info.run_id
    warm, *trials = plan.trials
    _told_s(tracker, warm, paths)
    seconds = [
        (_told_s(tracker, trial, paths), _one_by_one_s(client, run, index)) for index, trial in enumerate(trials)
    ]
    tracker.close()
    assert not notes, notes
    told_s, one_s = (sum(each) / TRIALS for each in zip(*seconds, strict=True))
    return told_s, one_s / POINTS_ONE_BY_ONE


def _told_s(tracker: MlflowTracker, trial: Trial, paths: SweepPaths) -> float:
    """Runs a trial and returns how long it took to tell of it, from its start to its end."""
    directory, told = paths.trial(trial.id).directory, _Clock()
    told.timed(lambda: tracker.trial_started(trial))
    task = TrialTask(trial, {}, directory)
    result = run_trial(task, lambda progress: told.timed(lambda: tracker.trial_progress(trial, progress)))
    assert result.status == "finished", result.error
    told.timed(lambda: tracker.trial_ended(trial, result, directory))
    return told.seconds


def _one_by_one_s(client: MlflowClient, run: str, trial: int) -> float:
    start_s = time.perf_counter()
    for step in range(POINTS_ONE_BY_ONE):
        client.log_metric(run, f"measure_{trial}", 1 / (step + 1), step=step)
    return time.perf_counter() - start_s


class _Clock:
    """Sums up what some calls take."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, call: Callable[[], None]) -> None:
        """Makes the call."""
        start_s = time.perf_counter()
        call()
        self.seconds += time.perf_counter() - start_s
