"""The whole chain with a tuned encoder: pairs, tuning, buffer, head, poses across the gap, a map that carries it."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from cadloc.datasets.ace_layout import Dataset
from cadloc.geometry import inverse
from cadloc.image_localization import localize_image
from cadloc_sweep.cli import run_command

SPACE = """\
# Does a tuned encoder hold together?
name: tiny
scenes: [gate]
repeats: 2
trial:
  preset: smoke
  views: {counts: {mapping: 12, validation: 2, query: 3}}
  domains: [synthetic, target]
  head: {anchors: 64}
  training: {iterations: 6, batch_size: 64, validations: 1}
  finetuning_pairs: 5
  finetuning:
    {steps: 4, warm_up: 1, images: 2, matches: 8, crops: {width_px: 64, height_px: 64}, validate_every: 2}
factors:
  finetuning: [null, {name: features, learning_rate: 1e-2}]
baseline: {finetuning: null}
objective: {metric: validation/target/translation_error_median_pct, mode: min}
"""


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where four trials ended: two seeds, with the encoder as it is and tuned."""
    folder = tmp_path_factory.mktemp("sweeps")
    (folder / "tiny.yaml").write_text(SPACE)
    command = ["run", str(folder / "tiny.yaml"), "--executor", "inline", "--no-mlflow", "--out", str(folder / "out")]
    assert run_command(command) == 0
    return folder / "out"


def tuned_trials(out: Path) -> list[Path]:
    return [card.parents[1] for card in sorted((out / "tiny" / "trials").glob("*/encoder/card.json"))]


def test_two_seeds_share_one_tuned_encoder(out: Path) -> None:
    """Tuned once, with its history; both maps carry the same weights, and the arm without has none."""
    assert len(list((out / ".store" / "encoder").iterdir())) == 1
    weights = {(trial / "encoder" / "encoder.safetensors").read_bytes() for trial in tuned_trials(out)}
    assert (len(tuned_trials(out)), len(weights)) == (2, 1)
    with (tuned_trials(out)[0] / "encoder" / "history.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert [float(row["step"]) for row in rows] == [0, 2, 4]
    assert float(rows[-1]["validation/kept"]) < 1


def test_trials_report_the_target_in_test_and_validation(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Finite errors across the gap, under one name; the paired report compares them with the untuned encoder's."""
    assert run_command(["report", str(out / "tiny"), "--format", "json"]) == 0
    for trial in json.loads(capsys.readouterr().out)["trials"]:
        for split in ("test", "validation"):
            assert math.isfinite(trial["metrics"][f"{split}/target/translation_error_median_pct"])
    assert run_command(["report", str(out / "tiny"), "--paired", "target", "--format", "md"]) == 0
    assert "finetuning=features" in capsys.readouterr().out


def test_a_map_finds_its_tuned_encoder_without_the_store(out: Path, tmp_path: Path) -> None:
    """Copied elsewhere, it says the same of a query as the trial did."""
    trial = tuned_trials(out)[0]
    elsewhere = Path(shutil.copytree(trial, tmp_path / "map"))
    folders = (path.parent for path in (out / ".store" / "views").glob("*/dataset.json"))
    views = next(path for path in folders if '"domain": "synthetic"' in (path / "dataset.json").read_text())
    row = next(csv.reader((trial / "poses_synthetic.csv").read_text().splitlines()[1:]))
    query = next(view for view in Dataset.open(views).views("query") if view.name == row[0])
    seed = json.loads((trial / "config.json").read_text())["seed"]
    estimate = localize_image(elsewhere, query.read_image(), query.intrinsics, seed)
    if estimate.cad_from_cam is None:
        assert math.isinf(float(row[8]))
    else:
        translation_m = inverse(estimate.cad_from_cam)[:3, 3]
        np.testing.assert_allclose(translation_m, [float(value) for value in row[5:8]], atol=1e-4)
