"""Plans of trials that begin alike: the same trials, trunks beside them, and what these save."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cadloc.contract import StageSpec
from cadloc.prefixes import TRUNK
from cadloc_sweep.costs import cost_of
from cadloc_sweep.durable_files import read_sealed_lines, write_json
from cadloc_sweep.executors.inline import InlineExecutor
from cadloc_sweep.failures import ExitCode
from cadloc_sweep.ledger import write_result
from cadloc_sweep.overviews import plan_lines
from cadloc_sweep.plan import Plan, make_plan
from cadloc_sweep.spaces import load_space
from cadloc_sweep.stages import StageStore
from cadloc_sweep.sweep import run_sweep
from cadloc_sweep.trials import SweepPaths, Trial, TrialResult

if TYPE_CHECKING:
    from conftest import ToySweep

POINTS = ("scenes=[gate]", "factors.training.iterations=[300]", "factors.loss.at=[0.2, 0.5, 0.8]")


def planned(*settings: str) -> Plan:
    """The plan of three switching points, 300 steps each."""
    return make_plan(load_space("switching", [*POINTS, *settings]))


def test_sharing_changes_no_trial() -> None:
    """With and without, trials and all their other stages are the same, and so they are where several workers share
    a trial, who get no trunk; nor is one shared between seeds."""
    shared, alone = planned("repeats=2"), planned("repeats=2", "share_prefixes=false")
    assert shared.trials == alone.trials
    assert {
        trial: {role: key for role, key in roles.items() if role != TRUNK} for trial, roles in shared.stages.items()
    } == alone.stages
    assert len({spec.key for spec in shared.specs.values() if spec.kind == TRUNK}) == 2 * 2
    worked = planned("resources.workers=2", "trial.training.batch_size=512")
    assert not any(TRUNK in roles for roles in worked.stages.values())


def finished(paths: SweepPaths, trial: Trial, seconds: float, started: float = 2e9) -> None:
    """Leaves a trial's result: 2 s a step of training, in so many seconds of its own."""
    paths.trial(trial.id).directory.mkdir(parents=True, exist_ok=True)
    write_json(paths.trial(trial.id).config, trial.to_json())
    metrics = {"time/training_s": 600.0}
    write_result(paths.trial(trial.id), TrialResult(trial.id, "finished", metrics, seconds=seconds, started=started))


def trunk_made(plan: Plan, store: StageStore, trial: Trial) -> None:
    """Puts something in the store where the trial's trunk is looked for."""
    store.publish(store.begin(plan.specs[plan.stages[trial.id][TRUNK]]), 1, 0.0)


def test_packed_trials_share_no_prefix() -> None:
    """On GPUs trials that begin alike are packed: they have no trunk, the plan says so, and how they would have one."""
    packed, alone = planned("resources.gpu=1"), planned("resources.gpu=1", "resources.pack=never")
    assert not any(TRUNK in roles for roles in packed.stages.values())
    told = [warning for warning in packed.warnings if "3 trials begin alike" in warning]
    assert len(told) == 1
    assert "resources.pack=never" in told[0]
    assert sum(TRUNK in roles for roles in alone.stages.values()) == 3
    assert not any("begin alike" in warning for warning in alone.warnings)


def test_a_trunk_that_fails_changes_no_result(toys: ToySweep) -> None:
    """Not even a bad input that it meets (a GPU that is not there) ends sweep or trial: all end as they do without
    it, the ledger knows of it, and whoever looks on is told."""
    space = load_space(str(toys.file))
    plan = toys.plan()
    bad = StageSpec(TRUNK, "1", {"device": "cuda", "trial": {}, "until": 2})
    stages = {
        trial.id: {**roles, TRUNK: bad.key} for trial, roles in zip(plan.trials, plan.stages.values(), strict=True)
    }
    trunks = replace(plan, specs={**plan.specs, bad.key: bad}, stages=stages)
    place = SweepPaths(toys.folder / "trunks", "toys")
    store = StageStore(place.store)
    outcome = run_sweep(space, trunks, place, store, InlineExecutor, (), toys.display)
    assert outcome.exit_code is ExitCode.FINISHED
    assert any(f"{TRUNK} {bad.key} failed" in note for note in toys.display.notes)
    events = read_sealed_lines(place.ledger)[0]
    assert [event["kind"] for event in events if event["event"] == "stage_failed"] == [TRUNK]
    without = toys.run()
    assert {key: result.metrics for key, result in outcome.results.items()} == {
        key: result.metrics for key, result in without.results.items()
    }


