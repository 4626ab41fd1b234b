"""Designs and plans: which arms, which trials, which names, and what is shared."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cadloc.config import TrialConfig
from cadloc.metric_names import POSE_METRICS, reported_metrics
from cadloc.scene_config import SceneConfig
from cadloc_sweep.designs import Factor, Factorial, LeaveOneOut, OneFactor, RandomSample, choices, reference
from cadloc_sweep.plan import make_plan, trial_id
from cadloc_sweep.spaces import load_space

if TYPE_CHECKING:
    from conftest import ToySweep

sizes = st.lists(st.integers(2, 4), min_size=1, max_size=4)


def factors_of(counts: Sequence[int], conditional: bool = False) -> list[Factor]:
    """Factors f0, f1 … with that many values; the last one, if conditional, needs value 1 of the first."""
    factors = [Factor(f"f{i}", tuple(range(count))) for i, count in enumerate(counts)]
    if conditional and len(factors) > 1:
        factors[-1] = Factor(factors[-1].name, factors[-1].values, {"f0": (1,)})
    return factors


@given(sizes)
def test_factorial_is_the_product(counts: list[int]) -> None:
    """Every combination, each once."""
    found = choices(factors_of(counts), Factorial())
    product = 1
    for count in counts:
        product *= count
    assert len(found) == len({tuple(choice.items()) for choice in found}) == product


@given(sizes, st.data())
def test_one_factor_differs_once_from_the_baseline(counts: list[int], data: st.DataObject) -> None:
    """The baseline comes first, and every other arm differs from it in exactly one factor; none is missing."""
    factors = [
        Factor(f.name, f.values, baseline=data.draw(st.integers(0, len(f.values) - 1))) for f in factors_of(counts)
    ]
    baseline, *others = choices(factors, OneFactor())
    assert baseline == {f.name: f.baseline for f in factors} == reference(factors, OneFactor())
    assert all(sum(other[name] != baseline[name] for name in baseline) == 1 for other in others)
    assert len(others) == sum(len(f.values) - 1 for f in factors)


@given(sizes)
def test_leave_one_out_takes_one_back(counts: list[int]) -> None:
    """The full method comes first, and each factor is put back to its baseline once."""
    full, *others = choices(factors_of(counts), LeaveOneOut())
    assert full == {f"f{i}": count - 1 for i, count in enumerate(counts)}
    assert others == [{**full, f"f{i}": 0} for i in range(len(counts))]


@given(sizes, st.integers(1, 30), st.integers(0, 5))
def test_random_draws_without_replacement(counts: list[int], samples: int, seed: int) -> None:
    """As many different combinations as asked for or exist; the same seed draws the same; the baseline is kept."""
    everything = choices(factors_of(counts), Factorial())
    design = RandomSample(samples=samples, seed=seed)
    found = choices(factors_of(counts), design)
    assert len(found) == len({tuple(choice.items()) for choice in found}) == min(samples, len(everything))
    assert all(choice in everything for choice in found)
    assert found == choices(factors_of(counts), design)
    assert choices(factors_of(counts), design, with_baseline=True)[0] == {f"f{i}": 0 for i in range(len(counts))}


@given(st.lists(st.integers(2, 4), min_size=2, max_size=4), st.sampled_from([Factorial(), OneFactor(), LeaveOneOut()]))
def test_conditions_hold_in_every_design(counts: list[int], design: Factorial | OneFactor | LeaveOneOut) -> None:
    """A conditional factor is in an arm exactly when its condition is met there."""
    factors = factors_of(counts, conditional=True)
    for choice in choices(factors, design):
        assert (factors[-1].name in choice) == (choice["f0"] == 1)


def test_too_many_arms_are_refused() -> None:
    """A product beyond any budget is an error, found without making it."""
    with pytest.raises(ValueError, match="more than 100000 arms"):
        choices(factors_of([10] * 12), Factorial())


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-1000, 1000) | st.floats(-1e6, 1e6) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def respelled(value: Any, rng: random.Random) -> Any:
    """The same value with keys in another order and whole numbers as floats."""
    if isinstance(value, dict):
        items = list(value.items())
        rng.shuffle(items)
        return {key: respelled(item, rng) for key, item in items}
    if isinstance(value, list):
        return [respelled(item, rng) for item in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


@given(st.dictionaries(st.text(max_size=4), plain, max_size=4), st.randoms())
def test_identity_ignores_spelling(config: dict[str, Any], rng: random.Random) -> None:
    """The order of keys and the spelling of numbers do not change a trial's name; a value does."""
    assert trial_id(config, {}) == trial_id(respelled(config, rng), {})
    assert trial_id({**config, "more": 1}, {}) != trial_id({**config, "more": 2}, {})
    assert trial_id(config, {"views": "a"}) != trial_id(config, {"views": "b"})


