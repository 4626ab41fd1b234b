"""Packed trials: what a server does on its thread, what a trial is told of it, and what a server's end costs."""

from __future__ import annotations

import importlib
import queue
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cadloc.config import TrialConfig
from cadloc.contract import InputError, TrialContext, WorkerLost
from cadloc_sweep.executors import TrialTask, on_ray_packing
from cadloc_sweep.executors.inline import InlineExecutor
from cadloc_sweep.executors.on_ray import RayExecutor
from cadloc_sweep.executors.on_ray_packing import DEATHS, Packs, Serving, sender
from cadloc_sweep.outcomes import Outcome
from cadloc_sweep.space_settings import AshaStop, Objective
from cadloc_sweep.worker import trial_steps

if TYPE_CHECKING:
    from conftest import ToySweep

HEADS = """\
# Which loss?
name: toys
scenes: [gate]
repeats: 2
trial:
  trainable: "packed_head:train"
  head: {name: ace, width: 32, blocks: 1}
  training: {iterations: 24, batch_size: 64, validations: 2, learning_rate: 0.003}
resources: {pack: always, slots: 2}
factors:
  loss: [{name: reprojection}, {name: switching, at: 0.5}]
"""

METRIC = "test/synthetic/translation_error_median_m"


@pytest.fixture
def toy() -> Any:
    """The module of the trainable that a server can train, which only a running test can import."""
    return importlib.import_module("packed_trainable")


# ---- a server on its thread


def stretch_of(packed: ToySweep, directory: Path, *settings: str) -> Any:
    """The first stretch of the first trial."""
    directory.mkdir()
    return importlib.import_module("packed_trainable").Stretch(
        packed.plan(*settings).trials[0].config, directory, 0, 0.0
    )


def test_a_server_answers_each_and_rests_where_there_is_nothing_to_do(
    packed: ToySweep, toy: Any, tmp_path: Path
) -> None:
    """Stretches are answered as if each had been alone; between them no step is taken."""
    server, answers = toy.AddingServer("cpu", 1), queue.Queue[Any]()
    serving = Serving(server)
    expected = toy.alone(stretch_of(packed, tmp_path / "alone")).total
    for name in ("a", "b"):
        serving.submit(stretch_of(packed, tmp_path / name), answers.put)
    assert [answers.get(timeout=10).total for _ in "ab"] == [expected, expected]
    serving.submit(stretch_of(packed, tmp_path / "c"), answers.put)
    assert answers.get(timeout=10).total == expected
    assert server.steps <= 3 * toy.STRETCH + 4  # and once whenever it went to rest


def test_a_server_that_breaks_down_leaves_nobody_waiting(packed: ToySweep, toy: Any, tmp_path: Path) -> None:
    """Whoever waits for it, has a turn to come, or asks later is told, with what went wrong."""
    serving, answers = Serving(toy.AddingServer("cpu", 2)), queue.Queue[Any]()
    trouble = "trial.training.weight_decay=0.5"
    serving.submit(stretch_of(packed, tmp_path / "a", trouble), answers.put)
    serving.submit(stretch_of(packed, tmp_path / "b", trouble), answers.put)
    told = [answers.get(timeout=10) for _ in range(2)]
    assert all(isinstance(answer, WorkerLost) for answer in told)
    assert any("asked for trouble" in str(answer) for answer in told)
    assert serving.broken
    serving.submit(stretch_of(packed, tmp_path / "c"), answers.put)
    assert isinstance(answers.get(timeout=10), WorkerLost)


