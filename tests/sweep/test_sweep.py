"""Whole sweeps of a toy trainable: idempotent, resumable, honest about failure."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cadloc.contract import InputError, Progress
from cadloc_sweep.agenda import Agenda
from cadloc_sweep.executors import StageEvent, TrialEvent
from cadloc_sweep.executors.inline import InlineExecutor
from cadloc_sweep.failures import ExitCode, OutOfResources, SweepLocked, exit_code_of
from cadloc_sweep.lock import SweepLock
from cadloc_sweep.trackers.jsonl import JsonlTracker
from cadloc_sweep.trials import trial_from_file
from cadloc_sweep.worker import read_history

if TYPE_CHECKING:
    from conftest import ToySweep

STEPS = [(1, False), (2, False), (3, False)]
TROUBLE = "trial.training.weight_decay=0.5"


class Recording(InlineExecutor):
    """The inline executor, remembering what it was asked to do, and draining after some trials' progress."""

    def __init__(self, drain_after: int | None = None) -> None:
        super().__init__()
        self.done: list[str] = []
        self.trials: list[str] = []
        self._left = drain_after

    def run(
        self, agenda: Agenda, on_stage: Callable[[StageEvent], None], on_trial: Callable[[TrialEvent], None]
    ) -> None:
        def built(event: StageEvent) -> None:
            self.done += [event.job.spec.kind] if event.kind == "built" else []
            on_stage(event)

        def watched(event: TrialEvent) -> None:
            on_trial(event)
            self.done += [event.trial_id] if event.kind == "ended" else []
            if event.kind == "progress" and self._left is not None:
                self._left -= 1
                if self._left == 0:
                    self.drain()

        self.trials += [task.trial.id for task in agenda.tasks]
        super().run(agenda, built, watched)


def elsewhere(toys: ToySweep, name: str) -> ToySweep:
    """The same space in another place."""
    folder = toys.folder / name
    folder.mkdir()
    return type(toys)(folder, toys.text)


def test_a_sweep_finishes_and_leaves_everything_behind(toys: ToySweep) -> None:
    """Every trial has config, history and a result; space and plan stand beside them; the answer is 0."""
    outcome = toys.run()
    assert (outcome.counts, outcome.exit_code, outcome.run_now) == ({"finished": 8}, ExitCode.FINISHED, 8)
    for trial in toys.plan().trials:
        paths = toys.paths.trial(trial.id)
        assert trial_from_file(paths) == trial
        history = read_history(paths.history)
        assert [(progress.step, progress.finished) for progress in history] == [*STEPS, (3, True)]
        assert outcome.results[trial.id].metrics == {**history[-2].metrics, **history[-1].metrics}
    plan = json.loads(toys.paths.plan.read_text())
    assert [trial["id"] for trial in plan["trials"]] == [trial.id for trial in toys.plan().trials]
    assert toys.paths.space.read_text().startswith("# Does the platform work?\n")


def test_a_second_run_does_nothing(toys: ToySweep) -> None:
    """Running again makes no executor, builds nothing, and answers as before."""
    toys.run()

    def never() -> Recording:
        raise AssertionError("there was nothing to do")

    again = toys.run(make_executor=never)
    assert again.nothing_to_do
    assert (again.counts, again.exit_code) == ({"finished": 8}, ExitCode.FINISHED)


def test_stages_are_built_once(toys: ToySweep) -> None:
    """Eight trials on two scenes need each stage of a scene once; more seeds need none."""
    toys.run()
    assert toys.store.built == {"toy_trainable:RAW": 2, "toy_trainable:NUMBERS": 2}
    toys.run("repeats=4")
    assert not toys.store.built


def test_stages_are_built_when_a_trial_needs_them(toys: ToySweep) -> None:
    """Inline, the trials of the first scene run before the stages of the second one are built, seed by seed."""
    executor = Recording()
    toys.run(make_executor=lambda: executor)
    stages = ["toy_trainable:RAW", "toy_trainable:NUMBERS"]
    trials = [trial.id for trial in toys.plan().trials]
    assert executor.done == [*stages, *trials[:2], *stages, *trials[2:]]


def test_more_repeats_run_only_the_new_trials(toys: ToySweep) -> None:
    """A raised seed count adds its trials; a lowered one runs nothing."""
    executor = Recording()
    first = set(toys.run().results)
    more = toys.run("repeats=3", make_executor=lambda: executor)
    assert set(executor.trials) == set(more.results) - first
    assert len(executor.trials) == 4
    assert toys.run("repeats=1").run_now == 0


