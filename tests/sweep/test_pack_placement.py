"""Packed trials: which ones are, what they ask for, where they go, and which servers stay."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import MagicMock

import pytest

from cadloc_sweep.executors import TrialTask, on_ray_packing, on_ray_searcher
from cadloc_sweep.executors.on_ray_packing import Packs
from cadloc_sweep.executors.on_ray_searcher import PlanSearcher, Room
from cadloc_sweep.plan import Plan

if TYPE_CHECKING:
    from conftest import ToySweep


def tasks_of(plan: Plan, *, buffers: bool = False) -> list[TrialTask]:
    """Tasks without stages, or with a buffer that the trials of a seed share."""
    roles = {trial.id: {"buffer/synthetic": Path(str(trial.seed))} if buffers else {} for trial in plan.trials}
    return [TrialTask(trial, roles[trial.id], Path(trial.id)) for trial in plan.trials]


class Cluster(Packs):
    """Servers that are only counted, on nodes that are not there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *nodes: dict[str, float]) -> None:
        monkeypatch.setattr(on_ray_packing, "_nodes", lambda: list(nodes))
        monkeypatch.setattr(on_ray_packing.ray, "kill", lambda server: self.alive.remove(server))
        self.alive: list[str] = []
        self.made = 0
        super().__init__(lambda device, slots: pytest.fail("no server is wanted"))

    def _start(self, task: TrialTask) -> tuple[str, Any]:
        name = f"server {self.made}"
        self.made += 1
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


def test_a_server_stays_while_trials_have_it_or_it_is_kept_for_the_next(
    packed: ToySweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits for the GPU that a server holds need not wait for the end; a server comes again."""
    task = tasks_of(packed.plan("resources.gpu=1"))[0]
    cluster = Cluster(monkeypatch, {"CPU": 2.0, "GPU": 2.0})
    for name in "abcd":
        cluster.place(name, task)
    for name, kept, alive in (("a", 0, 2), ("c", 1, 2), ("b", 2, 2), ("d", 1, 1)):
        cluster.leave(name)
        cluster.rest(kept)
        assert len(cluster.alive) == alive
    cluster.rest(0)
    assert not cluster.alive
    assert cluster.place("e", task) is not None
    assert len(cluster.alive) == 1
    cluster.close()
    assert not cluster.alive


def test_beside_a_stage_on_a_gpu_trials_go_to_the_other_servers(
    packed: ToySweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the server of one GPU gets empty; with no GPU left, the first one is waited for."""
    task = tasks_of(packed.plan("resources.gpu=1"))[0]
    cluster = Cluster(monkeypatch, {"CPU": 2.0, "GPU": 2.0})
    assert {cluster.place(name, task, pieces_on_gpu=1) for name in "abc"} == {"server 0"}
    assert cluster.place("d", task, pieces_on_gpu=9) == "server 0"
    assert cluster.place("e", task) == "server 1"


def test_idle_actors_keep_no_gpu_that_a_server_waits_for(packed: ToySweep, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tune keeps none where servers compete with trials on GPUs of their own: not with those on CPUs, or each other."""
    cluster = Cluster(monkeypatch, {"CPU": 2.0, "GPU": 1.0})
    own, served, light = (
        tasks_of(packed.plan(f"resources={{{resources}}}"))
        for resources in ("gpu: 1, pack: never", "gpu: 1, pack: always", "pack: never")
    )
    assert not reuses(cluster, [*served, *own], monkeypatch)
    assert all(reuses(cluster, tasks, monkeypatch) for tasks in (own, served, [*served, *light]))


def reuses(packs: Packs, tasks: list[TrialTask], monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether Tune is told to keep actors for later trials."""
    rounds: Any = importlib.import_module("cadloc_sweep.executors.on_ray_trials")
    asked: dict[str, Any] = {}
    monkeypatch.setattr(rounds.tune, "Tuner", lambda trainable, **given: asked.update(given) or MagicMock())
    monkeypatch.setattr(rounds.tune, "with_parameters", lambda trainable, **given: trainable)
    monkeypatch.setattr(rounds, "check_fits", lambda resources: None)
    rounds._round(0, Few(*tasks), MagicMock(), MagicMock(), packs, None, MagicMock(), Path())
    return bool(asked["tune_config"].reuse_actors)


# ---- what is handed out


class Few:
    """An agenda whose trials are all ready, and a stage that is built for ever."""

    building = True

    def __init__(self, *tasks: TrialTask) -> None:
        self.tasks = list(tasks)
        self.trials_left = True

    @property
    def ready(self) -> TrialTask | None:
        """The next one."""
        return self.tasks[0] if self.tasks else None

    def next_task(self) -> TrialTask | None:
        """It is handed out."""
        return self.tasks.pop(0)


def searcher_of(agenda: Any, packs: Packs, building: Any, monkeypatch: pytest.MonkeyPatch) -> PlanSearcher:
    """On eight CPUs and one GPU."""
    monkeypatch.setattr(on_ray_searcher, "_nodes", lambda: [{"CPU": 8.0, "GPU": 1.0}])
    monkeypatch.setattr(on_ray_searcher, "_total", {"CPU": 8.0, "GPU": 1.0}.__getitem__)
    monkeypatch.setattr(on_ray_searcher, "GAP_S", 0.0)
    return PlanSearcher(agenda, Room(agenda, building), packs, lambda _: False, lambda: False)


def test_a_full_server_trains_while_stages_are_built(packed: ToySweep, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its trials leave one CPU to stages that want all, and stay on one server as long as the next trial is packed."""
    packed.text = packed.text.replace("repeats: 2", "repeats: 5")
    tasks = tasks_of(packed.plan("resources={gpu: 1, slots: 4, pack: always, cpu: 2}"))
    cluster = Cluster(monkeypatch, {"CPU": 8.0, "GPU": 1.0})
    searcher = searcher_of(Few(*tasks), cluster, SimpleNamespace(pieces=40, pieces_on_gpu=0), monkeypatch)
    assert [searcher.suggest(name) is None for name in "abcde"] == [False] * 4 + [True]
    for name in "abcd":
        searcher.on_trial_complete(name)
    assert cluster.made == 1
    assert [searcher.suggest(name) is None for name in "fghi"] == [False] * 4
    assert cluster.made == len(cluster.alive) == 1


@pytest.mark.parametrize(("pieces_on_gpu", "following"), [(1, "gpu: 1, pack: always"), (0, "gpu: 1, pack: never")])
def test_an_empty_server_gives_its_gpu_to_who_waits_for_it(
    pieces_on_gpu: int, following: str, packed: ToySweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is a stage's piece, beside which one trial runs at a time, or the next trial, which is not packed."""
    tasks = tasks_of(packed.plan("resources={gpu: 1, pack: always}"))[:2] + tasks_of(
        packed.plan(f"resources={{{following}}}")
    )
    cluster = Cluster(monkeypatch, {"CPU": 8.0, "GPU": 1.0})
    building = SimpleNamespace(pieces=1, pieces_on_gpu=0)
    searcher = searcher_of(Few(*tasks), cluster, building, monkeypatch)
    assert None not in [searcher.suggest(name) for name in "ab"]
    building.pieces_on_gpu = pieces_on_gpu
    assert searcher.suggest("c") is None
    for name, alive in (("a", 1), ("b", 0)):
        searcher.on_trial_complete(name)
        assert len(cluster.alive) == alive
    assert searcher.suggest("d") is not None
