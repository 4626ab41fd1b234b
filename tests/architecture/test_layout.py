"""The shape of the house: what stands where, and what may be loaded by whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("ray", "torch", "mlflow", "pyrender", "trimesh", "cv2", "numpy")


def python_files() -> list[Path]:
    return [
        path for folder in ("platform", "trainables", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")
    ]


@pytest.mark.parametrize("source_root", ["platform", "trainables"])
def test_source_roots_hold_packages_only(source_root: str) -> None:
    """No module, __init__.py or test lies directly in a source root: it would shadow the stdlib's `platform`."""
    assert list((ROOT / source_root).glob("*.py")) == []
    assert list((ROOT / source_root).rglob("test_*.py")) == []


def test_no_test_folder_is_named_platform() -> None:
    """A folder tests/platform would shadow the stdlib's `platform` during collection."""
    assert not (ROOT / "tests" / "platform").exists()


def test_stdlib_platform_is_the_stdlib_one() -> None:
    """Importing `platform` with both source roots on the path gives Python's own module."""
    code = "import platform, cadloc, cadloc_sweep; print(platform.python_version())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "module",
    ["cadloc.contract", "cadloc.config", "cadloc.catalog", "cadloc_sweep.spaces", "cadloc_sweep.plan"],
)
def test_planning_is_light(module: str) -> None:
    """What a laptop needs in order to plan a sweep imports no torch, no ray, no geometry."""
    code = f"import sys, {module}; print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_help_loads_nothing_heavy() -> None:
    """`cadloc-sweep --help` answers without ray, torch, mlflow, pyrender or trimesh."""
    code = (
        "import sys\nfrom cadloc_sweep.cli import main\nsys.argv = ['cadloc-sweep', '--help']\n"
        f"try: main()\nexcept SystemExit: pass\nprint(sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr.strip().endswith("[]"), done.stderr
    assert "run" in done.stdout


def test_every_test_says_what_must_be_true() -> None:
    """Each test function has a docstring."""
    mute = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and not ast.get_docstring(node)
    ]
    assert mute == []


def test_names_say_what_things_are() -> None:
    """No module is called utils, helpers, manager, common or misc."""
    empty_words = {"utils", "helpers", "manager", "common", "misc", "base"}
    assert [path for path in python_files() if path.stem.strip("_") in empty_words] == []


def test_opengl_axes_stay_in_rendering() -> None:
    """Only the OpenGL modules know OpenGL's camera axes."""
    allowed = {"rendering.py", "opengl.py"}
    users = [path.name for path in (ROOT / "trainables" / "cadloc").rglob("*.py") if "glcam" in path.read_text()]
    assert set(users) <= allowed
