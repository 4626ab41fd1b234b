"""The `run` command: a space's name becomes a finished sweep, its table, and the way to look further."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console

from cadloc.contract import Fault, InputError, Progress
from cadloc_sweep.displays import Display
from cadloc_sweep.executors import Executor
from cadloc_sweep.executors.inline import InlineExecutor
from cadloc_sweep.failures import ExitCode
from cadloc_sweep.outcomes import Outcome
from cadloc_sweep.plan import Plan, make_plan
from cadloc_sweep.progress import make_display
from cadloc_sweep.space_settings import NoStop, Objective, Stop
from cadloc_sweep.spaces import SearchSpace, load_space
from cadloc_sweep.stages import StageStore
from cadloc_sweep.sweep import run_sweep
from cadloc_sweep.trackers import Tracker
from cadloc_sweep.trackers.jsonl import JsonlTracker
from cadloc_sweep.trackers.own_store import without_password
from cadloc_sweep.trials import Resources, SweepPaths, Trial, TrialResult

PROGRAM = "cadloc-sweep"

LOCAL = "local"
"""Address of a Ray of our own."""

ExecutorName = Literal["ray", "inline"]


@dataclass(frozen=True)
class Place:
    """Where the work is done: in this process, or on a Ray (this machine's, or a cluster's).

    Raises InputError for options that would be ignored there.
    """

    executor: ExecutorName = "ray"
    address: str = LOCAL
    cpus: int | None = None
    gpus: int | None = None

    def __post_init__(self) -> None:
        sizes = {"--cpus": self.cpus, "--gpus": self.gpus}
        ignored = [option for option, value in sizes.items() if value is not None]
        inline, elsewhere = self.executor == "inline", self.address != LOCAL
        if inline and (ignored or elsewhere):
            found = ", ".join([*ignored, *(["--address"] if elsewhere else [])])
            raise InputError(Fault("--executor", "inline", f"{found} as well", f"{found} with --executor ray only"))
        if elsewhere and ignored:
            found, allowed = f"{', '.join(ignored)} as well", "the size of a local Ray only: a cluster has its own"
            raise InputError(Fault("--address", self.address, found, allowed))

    def make_executor(
        self,
        stop: Stop = NoStop(),  # noqa: B008 -- frozen
        objective: Objective = Objective(),  # noqa: B008 -- frozen
        resources: Resources = Resources(),  # noqa: B008 -- frozen
    ) -> Executor:
        """The executor; ray is imported for `ray` only."""
        if self.executor == "inline":
            return InlineExecutor(stop.scheduler, resources.workers, resources.pack)
        from cadloc_sweep.executors.on_ray import RayExecutor

        return RayExecutor(self.address, self.cpus, self.gpus, stop=stop, objective=objective)


@dataclass(frozen=True)
class Tracking:
    """Which MLflow is told: the one beside the results (`uri` None), another, or none."""

    enabled: bool = True
    uri: str | None = None


def run_space(
    name: str,
    settings: Sequence[str],
    out: Path,
    store: Path | None,
    place: Place,
    tracking: Tracking,
    retry_failed: bool,
    console: Console,
) -> ExitCode:
    """Runs what is missing of a space, prints the table, returns the exit code. Raises what `run_sweep` raises."""
    space = load_space(name, settings)
    plan = make_plan(space)
    paths = SweepPaths(out.expanduser().resolve(), space.name)
    with make_display(console, space.objective) as display:
        for warning in plan.warnings:
            display.note(warning)
        outcome = _sweep(space, plan, paths, store, place, tracking, retry_failed, display)
    _tell(outcome, plan, paths, tracking, console)
    return outcome.exit_code


def _sweep(
    space: SearchSpace,
    plan: Plan,
    paths: SweepPaths,
    store: Path | None,
    place: Place,
    tracking: Tracking,
    retry_failed: bool,
    display: Display,
) -> Outcome:
    trackers = make_trackers(paths, tracking, display.note)
    try:
        return run_sweep(
            space,
            plan,
            paths,
            StageStore(store or paths.store, display.note),
            lambda: place.make_executor(space.stop, space.objective, space.resources),
            trackers,
            display,
            retry_failed,
        )
    finally:
        for tracker in trackers:
            tracker.close()


def make_trackers(paths: SweepPaths, tracking: Tracking, note: Callable[[str], None]) -> list[Tracker]:
    """The event log, and MLflow unless it is switched off."""
    trackers: list[Tracker] = [JsonlTracker(paths.directory / "events.jsonl", note)]
    if tracking.enabled:
        trackers.append(DeferredTracker(lambda: _mlflow(paths, tracking, note)))
    return trackers


def _mlflow(paths: SweepPaths, tracking: Tracking, note: Callable[[str], None]) -> Tracker:
    from cadloc_sweep.trackers.on_mlflow import MlflowTracker

    return MlflowTracker(paths, note, tracking.uri)


class DeferredTracker:
    """A tracker that is made when the sweep starts: a run with nothing to do does not wait for its imports."""

    def __init__(self, make: Callable[[], Tracker]) -> None:
        self._make = make
        self._made: Tracker | None = None

    def start_sweep(self, space: SearchSpace, plan: Plan) -> None:
        """Makes the tracker, and tells it."""
        self._made = self._make()
        self._made.start_sweep(space, plan)

    def trial_started(self, trial: Trial) -> None:
        """Passed on."""
        self._tracker.trial_started(trial)

    def trial_progress(self, trial: Trial, progress: Progress) -> None:
        """Passed on."""
        self._tracker.trial_progress(trial, progress)

    def trial_ended(self, trial: Trial, result: TrialResult, directory: Path) -> None:
        """Passed on."""
        self._tracker.trial_ended(trial, result, directory)

    def end_sweep(self, outcome: Outcome) -> None:
        """Passed on."""
        self._tracker.end_sweep(outcome)

    def close(self) -> None:
        """Passed on, if there was a start."""
        if self._made is not None:
            self._made.close()

    @property
    def _tracker(self) -> Tracker:
        assert self._made is not None, "told of a trial before the sweep started"
        return self._made


def _tell(outcome: Outcome, plan: Plan, paths: SweepPaths, tracking: Tracking, console: Console) -> None:
    """What happened, the table, and what to type next."""

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    if outcome.nothing_to_do:
        say(f"nothing to do: all {outcome.planned} trials of {plan.space_name} ended in earlier runs")
    if any(result.status == "finished" for result in outcome.results.values()):
        from cadloc_sweep.report.results import read_sweep
        from cadloc_sweep.report.tables import as_rich

        console.print(as_rich(read_sweep(paths.directory), console.width))
    for result in outcome.results.values():
        if result.status == "failed":
            say(f"failed: {result.id}: {result.error} (see {result.log})")
    say(", ".join(f"{count} {status}" for status, count in outcome.counts.items()) + f"; results in {paths.directory}")
    if outcome.exit_code is ExitCode.INTERRUPTED:
        say("interrupted; the same command goes on from here")
    if outcome.exit_code is ExitCode.TRIALS_FAILED:
        say("--retry-failed runs the failed ones again")
    if tracking.enabled:
        command = shlex.join([program(), "ui", "--out", str(paths.out)])
        say(f"compare the runs: {without_password(tracking.uri) if tracking.uri else command}")


def program() -> str:
    """How this program is called: by its name where the shell finds it so, else by the path it was called by."""
    invoked, found = Path(sys.argv[0]), shutil.which(PROGRAM)
    if invoked.name != PROGRAM or (found and Path(found).resolve() == invoked.resolve()):
        return PROGRAM
    return str(invoked)
