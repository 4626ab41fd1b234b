"""The MLflow store beside the sweeps: one sqlite file that writer and user interface share."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from pathlib import Path

from cadloc_sweep.trials import SweepPaths


def own_store_uri(paths: SweepPaths) -> str:
    """The store's address for MLflow."""
    return f"sqlite:///{paths.mlflow_database.absolute()}"


def without_password(text: str) -> str:
    """The text with user and password left out of every URL in it: fit for a log."""
    return re.sub(r"//[^/\s]*@", "//", text)


def write_ahead(database: Path) -> None:
    """Switches an sqlite file to its write-ahead log, for good: readers (the UI) no longer block the writer."""
    with closing(sqlite3.connect(database, timeout=20)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
