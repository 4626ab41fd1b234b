"""Where stages and trials run: one seam, one module per place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from cadloc.catalog import stage_builder
from cadloc.contract import Progress, StageSpec
from cadloc_sweep.trials import Trial, TrialResult

if TYPE_CHECKING:
    from cadloc_sweep.agenda import Agenda


@dataclass(frozen=True)
class StageJob:
    """A stage to be made in `directory` from its finished `inputs` by role. Safe to send.

    The directory exists; it is empty but for kinds in `cadloc.catalog.RESUMABLE`.
    """

    spec: StageSpec
    inputs: Mapping[str, Path]
    directory: Path

    def chunks(self) -> int:
        """Number of independent pieces. Imports the builder: call it where the work is done."""
        return stage_builder(self.spec.kind).chunks(self.spec.config, self.inputs)

    def build_chunk(self, chunk: int) -> int:
        """Makes one piece; returns the number of items made."""
        return stage_builder(self.spec.kind).build_chunk(self.spec.config, self.inputs, self.directory, chunk)

    def finish(self) -> None:
        """Joins the pieces, after all of them."""
        stage_builder(self.spec.kind).finish(self.spec.config, self.inputs, self.directory)


@dataclass(frozen=True)
class StageEvent:
    """Progress of one stage.

    `chunk`: one more of `total` pieces is `done`, and it made `items`; `built`: complete and finished after
    `seconds` of work (summed over its pieces); `failed`: given up, with the error and its traceback.
    """

    job: StageJob
    kind: Literal["chunk", "built", "failed"]
    done: int = 0
    total: int = 0
    items: int = 0
    seconds: float = 0.0
    error: Exception | None = None
    traceback: str = ""


@dataclass(frozen=True)
class TrialTask:
    """A trial to be run in `directory`, with its finished stages by role. Safe to send."""

    trial: Trial
    stages: Mapping[str, Path]
    directory: Path


@dataclass(frozen=True)
class TrialEvent:
    """Progress of one trial; `result` comes with `ended` (whatever the status), `progress` with `progress`."""

    trial_id: str
    kind: Literal["started", "progress", "ended"]
    progress: Progress | None = None
    result: TrialResult | None = None


class Executor(Protocol):
    """A place to work. Callbacks are called on the thread that called the method, one at a time.

    `cadloc_sweep.worker.trial_steps` is what runs a trial in whichever process; it writes the trial's files,
    `result.json` included. Where a worker dies without writing, the executor makes the result itself with
    `cadloc_sweep.worker.lost_result`. A failing stage or trial is an event, never an exception; exceptions are
    for the place itself (`ExecutorUnreachable`, `OutOfResources`).
    """

    def build_stages(self, jobs: Sequence[StageJob], on_event: Callable[[StageEvent], None]) -> None:
        """Builds jobs that do not need each other, in parallel where it can; every job ends as `built` or `failed`
        unless drained."""
        ...

    def run(
        self, agenda: Agenda, on_stage: Callable[[StageEvent], None], on_trial: Callable[[TrialEvent], None]
    ) -> None:
        """Builds the agenda's stages and runs its trials, each as soon as it can be; returns early when drained.

        `on_stage` tells the agenda of every stage that was built or failed. Each trial started also ends.
        """
        ...

    def drain(self) -> None:
        """Asks to start nothing new and to end running trials at their next progress, as `interrupted`.

        Safe to call from a signal handler and from an event callback; the method that is running returns soon.
        """
        ...

    def close(self) -> None:
        """Gives back what it holds; safe to call twice."""
        ...