def test_plans_count_every_stage_once_in_the_plans_order(toys: ToySweep, tmp_path: Path) -> None:
    """Those that other stages alone are made from, too: no fewer of a kind are there than are to be built."""
    plan, paths, store = toys.plan(), toys.paths, StageStore(tmp_path / "store")
    lines = [line for line in plan_lines(plan, cost_of(plan, paths, store)) if line.startswith("stage ")]
    assert lines == [
        "stage toy_trainable:RAW: 2 shared by 2 uses, 2 to build",
        "stage toy_trainable:NUMBERS: 2 shared by 8 uses, 2 to build",
    ]


def test_seconds_of_a_trial_that_had_no_trunk_are_all_its_own(tmp_path: Path) -> None:
    """A trial that began before its trunk was there took every step; of one whose seconds do not cover its training,
    and whose trunk is not there any more, nobody knows where it began."""
    plan, store = planned(), StageStore(tmp_path / "store")
    first = plan.trials[0]
    own, cut = SweepPaths(tmp_path / "own", "switching"), SweepPaths(tmp_path / "cut", "switching")
    finished(own, first, 620.0)
    finished(cut, first, 500.0)
    assert cost_of(plan, own, store).trial_seconds == 2 * (20.0 + 2.0 * 150)
    assert cost_of(plan, cut, store).unknown_trials == 2
    trunk_made(plan, store, first)
    finished(own, first, 620.0, started=1.0)
    assert cost_of(plan, own, store).trial_seconds == 2 * (20.0 + 2.0 * 150)


def test_seconds_of_packed_trials_tell_nothing(tmp_path: Path) -> None:
    """They are shared with the trials that trained at the same time."""
    plan, paths, store = planned("resources.gpu=1"), SweepPaths(tmp_path, "switching"), StageStore(tmp_path / "store")
    finished(paths, plan.trials[0], 900.0)
    cost = cost_of(plan, paths, store)
    assert (cost.trials, cost.unknown_trials, cost.trial_seconds) == (2, 2, 0.0)
    finished(paths, planned("resources.gpu=1", "resources.pack=never").trials[0], 900.0)
    assert cost_of(plan, paths, store).unknown_trials == 2


def test_plans_tell_what_sharing_saves(tmp_path: Path) -> None:
    """Three runs of 300 steps that part at 60 and 150 take 60 + 90 + 240 + 150 + 150 of their 900 steps: in seconds,
    once one of them has said how long its steps take."""
    plan, paths, store = planned(), SweepPaths(tmp_path, "switching"), StageStore(tmp_path / "store")
    lines = list(plan_lines(plan, cost_of(plan, paths, store)))
    assert "3 trials share prefixes: 690 of their 900 steps (77%)" in lines
    first = plan.trials[0]
    trunk_made(plan, store, first)
    finished(paths, first, 500.0)
    cost = cost_of(plan, paths, store)
    assert (cost.sharing.seconds_alone, cost.sharing.seconds) == (1800.0, 1380.0)
    # Of 500 s, 480 are steps of its own; the others take 150 of the 300 steps by themselves.
    assert cost.trial_seconds == 2 * (20.0 + 2.0 * 150)
    assert (cost.stage_seconds, cost.stages[TRUNK]) == (2.0 * 90, 1)
