"""The samples an arm needs for the baseline's final error: recovered where they are known by construction."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import pytest

from cadloc.config import TrialConfig
from cadloc.contract import InputError, Json
from cadloc_sweep.report.efficiency import Efficiency, SceneEfficiency, read_efficiency
from cadloc_sweep.report.efficiency_text import as_json, footnote, share_text, tables
from cadloc_sweep.report.results import SweepResults, TrialOutcome
from cadloc_sweep.trials import Trial, TrialResult, TrialStatus

ERROR = "test/synthetic/translation_error_median_m"
BATCH = 10
REPROJECTION, COORDINATE, SWITCHING = {"name": "reprojection"}, {"name": "coordinate"}, {"name": "switching"}
BUDGETS = (100, 200, 400, 800)
BASELINE = {"loss": REPROJECTION, "training.iterations": 100}
JUST_HALF = 0.5 - 1e-9
"""So that a quarter of the samples suffices whatever the rounding."""

WILD = (1.0, 20.0, 0.05)
"""Seeds differ far more than arms do: only pairs tell."""


@dataclass(frozen=True)
class Made:
    """One trial: its factors besides the scene, and its error; `seen` tells of an early stop."""

    scene: str
    loss: Mapping[str, Json]
    seed: int
    error: float
    iterations: int | None = None
    seen: int | None = None
    status: TrialStatus = "finished"

    @property
    def factors(self) -> dict[str, Json]:
        """As a plan has them; the budget only where it is one."""
        return {"loss": self.loss} | ({} if self.iterations is None else {"training.iterations": self.iterations})

    def outcome(self) -> TrialOutcome:
        """The trial with its result."""
        training = {"iterations": self.iterations or 100, "batch_size": BATCH}
        scene = {"name": self.scene, "cad": {"path": "model.glb", "up": "z"}}
        config = TrialConfig.model_validate(
            {"scene": scene, "loss": self.loss, "training": training, "seed": self.seed}
        )
        label = " ".join(f"{name}={value}" for name, value in self.factors.items())
        arm = f"{self.scene} {label}"
        trial = Trial(f"{arm} {self.seed}", config, {"scene": self.scene, **self.factors}, self.seed, arm, label)
        seen = float(self.seen or training["iterations"] * BATCH)
        metrics = {ERROR: self.error, "train/samples_seen": seen, "test/synthetic/recall_5cm_5deg": 0.5}
        return TrialOutcome(trial, TrialResult(trial.id, self.status, metrics if self.status == "finished" else {}))


def made_sweep(made: Iterable[Made], baseline: Mapping[str, Json] | None = None) -> SweepResults:
    """The sweep of such trials; `baseline` holds factor values, the scene left out."""
    return SweepResults("made", ERROR, "min", tuple(each.outcome() for each in made), baseline)


def runs(loss: Mapping[str, Json], factor: float, scene: str = "gate", budgets: Sequence[int] = BUDGETS) -> list[Made]:
    """Errors that fall with the root of the budget, by a factor of their own."""
    return [
        Made(scene, loss, seed, factor * wild * budget**-0.5, budget)
        for budget in budgets
        for seed, wild in enumerate(WILD)
    ]


def sweep(*made: list[Made], baseline: Mapping[str, Json] | None = BASELINE) -> SweepResults:
    """The baseline's runs, and others."""
    return made_sweep([*runs(REPROJECTION, 1.0), *(each for group in made for each in group)], baseline)


def only(results: SweepResults) -> SceneEfficiency:
    """Its one scene."""
    (scene,) = read_efficiency(results, ERROR)
    return scene


def families(scene: SceneEfficiency) -> dict[str, Efficiency]:
    """By label."""
    return {family.label: family for family in scene.families}


def test_half_the_error_at_a_root_law_is_a_quarter_of_the_samples() -> None:
    """The arm reaches the baseline's final error at 1/4, and is better at equal budget beyond doubt."""
    arm = families(only(sweep(runs(COORDINATE, JUST_HALF))))["loss=coordinate"]
    assert arm.reached is not None
    assert arm.reached.share == 0.25
    assert [each.ratio.mean for each in arm.budgets] == pytest.approx([2**0.5, 1, 0.5**0.5, 0.5])
    assert arm.budgets[-1].verdict == "better"


def test_the_reference_is_the_baseline_at_its_largest_budget() -> None:
    """Whichever of its budgets the space named, or none, as where the budget is no factor of the baseline."""
    named = [{**BASELINE, "training.iterations": each} for each in BUDGETS] + [{"loss": REPROJECTION}]
    found = [only(sweep(runs(COORDINATE, 0.5), baseline=baseline)) for baseline in named]
    assert all(scene == found[0] for scene in found)
    assert (found[0].planned, found[0].samples) == (800 * BATCH, 800 * BATCH)
    assert found[0].error == pytest.approx(sum(WILD) / 3 * 800**-0.5)


def test_the_baselines_own_row_is_what_the_budget_alone_does() -> None:
    """It comes first; an eighth of the budget costs the root of eight, and only all of it reaches the end."""
    baseline = only(sweep(runs(COORDINATE, 0.5))).families[0]
    assert baseline.is_baseline
    assert [each.ratio.mean for each in baseline.budgets] == pytest.approx([8**0.5, 2, 2**0.5, 1])
    assert baseline.reached == baseline.budgets[-1]
    assert baseline.budgets[-1].verdict is None