def test_names_survive_the_way_a_space_is_written(toys: ToySweep) -> None:
    """The same trials under another spelling of the space have the same names."""
    before = {trial.id for trial in toys.plan().trials}
    toys.text = toys.text.replace("[0.1, 0.2]", "[2e-1, .1]").replace("iterations: 3", "iterations: 3.0")
    assert {trial.id for trial in toys.plan().trials} == before


def test_a_plan_pairs_seeds_across_arms(toys: ToySweep) -> None:
    """Every scene × arm has the same seeds, seed by seed; names are unique, 12 hex digits; an arm has one digest."""
    plan = toys.plan("repeats=3")
    assert len({trial.id for trial in plan.trials}) == len(plan.trials) == 12
    assert all(len(trial.id) == 12 and int(trial.id, 16) >= 0 for trial in plan.trials)
    assert [trial.seed for trial in plan.trials] == sorted(trial.seed for trial in plan.trials)
    seeds: dict[str, list[int]] = {}
    for trial in plan.trials:
        seeds.setdefault(trial.arm, []).append(trial.seed)
        assert trial.factors["scene"] == trial.scene
    assert sorted(seeds.values()) == [[0, 1, 2]] * 4
    assert sum(plan.is_baseline(trial) for trial in plan.trials) == 6


def test_more_repeats_keep_the_names(toys: ToySweep) -> None:
    """Raising the number of seeds adds trials and renames none."""
    few, many = ({t.id for t in toys.plan(f"repeats={n}").trials} for n in (2, 5))
    assert few < many


def test_stages_are_shared_and_ordered(toys: ToySweep) -> None:
    """Trials that differ in what a stage does not read share it; inputs come before what is made from them."""
    plan = toys.plan()
    assert len(plan.trials) == 8
    levels = plan.levels(plan.specs)
    assert [[spec.kind for spec in level] for level in levels] == [
        ["toy_trainable:RAW"] * 2,
        ["toy_trainable:NUMBERS"] * 2,
    ]
    one = plan.stages[plan.trials[0].id].values()
    assert [len(level) for level in plan.levels(one)] == [1, 1]


def test_built_in_trials_share_views_across_losses() -> None:
    """All losses and seeds of one scene read the same views, buffer and queries, and but for trunks nothing else."""
    settings = ["repeats=2", "trial.encoder={name: dense-hog}", "share_prefixes=false"]
    plan = make_plan(load_space("losses", settings))
    for scene in ("gate", "rotunda", "cathedral"):
        stages = [plan.stages[trial.id] for trial in plan.trials if trial.scene == scene]
        assert len(stages) == 6
        assert all(stage == stages[0] for stage in stages)


def test_warnings_name_what_cannot_be_concluded(toys: ToySweep) -> None:
    """A single seed, early stopping in a comparison, and factors that are never varied are told."""
    assert any("repeats=3" in warning for warning in toys.plan("repeats=1").warnings)
    assert (toys.plan("repeats=2").warnings, toys.plan("repeats=2").pairs) == ((), 2)
    stopping = "stop={scheduler: asha, metric: validation/synthetic/translation_error_median_m}"
    assert any("biased" in warning for warning in toys.plan("repeats=3", stopping).warnings)
    conditional = "factors.training.batch_size={values: [1, 2], when: {training.learning_rate: 0.2}}"
    told = toys.plan("repeats=3", "design=one_factor", conditional).warnings
    assert told == ("factor training.batch_size is never varied by this design",)


def test_reported_metrics_are_those_of_the_localizer() -> None:
    """The names that objectives may use are the names that the evaluation gives."""
    from cadloc.localization import Estimate
    from cadloc.metrics import PoseErrors, summary

    failed = Estimate(None, 0, 0.0, 0.0, 0.1)
    told = summary(PoseErrors.of([failed], np.eye(4)[None]), [failed], 1.0, 10.0)
    assert set(POSE_METRICS) == set(told)
    known = reported_metrics(TrialConfig(scene=SceneConfig(name="gate", built_in=True)))
    assert known is not None
    assert {f"test/{domain}/{name}" for domain in ("synthetic", "photo") for name in told} < known
