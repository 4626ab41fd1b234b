"""The command that trains global features: bad input is told before anything is made."""

from __future__ import annotations

from pathlib import Path

import pytest

from cadloc_sweep.cli import run_command


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--encoder", "vgg"], "--encoder: found vgg; allowed: small, dense-hog"),
        (["--encoder", "missing.safetensors"], "encoder.weights: found no such file"),
    ],
)
def test_an_encoder_that_is_not_there_is_named(
    options: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, the option or the file with what is allowed; no pool is rendered."""
    assert run_command(["encoder", "pretrain-global", "--out", str(tmp_path / "run"), *options]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "run" / "pool").exists()


def test_settings_are_read_with_all_their_faults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file with two mistakes is told both, and no folder is made."""
    (tmp_path / "own.yaml").write_text("steps: 0\ncolour: red\n")
    out = tmp_path / "run"
    assert run_command(["encoder", "pretrain-global", "--out", str(out), "--config", str(tmp_path / "own.yaml")]) == 2
    said = capsys.readouterr().err
    assert "steps" in said
    assert "colour" in said
    assert not out.exists()
