"""The report says what the trials said: means, intervals, differences, and what is missing."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cadloc.config import TrialConfig
from cadloc.contract import InputError
from cadloc.scene_config import CadConfig, SceneConfig
from cadloc_sweep.failures import StateCorrupt
from cadloc_sweep.report.results import SweepResults, join, read_sweep
from cadloc_sweep.report.statistics import paired_difference, t_interval
from cadloc_sweep.report.tables import as_csv, as_json, as_markdown, tables
from cadloc_sweep.trials import Trial, TrialResult

if TYPE_CHECKING:
    from conftest import ToySweep

METRIC = "test/synthetic/translation_error_median_m"
RECALL = "test/photo/recall_10cm_5deg"
CAD = CadConfig(path="house.glb", up="z")
finite = st.floats(-1e6, 1e6)


def results_of(values: Mapping[tuple[str, str, int], Mapping[str, float] | None]) -> SweepResults:
    """Results made by hand: (scene, loss, seed) -> metrics; None failed."""
    trials = [
        Trial(
            id=f"{index:012x}",
            config=TrialConfig(scene=SceneConfig(name=scene, built_in=True), seed=seed),
            factors={"scene": scene, "loss": loss},
            seed=seed,
            arm=f"{scene} {loss}",
            arm_label=f"loss={loss}",
        )
        for index, (scene, loss, seed) in enumerate(values)
    ]
    ends = {
        trial.id: TrialResult(trial.id, "failed" if metrics is None else "finished", metrics or {})
        for trial, metrics in zip(trials, values.values(), strict=True)
    }
    return SweepResults("made", METRIC, "min", join(trials, ends), {"loss": "a"})


def test_the_interval_is_students() -> None:
    """Against a table of the t distribution: five values, 95 %, half-width 2.776 standard errors."""
    values = [1.0, 2.0, 3.0, 4.0, 5.0]
    interval = t_interval(values)
    half = 2.776445 * math.sqrt(2.5 / 5)
    assert (interval.n, interval.mean) == (5, 3.0)
    assert interval.lo == pytest.approx(3.0 - half, abs=1e-5)
    assert interval.hi == pytest.approx(3.0 + half, abs=1e-5)


@given(st.lists(finite, min_size=2, max_size=8), finite, st.floats(0.1, 10))
def test_the_interval_moves_and_grows_with_the_values(values: list[float], shift: float, scale: float) -> None:
    """Shifted and scaled values give the shifted and scaled interval, around the mean."""
    one, other = t_interval(values), t_interval([scale * value + shift for value in values])
    assert one.mean is not None
    assert one.lo is not None
    assert one.hi is not None
    assert one.lo <= one.mean <= one.hi
    tolerance = 1e-6 * (1 + abs(shift) + scale * max(abs(value) for value in values))
    assert other.lo == pytest.approx(scale * one.lo + shift, abs=tolerance)
    assert other.hi == pytest.approx(scale * one.hi + shift, abs=tolerance)


def test_without_spread_there_is_no_interval() -> None:
    """No value, one value, and values that are not finite give null bounds, not zeros."""
    assert t_interval([]).mean is None
    assert (t_interval([2.0]).mean, t_interval([2.0]).lo) == (2.0, None)
    assert (t_interval([1.0, math.inf]).mean, t_interval([1.0, math.inf]).n) == (None, 2)
    with pytest.raises(ValueError, match="confidence"):
        t_interval([1.0, 2.0], confidence=1.0)


@given(st.dictionaries(st.integers(0, 9), finite, min_size=2), finite)
def test_pairing_removes_what_both_share(baseline: dict[int, float], difference: float) -> None:
    """An arm that is its baseline plus a constant differs by that constant, however far the seeds spread."""
    arm = {seed: value + difference for seed, value in baseline.items()}
    found = paired_difference(arm | {99: 0.0}, baseline)
    assert found.n == len(baseline)
    assert found.mean == pytest.approx(difference, abs=1e-6)
    assert found.hi is not None
    assert found.lo is not None
    assert found.hi - found.lo < 1e-6


def test_arms_are_listed_per_scene_with_means_over_finished_trials() -> None:
    """Failed trials count as failed and take no part in means; a lone seed has null bounds."""
    results = results_of(
        {
            ("gate", "a", 0): {METRIC: 1.0},
            ("gate", "b", 0): {METRIC: 3.0},
            ("rotunda", "a", 0): None,
            ("gate", "a", 1): {METRIC: 2.0},
            ("gate", "b", 1): None,
        }
    )
    report = json.loads(as_json(results))
    assert set(report) == {"space", "arms", "trials"}
    arms = {(arm["scene"], arm["factors"]["loss"]): arm for arm in report["arms"]}
    assert [(arm["scene"], arm["n"]) for arm in report["arms"]] == [("gate", 2), ("gate", 1), ("rotunda", 0)]
    assert arms["gate", "a"]["metrics"][METRIC]["mean"] == 1.5
    assert arms["gate", "b"]["metrics"] == {METRIC: {"mean": 3.0, "lo": None, "hi": None}}
    assert arms["rotunda", "a"]["metrics"] == {}
    assert [trial["status"] for trial in report["trials"]].count("failed") == 2
    assert all(set(trial) == {"id", "scene", "seed", "factors", "status", "metrics"} for trial in report["trials"])


def test_the_table_marks_the_best_of_each_scene_and_names_simulated_photographs() -> None:
    """The lower error and the higher recall are marked; ties are not; `photo` is called simulated."""
    results = results_of(
        {
            ("gate", "a", 0): {METRIC: 1.0, RECALL: 0.5},
            ("gate", "b", 0): {METRIC: 3.0, RECALL: 0.75},
            ("rotunda", "a", 0): {METRIC: 2.0, RECALL: 0.5},
            ("rotunda", "b", 0): {METRIC: 2.0, RECALL: 0.5},
        }
    )
    synthetic, photo = tables(results)
    assert [row[3] for row in synthetic.rows] == ["1.00*", "3.00", "2.00", "2.00"]
    assert [row[3] for row in photo.rows] == ["50.0", "75.0*", "50.0", "50.0"]
    assert "simulated" in photo.title
    assert synthetic.rows[1][-1] == "+2.00"
    assert synthetic.starts == (2,)
    assert "**1.00**" in as_markdown(results)


@pytest.mark.parametrize("built_in", [True, False])
def test_target_is_called_simulated_where_it_is(built_in: bool) -> None:
    """A built-in scene's target is its twin's photographs, which the footnote says; another scene's are others'."""
    scene = SceneConfig(name="gate", built_in=True) if built_in else SceneConfig(name="house", cad=CAD)
    results = made_of(scene, {"test/target/translation_error_median_pct": 1.0})
    (table,) = (table for table in tables(results) if "target" in table.title)
    assert "simulated photos, another CAD model or real" in table.title
    assert ("not real photographs" in as_markdown(results)) == built_in


def test_a_narrow_table_drops_columns_but_not_the_objective() -> None:
    """Columns go, the least wanted first, until the table fits; scene, arm and error stay."""
    recalls = {f"test/synthetic/recall_{name}": 0.5 for name in ("5cm_5deg", "10cm_5deg", "25cm_2deg", "5m_10deg")}
    (table,) = tables(results_of({("gate", "a", 0): {METRIC: 1.0, **recalls}}))
    narrow = table.fitted(50)
    assert narrow.width <= 50 < table.width
    assert narrow.headings[:2] == ("scene", "arm")
    assert "translation m" in narrow.headings
    assert all(len(row) == len(narrow.headings) for row in narrow.rows)


def test_csv_has_a_line_per_scene_arm_and_metric() -> None:
    """The CSV reads back as the arms' intervals, with a column per factor."""
    results = results_of({("gate", "a", seed): {METRIC: float(seed), RECALL: 1.0} for seed in range(3)})
    rows = list(csv.DictReader(io.StringIO(as_csv(results))))
    assert [(row["scene"], row["loss"], row["metric"], row["n"]) for row in rows] == [
        ("gate", '"a"', METRIC, "3"),
        ("gate", '"a"', RECALL, "3"),
    ]
    assert float(rows[0]["mean"]) == 1.0


