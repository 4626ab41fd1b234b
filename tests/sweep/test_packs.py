"""Packed trials: which ones are, what they ask for, where they go, and what a server's end costs them."""

from __future__ import annotations

import importlib
import os
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
from cadloc_sweep.executors.on_ray_packing import Packs, Serving
from cadloc_sweep.outcomes import Outcome
from cadloc_sweep.plan import Plan
from cadloc_sweep.space_settings import AshaStop, Objective
from cadloc_sweep.worker import trial_steps

if TYPE_CHECKING:
    from conftest import ToySweep

PACKED = """\
# Who trains together?
name: toys
scenes: [gate]
repeats: 2
trial: {trainable: "packed_trainable:train", training: {iterations: 12}}
resources: {pack: always, slots: 4}
factors:
  training.learning_rate: [1, 2]
"""

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


@pytest.fixture
def packed(toys: ToySweep) -> ToySweep:
    """Four trials that a server trains."""
    toys.text = PACKED
    return toys


def tasks_of(plan: Plan, *, buffers: bool = False) -> list[TrialTask]:
    """Tasks without stages, or with a buffer that the trials of a seed share."""
    roles = {trial.id: {"buffer/synthetic": Path(str(trial.seed))} if buffers else {} for trial in plan.trials}
    return [TrialTask(trial, roles[trial.id], Path(trial.id)) for trial in plan.trials]


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


# ---- where trials go


class Cluster(Packs):
    """Servers that are only counted, on nodes that are not there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *nodes: dict[str, float]) -> None:
        monkeypatch.setattr(on_ray_packing, "_nodes", lambda: list(nodes))
        monkeypatch.setattr(on_ray_packing.ray, "kill", lambda server: self.alive.remove(server))
        self.alive: list[str] = []
        super().__init__(lambda device, slots: pytest.fail("no server is wanted"))

    def _start(self, task: TrialTask) -> tuple[str, Any]:
        name = f"server {len(self.alive)}"
        self.alive.append(name)
        return name, name


@pytest.mark.parametrize(
    ("settings", "there", "expected"),
    [
        (("resources.pack=auto",), 1, False),
        (("resources={pack: auto, gpu: 1}", "trial.trainable=ace"), 1, True),
        (("resources={pack: auto, gpu: 0.5}", "trial.trainable=ace"), 0, False),
        (("resources={pack: auto, gpu: 1}",), 1, False),
        (("resources={pack: never, gpu: 1}", "trial.trainable=ace"), 1, False),
        (("resources={pack: auto, gpu: 1, workers: 2}", "trial.trainable=ace"), 2, False),
        (("resources={pack: always}",), 0, True),
        (("resources={pack: always, gpu: 1}",), 1, True),
        (("resources={pack: always, gpu: 1}",), 0, False),
    ],
)
def test_which_trials_are_packed(
    packed: ToySweep, monkeypatch: pytest.MonkeyPatch, settings: tuple[str, ...], there: int, expected: bool
) -> None:
    """By itself a trial that asks for a GPU, where there is one, and knows how to; any other only by request."""
    task = tasks_of(packed.plan(*settings))[0]
    cluster = Cluster(monkeypatch, {"CPU": 4.0, "GPU": float(there)})
    assert cluster.packed(task) is expected
    assert (cluster.place("a", task) is not None) is expected
    assert cluster.asked(task).gpu == (0 if expected else task.trial.resources.gpu)


def test_packed_trials_share_the_cpus_but_one_per_server(packed: ToySweep, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen slots on two GPUs are 32 trials; none asks for more than its space says."""
    cluster = Cluster(monkeypatch, {"CPU": 8.0, "GPU": 1.0}, {"CPU": 10.0, "GPU": 1.0})
    much, little = (
        tasks_of(packed.plan(f"resources={{pack: always, gpu: 1, slots: 16, cpu: {cpu}}}"))[0] for cpu in (4, 0.25)
    )
    assert (cluster.room(much), cluster.asked(much).cpu) == (32, 0.5)
    assert cluster.asked(little).cpu == 0.25


def test_trials_spread_over_servers_and_return_to_their_buffers(
    packed: ToySweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loads differ by one at most; of equal ones, a trial's server is one that has read its buffer."""
    tasks = tasks_of(packed.plan("resources.gpu=1"), buffers=True)  # two per seed
    first, other = tasks[0], tasks[-1]
    cluster = Cluster(monkeypatch, {"CPU": 8.0, "GPU": 2.0})
    assert [cluster.place(name, task) for name, task in zip("abcd", (first, other, other, first), strict=True)] == [
        "server 0",
        "server 1",
        "server 1",
        "server 0",
    ]


def test_servers_go_when_no_trial_has_one_and_come_again(packed: ToySweep, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for the GPU that a server holds need not wait for the sweep's end."""
    task = tasks_of(packed.plan())[0]
    cluster = Cluster(monkeypatch, {"CPU": 2.0})
    cluster.place("a", task)
    cluster.place("b", task)
    cluster.leave("a")
    assert len(cluster.alive) == 1
    cluster.leave("b")
    cluster.leave("b")
    assert not cluster.alive
    assert cluster.place("c", task) is not None
    assert len(cluster.alive) == 1
    cluster.close()
    assert not cluster.alive


def test_a_packed_trial_leaves_the_gpu_to_its_server(packed: ToySweep, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial is told to do on the CPU what is left to it, with as many threads as it asks for."""
    seen: list[TrialContext] = []

    def train(config: TrialConfig, context: TrialContext) -> Iterator[Any]:
        seen.append(context)
        raise RuntimeError
        yield

    monkeypatch.setattr("cadloc_sweep.worker.trainable", lambda name: train)
    task = tasks_of(packed.plan("resources={gpu: 1, cpu: 2.5}"))[0]
    task = TrialTask(task.trial, {}, packed.folder / "trial")
    for pack in (None, repr):
        list(trial_steps(task, pack))
    assert [(context.device, context.pack, context.cpus) for context in seen] == [("cuda", None, 2), ("cpu", repr, 2)]


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


@pytest.fixture(scope="module")
def _local_ray() -> Iterator[None]:
    """One Ray for the module: starting it takes seconds."""
    ray = pytest.importorskip("ray")
    here = str(Path(__file__).parent)
    path = os.pathsep.join([here, *(place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place)])
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": {"PYTHONPATH": path}},
    )
    yield
    ray.shutdown()


@pytest.fixture
def adding(monkeypatch: pytest.MonkeyPatch, toy: Any, _local_ray: None) -> None:
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


@pytest.mark.usefixtures("_local_ray")
def test_heads_trained_together_are_what_each_is_alone(packed: ToySweep) -> None:
    """Other losses, other seeds, one server: mean errors agree as far as rounding lets them."""
    packed.text = HEADS
    outcome = packed.run(make_executor=RayExecutor)
    assert outcome.counts == {"finished": 4}
    together, alone = metrics_of(outcome), alone_of(packed)
    assert len({metrics[METRIC] for metrics in alone.values()}) == 4
    for key, metrics in alone.items():
        assert together[key] == pytest.approx(metrics, rel=1e-3)
