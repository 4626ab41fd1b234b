"""A pre-training run in MLflow: one run per directory, its curves, its settings, its card and weights."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cadloc.contract import Json, Progress, digest
from cadloc_sweep.trackers.curves import Curves, as_tag, from_tag
from cadloc_sweep.trackers.on_mlflow import (
    FAILURES,
    FLUSH_EVERY_S,
    MOST_METRICS,
    MOST_PARAMS,
    QUIET_AFTER_FAILURE_S,
    STEP_TAG,
)
from cadloc_sweep.trackers.own_store import without_password, write_ahead
from cadloc_sweep.trackers.run_content import LONGEST_VALUE

from mlflow import MlflowClient  # isort: skip  -- after on_mlflow, whose settings MLflow reads when imported
from mlflow.entities import Metric, Param, Run, RunTag  # isort: skip

EXPERIMENT = "encoders"
RUN_TAG = "cadloc.encoder_run"
MOST_POINTS = 2_000
"""Steps whose loss is sent, about: the file `history.csv` has them all."""


@dataclass(frozen=True)
class EncoderTracking:
    """Which MLflow is told of a run: `uri`, or (None) an sqlite database in the run's directory. Safe to send."""

    directory: Path
    config: Mapping[str, Json]
    uri: str | None = None

    def listener(self) -> Callable[[Mapping[str, float]], None]:
        """Hears of the history's rows as they come; for the process that trains."""
        return EncoderRun(self, note=lambda text: None).heard


class EncoderRun:
    """Sends in batches, best effort: what MLflow did not get while it ran it gets at the end."""

    def __init__(self, tracking: EncoderTracking, note: Callable[[str], None]) -> None:
        self._tracking, self._note = tracking, note
        self._directory = tracking.directory.resolve()
        self.uri = tracking.uri or f"sqlite:///{self._directory / 'mlflow.db'}"
        self._client: MlflowClient | None = None
        self._run_id = ""
        self._curves = Curves()
        self._sent_s = 0.0
        self._every = max(1, int(tracking.config["steps"]) // MOST_POINTS)

    def heard(self, row: Mapping[str, float]) -> None:
        """Keeps a row of the history for the next batch."""
        self._keep(row)
        if time.monotonic() - self._sent_s >= FLUSH_EVERY_S:
            self._attempt(self._send)

    def ended(self, rows: Sequence[Mapping[str, float]], status: str, card: Mapping[str, Json] | None) -> bool:
        """Sends the end (MLflow's `status`), all that is missing of the history and, if there is a card, the results.

        These are card, history and weights. A run without rows that MLflow knows nothing of stays unknown. Whether
        MLflow has got it; says why not through `note`.
        """
        for row in rows:
            self._keep(row)
        return self._attempt(lambda: self._end(status, card) if rows or self._known() else None)

    def _keep(self, row: Mapping[str, float]) -> None:
        step, measured = int(row["step"]), any(name.startswith("precision/") for name in row)
        if measured or step % self._every == 0 or step == int(self._tracking.config["steps"]):
            metrics = {_metric(name): float(value) for name, value in row.items() if name != "step"}
            self._curves.add([Progress(step, step, metrics)], time.time())

    def _attempt(self, send: Callable[[], None]) -> bool:
        self._sent_s = time.monotonic()
        try:
            send()
        except FAILURES as error:
            self._client = None
            self._sent_s += QUIET_AFTER_FAILURE_S
            reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
            self._note(without_password(f"MLflow at {self.uri} is unreachable; history.csv has everything ({reason})"))
            return False
        return True

    def _send(self) -> None:
        client = self._open()
        while (batch := self._curves.next_batch(MOST_METRICS)) is not None:
            metrics = [Metric(point.name, point.value, point.at_ms, point.step) for point in batch.points]
            client.log_batch(self._run_id, metrics=metrics, tags=[RunTag(STEP_TAG, as_tag(batch.place))])
            self._curves.sent(batch)

    def _end(self, status: str, card: Mapping[str, Json] | None) -> None:
        self._send()
        client = self._open()
        if card is not None:
            self._send_results(client, card)
        client.set_terminated(self._run_id, status)

    def _send_results(self, client: MlflowClient, card: Mapping[str, Json]) -> None:
        final = {f"final/precision/{kind}": value for kind, value in card["validation"].items()}
        now_ms = int(time.time() * 1000)
        client.log_batch(self._run_id, metrics=[Metric(name, value, now_ms, 0) for name, value in final.items()])
        for path in sorted(self._directory.glob("*")):
            if path.suffix in {".json", ".csv", ".safetensors"} or path.name == "ace.pt":
                client.log_artifact(self._run_id, str(path))

    def _open(self) -> MlflowClient:
        """The client, with the directory's one run found or made."""
        if self._client is not None:
            return self._client
        client = MlflowClient(self.uri)
        experiment = self._find_experiment(client)
        run = self._find_run(client, experiment) or client.create_run(
            experiment, run_name=self._directory.name, tags={RUN_TAG: self._mark}
        )
        self._resume(client, run)
        self._client = client
        return client

    @property
    def _mark(self) -> str:
        return digest({"directory": str(self._directory), "config": dict(self._tracking.config)})

    def _known(self) -> bool:
        """Whether MLflow has this run; makes nothing."""
        if self._tracking.uri is None and not (self._directory / "mlflow.db").is_file():
            return False
        client = MlflowClient(self.uri)
        experiment = client.get_experiment_by_name(EXPERIMENT)
        return experiment is not None and self._find_run(client, experiment.experiment_id) is not None

    def _find_run(self, client: MlflowClient, experiment: str) -> Run | None:
        found = client.search_runs([experiment], f"tags.`{RUN_TAG}` = '{self._mark}'", max_results=1)
        return found[0] if found else None

    def _find_experiment(self, client: MlflowClient) -> str:
        found = client.get_experiment_by_name(EXPERIMENT)
        if found is None:
            own = self._tracking.uri is None
            place = (self._directory / "mlartifacts").as_uri() if own else None
            experiment = str(client.create_experiment(EXPERIMENT, place))
            if own:
                write_ahead(self._directory / "mlflow.db")
            return experiment
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def _resume(self, client: MlflowClient, run: Run) -> None:
        self._run_id = run.info.run_id
        client.update_run(self._run_id, status="RUNNING")
        settings = dict(_flat(self._tracking.config, ""))
        missing = [Param(name, text[:LONGEST_VALUE]) for name, text in settings.items() if name not in run.data.params]
        for start in range(0, len(missing), MOST_PARAMS):
            client.log_batch(self._run_id, params=missing[start : start + MOST_PARAMS])
        self._curves.holds(from_tag(run.data.tags.get(STEP_TAG)), run.data.metrics)


def _metric(name: str) -> str:
    return f"validation/{name}" if name.startswith("precision/") else f"train/{name}"


def _flat(value: Json, prefix: str) -> Iterator[tuple[str, str]]:
    """The settings as dotted keys with text values."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flat(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value if isinstance(value, str) else json.dumps(value)
