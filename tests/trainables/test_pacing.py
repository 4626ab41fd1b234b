"""Where a run stands: learning rates without jumps, progress that arrives exactly when the run ends."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cadloc.loss_config import LossConfig, ReprojectionLoss, SwitchingLoss
from cadloc.losses import phase_at
from cadloc.pacing import Pace
from cadloc.samples import SceneScale
from cadloc.schedules import START_DIVISOR, one_cycle, plateau
from cadloc.training_config import EarlyStop, OneCycle, Plateau, ScheduleConfig, TrainingConfig

PEAK = 5e-3
SCALE = SceneScale(10.0, 0.01, 20.0)


def pace(iterations: int, schedule: ScheduleConfig, loss: LossConfig | None = None) -> Pace:
    """Of a run from its first step on."""
    training = TrainingConfig(iterations=iterations, learning_rate=PEAK, schedule=schedule)
    return Pace(training, loss or ReprojectionLoss())


paces = st.builds(
    pace,
    st.integers(1, 300),
    st.builds(Plateau, warm_up=st.floats(0, 1), cool_down=st.floats(0.01, 1), early_stop=st.just(EarlyStop(window=1))),
)


def stopped(run: Pace, share: float) -> Pace:
    """The run, told to cool down at some share of its iterations."""
    return run.stopped_at(round(share * run.training.iterations))


def rates(run: Pace) -> list[float]:
    """Learning rate of every step of the run."""
    return [run.learning_rate(step) for step in range(run.steps)]


def test_a_plateau_warms_up_holds_and_cools_down_to_almost_nothing() -> None:
    """Ten steps up from a 25th of the peak, the peak, and twenty equal steps down of which the last is not quite 0."""
    found = np.array([plateau(step, 10, 80, 100, PEAK) for step in range(100)])
    assert found[0] == pytest.approx(PEAK / START_DIVISOR)
    np.testing.assert_allclose(np.diff(found[:11]), (PEAK - PEAK / START_DIVISOR) / 10)
    np.testing.assert_array_equal(found[10:80], PEAK)
    np.testing.assert_allclose(np.diff(found[79:]), -PEAK / 21)
    assert found[-1] == pytest.approx(PEAK / 21)


@given(paces, st.floats(0, 1))
def test_no_step_changes_the_rate_by_more_than_a_ramp_does(run: Pace, share: float) -> None:
    """Also in runs that cool down before they are warm, and whenever an early stop comes: no jumps, never over the
    peak, and every run ends as cool as a whole cool-down makes it."""
    run = stopped(run, share)
    schedule = run.training.schedule
    assert isinstance(schedule, Plateau)
    warm_up, cool_down = (round(part * run.training.iterations) for part in (schedule.warm_up, schedule.cool_down))
    found = np.array(rates(run))
    lowest = 1 / (max(cool_down, 1) + 1)
    assert np.abs(np.diff(found)).max(initial=0) <= PEAK * max(1 / max(warm_up, 1), lowest) * (1 + 1e-9)
    assert found.min() > 0
    assert found.max() <= PEAK
    assert found[-1] <= PEAK * lowest * (1 + 1e-9)


@given(paces, st.floats(0, 1))
def test_progress_is_one_when_the_run_ends(run: Pace, share: float) -> None:
    """Whenever it stops: from 0, never back, past the stop without a jump, and exactly 1 at the end, not before."""
    whole, run = run, stopped(run, share)
    found = [run.progress(step) for step in range(run.steps + 1)]
    assert found[0] == 0
    assert found[-1] == 1.0
    assert np.all(np.diff(found) > 0)
    cooling_from = run.cooling_from or 0
    assert found[: cooling_from + 1] == [whole.progress(step) for step in range(cooling_from + 1)]


@given(paces, st.floats(0, 1))
def test_an_early_stop_ends_the_run_after_one_cool_down(run: Pace, share: float) -> None:
    """So many steps later, but never later than the run would have ended; and one run stops once."""
    schedule = run.training.schedule
    assert isinstance(schedule, Plateau)
    assert run.early_stop == schedule.early_stop
    assert run.steps == run.training.iterations
    cooling = stopped(run, share)
    assert cooling.early_stop is None
    assert cooling.cooling_from is not None
    cool_down = max(1, round(schedule.cool_down * run.training.iterations))
    assert cooling.steps == min(run.training.iterations, cooling.cooling_from + cool_down)


def test_an_early_cool_down_is_the_late_one_come_early() -> None:
    """From the stop on, rates are those with which a run that never stops ends."""
    run = pace(200, Plateau(warm_up=0.1, cool_down=0.2, early_stop=EarlyStop(window=1)))
    early = run.stopped_at(75)
    assert rates(early)[:75] == rates(run)[:75]
    assert rates(early)[75:] == rates(run)[160:]
    assert rates(run)[74] == rates(run)[159] == PEAK


def test_a_stop_during_the_last_cool_down_changes_nothing() -> None:
    """There is nothing left to save: rates, steps and progress stay as they were."""
    run = pace(200, Plateau(cool_down=0.2, early_stop=EarlyStop(window=1)))
    late = run.stopped_at(180)
    assert rates(late) == rates(run)
    np.testing.assert_allclose([late.progress(s) for s in range(201)], [run.progress(s) for s in range(201)])


def test_without_a_rule_nothing_stops_a_run() -> None:
    """One cycle never does; a plateau only where it is told when."""
    assert pace(10, OneCycle()).early_stop is None
    assert pace(10, Plateau()).early_stop is None


@pytest.mark.parametrize(("iterations", "at"), [(100, 1 / 3), (30, 0.5), (7, 0.9), (1, 0.5), (3, 0.01)])
def test_after_a_restart_each_loss_has_a_cycle_of_its_own(iterations: int, at: float) -> None:
    """The second cycle begins with the very step whose loss is the second one, and both are whole cycles."""
    loss = SwitchingLoss(at=at, learning_rate="restart")
    run = pace(iterations, OneCycle(), loss)
    units = [phase_at(loss, run.progress(step), SCALE).unit for step in range(iterations)]
    first = units.count("m")
    assert units == ["m"] * first + ["px"] * (iterations - first)
    expected = [one_cycle(step, first, PEAK) for step in range(first)]
    expected += [one_cycle(step, iterations - first, PEAK) for step in range(iterations - first)]
    assert rates(run) == expected
    whole = replace(run, loss=SwitchingLoss(at=at))
    assert rates(whole) == [one_cycle(step, iterations, PEAK) for step in range(iterations)]
