"""Settings that every test shares: one thread, headless OpenGL, and where the real material lies."""

from __future__ import annotations

import os
from pathlib import Path

# Before any import of torch, OpenGL or ray: they read these once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("LP_NUM_THREADS", "0")
os.environ.setdefault("PYOPENGL_PLATFORM", "egl")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import pytest
from hypothesis import settings

settings.register_profile("project", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("project")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real photographs and CAD models; the test is skipped where it is absent."""
    place = Path(os.environ.get("CADLOC_SHARED_DATA", SHARED_DATA))
    if not place.is_dir():
        pytest.skip(f"no real photographs and CAD models at {place}")
    return place
