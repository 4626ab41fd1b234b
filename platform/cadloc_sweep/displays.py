"""What a running sweep shows: called by the driver, drawn elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from cadloc.contract import StageSpec
from cadloc_sweep.executors import StageEvent, TrialEvent

if TYPE_CHECKING:
    from cadloc_sweep.plan import Plan
    from cadloc_sweep.sweep import Outcome


class Display(Protocol):
    """Told in the driver's thread, quickly: drawing must not hold the sweep up."""

    def planned(self, plan: Plan, ended: int) -> None:
        """The sweep begins; `ended` of the plan's trials ended in earlier runs and will not run."""
        ...

    def stages_wanted(self, missing: Sequence[StageSpec]) -> None:
        """These stages are about to be built."""
        ...

    def stage_event(self, event: StageEvent) -> None:
        """A stage moved on."""
        ...

    def trial_event(self, event: TrialEvent) -> None:
        """A trial moved on."""
        ...

    def note(self, text: str) -> None:
        """A warning or remark, one line."""
        ...

    def ended(self, outcome: Outcome) -> None:
        """The sweep is over."""
        ...


class Silent:
    """Shows nothing, keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def planned(self, plan: Plan, ended: int) -> None:
        """Ignored."""

    def stages_wanted(self, missing: Sequence[StageSpec]) -> None:
        """Ignored."""

    def stage_event(self, event: StageEvent) -> None:
        """Ignored."""

    def trial_event(self, event: TrialEvent) -> None:
        """Ignored."""

    def note(self, text: str) -> None:
        """Kept in `notes`."""
        self.notes.append(text)

    def ended(self, outcome: Outcome) -> None:
        """Ignored."""
