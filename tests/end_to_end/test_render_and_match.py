"""Render and match on a built-in scene, from the CAD model to the trial's poses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cadloc.catalog import stages_of, trainable
from cadloc.config import TrialConfig
from cadloc.contract import TrialContext
from cadloc.metric_names import reported_metrics
from cadloc_sweep.cli import run_command

SPACE = """\
# Does the rival find poses, and do its two kinds of features?
name: rival
scenes: [gate]
trial:
  trainable: render_and_match
  views:
    image: {width_px: 320, height_px: 240}
    counts: {mapping: 24, validation: 1, query: 4}
    viewpoints: {azimuth_deg: [-120, -60], fields_of_view_deg: [60]}
  domains: [synthetic]
  matching: {retrieved: 6, max_iterations: 4000}
factors:
  matching.features: [{name: encoder}, {name: sift}]
"""


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the two trials ended."""
    folder = tmp_path_factory.mktemp("sweeps")
    (folder / "rival.yaml").write_text(SPACE)
    command = ["run", str(folder / "rival.yaml"), "--executor", "inline", "--no-mlflow", "--out", str(folder / "out")]
    assert run_command(command) == 0
    return folder / "out"


def test_renders_are_localized_within_a_few_percent(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Renders of other viewpoints are found by both kinds of features; every promised metric is reported."""
    assert run_command(["report", str(out / "rival"), "--format", "json"]) == 0
    trials = json.loads(capsys.readouterr().out)["trials"]
    assert len(trials) == 2
    for trial in trials:
        metrics = trial["metrics"]
        assert metrics["test/synthetic/translation_error_median_pct"] < 2.0, trial
        assert metrics["test/synthetic/rotation_error_median_deg"] < 2.0
        assert metrics["test/synthetic/scene_coordinate_error_median_m"] < 3.0
        folder = out / "rival" / "trials" / trial["id"]
        assert len((folder / "poses_synthetic.csv").read_text().splitlines()) == 1 + 4
        config = _config(folder)
        assert reported_metrics(config) <= set(metrics)


def test_the_same_trial_gives_the_same_bits(out: Path, tmp_path: Path) -> None:
    """Run again on the same stages, a trial writes the same poses, run times apart, and the same metrics."""
    first = next(iter(sorted((out / "rival" / "trials").iterdir())))
    config = _config(first)
    stages = {role: out / ".store" / spec.kind / spec.key for role, spec in stages_of(config).items()}
    *_, last = trainable("render_and_match")(config, TrialContext(tmp_path, stages))
    assert last.finished
    assert _poses(tmp_path) == _poses(first)


def _poses(folder: Path) -> list[list[str]]:
    rows = [line.split(",") for line in (folder / "poses_synthetic.csv").read_text().splitlines()]
    timed = rows[0].index("runtime_s")
    return [[*row[:timed], *row[timed + 1 :]] for row in rows]


def _config(folder: Path) -> TrialConfig:
    return TrialConfig.model_validate(json.loads((folder / "config.json").read_text())["config"])
