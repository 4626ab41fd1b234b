"""MLflow holds one run per trial, whatever happens in between, and the sweep never waits for it."""

from __future__ import annotations

import json
import socket
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

mlflow = pytest.importorskip("mlflow")

from cadloc_sweep.executors.inline import InlineExecutor  # noqa: E402 -- after the check that MLflow is there
from cadloc_sweep.failures import ExitCode  # noqa: E402
from cadloc_sweep.outcomes import Outcome  # noqa: E402
from cadloc_sweep.trackers.on_mlflow import MlflowTracker  # noqa: E402
from cadloc_sweep.trackers.own_store import without_password  # noqa: E402
from cadloc_sweep.trackers.run_content import artifacts  # noqa: E402
from cadloc_sweep.worker import read_history  # noqa: E402

if TYPE_CHECKING:
    from conftest import ToySweep

VALIDATION = "validation/synthetic/translation_error_median_m"
METRIC = "test/synthetic/translation_error_median_m"
ONE_SCENE = ("repeats=1",)


def tracked(
    toys: ToySweep, *settings: str, uri: str | None = None, notes: list[str] | None = None, **kinds: Any
) -> Outcome:
    """One run of the sweep with MLflow listening."""
    heard: list[str] = [] if notes is None else notes
    tracker = MlflowTracker(toys.paths, heard.append, uri)
    try:
        return toys.run(*settings, trackers=[tracker], **kinds)
    finally:
        tracker.close()


def runs_of(toys: ToySweep) -> Sequence[Any]:
    """All runs of the sweep's experiment."""
    client = mlflow.MlflowClient(f"sqlite:///{toys.paths.mlflow_database}")
    experiment = client.get_experiment_by_name(toys.name)
    return list(client.search_runs([experiment.experiment_id], max_results=1000))


def curve(toys: ToySweep, run: Any, metric: str = VALIDATION) -> list[tuple[int, float]]:
    """(step, value) of a metric, in order."""
    client = mlflow.MlflowClient(f"sqlite:///{toys.paths.mlflow_database}")
    return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, metric)]


class DrainingAfter(InlineExecutor):
    """Drains itself after some progresses."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self._left = left

    def run(self, agenda: Any, on_stage: Any, on_trial: Any) -> None:
        def heard(event: Any) -> None:
            on_trial(event)
            self._left -= event.kind == "progress"
            if event.kind == "progress" and self._left == 0:
                self.drain()

        super().run(agenda, on_stage, heard)


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables in it: making them takes seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(autouse=True)
def _database(toys: ToySweep, empty_database: Path) -> None:
    toys.paths.mlflow_database.parent.mkdir(parents=True, exist_ok=True)
    toys.paths.mlflow_database.write_bytes(empty_database.read_bytes())


def test_every_trial_is_one_run_with_all_it_should_have(toys: ToySweep) -> None:
    """Parameters, curve, tags, status, files and the parent run are those of the trial."""
    tracked(toys, *ONE_SCENE)
    runs = {run.data.tags.get("cadloc.trial"): run for run in runs_of(toys)}
    trials = toys.plan(*ONE_SCENE).trials
    assert set(runs) == {None, *(trial.id for trial in trials)}
    parent = runs.pop(None)
    assert parent.data.tags["cadloc.kind"] == "sweep"
    for trial in trials:
        run, paths = runs[trial.id], toys.paths.trial(trial.id)
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        tags = {"space": "toys", "scene": trial.scene, "seed": "0", "status": "finished", "arm": trial.arm_label}
        assert tags.items() <= run.data.tags.items()
        assert run.data.params["training.learning_rate"] == str(trial.config.training.learning_rate)
        assert run.data.params["loss.name"] == "reprojection"
        *validations, end = read_history(paths.history)
        assert curve(toys, run) == [(item.step, item.metrics[VALIDATION]) for item in validations]
        assert curve(toys, run, METRIC) == [(end.step, end.metrics[METRIC])]
        assert curve(toys, run, "train/loss") == [(item.step, item.metrics["train/loss"]) for item in validations]
        files = {path.name for path in Path(run.info.artifact_uri.removeprefix("file://")).iterdir()}
        assert {"config.json", "result.json", "history.jsonl"} <= files


def test_the_database_takes_readers_while_it_is_written(toys: ToySweep) -> None:
    """The sqlite file is in write-ahead mode."""
    tracked(toys, *ONE_SCENE)
    with sqlite3.connect(toys.paths.mlflow_database) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_running_again_adds_nothing(toys: ToySweep) -> None:
    """A second run of a finished sweep leaves runs and points as they are; more seeds add their runs only."""
    tracked(toys, *ONE_SCENE)
    before = {run.info.run_id: curve(toys, run) for run in runs_of(toys)}
    assert tracked(toys, *ONE_SCENE).nothing_to_do
    assert {run.info.run_id: curve(toys, run) for run in runs_of(toys)} == before
    tracked(toys, "repeats=2")
    after = {run.info.run_id: curve(toys, run) for run in runs_of(toys)}
    assert len(after) == len(before) + 4
    assert {key: after[key] for key in before} == before


def test_an_interrupted_trial_keeps_its_run(toys: ToySweep) -> None:
    """A trial taken up again goes on in the same run, and no step stands there twice."""
    settings = (*ONE_SCENE, "trial.training.iterations=4")
    tracked(toys, *settings, make_executor=lambda: DrainingAfter(2))
    killed = [run for run in runs_of(toys) if run.info.status == "KILLED" and "cadloc.trial" in run.data.tags]
    assert [step for step, _ in curve(toys, killed[0])] == [1, 2]
    tracked(toys, *settings)
    runs = [run for run in runs_of(toys) if "cadloc.trial" in run.data.tags]
    ids = sorted(trial.id for trial in toys.plan(*settings).trials)
    assert sorted(run.data.tags["cadloc.trial"] for run in runs) == ids
    assert all([step for step, _ in curve(toys, run)] == [1, 2, 3, 4] for run in runs)
    assert {run.info.status for run in runs} == {"FINISHED"}


@pytest.mark.parametrize("after", [4, 5])
def test_the_last_progress_is_sent_once_whenever_it_was_interrupted(toys: ToySweep, after: int) -> None:
    """Interrupted after the last validation, or before the next trial, each test metric stands there once."""
    settings = (*ONE_SCENE, "trial.training.iterations=4")
    tracked(toys, *settings, make_executor=lambda: DrainingAfter(after))
    tracked(toys, *settings)
    runs = [run for run in runs_of(toys) if "cadloc.trial" in run.data.tags]
    for metric, steps in {METRIC: [4], VALIDATION: [1, 2, 3, 4], "train/loss": [1, 2, 3, 4]}.items():
        assert all([step for step, _ in curve(toys, run, metric)] == steps for run in runs), metric


def test_a_run_made_by_a_call_that_failed_is_found(toys: ToySweep, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the server makes a run and its answer is lost, the next try finds it: one run per trial, one parent."""
    client = mlflow.MlflowClient
    create, lost = client.create_run, [0, 2]  # the parent's answer, and a trial's

    def forgetful(self: Any, *given: Any, **named: Any) -> Any:
        made = create(self, *given, **named)
        calls[0] += 1
        if calls[0] - 1 in lost:
            raise ConnectionError("the answer was lost")
        return made

    calls = [0]
    monkeypatch.setattr(client, "create_run", forgetful)
    monkeypatch.setattr("cadloc_sweep.trackers.on_mlflow.QUIET_AFTER_FAILURE_S", 0.0)
    tracked(toys, *ONE_SCENE)
    kinds = [(run.data.tags["cadloc.kind"], run.data.tags.get("cadloc.trial")) for run in runs_of(toys)]
    assert len(kinds) == len(set(kinds)) == 5
    assert all([step for step, _ in curve(toys, run)] in ([], [1, 2, 3]) for run in runs_of(toys))