def test_verdicts_follow_the_interval() -> None:
    """Worse beyond doubt, and one that is better on one seed and worse on the others."""
    unsure = [
        replace(each, error=each.error * (1.3 if each.seed == 0 else 0.9)) for each in runs({**SWITCHING, "at": 0.5}, 1)
    ]
    found = families(only(sweep(runs(COORDINATE, 1.2), unsure)))
    assert found["loss=coordinate"].budgets[-1].verdict == "worse"
    assert found["loss=coordinate"].reached is None
    assert found["loss=switching(at=0.5)"].budgets[-1].verdict == "not distinguishable"


def test_runs_that_stop_early_count_what_they_have_seen() -> None:
    """One planned budget for all: an equally accurate arm that ends after three eighths needs three eighths."""
    stopping = [replace(each, seen=300 * BATCH) for each in runs(COORDINATE, 1 - 1e-9, budgets=[800])]
    made = [replace(each, iterations=None) for each in [*runs(REPROJECTION, 1.0, budgets=[800]), *stopping]]
    results = made_sweep([replace(each, seen=each.seen or 800 * BATCH) for each in made], {"loss": REPROJECTION})
    arm = only(results).families[1]
    assert arm.reached is not None
    assert arm.reached.share == 3 / 8
    assert "3/8" in tables("made", ERROR, read_efficiency(results, ERROR))[0].rows[1]


def test_an_arm_that_lost_a_seed_reaches_nothing() -> None:
    """The ratio over the others is told, with how many they are."""
    made = [
        replace(each, status="failed") if each.seed == 2 and each.iterations == 200 else each
        for each in runs(COORDINATE, JUST_HALF)
    ]
    scene = only(sweep(made))
    arm = families(scene)["loss=coordinate"]
    assert arm.reached is not None
    assert arm.reached.planned == 400 * BATCH
    assert "(2 of 3)" in tables("made", ERROR, [scene])[0].rows[1][3]
    assert "(n of m)" in footnote([scene])


def test_a_stand_in_for_an_error_is_a_failure_and_no_ratio() -> None:
    """1e6 m in one seed: `failed`, and a scene whose reference has it is left out with a note."""
    made = [replace(each, error=1e6) if each.seed == 1 else each for each in runs(COORDINATE, 0.5)]
    scene = only(sweep(made))
    assert tables("made", ERROR, [scene])[0].rows[1] == ("loss=coordinate", "not reached", *["failed"] * 5)
    notes: list[str] = []
    yard = [replace(each, error=1e6) for each in runs(REPROJECTION, 1.0, scene="yard")]
    assert [each.scene for each in read_efficiency(sweep(made, yard), ERROR, notes.append)] == ["gate"]
    assert "yard" in notes[0]


def test_tables_and_json_say_the_same() -> None:
    """Scenes side by side, then each alone; the JSON has every number."""
    yard = [*runs(REPROJECTION, 1.0, scene="yard"), *runs(COORDINATE, 1.1, scene="yard")]
    scenes = read_efficiency(sweep(runs(COORDINATE, JUST_HALF), yard), ERROR)
    overview, gate, _ = tables("made", ERROR, scenes)
    assert overview.rows[1] == ("loss=coordinate", "1/4; better", "not reached; worse")
    assert gate.headings[2:] == (
        *(f"ratio at {share} ({thousands} k)" for share, thousands in (("1/8", 1), ("1/4", 2), ("1/2", 4), ("1", 8))),
        "at equal budget",
    )
    assert gate.rows[0][:2] == ("loss=reprojection (baseline)", "1")
    assert gate.rows[0][-2:] == ("1 (E)", "the baseline")
    arm = json.loads(as_json(ERROR, scenes))["scenes"][0]["arms"][1]
    assert (arm["reached"]["share"], arm["equal_budget"]["verdict"], len(arm["budgets"])) == (0.25, "better", 4)


def test_one_seed_has_ratios_and_no_verdict() -> None:
    """Nothing is known about the spread."""
    one = [each for each in [*runs(REPROJECTION, 1.0), *runs(COORDINATE, JUST_HALF)] if each.seed == 0]
    scene = only(made_sweep(one, BASELINE))
    assert tables("made", ERROR, [scene])[0].rows[1][1:] == ("1/4", "1.41", "1.00", "0.71", "0.50", "–")


def test_what_cannot_be_asked_is_an_input_error() -> None:
    """Recalls, unknown metrics, sweeps of one budget, sweeps without a baseline."""
    usual, single = sweep(runs(COORDINATE, 0.5)), [*runs(REPROJECTION, 1.0, budgets=[800])]
    for results, metric, said in (
        (usual, "test/synthetic/recall_5cm_5deg", "more is better"),
        (usual, "test/synthetic/translation_median_m", "translation_error_median_m"),
        (made_sweep(single, BASELINE), ERROR, "one budget"),
        (sweep(baseline=None), ERROR, "without a baseline"),
    ):
        with pytest.raises(InputError, match=said):
            read_efficiency(results, metric)


@pytest.mark.parametrize(
    ("share", "text"), [(1.0, "1"), (1 / 3, "1/3"), (0.75, "3/4"), (0.0625, "1/16"), (2.0, "2"), (0.37, "0.37")]
)
def test_shares_are_fractions_where_one_is_near(share: float, text: str) -> None:
    """As one would say them."""
    assert share_text(share) == text
