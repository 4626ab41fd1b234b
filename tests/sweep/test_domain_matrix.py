"""The domain matrix: every number in its place, with its uncertainty, and nothing where there is none."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from PIL import Image

from cadloc.config import TrialConfig
from cadloc.contract import InputError, Json
from cadloc.scene_config import CadConfig, PhotosConfig, SceneConfig
from cadloc_sweep.report.domain_matrix import (
    METRICS,
    count_queries,
    has_matrix,
    matrices,
    matrix_markdown,
)
from cadloc_sweep.report.domain_matrix_figure import draw_matrix
from cadloc_sweep.report.results import SweepResults, join
from cadloc_sweep.report.statistics import t_interval
from cadloc_sweep.trials import SweepPaths, Trial, TrialResult

ERROR, RECALL = METRICS
Metrics = Mapping[str, float] | None
Key = tuple[str, Mapping[str, Json], int]


def trial(index: int, scene: str, factors: Mapping[str, Json], seed: int) -> Trial:
    """A trial of a scene with photos, made by hand."""
    photos = PhotosConfig(images="photos", reconstruction="sparse")
    config = TrialConfig(
        scene=SceneConfig(name=scene, cad=CadConfig(path="model.glb", up="z"), photos=photos),
        train_on=tuple(factors.get("train_on", ["synthetic"])),
        seed=seed,
    )
    arm = json.dumps([scene, factors])
    return Trial(f"{index:012x}", config, {"scene": scene, **factors}, seed, arm, arm)


def results_of(values: Sequence[tuple[Key, Metrics]]) -> SweepResults:
    """Results made by hand: (scene, factors, seed) and the test metrics; None failed."""
    trials = [trial(index, *key) for index, (key, _) in enumerate(values)]
    ends = {
        each.id: TrialResult(each.id, "failed" if metrics is None else "finished", metrics or {})
        for each, (_, metrics) in zip(trials, values, strict=True)
    }
    return SweepResults("gap", f"test/real/{ERROR}", "min", join(trials, ends))


def measured(error: float, recall: float, *test_sets: str) -> dict[str, float]:
    """Both metrics on each test set; the error grows from set to set."""
    shown = test_sets or ("real", "gt_poses", "synthetic")
    return {
        f"test/{name}/{metric}": value
        for place, name in enumerate(shown)
        for metric, value in ((ERROR, error * (1 + place)), (RECALL, recall))
    }


def gap(seeds: int = 3) -> SweepResults:
    """Two scenes, three ways to train; errors 1 … differ by seed."""
    return results_of(
        [
            ((scene, {"train_on": train_on}, seed), measured(error + 0.1 * seed, 1 / (1 + error)))
            for scene in ("site", "yard")
            for train_on, error in ((["synthetic"], 20.0), (["real", "synthetic"], 2.0), (["real"], 1.0))
            for seed in range(seeds)
        ]
    )


def test_rows_are_what_was_trained_on_and_columns_what_was_tested() -> None:
    """One matrix per scene; single domains before mixtures, the photographs first."""
    found = matrices(gap())
    assert [matrix.scene for matrix in found] == ["site", "yard"]
    assert [label for label, _ in found[0].rows] == ["real", "synthetic", "real + synthetic"]
    assert found[0].test_sets == ("real", "gt_poses", "synthetic")


def test_a_cell_is_the_interval_over_its_own_seeds() -> None:
    """The mean and t interval of that arm's seeds on that test set, and of no others."""
    cell = matrices(gap())[1].cells[ERROR, "real + synthetic", "gt_poses"]
    assert cell.interval == t_interval([2 * 2.0, 2 * 2.1, 2 * 2.2])
    assert not cell.failed


def test_only_test_sets_that_were_tested_are_columns() -> None:
    """A sweep without renders at the photos' poses has no such column; simulated photographs are none either."""
    values = measured(1.0, 0.5, "real", "synthetic") | {f"test/photo/{ERROR}": 3.0}
    (matrix,) = matrices(results_of([(("site", {"train_on": ["real"]}, 0), values)]))
    assert matrix.test_sets == ("real", "synthetic")


def test_other_factors_make_matrices_of_their_own() -> None:
    """Two trainables: two matrices, each with its own numbers, named after the trainable."""
    results = results_of(
        [
            (("site", {"trainable": name, "train_on": [domain]}, 0), measured(error, 0.5))
            for name, error in (("ace", 1.0), ("render_and_match", 3.0))
            for domain in ("real", "synthetic")
        ]
    )
    found = matrices(results)
    assert [matrix.title for matrix in found] == ["site · trainable=ace", "site · trainable=render_and_match"]
    assert [matrix.cells[ERROR, "real", "real"].interval.mean for matrix in found] == [1.0, 3.0]


def test_without_the_factor_the_configuration_says_what_was_trained_on() -> None:
    """A sweep over the loss alone has one row per matrix: the default, renders."""
    found = matrices(results_of([(("site", {"loss": {"name": "coordinate"}}, 0), measured(1.0, 0.5))]))
    assert [label for label, _ in found[0].rows] == ["synthetic"]
    assert found[0].title == "site · loss=coordinate"


