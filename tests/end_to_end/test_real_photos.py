"""Real photographs, from scene file to table: maps and their rival on the smallest of the real scenes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.shared_data, pytest.mark.timeout(900)]

SMALL = (
    "trial.views={image: {width_px: 320, height_px: 240}, counts: {mapping: 60, validation: 4, query: 8},"
    " gt_poses: {copies: 2}}",
    "trial.buffer={samples: 60000, passes: enough}",
    "trial.head.anchors=1024",
    "trial.training={iterations: 200, validations: 1}",
)
"""Enough for a fountain, in a minute per trial."""


def cadloc_sweep(*arguments: str) -> str:
    """Runs the command in a process of its own; returns what it prints."""
    command = [sys.executable, "-c", "from cadloc_sweep.cli import main; main()", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run(space: str, out: Path, *settings: str) -> Path:
    """Runs a shipped space; returns the sweep's folder."""
    cadloc_sweep("run", space, "--out", str(out), "--no-mlflow", *(f"--set={each}" for each in settings))
    return out / space


def means(folder: Path) -> dict[str, dict[str, float]]:
    """Means of all metrics by the trained domains, joined by a plus."""
    report: dict[str, Any] = json.loads(cadloc_sweep("report", str(folder), "--format", "json"))
    return {
        "+".join(arm["factors"]["train_on"]): {name: value["mean"] for name, value in arm["metrics"].items()}
        for arm in report["arms"]
    }


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where both sweeps lie, so that they share their stages."""
    return tmp_path_factory.mktemp("sweeps")


@pytest.fixture(scope="module")
def gap(out: Path, shared_data: Path) -> Path:
    """Trained on photos and on renders, tested on photos and on renders."""
    arms = ("repeats=1", "scenes=[scenes/fountain.yaml]", "factors.train_on=[[real], [synthetic]]")
    return run("domain_gap", out, f"data_root={shared_data}", *arms, *SMALL)


def test_maps_localize_real_photographs(gap: Path) -> None:
    """In the median within 2 % of the scene and 5 % of the diagonal, taught by photos or by renders alone."""
    found = means(gap)
    for trained_on in ("real", "synthetic"):
        assert found[trained_on]["test/real/translation_error_median_pct"] < 2.0
        assert found[trained_on]["test/real/dcre_mean_median_pct"] < 5.0


def test_the_matrix_and_the_failures_are_drawn(gap: Path, tmp_path: Path) -> None:
    """The report draws trained on × tested on; every trial has a page of its worst photos."""
    cadloc_sweep("report", str(gap), "--matrix", str(tmp_path / "matrix.png"))
    assert (tmp_path / "matrix.png").stat().st_size > 10_000
    pages = list(gap.glob("trials/*/figures/failures_real.png"))
    assert len(pages) == 2


def test_the_rival_is_measured_on_the_same_queries(out: Path, gap: Path, shared_data: Path) -> None:
    """`render_and_match` has the maps' metrics, and finds the fountain's photos to half a percent of the scene."""
    arms = ("scenes=[scenes/fountain.yaml]", "factors={train_on: [[synthetic]]}", SMALL[0])
    found = means(run("render_and_match", out, f"data_root={shared_data}", *arms))["synthetic"]
    assert found["test/real/translation_error_median_pct"] < 0.5
    assert {name for name in found if name.startswith("test/real/")} == {
        name for name in means(gap)["synthetic"] if name.startswith("test/real/")
    }