def test_a_failed_trial_is_a_result(toys: ToySweep) -> None:
    """An exception fails its trial with traceback and log; the others go on; it runs again only when asked to."""
    toys.text += "  training.weight_decay: [0.0, 0.5]\n"
    outcome = toys.run()
    assert (outcome.counts, outcome.exit_code) == ({"finished": 8, "failed": 8}, ExitCode.TRIALS_FAILED)
    failed = next(result for result in outcome.results.values() if result.status == "failed")
    assert failed.error == "RuntimeError: asked for trouble"
    assert "toy_trainable.py" in str(failed.traceback)
    assert "asked for trouble" in Path(str(failed.log)).read_text()
    assert toys.run().run_now == 0
    assert toys.run().exit_code is ExitCode.TRIALS_FAILED
    assert toys.run(retry_failed=True).run_now == 8


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ("trial.training.weight_decay=0.25", "the helper is gone"),
        ("trial.training.weight_decay=0.75", "not a finite number"),
        ("trial.training.weight_decay=1", "without a finished progress"),
        ("resources.max_runtime_s=1e-9", "ran longer than"),
    ],
)
def test_trials_that_go_wrong_quietly_fail_loudly(toys: ToySweep, setting: str, error: str) -> None:
    """A helper that is gone, a metric that is not finite, no finished progress at the end and an overrun: failures."""
    outcome = toys.run("repeats=1", "scenes=[gate]", setting)
    assert {result.status for result in outcome.results.values()} == {"failed"}
    assert all(error in str(result.error) for result in outcome.results.values())


def test_a_failed_stage_fails_its_trials_alone(toys: ToySweep) -> None:
    """Trials whose stage cannot be made fail with its error; the others finish."""
    toys.text += "  views.seed: [0, 13]\n"
    outcome = toys.run("repeats=1")
    assert outcome.counts == {"finished": 4, "failed": 4}
    errors = {result.error for result in outcome.results.values() if result.status == "failed"}
    assert errors == {"stage toy_trainable:NUMBERS failed: no numbers today"}


def test_a_drained_sweep_goes_on_where_it_stood(toys: ToySweep) -> None:
    """Draining ends the running trial at its next progress; the next run resumes it to the same numbers and history."""
    reference = elsewhere(toys, "reference")
    expected = {key: result.metrics for key, result in reference.run().results.items()}
    drained = toys.run(make_executor=lambda: Recording(drain_after=5))
    assert drained.exit_code is ExitCode.INTERRUPTED
    assert drained.counts == {"finished": 1, "interrupted": 1, "missing": 6}
    executor = Recording()
    finished = toys.run(make_executor=lambda: executor)
    assert len(executor.trials) == 7
    assert {key: result.metrics for key, result in finished.results.items()} == expected
    for key in finished.results:
        history = read_history(toys.paths.trial(key).history)
        assert [(progress.step, progress.finished) for progress in history] == [*STEPS, (3, True)]


def test_an_interrupt_drains(toys: ToySweep) -> None:
    """The first SIGINT lets the trial reach its next progress and ends the sweep as interrupted."""

    class Interrupting(JsonlTracker):
        def trial_progress(self, trial: object, progress: Progress) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    toys.paths.directory.mkdir(parents=True)
    tracker = Interrupting(toys.paths.directory / "events.jsonl", pytest.fail)
    before = signal.getsignal(signal.SIGINT)
    outcome = toys.run("scenes=[gate]", "repeats=1", trackers=[tracker])
    assert outcome.exit_code is ExitCode.INTERRUPTED
    assert outcome.counts == {"interrupted": 1, "missing": 1}
    assert signal.getsignal(signal.SIGINT) is before


def test_a_stop_request_drains(toys: ToySweep) -> None:
    """A file in the control folder ends the sweep at the next event; the next run ignores the old request."""

    class Requesting(JsonlTracker):
        def trial_started(self, trial: object) -> None:
            toys.paths.stop_request.touch()

    tracker = Requesting(toys.folder / "events.jsonl", pytest.fail)
    assert toys.run(trackers=[tracker]).exit_code is ExitCode.INTERRUPTED
    assert toys.run().exit_code is ExitCode.FINISHED


