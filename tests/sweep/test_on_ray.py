"""Ray behaves like the inline executor, and survives what the inline one cannot: dying workers."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cadloc.contract import Json, StageSpec
from cadloc_sweep.executors import StageEvent, StageJob, TrialEvent
from cadloc_sweep.executors.on_ray import RayExecutor, check_reachable
from cadloc_sweep.executors.on_ray_searcher import beside_stages
from cadloc_sweep.executors.on_ray_trials import Ends
from cadloc_sweep.failures import ExecutorUnreachable, ExitCode, OutOfResources
from cadloc_sweep.outcomes import Outcome
from cadloc_sweep.space_settings import AshaStop, Objective
from cadloc_sweep.trials import Resources
from cadloc_sweep.worker import read_history

if TYPE_CHECKING:
    from conftest import ToySweep

DEADLY = """\
# Who survives?
name: toys
scenes: [gate]
repeats: 1
trial: {trainable: "deadly_trainable:train", training: {iterations: 3}}
factors:
  training.weight_decay: [0, 0.125, 0.25]
"""


PATIENT = """\
# Does anything run while stages are built?
name: toys
scenes: [gate, rotunda]
trial: {trainable: "patient_stage:train"}
"""


class Draining(RayExecutor):
    """Drains itself at the first progress it hears of, and keeps the events."""

    def __init__(self, drain: bool = True) -> None:
        super().__init__("local")
        self.events: list[TrialEvent] = []
        self._drain = drain

    def run(self, agenda: Any, on_stage: Any, on_trial: Callable[[TrialEvent], None]) -> None:
        def heard(event: TrialEvent) -> None:
            self.events.append(event)
            on_trial(event)
            if event.kind == "progress" and self._drain:
                self.drain()

        super().run(agenda, on_stage, heard)


pytestmark = pytest.mark.usefixtures("local_ray")


def metrics_of(outcome: Outcome) -> Mapping[str, Json]:
    """Status and metrics of every trial."""
    return {key: (result.status, result.metrics) for key, result in outcome.results.items()}


def elsewhere(toys: ToySweep, name: str) -> ToySweep:
    """The same space in another place."""
    folder = toys.folder / name
    folder.mkdir()
    return type(toys)(folder, toys.text)


def test_ray_and_inline_agree_to_the_last_bit(toys: ToySweep) -> None:
    """The same plan gives the same statuses, metrics, errors, histories and stages in both places.

    A raising trial is a failed result with its traceback there too, and the sweep goes on.
    """
    toys.text = toys.text.replace("  training.learning_rate: [0.1, 0.2]", "  training.weight_decay: [0, 0.5]")
    on_ray, inline = elsewhere(toys, "ray"), elsewhere(toys, "inline")
    outcome, reference = on_ray.run(make_executor=RayExecutor), inline.run()
    assert (outcome.counts, outcome.exit_code) == ({"finished": 4, "failed": 4}, ExitCode.TRIALS_FAILED)
    assert metrics_of(outcome) == metrics_of(reference)
    assert on_ray.store.built == inline.store.built
    for trial in toys.plan().trials:
        assert read_history(on_ray.paths.trial(trial.id).history) == read_history(inline.paths.trial(trial.id).history)
        assert outcome.results[trial.id].error == reference.results[trial.id].error
    traces = [result.traceback for result in outcome.results.values() if result.status == "failed"]
    assert all("toy_trainable.py" in str(trace) for trace in traces)
    spec = next(iter(toys.plan().specs.values()))
    chunks = [(sweep.store.directory(spec) / "2.txt").read_text() for sweep in (on_ray, inline)]
    assert chunks[0] == chunks[1]


def test_a_trial_runs_while_stages_of_other_scenes_are_built(toys: ToySweep, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage that waits for the end of another scene's trial gets built; its own trial runs in Tune's next round."""
    monkeypatch.setattr("cadloc_sweep.executors.on_ray_searcher.GAP_S", 0.0)
    toys.text = PATIENT
    assert toys.run(make_executor=RayExecutor).counts == {"finished": 2}


@pytest.mark.parametrize(
    ("pieces", "on_gpu", "cpus", "gpus", "asked", "expected"),
    [
        (9, 0, 2, 0, Resources(), 1),
        (1, 0, 16, 0, Resources(), 15),
        (0, 0, 16, 0, Resources(cpu=4), 3),
        (40, 0, 16, 0, Resources(), 1),
        (40, 0, 16, 2, Resources(gpu=0.5), 4),
        (40, 1, 16, 2, Resources(gpu=0.5), 2),
        (5, 0, 1, 0, Resources(), 1),
    ],
)
def test_stages_come_first_but_one_trial_runs(
    pieces: int, on_gpu: int, cpus: int, gpus: int, asked: Resources, expected: int
) -> None:
    """Stages get the CPUs that they can use, one at least; trials on GPUs leave one, and the GPUs that stages need."""
    assert beside_stages(asked, pieces, on_gpu, cpus, gpus) == expected


def test_a_failing_stage_fails_its_trials_with_its_own_error(toys: ToySweep) -> None:
    """What a stage's builder raised in a worker is what its trials' results say."""
    outcome = toys.run("repeats=1", "trial.views.seed=13", make_executor=RayExecutor)
    assert outcome.counts == {"failed": 4}
    assert all("no numbers today" in str(result.error) for result in outcome.results.values())


