"""How a run of a sweep ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from cadloc_sweep.failures import ExitCode
from cadloc_sweep.trials import TrialResult


@dataclass(frozen=True)
class Outcome:
    """The plan's results so far, by trial id, and how many trials this run set out to run."""

    results: Mapping[str, TrialResult]
    planned: int
    run_now: int
    interrupted: bool = False
    out_of_disk: bool = False

    @property
    def counts(self) -> dict[str, int]:
        """Trials by status; those without a result are `missing`; statuses that none has are left out."""
        counts = Counter(str(result.status) for result in self.results.values())
        counts["missing"] = self.planned - len(self.results)
        return {status: count for status, count in counts.items() if count}

    @property
    def nothing_to_do(self) -> bool:
        """Whether everything had ended before this run."""
        return self.run_now == 0

    @property
    def exit_code(self) -> ExitCode:
        """What the command line answers."""
        if self.out_of_disk:
            return ExitCode.OUT_OF_RESOURCES
        if self.interrupted or self.counts.get("missing") or self.counts.get("interrupted"):
            return ExitCode.INTERRUPTED
        return ExitCode.TRIALS_FAILED if self.counts.get("failed") else ExitCode.FINISHED
