"""Several workers share a trial through Ray Train: it dies, resumes and ends as any other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cadloc.contract import InputError
from cadloc_sweep.costs import cost_of
from cadloc_sweep.durable_files import write_json
from cadloc_sweep.executors.inline import InlineExecutor
from cadloc_sweep.executors.on_ray import RayExecutor
from cadloc_sweep.ledger import write_result
from cadloc_sweep.overviews import plan_lines
from cadloc_sweep.stages import StageStore
from cadloc_sweep.trials import TrialResult

if TYPE_CHECKING:
    from conftest import ToySweep

SHARED = """\
# Who survives?
name: toys
scenes: [gate]
trial: {trainable: "shared_trainable:train", training: {iterations: 3, batch_size: 64}}
resources: {cpu: 1, workers: 2}
factors:
  training.weight_decay: [0.125]
"""


@pytest.fixture
def shared(toys: ToySweep) -> ToySweep:
    """A sweep of one trial, whose second worker is killed at the second step."""
    toys.text = SHARED
    return toys


@pytest.mark.usefixtures("own_ray")
def test_a_killed_worker_costs_its_trial_the_steps_since_the_checkpoint(shared: ToySweep) -> None:
    """Two joined processes take the steps; both begin again where one dies, and the trial ends with all its metrics."""
    outcome = shared.run(make_executor=RayExecutor)
    (trial,) = shared.plan().trials
    result = outcome.results[trial.id]
    assert (result.status, result.error) == ("finished", None)
    assert set(result.metrics.values()) == {3.5}  # the mean of 3 and 4, what the two know at the last step
    paths = shared.paths.trial(trial.id)
    pids = {paths.directory.joinpath(f"pid-{rank}.txt").read_text() for rank in range(2)}
    assert len(pids) == 2
    assert [line.split(",")[0] for line in paths.history.read_text().splitlines()] == [
        f'{{"step": {step}' for step in (1, 2, 3)
    ]


def test_the_inline_executor_refuses_several_workers(shared: ToySweep) -> None:
    """One process has no others: the fault says what to use instead."""
    with pytest.raises(InputError, match="--executor ray"):
        InlineExecutor(workers=2)


def test_a_plan_counts_the_work_of_all_workers(shared: ToySweep) -> None:
    """The CPUs of all workers are told, and their seconds add up: of another seed of the same arm, here."""
    plan = shared.plan("resources={cpu: 2, workers: 4}", "repeats=2")
    done, _ = plan.trials
    paths = shared.paths.trial(done.id)
    paths.directory.mkdir(parents=True)
    write_json(paths.config, done.to_json())
    write_result(paths, TrialResult(done.id, "finished", seconds=10.0))
    cost = cost_of(plan, shared.paths, StageStore(shared.paths.store))
    assert (cost.trials, cost.trial_seconds) == (1, 40.0)
    assert any("4 workers share each trial: 8 CPU" in line for line in plan_lines(plan, cost))


@pytest.mark.parametrize(
    ("setting", "fault"),
    [
        ("resources.workers=3", "resources.workers: found 3, and training.batch_size 64; allowed: a divisor of it"),
        ("resources.workers=0", "resources.workers: found 0"),
        ("resources.gpu=0.5", "resources.gpu: found 0.5; allowed: 0 or 1, as each of the 2 workers"),
        ("trial.trainable=render_and_match", "resources.workers: found 2, and the trainable render_and_match"),
    ],
)
def test_what_workers_cannot_share_is_a_fault_of_the_space(shared: ToySweep, setting: str, fault: str) -> None:
    """Batches are divided evenly, and each worker trains on one device."""
    with pytest.raises(InputError) as error:
        shared.plan(setting)
    assert fault in str(error.value)