def test_a_killed_worker_costs_its_trial_only(toys: ToySweep) -> None:
    """A trial whose process dies is taken up again once; if it dies again it is failed, and the others finish."""
    toys.text = DEADLY
    outcome = toys.run(make_executor=RayExecutor)
    ended = {trial.factors["training.weight_decay"]: outcome.results[trial.id] for trial in toys.plan().trials}
    statuses = {decay: result.status for decay, result in ended.items()}
    assert statuses == {0: "finished", 0.125: "finished", 0.25: "failed"}
    assert ended[0.125].metrics == ended[0].metrics
    assert "the worker died" in str(ended[0.25].error)
    assert toys.run(make_executor=RayExecutor).nothing_to_do


def test_actors_outlive_their_trials(toys: ToySweep) -> None:
    """Many trials share few processes: libraries stay loaded between them."""
    toys.text = DEADLY.replace("[0, 0.125, 0.25]", "[0]").replace("repeats: 1", "repeats: 8")
    toys.run(make_executor=RayExecutor)
    pids = [(toys.paths.trial(trial.id).directory / "pids.txt").read_text() for trial in toys.plan().trials]
    assert len(set(pids)) <= 2 + 1  # two at once, and one that Tune may replace


def test_draining_interrupts_and_the_next_run_goes_on(toys: ToySweep) -> None:
    """After a drain every trial that started has ended; running again gives what an undisturbed run gives."""
    executor = Draining()
    drained = toys.run("trial.training.iterations=50", make_executor=lambda: executor)
    kinds = {kind: [event.trial_id for event in executor.events if event.kind == kind] for kind in ("started", "ended")}
    assert sorted(kinds["started"]) == sorted(kinds["ended"]) != []
    assert drained.exit_code is ExitCode.INTERRUPTED
    assert set(drained.counts) <= {"interrupted", "missing", "finished"}
    resumed = toys.run("trial.training.iterations=50")
    undisturbed = elsewhere(toys, "undisturbed").run("trial.training.iterations=50")
    assert metrics_of(resumed) == metrics_of(undisturbed)


def test_a_drain_waits_for_no_piece_of_a_stage(toys: ToySweep, monkeypatch: pytest.MonkeyPatch) -> None:
    """A piece that runs, and would for long, is given up; nothing of its stage is left, and its trial is not lost."""
    monkeypatch.setattr("cadloc_sweep.executors.on_ray_searcher.GAP_S", 0.0)
    toys.text = PATIENT
    assert toys.run("trial.views.seed=13", make_executor=Draining).counts == {"finished": 1, "missing": 1}
    assert toys.store.built == {"patient_stage:TRIAL": 1}


def test_a_drain_waits_for_the_end_of_a_stage_that_is_all_there(tmp_path: Path) -> None:
    """A stage is near its end from its last piece on, until it is built or has failed."""
    ends = Ends(lambda _: None)
    jobs = [StageJob(StageSpec("any", "1", {}), {}, tmp_path / name) for name in "ab"]
    for job in jobs:
        ends.heard(StageEvent(job, "chunk", done=1, total=2))
    assert not ends.near
    for job in jobs:
        ends.heard(StageEvent(job, "chunk", done=2, total=2))
    assert ends.near == {job.directory for job in jobs}
    ends.heard(StageEvent(jobs[0], "built"))
    ends.heard(StageEvent(jobs[1], "failed"))
    assert not ends.near


def test_asha_stops_the_worse_trials_early(toys: ToySweep) -> None:
    """Under successive halving some trials end as `stopped`, keep their metrics, and the best one finishes."""
    toys.text = toys.text.replace("[0.1, 0.2]", "[1, 2, 4, 8, 16, 32]").replace("[gate, rotunda]", "[gate]")
    stop = AshaStop(reduction=2)
    outcome = toys.run(
        "repeats=1", "trial.training.iterations=8", make_executor=lambda: RayExecutor(stop=stop, objective=Objective())
    )
    ended = {
        trial.config.training.learning_rate: outcome.results[trial.id]
        for trial in toys.plan("repeats=1", "trial.training.iterations=8").trials
    }
    assert ended[1].status == "finished"
    stopped = [result for result in ended.values() if result.status == "stopped"]
    assert stopped
    assert all(result.metrics and "scheduler" in str(result.error) for result in stopped)


def test_a_trial_that_fits_nowhere_ends_the_sweep(toys: ToySweep) -> None:
    """Asking for more than any node has is said at once instead of waiting for ever."""
    toys.text = DEADLY
    with pytest.raises(OutOfResources, match="64 CPU"):
        toys.run("resources.cpu=64", make_executor=RayExecutor)


def test_an_error_of_the_listener_comes_through(toys: ToySweep) -> None:
    """What the driver raises while it is told of an event is raised by the run, not wrapped by Tune."""

    class Full(RayExecutor):
        def run(self, agenda: Any, on_stage: Any, on_trial: Callable[[TrialEvent], None]) -> None:
            def heard(event: TrialEvent) -> None:
                raise OutOfResources("no room left")

            super().run(agenda, on_stage, heard)

    toys.text = DEADLY.replace("[0, 0.125, 0.25]", "[0]")
    with pytest.raises(OutOfResources, match="no room left"):
        toys.run(make_executor=Full)


def test_a_closed_port_is_unreachable() -> None:
    """Where nothing listens the executor says so instead of trying for ever."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    with pytest.raises(ExecutorUnreachable, match=address):
        check_reachable(address)


@pytest.mark.parametrize("address", ["somewhere", "ray://head:10001", "head:port", ""])
def test_an_address_of_another_form_is_refused(address: str) -> None:
    """Only `auto` and HOST:PORT are addresses."""
    with pytest.raises(ExecutorUnreachable, match="neither"):
        check_reachable(address)
