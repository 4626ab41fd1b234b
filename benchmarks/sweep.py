"""A whole sweep, like `losses`: three losses under eight seeds on one scene, against its trials one by one."""

from __future__ import annotations

import importlib
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from benchmarks.measurement import Measurement
from cadloc.catalog import STAGES, TRAINABLES
from cadloc_sweep.displays import Silent
from cadloc_sweep.executors import Executor
from cadloc_sweep.executors.inline import InlineExecutor
from cadloc_sweep.executors.on_ray import RayExecutor
from cadloc_sweep.outcomes import Outcome
from cadloc_sweep.plan import Plan, make_plan
from cadloc_sweep.spaces import SearchSpace, load_space
from cadloc_sweep.stages import StageStore
from cadloc_sweep.sweep import run_sweep
from cadloc_sweep.trials import SweepPaths

LOSSES = ("{name: reprojection}", "{name: coordinate}", "{name: switching, at: 0.333}")
SEEDS = 8
SEEDS_INLINE = 2
"""So many of the seeds are run one by one with the store, and counted for all."""

SPACE = """\
# How much does a sweep save?
name: losses
scenes: [gate]
repeats: {seeds}
trial:
  preset: reduced
  views: {{counts: {{mapping: 100, validation: 6, query: 10}}}}
  buffer: {{samples: 60000}}
  training: {{iterations: 100}}
factors:
  loss: [{losses}]
"""


def measure() -> Iterator[Measurement]:
    """Seconds of the sweep on Ray with its store, Ray's start included; in one process, with the store and without."""
    for module in [place for place, _ in STAGES.values()] + [entry.function for entry in TRAINABLES.values()]:
        importlib.import_module(module.partition(":")[0])  # for what runs in this process; Ray's workers import anew
    trials = SEEDS * len(LOSSES)
    with tempfile.TemporaryDirectory(prefix="cadloc-sweep-") as folder:
        whole_s, work_s = _on_ray(Path(folder))
        alone_s = _one_by_one(Path(folder))
        inline_s = _inline(Path(folder))
    yield Measurement(
        "sweep",
        whole_s,
        "s",
        alone_s,
        work_s / (os.cpu_count() or 1),
        f"its {trials} trials one by one in one process, each with an empty store: {len(LOSSES)} of them measured",
        "its own stages and trials spread evenly over the cores",
        better="less",
        target="4 times faster",
    )
    yield Measurement(
        "sweep.ray",
        whole_s,
        "s",
        inline_s,
        what=f"the same sweep in one process with one store: {SEEDS_INLINE * len(LOSSES)} of {trials} trials measured",
        better="less",
    )


def _on_ray(folder: Path) -> tuple[float, float]:
    """Seconds of the whole sweep, and of the work in it: stages and trials, added up."""
    space = _space(folder, LOSSES, SEEDS)
    seconds, outcome, paths = _run(folder / "ray", space, make_plan(space), lambda: RayExecutor("local"))
    events = [json.loads(line) for line in paths.ledger.read_text(encoding="utf-8").splitlines()]
    stages_s = sum(event["seconds"] for event in events if event["event"] == "stage_built")
    return seconds, stages_s + sum(result.seconds for result in outcome.results.values())


def _one_by_one(folder: Path) -> float:
    """Seconds of all trials by themselves, from one of each loss, its seed drawn; nothing is shared."""
    seeds = random.Random(0).sample(range(SEEDS), len(LOSSES))
    total_s = 0.0
    for number, (loss, seed) in enumerate(zip(LOSSES, seeds, strict=True)):
        space = _space(folder, [loss], SEEDS, "share_prefixes=false")
        plan = make_plan(space)
        trial = next(trial for trial in plan.trials if trial.seed == seed)
        alone = replace(plan, trials=(trial,), stages={trial.id: plan.stages[trial.id]})
        total_s += _run(folder / f"alone-{number}", space, alone, InlineExecutor)[0]
    return total_s * SEEDS


def _inline(folder: Path) -> float:
    """Seconds of the sweep in this process: its stages of all seeds, and its trials counted from a few seeds."""
    space = _space(folder, LOSSES, SEEDS_INLINE)
    seconds, outcome, paths = _run(folder / "inline", space, make_plan(space), InlineExecutor)
    trunks = [entry.seconds for entry in StageStore(paths.store).entries() if entry.kind == "trunk"]
    of_seeds_s = sum(trunks) + sum(result.seconds for result in outcome.results.values())
    return seconds + of_seeds_s * (SEEDS - SEEDS_INLINE) / SEEDS_INLINE


def _space(folder: Path, losses: tuple[str, ...] | list[str], seeds: int, *settings: str) -> SearchSpace:
    path = folder / "space.yaml"
    path.write_text(SPACE.format(seeds=seeds, losses=", ".join(losses)), encoding="utf-8")
    return load_space(str(path), settings)


def _run(
    folder: Path, space: SearchSpace, plan: Plan, make_executor: Callable[[], Executor]
) -> tuple[float, Outcome, SweepPaths]:
    """Seconds of a sweep that begins with nothing."""
    paths = SweepPaths(folder, space.name)
    start_s = time.perf_counter()
    outcome = run_sweep(space, plan, paths, StageStore(paths.store), make_executor, (), Silent())
    seconds = time.perf_counter() - start_s
    if outcome.counts != {"finished": len(plan.trials)}:
        raise RuntimeError(f"the sweep did not finish: {outcome.counts}")
    return seconds, outcome, paths
