"""The accuracy bars: means with their intervals and seeds, and arms that can be told apart in every figure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path

import pytest
from PIL import Image

from cadloc.config import TrialConfig
from cadloc.contract import InputError, Json
from cadloc_sweep.report.arm_styles import arm_styles
from cadloc_sweep.report.bars import read_bars
from cadloc_sweep.report.bars_figure import draw_bars
from cadloc_sweep.report.results import SweepResults, TrialOutcome
from cadloc_sweep.report.statistics import t_interval
from cadloc_sweep.trials import Trial, TrialResult

ERROR, RECALL = "test/synthetic/translation_error_median_m", "test/synthetic/recall_5cm_5deg"
REPROJECTION, COORDINATE = {"name": "reprojection"}, {"name": "coordinate"}


def outcome(
    scene: str, loss: Mapping[str, Json], seed: int, error: float | None, iterations: int | None = None
) -> TrialOutcome:
    """A finished trial of that loss (and budget), or without an error a failed one."""
    factors: dict[str, Json] = {"loss": loss} | ({} if iterations is None else {"training.iterations": iterations})
    data = {"scene": {"name": scene, "cad": {"path": "a.glb", "up": "z"}}, "loss": loss, "seed": seed}
    config = TrialConfig.model_validate({**data, "training": {"iterations": iterations or 100}})
    label = " ".join(f"{name}={value}" for name, value in factors.items())
    trial = Trial(f"{scene}{label}{seed}", config, {"scene": scene, **factors}, seed, f"{scene}{label}", label)
    if error is None:
        return TrialOutcome(trial, TrialResult(trial.id, "failed"))
    return TrialOutcome(trial, TrialResult(trial.id, "finished", {ERROR: error, RECALL: 0.5}))


def made_sweep(outcomes: Iterable[TrialOutcome]) -> SweepResults:
    """The sweep of such trials."""
    return SweepResults("made", ERROR, "min", tuple(outcomes))


def sweep(*errors: float) -> SweepResults:
    """One scene, one arm, a seed per error."""
    return made_sweep(outcome("gate", REPROJECTION, seed, error) for seed, error in enumerate(errors))


def test_a_bar_is_the_mean_of_its_seeds_with_their_interval() -> None:
    """Of the objective unless told otherwise; the seeds themselves are kept."""
    (bar,) = read_bars(sweep(1.0, 2.0, 6.0)).bars
    assert bar.interval == t_interval([1.0, 2.0, 6.0])
    assert bar.seeds == (1.0, 2.0, 6.0)


def test_shares_of_queries_are_in_percent() -> None:
    """And on no logarithmic axis."""
    bars = read_bars(sweep(1.0, 20.0), RECALL)
    assert (bars.percent, bars.logarithmic, bars.bars[0].interval.mean) == (True, False, 50.0)


@pytest.mark.parametrize(("errors", "logarithmic"), [((1.0, 9.0), False), ((1.0, 11.0), True), ((0.0, 11.0), False)])
def test_the_axis_is_logarithmic_beyond_a_decade(errors: tuple[float, float], logarithmic: bool) -> None:
    """Where a logarithm exists."""
    assert read_bars(sweep(*errors)).logarithmic is logarithmic


def test_an_unknown_metric_is_an_input_error() -> None:
    """The nearest name is suggested."""
    with pytest.raises(InputError, match="translation_error_median_m"):
        read_bars(sweep(1.0), "test/synthetic/translation_median_m")


def test_no_two_arms_look_alike() -> None:
    """Twenty arms: no colour comes twice with the same dashes or hatching; budgets are shades of one colour."""
    losses = [{"name": "switching", "at": (place + 1) / 30} for place in range(20)]
    styles = list(arm_styles(made_sweep(outcome("gate", loss, 0, 1.0) for loss in losses)).styles.values())
    assert len({(style.colour, style.dashes) for style in styles}) == len({style.legend for style in styles}) == 20
    assert len({(style.colour, style.hatch) for style in styles}) == 20
    budgets = [100, 200, 400]
    shades = list(arm_styles(made_sweep(outcome("gate", COORDINATE, 0, 1.0, each) for each in budgets)).styles.values())
    assert [sum(style.colour) for style in shades] == sorted((sum(style.colour) for style in shades), reverse=True)
    assert len({style.colour for style in shades}) == 3


def test_legends_say_what_differs() -> None:
    """The only factor that varies stands on top, its values alone below; with two, both are named and separated."""
    one = arm_styles(made_sweep(outcome("gate", loss, 0, 1.0) for loss in (REPROJECTION, COORDINATE)))
    assert (one.title, [each.legend for each in one.styles.values()]) == ("loss", ["reprojection", "coordinate"])
    crossed = product((REPROJECTION, COORDINATE), (100, 200))
    two = arm_styles(made_sweep(outcome("gate", loss, 0, 1.0, budget) for loss, budget in crossed))
    assert two.title == "loss · training.iterations"
    assert [each.legend for each in two.styles.values()][:2] == ["reprojection · 100", "reprojection · 200"]


def test_the_figure_has_every_scene_and_arm(tmp_path: Path) -> None:
    """Over two lines, with an arm that failed and one without a result; units where metres are none."""
    losses = [{"name": "switching", "at": (place + 1) / 30} for place in range(13)]
    cells = product(("gate", "rotunda", "site", "yard", "hall"), enumerate(losses), range(2))
    results = made_sweep(
        outcome(scene, loss, seed, {3: 1e7, 5: None}.get(place, 1.0 + place + seed))
        for scene, (place, loss), seed in cells
    )
    styles = arm_styles(results)
    draw_bars(read_bars(results), styles, ["gate"], tmp_path / "bars.svg")
    text = (tmp_path / "bars.svg").read_text()
    assert text.count(ERROR) == 2  # one axis a line
    assert (text.count(" failed"), text.count(" no trial")) == (5, 5)
    assert all(style.legend in text for style in styles.styles.values())
    assert text.count("(model's units)") == 4


def test_a_single_seed_makes_a_picture(tmp_path: Path) -> None:
    """A bar without whisker, and nothing else in the folder."""
    draw_bars(read_bars(sweep(1.0)), arm_styles(sweep(1.0)), ["gate"], tmp_path / "bars.png")
    assert [file.name for file in tmp_path.iterdir()] == ["bars.png"]
    with Image.open(tmp_path / "bars.png") as image:
        assert min(image.size) > 300
