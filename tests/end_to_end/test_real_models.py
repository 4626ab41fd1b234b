"""Real CAD models, from file to pose: what the built-in scenes cannot promise."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.shared_data, pytest.mark.timeout(1200)]


def cadloc_sweep(*arguments: str) -> str:
    """Runs the command in a process of its own; returns what it prints."""
    command = [sys.executable, "-c", "from cadloc_sweep.cli import main; main()", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> dict[str, Any]:
    """The shipped space over real models, its best loss only."""
    out = tmp_path_factory.mktemp("sweeps")
    settings = [f"data_root={shared_data}", "factors.loss=[{name: coordinate}]"]
    cadloc_sweep("run", "cad_models", "--out", str(out), "--no-mlflow", *(f"--set={item}" for item in settings))
    return dict(json.loads(cadloc_sweep("report", str(out / "cad_models"), "--format", "json")))


@pytest.mark.parametrize("scene", ["pantheon", "brandenburg"])
def test_a_real_model_localizes_its_own_renders(report: dict[str, Any], scene: str) -> None:
    """Held-out renders are localized to 1 % of the scene's diameter and 2 degrees in the median."""
    (arm,) = [arm for arm in report["arms"] if arm["scene"] == scene]
    metrics = {name: value["mean"] for name, value in arm["metrics"].items()}
    assert metrics["test/synthetic/translation_error_median_pct"] <= 1.0
    assert metrics["test/synthetic/rotation_error_median_deg"] <= 2.0


def test_the_other_authors_model_is_a_query_set(report: dict[str, Any]) -> None:
    """Renders of a second model of the building, registered into the first, are tested under their own name."""
    (arm,) = [arm for arm in report["arms"] if arm["scene"] == "brandenburg"]
    assert "test/cad_c/translation_error_median_m" in arm["metrics"]
    assert not any(name.startswith("test/photo/") for name in arm["metrics"])
