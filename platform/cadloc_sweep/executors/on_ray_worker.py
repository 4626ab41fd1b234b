"""What runs inside Tune's actors: one actor, one trial after another."""

from __future__ import annotations

import inspect
from collections.abc import Generator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ray import tune

from cadloc.contract import Progress
from cadloc_sweep.durable_files import CorruptFile
from cadloc_sweep.executors import TrialTask
from cadloc_sweep.executors.on_ray_data_parallel import shared_trial_steps
from cadloc_sweep.executors.on_ray_packing import sender
from cadloc_sweep.ledger import read_result, write_result
from cadloc_sweep.space_settings import NoStop, Stop
from cadloc_sweep.trials import TrialPaths, TrialResult
from cadloc_sweep.worker import trial_steps

WATCHED = "watched"
"""Key under which a progress tells the scheduler's metric."""


class TuneTrainable(tune.Trainable):
    """One actor, one trial after another; libraries and graphics stay warm between them."""

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """What the trial asks for beside its server, if any; where workers share it, they ask, and this actor needs
        nothing (a byte)."""
        if config["workers"] > 1:
            return tune.PlacementGroupFactory([{"memory": 1}])
        return tune.PlacementGroupFactory([{"CPU": config["cpu"], "GPU": config["gpu"]}])

    def setup(self, config: dict[str, Any], **given: Any) -> None:
        """Remembers all tasks, and the flag whose appearance drains; begins with the task that `config` names."""
        self._tasks: Mapping[str, TrialTask] = given["tasks"]
        self._flag: Path = given["flag"]
        self._stop: Stop = given["stop"]
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Goes on to another trial."""
        self._leave()
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """To the trial's next progress; `result` comes with the last step."""
        if self._flag.exists():
            return self._end(self._interrupt())
        try:
            progress = next(self._steps)
            return self._end(self._finish(), progress) if progress.finished else self._told(progress)
        except StopIteration as end:
            return self._end(end.value)

    def cleanup(self) -> None:
        """Ends the trial that is still open, if any."""
        self._leave()

    def _begin(self, config: Mapping[str, Any]) -> None:
        self._task = self._tasks[config["trial"]]
        server: str | None = config.get("server")
        self._steps: Generator[Progress, None, TrialResult] = (
            trial_steps(self._task, sender(server) if server else None, config["cpu"])
            if self._task.trial.resources.workers == 1
            else shared_trial_steps(self._task, self._flag.parent)
        )

    def _finish(self) -> TrialResult:
        """Past the last progress: the result gets written."""
        try:
            next(self._steps)
        except StopIteration as end:
            result: TrialResult = end.value
            return result
        raise AssertionError("a trial went on after its finished progress")

    def _interrupt(self) -> TrialResult | None:
        """Ends the trial between two steps; None if it had not begun."""
        begun = inspect.getgeneratorstate(self._steps) != inspect.GEN_CREATED
        self._steps.close()
        return read_result(TrialPaths(self._task.directory)) if begun else None

    def _leave(self) -> None:
        """Closes the trial if it is open; where the driver has said already how it ended (`stopped`), that stays."""
        if inspect.getgeneratorstate(self._steps) != inspect.GEN_SUSPENDED:
            return
        paths = TrialPaths(self._task.directory)
        try:
            said: TrialResult | None = read_result(paths)
        except (FileNotFoundError, CorruptFile):
            said = None
        self._steps.close()
        if said is not None:
            write_result(paths, said)

    def _told(self, progress: Progress) -> dict[str, Any]:
        watched = None if isinstance(self._stop, NoStop) else progress.metrics.get(self._stop.metric)
        told = {"progress": {**asdict(progress), "metrics": dict(progress.metrics)}}
        return told if watched is None else told | {WATCHED: watched}

    def _end(self, result: TrialResult | None, progress: Progress | None = None) -> dict[str, Any]:
        told = self._told(progress) if progress else {}
        return told | {"result": result.to_json() if result else None, "done": True}
