"""The loss progression: what its lines, bands and marks are, and that nothing is lost without a word."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import pytest

from cadloc.config import TrialConfig
from cadloc.contract import InputError
from cadloc_sweep.cli import run_command
from cadloc_sweep.report.arm_styles import arm_styles
from cadloc_sweep.report.progress_axis import ProgressAxis
from cadloc_sweep.report.progression import Curve, read_progression
from cadloc_sweep.report.progression_figure import draw_progression
from cadloc_sweep.report.results import SweepResults, TrialOutcome
from cadloc_sweep.trials import SweepPaths, Trial, TrialResult

LOSSES = ({"name": "reprojection"}, {"name": "switching", "at": 0.25})
SECONDS_PER_STEP = 0.1


def rows(values: Sequence[float], steps: Sequence[int], domain: str = "synthetic") -> list[dict[str, float]]:
    """A history at constant speed: metres as given, pixels a hundredfold, the pose's error a tenth."""
    return [
        {
            "step": step,
            "train/samples_seen": 10 * step,
            "time/training_s": SECONDS_PER_STEP * step,
            f"validation/{domain}/loss_m": value,
            f"validation/{domain}/loss_px": 100 * value,
            f"validation/{domain}/translation_error_median_m": value / 10 if value < 1e6 else value,
        }
        for step, value in zip(steps, values, strict=True)
    ]


def sweep(seeds: int = 2) -> SweepResults:
    """One scene, both losses, runs of 100 steps."""
    outcomes = []
    for loss in LOSSES:
        for seed in range(seeds):
            data = {"scene": {"name": "gate", "built_in": True}, "loss": loss, "seed": seed}
            config = TrialConfig.model_validate({**data, "training": {"iterations": 100}})
            name = str(loss["name"])
            trial = Trial(f"{name}{seed}", config, {"scene": "gate", "loss": loss}, seed, name, f"loss={name}")
            outcomes.append(TrialOutcome(trial, TrialResult(trial.id, "finished")))
    return SweepResults("made", "test/synthetic/translation_error_median_m", "min", tuple(outcomes))


