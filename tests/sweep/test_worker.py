"""One trial in a worker, and what is learned from trials that have run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cadloc_sweep import worker
from cadloc_sweep.costs import cost_of
from cadloc_sweep.executors import TrialTask
from cadloc_sweep.stages import StageStore
from cadloc_sweep.worker import lost_result, run_trial, trial_steps

if TYPE_CHECKING:
    from conftest import ToySweep


def test_a_worker_runs_a_trial_by_itself(toys: ToySweep) -> None:
    """The worker's generator yields, is taken up again after being closed, and returns the result."""
    toys.run("repeats=1")
    trial = toys.plan("repeats=1").trials[0]
    plan = toys.plan("repeats=1")
    stages = {role: toys.store.directory(plan.specs[key]) for role, key in plan.stages[trial.id].items()}
    task = TrialTask(trial, stages, toys.folder / "alone")
    steps = trial_steps(task)
    assert next(steps).step == 1
    steps.close()
    assert json.loads((task.directory / "result.json").read_text())["status"] == "interrupted"
    told: list[int] = []
    result = run_trial(task, lambda progress: told.append(progress.step))
    assert (result.status, told) == ("finished", [2, 3, 3])
    assert result.metrics == toys.run("repeats=1").results[trial.id].metrics


def test_a_lost_worker_leaves_its_last_metrics(toys: ToySweep) -> None:
    """A result written for a dead worker names the reason and keeps what was recorded."""
    outcome = toys.run("repeats=1")
    trial = toys.plan("repeats=1").trials[0]
    toys.paths.trial(trial.id).result.unlink()
    lost = lost_result(TrialTask(trial, {}, toys.paths.trial(trial.id).directory), "killed by signal 9")
    assert (lost.status, lost.error) == ("failed", "killed by signal 9")
    assert lost.metrics == outcome.results[trial.id].metrics
    assert "killed by signal 9" in Path(str(lost.log)).read_text()


def test_a_finished_result_is_never_taken_back(toys: ToySweep) -> None:
    """A worker that died between writing and telling has finished: its result stands, and nothing runs again."""
    outcome = toys.run("repeats=1")
    trial = toys.plan("repeats=1").trials[0]
    paths = toys.paths.trial(trial.id)
    before = paths.result.read_bytes(), paths.history.read_bytes()
    task = TrialTask(trial, {}, paths.directory)
    assert lost_result(task, "killed by signal 9") == outcome.results[trial.id]
    assert run_trial(task, lambda _: pytest.fail("it ran again")) == outcome.results[trial.id]
    assert before == (paths.result.read_bytes(), paths.history.read_bytes())


def test_a_checkpoint_goes_when_the_result_is_written(toys: ToySweep) -> None:
    """An interrupted or failed trial keeps what it resumes from; a finished one does not."""
    trial, *_ = toys.plan("repeats=1").trials
    paths = toys.paths.trial(trial.id)
    paths.directory.mkdir(parents=True)
    paths.checkpoint.write_bytes(b"")
    lost_result(TrialTask(trial, {}, paths.directory), "killed by signal 9")
    assert paths.checkpoint.exists()
    toys.run("repeats=1", retry_failed=True)
    assert not paths.checkpoint.exists()


def test_costs_are_known_from_experience(toys: ToySweep) -> None:
    """Before the first run nothing is known; after it, more seeds are priced by what was measured."""
    plan = toys.plan()
    store = StageStore(toys.paths.store)
    before = cost_of(plan, toys.paths, store)
    assert (before.trials, before.unknown_trials, before.unknown_stages, sum(before.stages.values())) == (8, 8, 4, 4)
    toys.run()
    after = cost_of(toys.plan("repeats=3", "scenes=[gate, rotunda, cathedral]"), toys.paths, store)
    assert (after.trials, after.unknown_stages, sum(after.stages.values())) == (10, 0, 2)
    assert after.unknown_trials == 0
    assert after.trial_seconds > 0
    assert cost_of(plan, toys.paths, store).trials == 0


def test_versions_name_what_ran() -> None:
    """A result can be traced to interpreter and libraries."""
    assert {"python", "numpy", "torch"} <= set(worker.versions())