def test_a_tuned_encoder_is_kept_with_its_map(tmp_path: Path) -> None:
    """Its files, weights included, since the map cannot be read without them; folders are no files."""
    (tmp_path / "encoder" / "folder").mkdir(parents=True)
    kept = {"map.json": None, "encoder/card.json": "encoder", "encoder/encoder.safetensors": "encoder"}
    for name in kept:
        (tmp_path / name).write_bytes(b"content")
    assert {path.relative_to(tmp_path).as_posix(): folder for path, folder in artifacts(tmp_path)} == kept


def test_no_password_is_printed() -> None:
    """User and password of every URL in a text are left out, whatever they are made of; paths stay."""
    text = "postgresql://me:p@ss:w@host:5/db and http://me@host/a@b, not sqlite:////tmp/a@b.db"
    assert without_password(text) == "postgresql://host:5/db and http://host/a@b, not sqlite:////tmp/a@b.db"


def test_a_spoiled_database_does_not_end_the_sweep(toys: ToySweep) -> None:
    """A file that is no database costs the runs in MLflow, not the sweep."""
    toys.paths.mlflow_database.write_bytes(b"no database" * 100)
    notes: list[str] = []
    assert tracked(toys, *ONE_SCENE, notes=notes).exit_code is ExitCode.FINISHED
    assert any("unreachable" in note for note in notes)


def test_a_failed_trial_is_a_failed_run_with_its_error(toys: ToySweep) -> None:
    """Status, error and log of a failed trial are there."""
    tracked(toys, *ONE_SCENE, "trial.training.weight_decay=0.5")
    failed = [run for run in runs_of(toys) if "cadloc.trial" in run.data.tags]
    assert {run.info.status for run in failed} == {"FAILED"}
    assert {run.data.tags["error"] for run in failed} == {"RuntimeError: asked for trouble"}


def test_an_absent_server_does_not_fail_the_sweep_and_is_told_once(
    toys: ToySweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing listens: the sweep finishes with 0, one note says that MLflow is unreachable."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.create_server(("127.0.0.1", 0)) as server:
        uri = f"http://user:secret@127.0.0.1:{server.getsockname()[1]}"
    notes: list[str] = []
    outcome = tracked(toys, *ONE_SCENE, uri=uri, notes=notes)
    assert (outcome.exit_code, outcome.counts) == (ExitCode.FINISHED, {"finished": 4})
    assert sum("unreachable" in note for note in notes) == 1
    assert not any("secret" in note for note in notes)
    assert json.loads((toys.paths.trial(toys.plan(*ONE_SCENE).trials[0].id).result).read_text())["status"] == "finished"


def test_what_was_missed_is_caught_up_in_the_next_run(toys: ToySweep) -> None:
    """Trials that ended without MLflow get their runs, curves included, when the sweep runs on with it."""
    toys.run(*ONE_SCENE)
    tracked(toys, "repeats=2")
    runs = [run for run in runs_of(toys) if "cadloc.trial" in run.data.tags]
    assert len(runs) == 8
    assert all([step for step, _ in curve(toys, run)] == [1, 2, 3] for run in runs)
