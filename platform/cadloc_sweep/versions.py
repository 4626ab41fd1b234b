"""Which code a result comes from."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path

_LIBRARIES = (
    "cadloc-sweep",
    "numpy",
    "torch",
    "opencv-python-headless",
    "poselib",
    "pyrender",
    "trimesh",
    "ray",
    "mlflow",
)


@functools.cache
def versions() -> Mapping[str, str]:
    """Interpreter, libraries, and the commit of the code with `+` when it has uncommitted changes, if known."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for library in _LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            found[library] = metadata.version(library)
    commit = _commit()
    return found | ({"commit": commit} if commit else {})


def _commit() -> str:
    """The commit of a checkout that this file is part of; empty for an installed package."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return ""
    git = ["git", "-C", str(folder)]
    quiet = {"GIT_OPTIONAL_LOCKS": "0"} | dict(os.environ)
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, env=quiet)
        dirty = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, timeout=10, env=quiet)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "") if head.returncode == 0 else ""
