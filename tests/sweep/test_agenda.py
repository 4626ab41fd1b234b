"""What a sweep has to do is handed out once, in the order of need, as soon as it can be done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from cadloc_sweep.agenda import Agenda, order_of_need
from cadloc_sweep.executors import StageEvent, StageJob
from cadloc_sweep.stages import StageStore

if TYPE_CHECKING:
    from conftest import ToySweep

RAW, NUMBERS = "toy_trainable:RAW", "toy_trainable:NUMBERS"


@pytest.fixture
def agenda(toys: ToySweep) -> Iterator[Agenda]:
    """Eight trials, two scenes in turn, nothing built."""
    with closing(fresh(toys)) as made:
        yield made


def fresh(toys: ToySweep) -> Agenda:
    """The toy sweep's agenda, over its store as it is."""
    plan = toys.plan()
    return Agenda(plan, plan.trials, toys.paths, StageStore(toys.paths.store))


def build(agenda: Agenda, job: StageJob | None) -> StageJob:
    """Makes a job's stage and tells the agenda."""
    assert job is not None
    for chunk in range(job.chunks()):
        job.build_chunk(chunk)
    job.finish()
    agenda.built(job, 1, 0.0)
    return job


def handed_out(agenda: Agenda) -> list[str]:
    """Trials, as scene and seed, that are there to run now."""
    found = []
    while (task := agenda.next_task()) is not None:
        found.append(f"{task.trial.scene} {task.trial.seed}")
    return found


def test_stages_are_wanted_in_the_order_of_the_trials_inputs_first(toys: ToySweep) -> None:
    """Another order of the trials gives another order of the stages; what a stage is made from precedes it."""
    plan = toys.plan()
    assert [spec.kind for spec in order_of_need(plan, plan.trials)] == [RAW, NUMBERS] * 2
    first, last = plan.trials[0], plan.trials[-1]
    backwards = order_of_need(plan, [last, first])
    assert backwards == [*order_of_need(plan, [last]), *order_of_need(plan, [first])]


def test_a_stage_is_begun_once_and_only_when_its_inputs_are_there(agenda: Agenda) -> None:
    """Both scenes begin with what needs nothing; what is made from it follows whichever is built first."""
    jobs = [agenda.next_job(), agenda.next_job()]
    assert [job and job.spec.kind for job in jobs] == [RAW, RAW]
    assert agenda.next_job() is None
    build(agenda, jobs[1])
    following = agenda.next_job()
    assert following is not None
    assert following.spec.inputs["raw"].key == (jobs[1] and jobs[1].spec.key)


def test_a_stage_that_earlier_trials_need_goes_before_later_ones(agenda: Agenda) -> None:
    """What follows a built stage is handed out before what later trials need, and nothing else is."""
    first = build(agenda, agenda.next_job())
    later = agenda.next_job(before=agenda.rank(first))
    assert later is None
    following = agenda.next_job(before=2)
    assert following is not None
    assert (following.spec.kind, agenda.rank(following)) == (NUMBERS, 1)


def test_a_trial_is_handed_out_as_soon_as_its_own_stages_are_there(agenda: Agenda) -> None:
    """Whichever scene is complete first; in the plan's order among those that are."""
    other = [agenda.next_job(), agenda.next_job()][1]
    build(agenda, other)
    build(agenda, agenda.next_job())
    assert agenda.next_task(in_order=True) is None
    assert agenda.ready is not None
    assert handed_out(agenda) == ["rotunda 0"] * 2 + ["rotunda 1"] * 2
    assert agenda.trials_left


def test_with_all_stages_there_trials_come_in_the_plans_order(toys: ToySweep) -> None:
    """Seed by seed, as planned, with nothing to build."""
    toys.run()
    with closing(fresh(toys)) as agenda:
        assert (agenda.missing, agenda.building) == ([], False)
        assert handed_out(agenda) == [f"{trial.scene} {trial.seed}" for trial in toys.plan().trials]
        assert not agenda.left


def test_a_stage_that_another_builds_is_passed_over_and_found_later(
    agenda: Agenda, toys: ToySweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one sweep builds a stage, another goes on to the next; what was built there is used here."""
    monkeypatch.setattr("cadloc_sweep.agenda.POLL_S", 0.0)
    job = agenda.next_job()
    with closing(fresh(toys)) as other:
        theirs = [other.next_job()]
        assert theirs[0] is not None
        assert theirs[0].spec.key != (job and job.spec.key)
        assert other.next_job() is None
        build(agenda, job)
        after = other.next_job()
        assert after is not None
        assert after.spec.kind == NUMBERS


def test_a_stage_that_fails_takes_its_trials_and_nothing_else(agenda: Agenda) -> None:
    """What is made from it is given up, too; the other scene goes on."""
    job = agenda.next_job()
    assert job is not None
    event = StageEvent(job, "failed", error=RuntimeError("no"))
    lost = agenda.failed(event)
    assert [(task.trial.scene, task.trial.seed) for task, _ in lost] == [("gate", 0)] * 2 + [("gate", 1)] * 2
    assert {cause.error for _, cause in lost} == {event.error}
    build(agenda, agenda.next_job())
    build(agenda, agenda.next_job())
    assert handed_out(agenda) == ["rotunda 0"] * 2 + ["rotunda 1"] * 2
    assert not agenda.left


def test_closing_gives_back_what_was_begun(toys: ToySweep) -> None:
    """Nothing half made stays, and whoever comes next may build it."""
    agenda = fresh(toys)
    job = agenda.next_job()
    assert job is not None
    job.build_chunk(0)
    agenda.close()
    assert not job.directory.exists()
    with closing(fresh(toys)) as again:
        assert again.next_job() == job
