"""One metric of the trials, arm against baseline, paired by seed."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from cadloc.config import TrialConfig
from cadloc.contract import InputError
from cadloc_sweep.cli import run_command
from cadloc_sweep.report.compared import as_json, compare_metric, tables
from cadloc_sweep.report.results import SweepResults, TrialOutcome
from cadloc_sweep.trials import Trial, TrialResult

METRIC = "test/target/scene_coordinate_error_median_m"
Values = Mapping[tuple[str, str, int], float]


def sweep(values: Values, baseline: str | None = "none") -> SweepResults:
    """A finished sweep: (scene, arm, seed) -> the metric."""
    outcomes = []
    for (scene, arm, seed), value in values.items():
        config = TrialConfig.model_validate({"scene": {"name": scene, "built_in": True}, "seed": seed})
        trial = Trial(f"{scene}{arm}{seed}", config, {"scene": scene, "tuned": arm}, seed, f"{scene}{arm}", arm)
        outcomes.append(TrialOutcome(trial, TrialResult(trial.id, "finished", {METRIC: value})))
    return SweepResults("made", METRIC, "min", tuple(outcomes), None if baseline is None else {"tuned": baseline})


def of_factors(factors: Mapping[tuple[str, int], float]) -> Values:
    """Seeds that differ wildly, and an arm that is a factor of them."""
    base = {0: 2.0, 1: 40.0, 2: 0.1}
    seeds = {(scene, "none", seed): base[seed] for scene, seed in factors}
    return {**seeds, **{(scene, "a", seed): factor * base[seed] for (scene, seed), factor in factors.items()}}


def test_what_seeds_share_cancels() -> None:
    """A fifth less on every seed of a scene is −20 % without any doubt, however much the seeds differ."""
    _, arm = compare_metric(sweep(of_factors({("gate", seed): 0.8 for seed in range(3)})), METRIC)
    change = arm.changes["gate"]
    assert (change.mean, change.lo, change.hi) == pytest.approx((-20, -20, -20), abs=1e-6)
    assert arm.decided == (1, 0)


def test_over_scenes_the_scenes_are_what_is_counted() -> None:
    """Half on one and double on the other: no change on the whole, and each scene's own is certain."""
    factors = {("gate", seed): 0.5 for seed in range(3)} | {("rotunda", seed): 2.0 for seed in range(3)}
    results = sweep(of_factors(factors))
    arms = compare_metric(results, METRIC)
    assert arms[1].pooled is not None
    assert arms[1].pooled.mean == pytest.approx(0, abs=1e-9)
    assert not arms[1].pooled.decided
    assert arms[1].decided == (1, 1)
    assert tables(results, METRIC, arms)[1].rows[0][-1] == "1 / 1"
    assert json.loads(as_json(METRIC, arms))["arms"][1]["changes"]["gate"]["n"] == 3


@pytest.mark.parametrize("value", [0.0, 1e6])
def test_what_has_no_ratio_is_left_blank(value: float) -> None:
    """Zero, and the number that stands for an error that does not exist."""
    _, arm = compare_metric(sweep({("gate", "none", 0): 1.0, ("gate", "a", 0): value}), METRIC)
    assert not arm.changes
    assert arm.pooled is None


def test_an_unknown_metric_and_a_missing_baseline_are_input_errors() -> None:
    """The nearest name is suggested."""
    values = of_factors({("gate", 0): 0.8})
    with pytest.raises(InputError, match="scene_coordinate_error_median_m"):
        compare_metric(sweep(values), "test/target/scene_coordinate_median_m")
    with pytest.raises(InputError, match="without a baseline"):
        compare_metric(sweep(values, None), METRIC)


def test_two_views_at_once_are_an_input_error(capsys: pytest.CaptureFixture[str]) -> None:
    """One of them would be dropped without a word."""
    assert run_command(["report", "nowhere", "--tuning", "--compare", METRIC]) == 2
    assert "--tuning and --compare together" in capsys.readouterr().err