@pytest.mark.parametrize(("break_downs", "answered"), [(0, True), (DEATHS, True), (DEATHS + 1, False)])
def test_a_stretch_outlives_a_few_break_downs(
    break_downs: int, answered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is sent again, which is no death of the trial's worker; a server that never stays whole ends the trial."""
    told: list[Any] = [WorkerLost("broken")] * break_downs + ["done"]
    monkeypatch.setattr(on_ray_packing, "_answer", lambda server, request: told.pop(0))
    if answered:
        assert sender("server")("stretch") == "done"
    else:
        with pytest.raises(WorkerLost):
            sender("server")("stretch")


# ---- what a trial is told


def test_a_packed_trial_leaves_the_gpu_to_its_server(packed: ToySweep, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial is told to do on the CPU what is left to it, with as many threads as it asks Ray for."""
    seen: list[TrialContext] = []

    def train(config: TrialConfig, context: TrialContext) -> Iterator[Any]:
        seen.append(context)
        raise RuntimeError
        yield

    monkeypatch.setattr("cadloc_sweep.worker.trainable", lambda name: train)
    trial = packed.plan("resources={gpu: 1, cpu: 4.5}").trials[0]
    task = TrialTask(trial, {}, packed.folder / "trial")
    for pack, cpus in ((None, None), (repr, 2.5), (repr, 0.25)):
        list(trial_steps(task, pack, cpus))
    told = [(context.device, context.pack, context.cpus) for context in seen]
    assert told == [("cuda", None, 4), ("cpu", repr, 2), ("cpu", repr, 1)]


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        (("resources.slots=0",), "resources.slots: found 0"),
        (("resources.pack=sometimes",), "resources.pack: found"),
        (("resources={pack: always, workers: 2}",), "resources.pack: found always, and several workers"),
        (("trial.trainable=render_and_match",), "resources.pack: found always, and the trainable render_and_match"),
    ],
)
def test_what_cannot_be_packed_is_a_fault_of_the_space(packed: ToySweep, settings: tuple[str, ...], fault: str) -> None:
    """Asking for a server by name where none can serve is told before work starts."""
    with pytest.raises(InputError) as error:
        packed.plan(*settings)
    assert fault in str(error.value)


def test_the_inline_executor_refuses_to_pack() -> None:
    """One process trains one trial at a time: the fault says what to use instead."""
    with pytest.raises(InputError, match="--executor ray"):
        InlineExecutor(pack="always")


def test_how_trials_are_packed_is_no_part_of_them(packed: ToySweep) -> None:
    """Results agree, so a sweep may change its mind and keeps what it has."""
    ids = [[trial.id for trial in packed.plan(f"resources.pack={pack}").trials] for pack in ("always", "never")]
    assert ids[0] == ids[1]


# ---- whole sweeps on Ray


@pytest.fixture
def adding(monkeypatch: pytest.MonkeyPatch, toy: Any, local_ray: None) -> None:
    """Servers on Ray add."""
    on_ray_trials = importlib.import_module("cadloc_sweep.executors.on_ray_trials")
    monkeypatch.setattr(on_ray_trials, "Packs", partial(Packs, toy.AddingServer))


def alone_of(packed: ToySweep) -> Mapping[str, Any]:
    """Metrics of the same trials where each trains by itself."""
    folder = packed.folder / "alone"
    folder.mkdir()
    return metrics_of(type(packed)(folder, packed.text).run("resources.pack=never"))


def metrics_of(outcome: Outcome) -> Mapping[str, Any]:
    """Of the trials that finished."""
    return {key: dict(result.metrics) for key, result in outcome.results.items() if result.status == "finished"}


def pids(packed: ToySweep) -> set[str]:
    """Processes that took the trials' steps."""
    files = [packed.paths.trial(trial.id).directory / "pids.txt" for trial in packed.plan().trials]
    return {pid for file in files for pid in file.read_text().split()}


@pytest.mark.usefixtures("adding")
def test_neither_a_killed_server_nor_a_trial_that_is_stopped_costs_the_others_anything(packed: ToySweep) -> None:
    """The server dies in the middle of a stretch, ASHA stops the worse trials: whoever ends has what it has alone."""
    packed.text = packed.text.replace("[1, 2]", "[1, 2, 4, 8, 16, 32]").replace("slots: 4", "slots: 2")
    packed.text = packed.text.replace("iterations: 12", "iterations: 12, weight_decay: 0.125")
    packed.text = packed.text.replace("repeats: 2", "repeats: 1")
    stop = AshaStop(reduction=2)
    outcome = packed.run(make_executor=lambda: RayExecutor(stop=stop, objective=Objective()))
    assert set(outcome.counts) == {"finished", "stopped"}
    assert len(pids(packed)) == 2
    alone = alone_of(packed)
    assert metrics_of(outcome) == {key: alone[key] for key in metrics_of(outcome)}


@pytest.mark.usefixtures("local_ray")
def test_heads_trained_together_are_what_each_is_alone(packed: ToySweep) -> None:
    """Other losses, other seeds, one server: mean errors agree as far as rounding lets them."""
    packed.text = HEADS
    outcome = packed.run(make_executor=RayExecutor)
    assert outcome.counts == {"finished": 4}
    together, alone = metrics_of(outcome), alone_of(packed)
    assert len({metrics[METRIC] for metrics in alone.values()}) == 4
    for key, metrics in alone.items():
        assert together[key] == pytest.approx(metrics, rel=1e-3)
