"""What arms are chosen by: the pooled change of validation, which no query takes part in."""

from __future__ import annotations

import math

import pytest

from cadloc.config import TrialConfig
from cadloc_sweep.report.paired_validation import validation_changes
from cadloc_sweep.report.results import SweepResults, TrialOutcome
from cadloc_sweep.trials import Trial, TrialResult

METRIC = "validation/target/translation_error_median_pct"


def outcome(scene: str, arm: str, seed: int, error_pct: float | None) -> TrialOutcome:
    config = TrialConfig.model_validate({"scene": {"name": scene, "built_in": True}, "seed": seed})
    trial = Trial(f"{scene}{arm}{seed}", config, {"scene": scene, "tuned": arm}, seed, f"{scene}{arm}", arm)
    metrics = {} if error_pct is None else {METRIC: error_pct}
    return TrialOutcome(trial, TrialResult(trial.id, "finished", metrics))


def changes(errors: dict[tuple[str, str, int], float | None]) -> dict[str, float]:
    outcomes = tuple(outcome(*key, error) for key, error in errors.items())
    results = SweepResults("made", METRIC, "min", outcomes, {"tuned": "none"})
    return validation_changes(results, "target", "translation_error_m")


def test_the_change_is_the_geometric_mean_over_scenes_and_shared_seeds() -> None:
    """Halved on one scene, doubled and more on the other; a seed that only one arm has does not count."""
    errors: dict[tuple[str, str, int], float | None] = {
        ("gate", "none", 0): 2.0, ("gate", "a", 0): 1.0,
        ("rotunda", "none", 0): 1.0, ("rotunda", "a", 0): 2.0,
        ("rotunda", "none", 1): 1.0, ("rotunda", "a", 1): 8.0, ("rotunda", "a", 2): 50.0,
    }  # fmt: skip
    ratio = math.exp((math.log(0.5) + math.log(4)) / 2)
    assert changes(errors) == {"a": pytest.approx(100 * (ratio - 1))}


def test_an_error_that_stands_in_for_none_counts_as_the_scene() -> None:
    """A million percent is no measurement: it counts as the scene's whole diameter."""
    assert changes({("gate", "none", 0): 50.0, ("gate", "a", 0): 1e6}) == {"a": pytest.approx(100.0)}


def test_without_validation_there_is_nothing_to_choose_by() -> None:
    """Arms that were not validated on the set, and metrics that validation does not have."""
    assert changes({("gate", "none", 0): None, ("gate", "a", 0): None}) == {}
    results = SweepResults("made", METRIC, "min", (), {"tuned": "none"})
    assert validation_changes(results, "target", "dcre_mean_pct") == {}