def test_a_killed_driver_loses_nothing(toys: ToySweep) -> None:
    """After SIGKILL at any progress, further runs finish the sweep: no finished trial runs twice, numbers agree."""
    expected = {k: r.metrics for k, r in elsewhere(toys, "reference").run("repeats=1").results.items()}
    code = (
        "import os, sys; sys.path[:0] = sys.argv[3:]; import conftest; from pathlib import Path\n"
        "from cadloc_sweep.trackers.jsonl import JsonlTracker\n"
        "class Killing(JsonlTracker):\n"
        "    left = int(sys.argv[2])\n"
        "    def trial_progress(self, trial, progress):\n"
        "        super().trial_progress(trial, progress)\n"
        "        self.left -= 1\n"
        "        self.left or os.kill(os.getpid(), 9)\n"
        "folder = Path(sys.argv[1])\n"
        "conftest.ToySweep(folder).run('repeats=1', trackers=[Killing(folder / 'events.jsonl', print)])\n"
    )
    for kill in range(3):
        arguments = [sys.executable, "-c", code, str(toys.folder), str(2 + 2 * kill), str(Path(__file__).parent)]
        assert subprocess.run(arguments, timeout=120, check=False).returncode == -signal.SIGKILL
    finished = toys.run("repeats=1")
    assert {key: result.metrics for key, result in finished.results.items()} == expected
    assert finished.exit_code is ExitCode.FINISHED
    events = [json.loads(line) for line in toys.paths.ledger.read_text().splitlines()]
    ends = [event["trial"] for event in events if event["event"] == "ended"]
    assert sorted(ends) == sorted(expected)


def test_trackers_are_told_what_no_driver_lived_to_tell(toys: ToySweep) -> None:
    """A result whose driver died before recording it is told by the next run, once."""
    toys.run("repeats=1")
    toys.paths.ledger.unlink()
    for _ in range(2):
        tracker = JsonlTracker(toys.folder / "events.jsonl", pytest.fail)
        toys.run("repeats=1", trackers=[tracker])
    events = [json.loads(line)["event"] for line in (toys.folder / "events.jsonl").read_text().splitlines()]
    assert events.count("trial_ended") == 4
    assert events.count("sweep_started") == 1


def test_a_tracker_that_cannot_write_says_so_once(toys: ToySweep) -> None:
    """Losing a tracker costs the sweep nothing."""
    notes: list[str] = []
    outcome = toys.run("repeats=1", trackers=[JsonlTracker(toys.folder, notes.append)])
    assert outcome.exit_code is ExitCode.FINISHED
    assert len(notes) == 1


def test_a_sweep_is_driven_by_one_process(toys: ToySweep) -> None:
    """A second driver is refused with its own exit code."""
    with SweepLock(toys.paths.lock), pytest.raises(SweepLocked) as caught:
        toys.run()
    assert exit_code_of(caught.value) is ExitCode.LOCKED


def test_a_full_disk_interrupts_and_says_so(toys: ToySweep, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a trial finds the disk full it is interrupted, not failed, and nothing more is started."""
    import toy_trainable

    def full(config: object, context: object) -> object:
        raise OSError(errno.ENOSPC, "No space left on device")
        yield

    monkeypatch.setattr(toy_trainable, "train", full)
    outcome = toys.run()
    assert outcome.exit_code is ExitCode.OUT_OF_RESOURCES
    assert outcome.counts == {"interrupted": 1, "missing": 7}


def test_no_room_means_no_start(toys: ToySweep, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is nearly full is told before any work."""
    monkeypatch.setattr("cadloc_sweep.sweep._LEAST_FREE_BYTES", 2**62)
    with pytest.raises(OutOfResources):
        toys.run()
    assert not toys.paths.trials.exists()


def test_the_end_is_told_when_the_place_breaks_down(toys: ToySweep) -> None:
    """Trackers hear that the sweep has ended also when an error ends it."""

    def nowhere() -> InlineExecutor:
        raise OutOfResources("no such place")

    tracker = JsonlTracker(toys.folder / "events.jsonl", pytest.fail)
    with pytest.raises(OutOfResources, match="no such place"):
        toys.run(trackers=[tracker], make_executor=nowhere)
    events = [json.loads(line)["event"] for line in (toys.folder / "events.jsonl").read_text().splitlines()]
    assert events == ["sweep_started", "sweep_ended"]


def test_two_sweeps_share_their_stages(toys: ToySweep) -> None:
    """Sweeps of two spaces that run at the same time build each stage once between them."""
    other = type(toys)(toys.folder, toys.text, "others")
    outcomes = []
    thread = threading.Thread(target=lambda: outcomes.append(other.run()))
    thread.start()
    outcomes.append(toys.run())
    thread.join(60)
    assert [outcome.exit_code for outcome in outcomes] == [ExitCode.FINISHED] * 2
    assert toys.store.built + other.store.built == {"toy_trainable:RAW": 2, "toy_trainable:NUMBERS": 2}


def test_one_after_the_other_cannot_be_stopped_early(toys: ToySweep) -> None:
    """The inline executor refuses a scheduler rather than ignore it."""
    with pytest.raises(InputError, match=r"stop\.scheduler"):
        toys.run(make_executor=lambda: InlineExecutor("asha"))
