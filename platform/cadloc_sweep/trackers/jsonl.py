"""A plain line per event in `events.jsonl`: for `tail -f` and for programs that read no database."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cadloc.contract import Json, Progress
from cadloc_sweep.trials import Trial, TrialResult

if TYPE_CHECKING:
    from cadloc_sweep.plan import Plan
    from cadloc_sweep.spaces import SearchSpace
    from cadloc_sweep.sweep import Outcome


class JsonlTracker:
    """Appends to one file; when that fails it says so once to `note` and keeps quiet from then on."""

    def __init__(self, path: Path, note: Callable[[str], None]) -> None:
        self._path = path
        self._note = note
        self._given_up = False

    def start_sweep(self, space: SearchSpace, plan: Plan) -> None:
        """Writes the name, the question and the number of trials."""
        self._write("sweep_started", space=space.name, question=space.question, trials=len(plan.trials))

    def trial_started(self, trial: Trial) -> None:
        """Writes the trial's factors and seed."""
        self._write("trial_started", trial=trial.id, factors=dict(trial.factors), seed=trial.seed)

    def trial_progress(self, trial: Trial, progress: Progress) -> None:
        """Writes step and metrics."""
        self._write("trial_progress", trial=trial.id, step=progress.step, metrics=dict(progress.metrics))

    def trial_ended(self, trial: Trial, result: TrialResult, directory: Path) -> None:
        """Writes status, metrics and error."""
        self._write(
            "trial_ended", trial=trial.id, status=result.status, metrics=dict(result.metrics), error=result.error
        )

    def end_sweep(self, outcome: Outcome) -> None:
        """Writes how many trials ended how."""
        self._write("sweep_ended", counts=outcome.counts, exit_code=int(outcome.exit_code))

    def close(self) -> None:
        """Holds nothing open."""

    def _write(self, event: str, **fields: Json) -> None:
        if self._given_up:
            return
        line = json.dumps({"event": event, "time_s": round(time.time(), 3), **fields})
        try:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            self._given_up = True
            self._note(f"{self._path}: cannot be written ({error.strerror}); the ledger keeps everything")
