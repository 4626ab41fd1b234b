"""The whole chain on a built-in scene, tiny: CAD model, views, buffer, head, poses, report."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from cadloc.datasets.ace_layout import Dataset
from cadloc.geometry import inverse
from cadloc.image_localization import localize_image
from cadloc_sweep.cli import run_command

SPACE = """\
# Does the chain hold together?
name: tiny
scenes: [gate]
trial:
  preset: smoke
  views: {counts: {mapping: 12, validation: 2, query: 3}}
  training: {iterations: 6, batch_size: 64, validations: 2}
  constraints: [{name: depth}, {name: range}, {name: free_space}, {name: surface, resolution: 16}]
factors:
  loss: [{name: reprojection}, {name: coordinate}, {name: switching, at: 0.5}]
  head:
    values: [{name: anchor, anchors: 64}, {name: glace, width: 16, centres: 4, query: retrieved, retrieved: 2}]
    when: {loss: coordinate}
"""


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the four trials of a tiny space ended."""
    folder = tmp_path_factory.mktemp("sweeps")
    (folder / "tiny.yaml").write_text(SPACE)
    command = ["run", str(folder / "tiny.yaml"), "--executor", "inline", "--no-mlflow", "--out", str(folder / "out")]
    assert run_command(command) == 0
    return folder / "out"


def test_trials_share_their_stages(out: Path) -> None:
    """Three losses and two heads lead to one set of views per domain, one buffer, three sets of encoded queries."""
    stored = {kind.name: len(list(kind.iterdir())) for kind in (out / ".store").iterdir() if kind.name != "tmp"}
    assert {kind: stored[kind] for kind in ("views", "buffer", "queries")} == {"views": 2, "buffer": 1, "queries": 3}
    assert {kind: stored[kind] for kind in ("global_features", "distance_field")} == {
        "global_features": 4,
        "distance_field": 1,
    }


def test_every_trial_reports_both_domains_and_leaves_its_artifacts(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Finite metrics for synthetic and photo queries; poses, map, history and figures in the trial's folder."""
    assert run_command(["report", str(out / "tiny"), "--format", "json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert len(report["arms"]) == len(report["trials"]) == 4
    for trial in report["trials"]:
        assert trial["status"] == "finished"
        for domain in ("synthetic", "photo"):
            assert math.isfinite(trial["metrics"][f"test/{domain}/translation_error_median_m"])
        assert math.isfinite(trial["metrics"]["train/constraint_surface_px"])
        folder = out / "tiny" / "trials" / trial["id"]
        for name in ("map.safetensors", "history.csv", "figures/curves.png", "figures/queries_photo.png"):
            assert (folder / name).stat().st_size > 0, name
        assert len((folder / "poses_synthetic.csv").read_text().splitlines()) == 1 + 3


def test_maps_localize_an_image_file(out: Path) -> None:
    """Every stored map, GLACE's too, says the same of a query's image as its trial did when it trained it."""
    (views,) = [
        path for path in (out / ".store" / "views").iterdir() if "synthetic" in (path / "dataset.json").read_text()
    ]
    query = Dataset.open(views).views("query")[0]
    for folder in (out / "tiny" / "trials").iterdir():
        row = (folder / "poses_synthetic.csv").read_text().splitlines()[1].split(",")
        estimate = localize_image(folder, query.read_image(), query.intrinsics)
        assert row[0] == query.name
        if estimate.cad_from_cam is None:
            assert math.isinf(float(row[8]))
        else:
            translation_m = inverse(estimate.cad_from_cam)[:3, 3]
            np.testing.assert_allclose(translation_m, [float(value) for value in row[5:8]], atol=1e-4)
