"""The command line: what is typed, what is printed, and the exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from cadloc_sweep.cli import run_command
from cadloc_sweep.lock import SweepLock
from cadloc_sweep.running import program
from cadloc_sweep.trials import SweepPaths

TOYS = Path(__file__).resolve().parents[1] / "sweep"
IMPORT_PATH = os.pathsep.join([str(TOYS), *(place for place in sys.path if place)])
PROGRAM = "from cadloc_sweep.cli import main; main()"
METRIC = "test/synthetic/translation_error_median_m"

SPACE = """\
# Does the command line work?
name: toys
scenes: [gate, rotunda]
repeats: 1
trial: {trainable: "toy_trainable:train", training: {iterations: 2}}
factors:
  training.learning_rate: [0.1, 0.2]
baseline: {training.learning_rate: 0.1}
"""


@pytest.fixture(autouse=True)
def _toys_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOYS))


@pytest.fixture
def space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A toy space in an empty current directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "toys.yaml"
    path.write_text(SPACE)
    return path


def run_inline(space: Path, *more: str) -> int:
    """`run` in this process, without MLflow."""
    return run_command(["run", str(space), "--executor", "inline", "--no-mlflow", *more])


def in_a_process(arguments: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """The command line as a program of its own."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": IMPORT_PATH},
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_run_report_and_run_again(space: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run ends with 0 and its table; the report has its numbers; a second run says there is nothing to do."""
    assert run_inline(space) == 0
    assert "cadloc-sweep ui" not in capsys.readouterr().out
    assert run_command(["report", "sweeps/toys", "--format", "json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["space"] == "toys"
    assert [arm["scene"] for arm in report["arms"]] == ["gate", "gate", "rotunda", "rotunda"]
    assert {arm["n"] for arm in report["arms"]} == {1}
    for trial in report["trials"]:
        result = json.loads(Path(f"sweeps/toys/trials/{trial['id']}/result.json").read_text())
        assert (trial["status"], trial["metrics"]) == ("finished", result["metrics"])
    assert all(set(arm["metrics"][METRIC]) == {"mean", "lo", "hi"} for arm in report["arms"])
    assert run_inline(space) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_every_other_view_of_a_sweep(space: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """plan, check, status, report in its other formats and the store's commands answer with 0 and what they are for."""
    run_inline(space)
    for arguments, wanted in {
        ("plan", str(space)): "nothing to do",
        ("plan", str(space), "--json"): '"trials"',
        ("check", str(space)): "no faults",
        ("status", "sweeps/toys"): "4 finished",
        ("status", "sweeps/toys", "--json"): '"finished": 4',
        ("report", "sweeps/toys"): "translation m",
        ("report", "sweeps/toys", "--format", "md"): "| gate |",
        ("report", "sweeps/toys", "--format", "csv"): f",{METRIC},",
        ("store", "ls"): "4 stages",
        ("store", "verify"): "4 stages, 0 damaged",
        ("store", "prune"): "removed 0 stages",
        ("store", "prune", "--all"): "removed 4 stages",
    }.items():
        capsys.readouterr()
        assert run_command(arguments) == 0
        assert wanted in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["run", "nosuch"], "nosuch"),
        (["run", "toys.yaml", "--set", "repeets=3"], "repeets"),
        (["run", "toys.yaml", "--set", "trial.loss.name=reprojektion"], "did you mean 'reprojection'?"),
        (["run", "toys.yaml", "--set", "scenes=[nowhere.yaml]"], "scenes"),
        (["run", "toys.yaml", "--flag"], "--flag"),
        (["report", "nowhere"], "nowhere"),
        (["ui", "--out", "nowhere"], "mlflow.db"),
        (["run", "toys.yaml", "--out", "toys.yaml"], "--out"),
        (["run", "toys.yaml", "--store", "toys.yaml"], "--store"),
        (["run", "toys.yaml", "--executor", "inline", "--cpus", "2"], "--cpus"),
        (["run", "toys.yaml", "--executor", "inline", "--address", "auto"], "--address"),
        (["run", "toys.yaml", "--address", "127.0.0.1:1", "--gpus", "1"], "--gpus"),
        (["localize", "nothing.jpg", "--map", ".", "--focal-px", "500", "--intrinsics", "k.txt"], "--focal-px"),
        (["render", "gate", "--to", "new", "--cpus", "2"], "--cpus"),
        (["render", "gate", "--to", "toys.yaml"], "--to"),
        (["render", "gate", "--to", "toys.yaml/new"], "--to"),
        (["render", "gate", "--to", "new", "--sheet", "sheet.txt"], "'.txt'"),
        (["render", "gate", "--to", "new", "--sheet", "nowhere/sheet.png"], "nowhere"),
        (["render", "gate", "--to", "new", "--set", "hight=3"], "hight"),
        (["localize", "nothing.jpg", "--map", "."], "nothing.jpg"),
        (["render", "gate", "--to", "new", "--source", "nope"], "synthetic, photo"),
        (["render", "gate", "--to", "new", "--preset", "nope"], "quick"),
        (["cad", "inspect", "nothing.glb"], "nothing.glb"),
        (["cad", "inspect", "nothing.glb", "--units", "furlong"], "furlong"),
        (["encoder", "pretrain", "--out", "toys.yaml"], "--out"),
        (["encoder", "pretrain", "--out", "new", "--config", "nothing.yaml"], "nothing.yaml"),
    ],
)
def test_bad_input_is_exit_code_2_and_a_message(
    space: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    """The message names the file or key; there is no traceback, and nothing was started."""
    assert run_command(arguments) == 2
    printed = capfd.readouterr()
    assert told in printed.err
    assert "Traceback" not in printed.err
    assert not Path("sweeps/toys/trials").exists()
    assert not Path("new").exists()


def test_failed_trials_are_exit_code_3_and_can_be_retried(space: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Failures are named with their log; running again does not repeat them, --retry-failed does."""
    trouble = ("--set", "trial.training.weight_decay=0.5")
    assert run_inline(space, *trouble) == 3
    printed = capsys.readouterr().out
    assert "asked for trouble" in printed
    assert "log.txt" in printed
    assert run_inline(space, *trouble) == 3
    assert "nothing to do" in capsys.readouterr().out
    assert run_inline(space, *trouble, "--retry-failed") == 3
    assert "nothing to do" not in capsys.readouterr().out


def test_an_absent_cluster_is_exit_code_5(space: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where nothing listens the sweep ends at once, resumable."""
    assert run_command(["run", str(space), "--no-mlflow", "--address", "127.0.0.1:1"]) == 5
    assert "127.0.0.1:1" in capsys.readouterr().err
    assert run_inline(space) == 0


def test_damage_and_locks_have_their_codes(space: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A ledger of another space is 6, a damaged store is 6, a living driver is 7."""
    run_inline(space)
    chunk = next(path for path in Path("sweeps/.store").rglob("numbers.json"))
    chunk.write_text("[1, 2, 4]")
    assert run_command(["store", "verify"]) == 6
    paths = SweepPaths(Path("sweeps").resolve(), "toys")
    with SweepLock(paths.lock):
        assert run_inline(space) == 7
    plan = paths.plan.read_text()
    paths.plan.write_text(plan[:40])
    assert run_command(["report", "sweeps/toys"]) == 6
    assert "plan.json" in capsys.readouterr().err


def test_an_error_nobody_foresaw_is_one_line_and_a_file(space: Path) -> None:
    """Exit code 1, the traceback is in the file that the line names, and not on the screen."""
    broken = "import cadloc_sweep.cli as c; c.run_command = lambda _: 1 / 0; c.main()"
    command = [sys.executable, "-c", broken]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=space.parent)
    assert ended.returncode == 1
    assert "ZeroDivisionError" in ended.stderr
    assert "Traceback" not in ended.stderr
    file = Path(ended.stderr.strip().rsplit(" ", 1)[-1])
    assert "Traceback" in file.read_text()
    file.unlink()


def test_the_next_command_is_called_like_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By name where the shell finds the program by its name, else by the path that was typed."""
    program_file = tmp_path / "cadloc-sweep"
    program_file.write_text("")
    program_file.chmod(0o755)
    monkeypatch.setattr(sys, "argv", [str(program_file)])
    monkeypatch.setenv("PATH", "")
    assert program() == str(program_file)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert program() == "cadloc-sweep"
    monkeypatch.setattr(sys, "argv", ["-c"])
    assert program() == "cadloc-sweep"


def test_help_loads_nothing_heavy(tmp_path: Path) -> None:
    """`--help` prints every command without loading ray, torch, mlflow, pyrender, trimesh or numpy."""
    heavy = ("ray", "torch", "mlflow", "pyrender", "trimesh", "numpy", "cv2", "scipy")
    look = f"import atexit, sys; atexit.register(lambda: print([m for m in {heavy!r} if m in sys.modules])); "
    code = look + "sys.argv = ['cadloc-sweep', '--help']; from cadloc_sweep.cli import main; main()"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, cwd=tmp_path)
    assert ended.returncode == 0
    assert ended.stdout.strip().endswith("[]")
    for command in ("run", "plan", "check", "status", "ui", "report", "localize", "render", "cad", "encoder", "store"):
        assert f" {command} " in ended.stdout


def test_run_on_ray_with_mlflow_then_interrupted_and_resumed(space: Path) -> None:
    """The default way: Ray and MLflow. Ctrl-C ends with 4, the same command then finishes with 0, one run per trial."""
    length = ("--set", "trial.training.iterations=200")
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "run", "toys.yaml", "--cpus", "2", *length],
        cwd=space.parent,
        env={**os.environ, "PYTHONPATH": IMPORT_PATH},
        stdout=subprocess.PIPE,
        text=True,
    ) as driver:
        assert driver.stdout is not None
        started = (line for line in driver.stdout if line.startswith("trial") and line.rstrip().endswith("started"))
        assert next(started, None) is not None
        driver.send_signal(signal.SIGINT)
        rest = driver.stdout.read()
        assert driver.wait(timeout=100) == 4, rest
    assert "the same command goes on from here" in rest
    ended = in_a_process(["run", "toys.yaml", "--executor", "inline", *length], space.parent)
    assert ended.returncode == 0, ended.stderr
    assert "cadloc-sweep ui --out" in ended.stdout
    mlflow = pytest.importorskip("mlflow")
    client = mlflow.MlflowClient(f"sqlite:///{space.parent / 'sweeps' / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("toys").experiment_id], "tags.`cadloc.kind` = 'trial'")
    assert sorted(run.info.status for run in runs) == ["FINISHED"] * 4
    for run in runs:
        points = client.get_metric_history(run.info.run_id, METRIC.replace("test", "validation"))
        assert [point.step for point in points] == list(range(1, 201))