def write_history(paths: SweepPaths, outcome: TrialOutcome, lines: Sequence[dict[str, float]]) -> None:
    """Leaves a trial's `history.csv` as training does."""
    folder = paths.trial(outcome.trial.id).directory
    folder.mkdir(parents=True)
    with (folder / "history.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)


def written(results: SweepResults, folder: Path, domain: str = "synthetic") -> SweepPaths:
    """Histories of four milestones for all trials: seed 1 is four times as far off as seed 0."""
    paths = SweepPaths(folder, "made")
    for outcome in results.outcomes:
        scale = 4.0**outcome.trial.seed
        write_history(paths, outcome, rows([8 * scale, 4 * scale, 2 * scale, scale], [25, 50, 75, 100], domain))
    return paths


def curves(results: SweepResults, paths: SweepPaths, axis: ProgressAxis = ProgressAxis.iterations) -> list[Curve]:
    """Those of the 3D distance."""
    return [each for each in read_progression(results, paths, axis).curves if each.measure == "loss_m"]


def test_a_line_is_the_geometric_mean_of_the_seeds(tmp_path: Path) -> None:
    """Of 1 and 4 it is 2, and the band is as far above as below by ratio, never negative."""
    results = sweep()
    curve, _ = curves(results, written(results, tmp_path))
    assert [each.place for each in curve.milestones] == [25, 50, 75, 100]
    assert [each.interval.mean for each in curve.milestones] == pytest.approx([16, 8, 4, 2])
    last = curve.milestones[-1].interval
    assert last.lo is not None
    assert last.hi is not None
    assert 0 < last.lo < 1 < 4 < last.hi
    assert last.lo * last.hi == pytest.approx(4)


@pytest.mark.parametrize(("axis", "scale"), [("iterations", 1), ("samples", 10), ("seconds", SECONDS_PER_STEP)])
def test_every_axis_is_the_same_run_in_another_unit(tmp_path: Path, axis: str, scale: float) -> None:
    """At constant speed all places scale alike, that of the switch (a quarter of 100 steps) among them."""
    results = sweep()
    reprojection, switching = curves(results, written(results, tmp_path), ProgressAxis(axis))
    assert [each.place for each in switching.milestones] == pytest.approx([s * scale for s in (25, 50, 75, 100)])
    assert switching.switch == pytest.approx(25 * scale)
    assert reprojection.switch is None


def test_seeds_that_end_at_different_steps_are_told_apart(tmp_path: Path) -> None:
    """The mean ends where the first seed does, each seed's own line where it did."""
    results = sweep()
    paths = SweepPaths(tmp_path, "made")
    for outcome, steps in zip(results.outcomes, ([25, 50, 60], [25, 50, 75, 90], [50], [50]), strict=True):
        write_history(paths, outcome, rows([1.0] * len(steps), steps))
    early, other = curves(results, paths)
    assert [each.place for each in early.milestones] == [25, 50]
    assert [line[-1][0] for line in early.seeds] == [60, 90]
    assert (early.ragged, other.ragged) == (True, False)


def test_an_error_that_does_not_exist_is_a_gap(tmp_path: Path) -> None:
    """One seed's stand-in of 1e6 m takes the milestone out of the mean, and out of that seed's line alone."""
    results = sweep()
    paths = SweepPaths(tmp_path, "made")
    for outcome in results.outcomes:
        write_history(paths, outcome, rows([1e6 if outcome.trial.seed == 1 else 3.0, 2.0], [50, 100]))
    found = read_progression(results, paths, ProgressAxis.iterations).curves
    poses = next(each for each in found if each.measure == "translation_error_median_m")
    assert [each.interval.mean for each in poses.milestones] == [None, pytest.approx(0.2)]
    assert [len(line) for line in poses.seeds] == [2, 1]


def test_the_objectives_query_set_is_shown_where_it_was_validated(tmp_path: Path) -> None:
    """An objective on renders with histories of the target: the target, as there is nothing else."""
    results = sweep(seeds=1)
    target = read_progression(results, written(results, tmp_path / "a", "target"), ProgressAxis.samples)
    own = read_progression(results, written(results, tmp_path / "b", "synthetic"), ProgressAxis.samples)
    assert (target.domain, own.domain) == ("target", "synthetic")


def test_trials_without_a_history_are_left_out_and_said(tmp_path: Path) -> None:
    """One that is missing and one that is no table; where none is left it is bad input."""
    results, notes = sweep(), list[str]()
    paths = written(results, tmp_path)
    for place, outcome in enumerate(results.outcomes):
        history = paths.trial(outcome.trial.id).directory / "history.csv"
        if place == 0:
            history.unlink()
        if place == 2:
            history.write_text("step,train/samples_seen\none,two\n")
    found = read_progression(results, paths, ProgressAxis.iterations, notes.append).curves
    assert {curve.n for curve in found} == {1}
    assert len(notes) == 1
    assert "2 finished trials" in notes[0]
    with pytest.raises(InputError, match="none with a history"):
        read_progression(results, SweepPaths(tmp_path, "elsewhere"), ProgressAxis.iterations)


def test_the_figure_names_every_scene_and_arm(tmp_path: Path) -> None:
    """An SVG of text: scene, arms, measures with units, in the arms' own colours, and what the lines are."""
    results = sweep()
    progression = read_progression(results, written(results, tmp_path), ProgressAxis.samples)
    styles = arm_styles(results)
    draw_progression(progression, styles, ["gate"], tmp_path / "figures" / "progression.svg")
    text = (tmp_path / "figures" / "progression.svg").read_text()
    for word in ("gate", "reprojection", "switching(at=0.25)", "samples seen", "mean 3D distance, m", "geometric mean"):
        assert word in text
    for style in styles.styles.values():
        assert "#{:02x}{:02x}{:02x}".format(*(round(255 * part) for part in style.colour)) in text


def test_options_that_would_do_nothing_are_input_errors(capsys: pytest.CaptureFixture[str]) -> None:
    """Two views at once, an axis without a progression, a metric without bars, text of a figure."""
    for arguments, said in (
        (["--progression", "a.png", "--bars", "b.png"], "--progression and --bars together"),
        (["--against", "samples"], "samples without --progression"),
        (["--metric", "x"], "x without --bars"),
        (["--bars", "b.png", "--format", "json"], "json with --bars"),
        (["--bars", "b.gif"], ".png, .svg"),
    ):
        assert run_command(["report", "nowhere", *arguments]) == 2
        assert said in capsys.readouterr().err
