"""A sweep of milliseconds: the toy trainable, a space file that uses it, and one call that runs it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cadloc_sweep.displays import Silent
from cadloc_sweep.executors import Executor
from cadloc_sweep.executors.inline import InlineExecutor
from cadloc_sweep.plan import Plan, make_plan
from cadloc_sweep.spaces import load_space
from cadloc_sweep.stages import StageStore
from cadloc_sweep.sweep import Outcome, run_sweep
from cadloc_sweep.trackers import Tracker
from cadloc_sweep.trials import SweepPaths

TOY_SPACE = """\
# Does the platform work?
name: toys
scenes: [gate, rotunda]
repeats: 2
trial: {trainable: "toy_trainable:train", training: {iterations: 3}}
factors:
  training.learning_rate: [0.1, 0.2]
"""


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


@dataclass
class ToySweep:
    """Runs one space file again and again in one place; the last run's plan, store and display stay at hand."""

    folder: Path
    text: str = TOY_SPACE
    name: str = "toys"
    display: Silent = field(default_factory=Silent)

    @property
    def file(self) -> Path:
        """The space file, written."""
        path = self.folder / f"{self.name}.yaml"
        path.write_text(self.text.replace("name: toys", f"name: {self.name}"))
        return path

    @property
    def paths(self) -> SweepPaths:
        """Where the sweep lies."""
        return SweepPaths(self.folder / "sweeps", self.name)

    def plan(self, *settings: str) -> Plan:
        """The plan under some settings."""
        return make_plan(load_space(str(self.file), settings))

    def run(
        self,
        *settings: str,
        make_executor: Callable[[], Executor] = InlineExecutor,
        trackers: Sequence[Tracker] = (),
        retry_failed: bool = False,
    ) -> Outcome:
        """Runs the sweep as the command line would."""
        space = load_space(str(self.file), settings)
        self.display = Silent()
        self.store = StageStore(self.paths.store, self.display.note)
        return run_sweep(
            space, make_plan(space), self.paths, self.store, make_executor, trackers, self.display, retry_failed
        )


@pytest.fixture(autouse=True)
def _toys_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


@pytest.fixture
def toys(tmp_path: Path) -> ToySweep:
    """A fresh toy sweep."""
    return ToySweep(tmp_path)


@pytest.fixture
def packed(toys: ToySweep) -> ToySweep:
    """Four trials that a server trains."""
    toys.text = PACKED
    return toys


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """One Ray of two CPUs for the module: starting it takes seconds."""
    with _ray():
        yield


@pytest.fixture
def own_ray() -> Iterator[None]:
    """A Ray of two CPUs for a test alone."""
    with _ray():
        yield


@contextmanager
def _ray() -> Iterator[None]:
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
    try:
        yield
    finally:
        ray.shutdown()