def test_a_sweep_is_read_back_from_its_folder(toys: ToySweep) -> None:
    """Every trial's status and metrics are those of its result; those not run yet are planned."""
    outcome = toys.run()
    results = read_sweep(toys.paths.directory)
    assert {item.trial.id: item.metrics for item in results.outcomes} == {
        key: result.metrics for key, result in outcome.results.items()
    }
    assert results.counts == {"finished": 8}
    toys.paths.trial(toys.plan().trials[0].id).result.write_text("{}")
    notes: list[str] = []
    assert read_sweep(toys.paths.directory, notes.append).counts == {"finished": 7, "planned": 1}
    assert len(notes) == 1


def test_a_folder_without_a_sweep_is_bad_input(toys: ToySweep) -> None:
    """The message names the folder, and the sweeps that are in it."""
    toys.run("repeats=1")
    with pytest.raises(InputError, match="toys"):
        read_sweep(toys.paths.out)
    with pytest.raises(InputError, match="no such folder"):
        read_sweep(Path(toys.folder / "nowhere"))


def test_a_damaged_plan_is_a_corrupt_state(toys: ToySweep) -> None:
    """A cut-off plan.json is said to be corrupt, not read as an empty sweep."""
    toys.run("repeats=1")
    text = toys.paths.plan.read_text()
    toys.paths.plan.write_text(text[: len(text) // 2])
    with pytest.raises(StateCorrupt, match=r"plan\.json"):
        read_sweep(toys.paths.directory)


def made_of(scene: SceneConfig, metrics: Mapping[str, float]) -> SweepResults:
    """One finished trial on a scene."""
    config = TrialConfig(scene=scene)
    trial = Trial("0" * 12, config, {"scene": scene.name}, seed=0, arm="one", arm_label="all")
    results = {trial.id: TrialResult(trial.id, "finished", metrics)}
    return SweepResults("made", METRIC, "min", join([trial], results))


def test_metres_of_a_scene_that_is_not_metric_are_not_shown() -> None:
    """Shares of its size, degrees and DCRE mean something there; metres, and recalls within metres, do not."""
    scene = SceneConfig(name="house", cad=CAD, metric=False)
    names = ("translation_error_median_m", "recall_50cm_5deg", "translation_error_median_pct", "dcre_recall_10pct")
    results = made_of(scene, {f"test/real/{name}": 0.25 for name in names})
    (table,) = (table for table in tables(results) if "real" in table.title)
    row = dict(zip(table.headings, table.rows[0], strict=True))
    assert (row["translation m"], row["50 cm 5°"]) == ("–", "–")
    assert (row["% of scene"], row["≤ 10 %"]) == ("0.250", "25.0")
    assert "not metric" in as_markdown(results)


@pytest.mark.parametrize("failed", [("translation_error_median_m", 1e6), ("rotation_error_median_deg", 180.0)])
def test_an_error_that_stands_for_failure_is_called_that(failed: tuple[str, float]) -> None:
    """What is stored where most queries have no pose is no number to compare with others."""
    name, value = failed
    results = made_of(SceneConfig(name="gate", built_in=True), {f"test/synthetic/{name}": value})
    assert "| failed |" in as_markdown(results)
    results = made_of(SceneConfig(name="gate", built_in=True), {f"test/synthetic/{name}": value / 2e3})
    assert "failed" not in as_markdown(results)
