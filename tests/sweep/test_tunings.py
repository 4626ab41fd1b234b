"""What tuning did to the encoders of a sweep, read from the cards beside the maps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cadloc.config import TrialConfig
from cadloc.contract import InputError
from cadloc_sweep.report.results import SweepResults, TrialOutcome
from cadloc_sweep.report.tunings import as_json, read_tunings, tables
from cadloc_sweep.trials import SweepPaths, Trial, TrialResult, TrialStatus

HISTORY = """\
step,validation/precision,cosine/pairs~replay,cosine/pairs~anchor
0,0.5,,
50,0.6,-0.2,0.3
100,0.7,-0.4,0.1
"""


def outcome(arm: str, seed: int, status: TrialStatus = "finished") -> TrialOutcome:
    config = TrialConfig.model_validate({"scene": {"name": "gate", "built_in": True}, "seed": seed})
    trial = Trial(f"{arm}{seed}", config, {"finetuning": arm}, seed, arm, arm)
    return TrialOutcome(trial, TrialResult(trial.id, status))


def write_encoder(paths: SweepPaths, trial_id: str) -> None:
    folder = paths.trial(trial_id).directory / "encoder"
    folder.mkdir(parents=True)
    before, after = {"validation/precision": 0.5, "validation/kept": 1.0}, {"validation/precision": 0.7}
    (folder / "card.json").write_text(json.dumps({"before": before, "after": {**after, "validation/kept": None}}))
    (folder / "history.csv").write_text(HISTORY)


def test_an_arm_is_told_by_its_first_finished_trial(tmp_path: Path) -> None:
    """Before and after in percent, and the two objectives most against each other; an arm without tuning has no row."""
    paths = SweepPaths(tmp_path, "tiny")
    results = SweepResults("tiny", "x", "min", (outcome("none", 0), outcome("a", 0, "failed"), outcome("a", 1)))
    write_encoder(paths, "a1")
    tunings = read_tunings(results, paths)
    (table,) = tables("tiny", tunings)
    assert table.rows == (("a", "50.0 → 70.0", "–", "–", "–", "pairs~replay −0.30"),)
    assert json.loads(as_json(tunings))[0]["after"] == {"precision": 0.7}


def test_a_sweep_without_tuning_is_an_input_error(tmp_path: Path) -> None:
    """It says what was looked for."""
    results = SweepResults("tiny", "x", "min", (outcome("none", 0),))
    with pytest.raises(InputError, match="no tuned encoder"):
        read_tunings(results, SweepPaths(tmp_path, "tiny"))
