"""A sweep from lock to outcome: what the plan asks for and the ledger does not know is run and recorded."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from cadloc.scene_config import SceneConfig
from cadloc_sweep.displays import Display
from cadloc_sweep.driving import Driver
from cadloc_sweep.durable_files import make_folder
from cadloc_sweep.executors import Executor
from cadloc_sweep.failures import OutOfResources
from cadloc_sweep.ledger import Ledger
from cadloc_sweep.lock import SweepLock
from cadloc_sweep.outcomes import Outcome
from cadloc_sweep.plan import Plan
from cadloc_sweep.scene_files import check_models
from cadloc_sweep.spaces import SearchSpace
from cadloc_sweep.stages import StageStore
from cadloc_sweep.trackers import Tracker
from cadloc_sweep.trials import SweepPaths, Trial, TrialResult

__all__ = ["Outcome", "run_sweep"]

_LEAST_FREE_BYTES = 50_000_000
"""Below this a sweep does not start: ledger and results must always find room."""


def run_sweep(
    space: SearchSpace,
    plan: Plan,
    paths: SweepPaths,
    store: StageStore,
    make_executor: Callable[[], Executor],
    trackers: Sequence[Tracker],
    display: Display,
    retry_failed: bool = False,
) -> Outcome:
    """Runs what is missing of a plan; doing so again does nothing.

    Failed trials are results and stay, unless `retry_failed`. The executor is made only when there is work. The
    first interrupt drains (the outcome says interrupted), a second one kills. Raises SweepLocked, StateCorrupt,
    OutOfResources, ExecutorUnreachable, and InputError for CAD models that cannot be used and folders that cannot be
    written.
    """
    with _full_disk_told(), _own(paths, store):
        ledger = Ledger.open(paths, display.note)
        pending = [trial for trial in plan.trials if _is_pending(ledger.results.get(trial.id), retry_failed)]
        driver = Driver(space, plan, paths, store, trackers, display, ledger)
        display.planned(plan, len(plan.trials) - len(pending))
        if pending:
            _check_room(paths, store)
            for warning in check_models(_scenes(pending)):
                display.note(warning)
        driver.write_down()
        if pending or driver.untold:
            driver.run(pending, make_executor)
        outcome = driver.outcome(len(pending))
        display.ended(outcome)
        return outcome


def _is_pending(result: TrialResult | None, retry_failed: bool) -> bool:
    if result is None or result.status == "interrupted":
        return True
    return retry_failed and result.status == "failed"


def _scenes(trials: Sequence[Trial]) -> list[SceneConfig]:
    return list({trial.scene: trial.config.scene for trial in trials}.values())


def _check_room(paths: SweepPaths, store: StageStore) -> None:
    for folder in (paths.directory, store.root):
        free = shutil.disk_usage(folder).free
        if free < _LEAST_FREE_BYTES:
            needed = _LEAST_FREE_BYTES // 1_000_000
            raise OutOfResources(f"{folder}: {free // 1_000_000} MB free; at least {needed} MB are needed to start")


@contextmanager
def _own(paths: SweepPaths, store: StageStore) -> Iterator[None]:
    """Results and stages have their folders, and nobody else drives this sweep."""
    make_folder(paths.directory, "--out")
    make_folder(store.root, "--store")
    with SweepLock(paths.lock):
        yield


@contextmanager
def _full_disk_told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = error.filename or "the disk"
        raise OutOfResources(f"{where}: no room left; free some and run the same command again") from error
