"""MLflow as a projection of the sweep: one run per trial below one run per space. The only module that imports it."""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from cadloc.contract import Progress
from cadloc_sweep.failures import ExitCode
from cadloc_sweep.ledger import read_results
from cadloc_sweep.trackers.curves import Curves, as_tag, from_tag
from cadloc_sweep.trackers.own_store import own_store_uri, without_password, write_ahead
from cadloc_sweep.trackers.run_content import artifacts, end_tags, parameters, run_name, tags
from cadloc_sweep.trials import SweepPaths, Trial, TrialPaths, TrialResult
from cadloc_sweep.worker import read_history

for _name, _value in {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # its default of 7 blocks for minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}.items():
    os.environ.setdefault(_name, _value)

import requests  # noqa: E402 -- after the settings, which MLflow reads when imported
from mlflow import MlflowClient  # noqa: E402
from mlflow.entities import Metric, Param, Run, RunTag  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402
from sqlalchemy.exc import SQLAlchemyError  # noqa: E402

logging.getLogger("mlflow").setLevel(logging.WARNING)  # it announces every table of a new database
logging.getLogger("alembic").setLevel(logging.WARNING)

if TYPE_CHECKING:
    from cadloc_sweep.outcomes import Outcome
    from cadloc_sweep.plan import Plan
    from cadloc_sweep.spaces import SearchSpace

FLUSH_EVERY_S = 2.0
QUIET_AFTER_FAILURE_S = 60.0
MOST_METRICS, MOST_PARAMS = 1000, 100
"""What one batch may hold."""

STEP_TAG = "cadloc.step"
"""Place of the latest progress that a run holds, written in the same batch: a resumed trial goes on after it."""

ENDED_TAG = "cadloc.ended"
"""When the recorded attempt ended; the same end is never recorded twice."""

STATUSES = {"finished": "FINISHED", "stopped": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}

ENDED_BY_ITSELF = (ExitCode.FINISHED, ExitCode.TRIALS_FAILED)

FAILURES = (MlflowException, requests.RequestException, SQLAlchemyError, sqlite3.Error, OSError)

Item = TypeVar("Item")


@dataclass
class _Record:
    """What is known about a trial, and what of it MLflow has not got yet."""

    trial: Trial
    run_id: str = ""
    curves: Curves = field(default_factory=Curves)
    end: tuple[TrialResult, Path] | None = None


class MlflowTracker:
    """Sends in batches from the driver's thread; what could not be sent waits and is tried again a minute later.

    `uri` None: an sqlite database and a folder of artifacts beside the sweeps. Told once through `note` when MLflow
    does not answer; the sweep goes on.
    """

    def __init__(self, paths: SweepPaths, note: Callable[[str], None], uri: str | None = None) -> None:
        self._paths, self._note = paths, note
        self._own_store = uri is None
        self.uri = uri or own_store_uri(paths)
        self._records: dict[str, _Record] = {}
        self._runs: dict[str, Run] = {}
        self._client: MlflowClient | None = None
        self._experiment = self._parent = ""
        self._question = ""
        self._flushed_s = -FLUSH_EVERY_S
        self._quiet_until_s = 0.0
        self._told = False

    def start_sweep(self, space: SearchSpace, plan: Plan) -> None:
        """Finds or makes the sweep's run, and catches up on trials that ended while MLflow was away."""
        self._question = space.question
        self._attempt(self._open)
        results = read_results(self._paths)
        for trial in plan.trials:
            result = results.get(trial.id)
            if result is not None and result.status != "interrupted" and not self._has(result):
                self.trial_ended(trial, result, self._paths.trial(trial.id).directory)

    def trial_started(self, trial: Trial) -> None:
        """Finds or makes the trial's run, as running."""
        record = self._records.setdefault(trial.id, _Record(trial))
        self._attempt(lambda: self._send(record))

    def trial_progress(self, trial: Trial, progress: Progress) -> None:
        """Keeps the metrics for the next batch."""
        record = self._records.setdefault(trial.id, _Record(trial))
        record.curves.add([progress], time.time())
        if time.monotonic() - self._flushed_s >= FLUSH_EVERY_S:
            self._flush()

    def trial_ended(self, trial: Trial, result: TrialResult, directory: Path) -> None:
        """Sends the rest: curves, parameters, files, status."""
        record = self._records.setdefault(trial.id, _Record(trial))
        record.end = (result, directory)
        self._attempt(lambda: self._send(record))

    def end_sweep(self, outcome: Outcome) -> None:
        """Sends what waits, and closes the sweep's run with the number of trials by status."""
        self._flush()
        self._attempt(lambda: self._end_parent(outcome))

    def close(self) -> None:
        """Tries once more to send what waits; says how much does not get there."""
        if self._records:
            self._quiet_until_s = 0.0
            self._flush()
        if self._records:
            left = "the next run that has trials of this space to do sends them"
            self._note(f"{len(self._records)} trial(s) are not in MLflow; {left}")
        self._records.clear()

    # --- when to send -------------------------------------------------------------------------------------

    def _flush(self) -> None:
        self._flushed_s = time.monotonic()
        for record in list(self._records.values()):
            if not self._attempt(lambda record=record: self._send(record)):  # type: ignore[misc]
                return

    def _attempt(self, send: Callable[[], object]) -> bool:
        """Whether it was sent. After a failure nothing is tried for a while: each try may block for seconds."""
        if time.monotonic() < self._quiet_until_s:
            return False
        try:
            send()
        except FAILURES as error:
            self._quiet_until_s = time.monotonic() + QUIET_AFTER_FAILURE_S
            self._forget_runs()
            if not self._told:
                reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
                kept = "the ledger keeps everything, the sweep goes on"
                self._note(without_password(f"MLflow at {self.uri} is unreachable; {kept} ({reason})"))
            self._told = True
            return False
        return True

    def _forget_runs(self) -> None:
        """The next try asks anew what MLflow holds: a call that failed here may have been carried out there."""
        self._client = None
        for record in self._records.values():
            record.run_id = ""

    # --- what to send -------------------------------------------------------------------------------------

    def _open(self) -> MlflowClient:
        """The client, with experiment and parent run found or made."""
        if self._client is not None:
            return self._client
        client = MlflowClient(self.uri)
        self._experiment = self._find_experiment(client)
        if self._own_store:
            write_ahead(self._paths.mlflow_database)
        runs = list(_all_runs(client, self._experiment))
        self._runs = {run.data.tags["cadloc.trial"]: run for run in runs if "cadloc.trial" in run.data.tags}
        parents = [run for run in runs if run.data.tags.get("cadloc.kind") == "sweep"]
        self._parent = (parents[0] if parents else self._create_parent(client)).info.run_id
        client.update_run(self._parent, status="RUNNING")
        self._client = client
        return client

    def _find_experiment(self, client: MlflowClient) -> str:
        name = self._paths.space_name
        found = client.get_experiment_by_name(name)
        if found is None:
            place = self._paths.mlflow_artifacts.resolve() / name
            return str(client.create_experiment(name, place.as_uri() if self._own_store else None))
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def _create_parent(self, client: MlflowClient) -> Run:
        known = {"cadloc.kind": "sweep", "space": self._paths.space_name, "mlflow.note.content": self._question}
        return client.create_run(self._experiment, run_name=f"sweep {self._paths.space_name}", tags=known)

    def _has(self, result: TrialResult) -> bool:
        run = self._runs.get(result.id)
        return run is not None and run.data.tags.get(ENDED_TAG) == str(result.ended)

    def _send(self, record: _Record) -> None:
        """All that waits of one trial; each step done is remembered, so that a failed try can go on."""
        client = self._open()
        if not record.run_id:
            self._find_run(client, record)
        if record.end is not None:  # it may have run while MLflow, or the driver, was away
            result, directory = record.end
            record.curves.add(read_history(TrialPaths(directory).history), result.ended)
        _send_curves(client, record.run_id, record.curves)
        if record.end is not None:
            _send_end(client, record.run_id, *record.end)
            self._records.pop(record.trial.id, None)

    def _find_run(self, client: MlflowClient, record: _Record) -> None:
        """The trial's one run, found by its tag or made, with the parameters that it lacks."""
        run = self._runs.get(record.trial.id)
        if run is None:
            known = tags(record.trial, self._paths.space_name) | {"mlflow.parentRunId": self._parent}
            run = client.create_run(self._experiment, run_name=run_name(record.trial), tags=known)
            self._runs[record.trial.id] = run
        else:
            client.update_run(run.info.run_id, status="RUNNING")
        missing = [Param(*item) for item in parameters(record.trial).items() if item[0] not in run.data.params]
        for batch in _batches(missing, MOST_PARAMS):
            client.log_batch(run.info.run_id, params=batch)
        record.curves.holds(from_tag(run.data.tags.get(STEP_TAG)), run.data.metrics)
        record.run_id = run.info.run_id

    def _end_parent(self, outcome: Outcome) -> None:
        client = self._open()
        counts = [Metric(f"trials/{status}", count, _now_ms(), 0) for status, count in outcome.counts.items()]
        client.log_batch(self._parent, metrics=counts, tags=[RunTag("status", outcome.exit_code.name.lower())])
        for path in (self._paths.space, self._paths.plan):
            if path.is_file():
                client.log_artifact(self._parent, str(path))
        client.set_terminated(self._parent, "FINISHED" if outcome.exit_code in ENDED_BY_ITSELF else "KILLED")


def _all_runs(client: MlflowClient, experiment: str) -> Iterator[Run]:
    token: str | None = None
    while True:
        page = client.search_runs([experiment], max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _send_curves(client: MlflowClient, run_id: str, curves: Curves) -> None:
    """The progress after the last one that the run holds, each metric at its step, many steps per batch."""
    while (batch := curves.next_batch(MOST_METRICS)) is not None:
        metrics = [Metric(point.name, point.value, point.at_ms, point.step) for point in batch.points]
        for part in _batches(metrics[MOST_METRICS:], MOST_METRICS):  # one progress of more than a batch
            client.log_batch(run_id, metrics=part)
        client.log_batch(run_id, metrics=metrics[:MOST_METRICS], tags=[RunTag(STEP_TAG, as_tag(batch.place))])
        curves.sent(batch)


def _send_end(client: MlflowClient, run_id: str, result: TrialResult, directory: Path) -> None:
    for path, folder in artifacts(directory):
        client.log_artifact(run_id, str(path), folder)
    known = {**end_tags(result), ENDED_TAG: str(result.ended)}
    seconds = Metric("time/trial_s", result.seconds, int(result.ended * 1000), 0)
    client.log_batch(run_id, metrics=[seconds], tags=[RunTag(*item) for item in known.items()])
    client.set_terminated(run_id, STATUSES[result.status], int(result.ended * 1000))


def _batches(items: Sequence[Item], most: int) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), most):
        yield items[start : start + most]


def _now_ms() -> int:
    return int(time.time() * 1000)
