"""What a sweep has to do is handed out once, in the order of need, as soon as it can be done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from cadloc.contract import Json, StageSpec
from cadloc.prefixes import TRUNK
from cadloc_sweep.agenda import Agenda, order_of_need
from cadloc_sweep.executors import StageEvent, StageJob
from cadloc_sweep.plan import Plan
from cadloc_sweep.stages import StageStore

if TYPE_CHECKING:
    from conftest import ToySweep

RAW, NUMBERS = "toy_trainable:RAW", "toy_trainable:NUMBERS"


@pytest.fixture
def agenda(toys: ToySweep) -> Iterator[Agenda]:
    """Eight trials, two scenes in turn, nothing built."""
    with closing(fresh(toys)) as made:
        yield made


def fresh(toys: ToySweep, plan: Plan | None = None) -> Agenda:
    """The agenda of a plan, the toy sweep's own unless another is given, over its store as it is."""
    plan = plan or toys.plan()
    return Agenda(plan, plan.trials, toys.paths, StageStore(toys.paths.store))


def with_stages(plan: Plan, scene: str, **more: StageSpec) -> Plan:
    """The plan, of which trials of a scene read more stages, by role; these are made from each other, in order."""
    specs = {**plan.specs, **{spec.key: spec for spec in more.values()}}
    reads = {role: spec.key for role, spec in more.items()}
    stages = {trial.id: {**plan.stages[trial.id], **(reads if trial.scene == scene else {})} for trial in plan.trials}
    return replace(plan, specs=specs, stages=stages)


def raw(name: str) -> StageSpec:
    """A stage that is made from nothing."""
    return StageSpec(RAW, "1", {"name": name})


def trunk(until: int, before: StageSpec | None = None) -> StageSpec:
    """A trunk, that nobody trains here."""
    config: dict[str, Json] = {"until": until}
    return StageSpec(TRUNK, "1", config, {} if before is None else {TRUNK: before})


def failure(job: StageJob | None) -> StageEvent:
    """What an executor says of a stage that fails."""
    assert job is not None
    return StageEvent(job, "failed", error=RuntimeError("no"))


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
    order = order_of_need(plan, plan.trials)
    assert [plan.specs[key].kind for key in order] == [RAW, NUMBERS] * 2
    assert all(inputs == tuple(s.key for s in plan.specs[key].inputs.values()) for key, inputs in order.items())
    first, last = plan.trials[0], plan.trials[-1]
    backwards = order_of_need(plan, [last, first])
    assert list(backwards) == [*order_of_need(plan, [last]), *order_of_need(plan, [first])]


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
    event = failure(agenda.next_job())
    lost = agenda.failed(event)
    assert [(task.trial.scene, task.trial.seed) for task, _ in lost] == [("gate", 0)] * 2 + [("gate", 1)] * 2
    assert {cause.error for _, cause in lost} == {event.error}
    build(agenda, agenda.next_job())
    build(agenda, agenda.next_job())
    assert handed_out(agenda) == ["rotunda 0"] * 2 + ["rotunda 1"] * 2
    assert not agenda.left


def test_what_nobody_needs_any_more_is_not_made(toys: ToySweep) -> None:
    """Of the stages of trials that are lost with another, one that is under way is completed, and no other is begun."""
    begun, later = raw("begun"), raw("later")
    with closing(fresh(toys, with_stages(toys.plan(), "gate", begun=begun, later=later))) as agenda:
        failed, under_way = agenda.next_job(), agenda.next_job()
        assert under_way is not None
        assert under_way.spec == begun
        assert len(agenda.failed(failure(failed))) == 4
        assert [spec.kind for spec in agenda.missing] == [RAW, RAW, NUMBERS]
        assert later not in agenda.missing
        build(agenda, under_way)
        build(agenda, agenda.next_job())
        build(agenda, agenda.next_job())
        assert handed_out(agenda) == ["rotunda 0"] * 2 + ["rotunda 1"] * 2
        assert not agenda.left


@pytest.mark.parametrize("sound", [0, 1, 2])
def test_trials_of_a_trunk_that_fails_begin_where_the_last_one_before_it_ends(toys: ToySweep, sound: int) -> None:
    """Of a chain of three trunks, so many are made before one fails: no trial is lost, none of the later trunks is
    begun, and all trials read the last one that there is, or none."""
    chain = [trunk(10)]
    chain += [trunk(20, chain[0])]
    chain += [trunk(30, chain[1])]
    plan = toys.plan()
    stages = {trial.id: {TRUNK: chain[2].key} for trial in plan.trials}
    plan = replace(plan, specs={spec.key: spec for spec in chain}, stages=stages)
    with closing(fresh(toys, plan)) as agenda:
        for spec in chain[:sound]:
            job = agenda.next_job()
            assert job is not None
            assert job.spec == spec
            agenda.built(job, 1, 0.0)
        assert agenda.failed(failure(agenda.next_job())) == []
        assert not agenda.building
        expected = {TRUNK: StageStore(toys.paths.store).directory(chain[sound - 1])} if sound else {}
        assert [task.stages for task in agenda.tasks] == [expected] * 8
        assert [task.trial.id for task in iter(agenda.next_task, None)] == [trial.id for trial in plan.trials]


def test_a_failed_trunk_saves_no_trial_from_another_stage(toys: ToySweep) -> None:
    """Where what it is made from fails, a trunk is done without; trials that need that, too, fail all the same."""
    made_from = StageSpec(TRUNK, "1", {"until": 10}, {"raw": raw("lost")})
    with closing(fresh(toys, with_stages(toys.plan(), "gate", raw=raw("lost"), trunk=made_from))) as agenda:
        agenda.next_job()
        lost = agenda.failed(failure(agenda.next_job()))
        assert [(task.trial.scene, TRUNK in task.stages) for task, _ in lost] == [("gate", False)] * 4


def test_asking_for_work_computes_no_key(agenda: Agenda, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are digests of all that a stage is made from: there are hundreds of stages, and they are asked for again
    and again."""
    jobs = [agenda.next_job(), agenda.next_job()]
    monkeypatch.setattr("cadloc.contract.digest", lambda _: pytest.fail("a key is computed"))
    assert (agenda.next_job(), agenda.next_task()) == (None, None)
    assert [agenda.rank(job) for job in jobs if job is not None] == [0, 2]


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
