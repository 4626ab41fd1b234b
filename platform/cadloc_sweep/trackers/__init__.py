"""Who is told what happens: projections of the ledger for other tools to show."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cadloc.contract import Progress
from cadloc_sweep.trials import Trial, TrialResult

if TYPE_CHECKING:
    from cadloc_sweep.plan import Plan
    from cadloc_sweep.spaces import SearchSpace
    from cadloc_sweep.sweep import Outcome


class Tracker(Protocol):
    """Told in the driver's thread. Best effort: it never raises into the sweep, and says once when it has given up.

    A trial that was recorded before may be told again (a resumed sweep); a tracker keeps one record per trial id.
    """

    def start_sweep(self, space: SearchSpace, plan: Plan) -> None:
        """A run begins: all trials of the plan, those that ended in earlier runs included."""
        ...

    def trial_started(self, trial: Trial) -> None:
        """A trial begins, or resumes."""
        ...

    def trial_progress(self, trial: Trial, progress: Progress) -> None:
        """A trial has reached a validation."""
        ...

    def trial_ended(self, trial: Trial, result: TrialResult, directory: Path) -> None:
        """A trial has ended; its files are complete in `directory`."""
        ...

    def end_sweep(self, outcome: Outcome) -> None:
        """The run is over."""
        ...

    def close(self) -> None:
        """Flushes and lets go; safe to call twice."""
        ...
