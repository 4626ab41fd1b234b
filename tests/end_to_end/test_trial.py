"""The whole chain on a built-in scene, tiny: CAD model, views, buffer, head, poses, report."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from cadloc.datasets.ace_layout import Dataset
from cadloc.geometry import inverse
from cadloc.image_localization import localize_image
from cadloc_sweep.cli import run_command
from cadloc_sweep.trials import TrialPaths
from cadloc_sweep.worker import read_history

SPACE = """\
# Does the chain hold together?
name: tiny
scenes: [gate]
trial:
  preset: smoke
  head: {anchors: 64}
  views: {counts: {mapping: 12, validation: 2, query: 3}}
  training: {iterations: 6, batch_size: 64, validations: 2}
  constraints: [{name: depth}, {name: range}, {name: free_space}, {name: surface, resolution: 16}]
factors:
  loss: [{name: reprojection}, {name: coordinate}, {name: switching, at: 0.5}]
  head:
    values: [{name: anchor}, {name: glace, width: 16, centres: 4, query: retrieved, retrieved: 2}]
    when: {loss: coordinate}
"""


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the four trials of a tiny space ended; two of them begin alike, and share three steps."""
    folder = tmp_path_factory.mktemp("sweeps")
    (folder / "tiny.yaml").write_text(SPACE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cadloc.prefixes.LEAST_STEPS", 1)
        assert ran(folder / "out") == 0
        yield folder / "out"


def ran(out: Path, *settings: str) -> int:
    """Exit code of a run of the tiny space."""
    command = ["run", str(out.parent / "tiny.yaml"), "--executor", "inline", "--no-mlflow", "--out", str(out)]
    return run_command([*command, *(part for setting in settings for part in ("--set", setting))])


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


def timeless(told: Mapping[str, float | str]) -> dict[str, float | str]:
    """What of metrics or a table's row is no time."""
    return {name: value for name, value in told.items() if not name.startswith("time/") and name != "runtime_s"}


def left_by(folder: Path) -> list[object]:
    """All that a trial leaves that tells no time: its tables, its progress, its metrics and its map."""
    paths = TrialPaths(folder)
    tables = []
    for path in (folder / "history.csv", paths.poses("synthetic"), paths.poses("photo")):
        with open(path, newline="", encoding="utf-8") as file:
            tables.append([timeless(row) for row in csv.DictReader(file)])
    progress = [(each.step, each.samples_seen, timeless(each.metrics)) for each in read_history(paths.history)]
    return [tables, progress, timeless(json.loads(paths.result.read_text())["metrics"]), paths.map.read_bytes()]


def test_trials_that_share_a_prefix_leave_what_they_leave_alone(out: Path) -> None:
    """With the steps that two losses share taken once, or by each trial, ids, histories, metrics, poses and maps are
    the same to the last bit; where sharing is switched off, the plan has no trunk."""
    (trunk,) = (out / ".store" / "trunk").iterdir()
    assert json.loads((trunk / "manifest.json").read_text())["config"]["until"] == 3
    alone = ["name=alone", "share_prefixes=false", "factors.loss=[{name: switching, at: 0.5}]"]
    assert ran(out, *alone, "factors.head=[{name: anchor}]") == 0
    plan = json.loads((out / "alone" / "plan.json").read_text())
    assert "trunk" not in plan["kinds"].values()
    (folder,) = (out / "alone" / "trials").iterdir()
    assert left_by(folder) == left_by(out / "tiny" / "trials" / folder.name)


def test_trials_whose_trunk_diverges_fail_as_they_do_alone(out: Path) -> None:
    """A learning rate that ends in nothing fails both trials in the words, and at the step, of one by itself."""
    wild = ["trial.training.learning_rate=1e30", "factors.loss=[{name: switching, at: 0.5}, {name: coordinate}]"]
    errors = []
    for name, share in (("wild", "true"), ("wild_alone", "false")):
        assert ran(out, f"name={name}", f"share_prefixes={share}", *wild) == 3
        results = sorted((out / name / "trials").glob("*/result.json"))
        errors.append({path.parent.name: json.loads(path.read_text())["error"] for path in results})
    assert errors[0] == errors[1]
    assert all("training diverged by step 3" in error for error in errors[0].values())