def test_markdown_has_each_number_with_its_seeds_and_queries() -> None:
    """Mean and half interval, recalls in percent, lost seeds told, number of queries per column."""
    results = results_of(
        [
            (("site", {"train_on": ["real"]}, 0), measured(1.0, 0.5, "real")),
            (("site", {"train_on": ["real"]}, 1), measured(2.0, 0.7, "real")),
            (("site", {"train_on": ["real"]}, 2), None),
            (("site", {"train_on": ["synthetic"]}, 0), measured(9.0, 0.25, "real")),
        ]
    )
    text = matrix_markdown(results, queries={("site", "real"): 75})
    half = 12.7062 * 0.5  # t quantile for one degree of freedom × standard error of (1, 2)
    assert f"| real | 1.50 ± {half:.2f} | 2 of 3 |" in text
    assert "| synthetic | 25.0 | 1 |" in text
    assert "| trained on \\ tested on | real (75 queries) | seeds |" in text
    assert "60.0 ± " in text


def test_stand_ins_for_failure_are_not_shown_as_errors() -> None:
    """A median of 1e6 m that stands for no pose reads `failed`, also when another seed dilutes the mean."""
    arm = {"train_on": ["synthetic"]}
    results = results_of(
        [(("site", arm, 0), measured(1e8 / 50, 0.0, "real")), (("site", arm, 1), measured(3.0, 0.4, "real"))]
    )
    text = matrix_markdown(results)
    assert "| synthetic | failed | 2 |" in text
    assert "1000" not in text


def test_an_arm_without_a_finished_trial_is_an_empty_row() -> None:
    """It stays in sight, with no seeds and no numbers."""
    results = results_of(
        [
            (("site", {"train_on": ["real"]}, 0), measured(1.0, 0.5, "real")),
            (("site", {"train_on": ["synthetic"]}, 0), None),
        ]
    )
    assert "| synthetic | – | 0 of 1 |" in matrix_markdown(results)


def test_a_sweep_has_a_matrix_when_arms_learned_from_different_domains() -> None:
    """Not when all learned from the same, nor before anything is measured."""
    assert has_matrix(gap(seeds=1))
    one = (("site", {"train_on": ["real"]}, 0), measured(1.0, 0.5, "real"))
    assert not has_matrix(results_of([one]))
    arms = [(("site", {"train_on": [domain]}, 0), None) for domain in ("real", "synthetic")]
    assert not has_matrix(results_of(arms))


def test_unknown_metrics_are_bad_input_all_at_once() -> None:
    """Each is named, with those that exist."""
    with pytest.raises(InputError) as caught:
        matrices(gap(), ["nonsense", "more_nonsense", ERROR])
    assert [fault.found for fault in caught.value.faults] == ["nonsense", "more_nonsense"]
    assert RECALL in caught.value.faults[0].allowed


def test_without_finished_trials_there_is_no_matrix() -> None:
    """It is said, instead of an empty figure."""
    with pytest.raises(InputError, match="no finished trial"):
        matrices(results_of([(("site", {"train_on": ["real"]}, 0), None)]))


def test_queries_are_counted_in_the_pose_tables(tmp_path: Path) -> None:
    """One row is one query; sets without a table are absent; of trials that disagree the smaller number counts."""
    results, paths = gap(), SweepPaths(tmp_path, "gap")
    for outcome, rows in zip(results.outcomes, (75, 74), strict=False):
        table = paths.trial(outcome.trial.id).poses("real")
        table.parent.mkdir(parents=True)
        table.write_text("name,tx_m\n" + "a,1\n" * rows)
    assert count_queries(paths, results) == {("site", "real"): 74}


@pytest.mark.parametrize("ending", [".png", ".svg"])
def test_the_figure_is_a_picture_with_every_number(tmp_path: Path, ending: str) -> None:
    """A PNG that opens, an SVG of text that has the cells' numbers; nothing else is left in the folder."""
    path = tmp_path / "figures" / f"matrix{ending}"
    draw_matrix(gap(), path, queries={("site", "real"): 75})
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    if ending == ".png":
        with Image.open(path) as image:
            assert min(image.size) > 300
        return
    text = path.read_text()
    assert text.count("n = 3") == 2 * 2 * 9
    assert "(75 queries)" in text
    assert "± " in text


def test_what_cannot_be_measured_is_still_drawn(tmp_path: Path) -> None:
    """Errors of zero, failures, a single value and empty rows make a figure, without a warning."""
    values = [({"train_on": ["real"]}, measured(0.0, 1.0)), ({"train_on": ["synthetic"]}, measured(1e7, 0.0))]
    results = results_of([(("site", factors, 0), metrics) for factors, metrics in values])
    draw_matrix(results, tmp_path / "matrix.svg")
    assert "failed" in (tmp_path / "matrix.svg").read_text()


def test_an_unknown_ending_is_bad_input(tmp_path: Path) -> None:
    """Refused before anything is written."""
    with pytest.raises(InputError, match=r"\.png, \.svg"):
        draw_matrix(gap(), tmp_path / "matrix.gif")
    assert not list(tmp_path.iterdir())


def test_importing_it_loads_nothing_heavy() -> None:
    """No matplotlib and no NumPy until a figure is drawn: the command line stays quick."""
    code = "import sys, cadloc_sweep.report.domain_matrix_figure; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"matplotlib", "numpy", "torch"} & set(done.stdout.split())
