"""Plans of trials that begin alike: the same trials, trunks beside them, and what these save."""

from __future__ import annotations

from pathlib import Path

from cadloc.prefixes import TRUNK
from cadloc_sweep.costs import cost_of
from cadloc_sweep.durable_files import write_json
from cadloc_sweep.ledger import write_result
from cadloc_sweep.overviews import plan_lines
from cadloc_sweep.plan import Plan, make_plan
from cadloc_sweep.spaces import load_space
from cadloc_sweep.stages import StageStore
from cadloc_sweep.trials import SweepPaths, TrialResult

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


def test_plans_tell_what_sharing_saves(tmp_path: Path) -> None:
    """Three runs of 300 steps that part at 60 and 150 take 60 + 90 + 240 + 150 + 150 of their 900 steps: in seconds,
    once one of them has said how long its steps take."""
    plan, paths, store = planned(), SweepPaths(tmp_path, "switching"), StageStore(tmp_path / "store")
    lines = list(plan_lines(plan, cost_of(plan, paths, store)))
    assert "3 trials share prefixes: 690 of their 900 steps (77%)" in lines
    first = plan.trials[0]
    paths.trial(first.id).directory.mkdir(parents=True)
    write_json(paths.trial(first.id).config, first.to_json())
    metrics = {"time/training_s": 600.0}
    write_result(paths.trial(first.id), TrialResult(first.id, "finished", metrics, seconds=500.0))
    cost = cost_of(plan, paths, store)
    assert (cost.sharing.seconds_alone, cost.sharing.seconds) == (1800.0, 1380.0)
    # Of 500 s, 480 are steps of its own; the others take 150 of the 300 steps by themselves.
    assert cost.trial_seconds == 2 * (20.0 + 2.0 * 150)
    assert (cost.stage_seconds, cost.stages[TRUNK]) == (2.0 * (60 + 90), 2)
