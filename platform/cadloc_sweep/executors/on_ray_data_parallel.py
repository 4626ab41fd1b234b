"""Ray Train: several workers, on CPUs or one GPU each, share the training of one trial.

The first worker runs the trial as any process would; the others take their parts of its steps. What it reports goes to
the actor that Tune steps, and it goes on when Tune asks for more: a trial that is drained, or stopped by the
scheduler, ends at that progress as everywhere. The first worker's end is that of all: Ray Train ends those that it left
in the middle of a step. The stages and the trial's directory must be where all workers see them.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
import traceback
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import ray

from cadloc.contract import CadlocError, Progress, WorkerLost
from cadloc_sweep.executors import TrialTask
from cadloc_sweep.trials import TrialResult
from cadloc_sweep.worker import finished_result, follow, lost_result, run_steps

TRAIN_ENVIRONMENT = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # it would start workers again without telling
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon an end is noticed
}
"""Settings of Train that exist as environment variables only."""

PATIENCE_S = 10**7
"""Of the process group: while the first worker validates, the others wait for it."""

GRACE_S = 10.0
"""What is wrong in one worker is most often wrong in all: so long the first one has, to write its error down itself."""


class WorkersDied(CadlocError):
    """Workers of a trial died (memory, node): it is to be taken up again from its last checkpoint."""


@dataclass(frozen=True)
class Trouble:
    """An error in another worker than the first."""

    worker: int
    error: str
    trace: str


Said: TypeAlias = Progress | TrialResult | Trouble | None
"""What workers say; None: they are gone."""


def shared_trial_steps(task: TrialTask, scratch: Path) -> Generator[Progress, None, TrialResult]:
    """`cadloc_sweep.worker.trial_steps` of a trial that several workers share; Ray Train's own files go to `scratch`.

    Raises WorkersDied.
    """
    finished = finished_result(task)
    if finished is not None:
        return finished
    group = _Group(task, scratch)
    try:
        while isinstance(said := group.heard(), Progress):
            yield said
            group.tell(go_on=True)
        return said
    except GeneratorExit:
        group.end()
        raise
    finally:
        group.close()


class _Group:
    """The workers of one trial: what the first one says, one after the other, and their end."""

    def __init__(self, task: TrialTask, scratch: Path) -> None:
        self._task = task
        self._exchange: Any = ray.remote(num_cpus=0)(Exchange).remote()
        self._error: Exception | None = None
        self._running = threading.Thread(target=self._run, args=(scratch,), daemon=True)
        self._running.start()

    def heard(self) -> Progress | TrialResult:
        """What the first worker says next; the result of an error in another one is made here. Raises WorkersDied."""
        said: Said = ray.get(self._exchange.heard.remote())
        if said is None:
            raise self._died()
        if isinstance(said, Trouble):
            return lost_result(self._task, f"worker {said.worker}: {said.error}", trace=said.trace)
        return said

    def tell(self, go_on: bool) -> None:
        """Lets the first worker go on after what it said last, or not."""
        ray.get(self._exchange.tell.remote(go_on))

    def end(self) -> None:
        """Ends the trial as interrupted, after what the first worker said last."""
        self.tell(go_on=False)
        try:
            self.heard()
        except WorkersDied as error:
            lost_result(self._task, str(error), "interrupted")

    def close(self) -> None:
        """Returns when all workers are gone."""
        self._running.join()
        ray.kill(self._exchange)

    def _run(self, scratch: Path) -> None:
        try:
            _trainer(self._task, self._exchange, scratch).fit()
        except Exception as error:  # noqa: BLE001 -- for the thread that listens
            self._error = error
        ray.get(self._exchange.say.remote(None))

    def _died(self) -> WorkersDied:
        failures: dict[int, Exception] = getattr(self._error, "worker_failures", {})
        whose = "; ".join(f"worker {rank}: {type(error).__name__}" for rank, error in sorted(failures.items()))
        return WorkersDied(f"of {self._task.trial.resources.workers} workers, {whose}" if whose else str(self._error))


class Exchange:
    """An actor between the workers and who listens to them."""

    def __init__(self) -> None:
        self._said: asyncio.Queue[Said] = asyncio.Queue()
        self._told: asyncio.Queue[bool] = asyncio.Queue()

    async def say(self, said: Said) -> None:
        """Something is to be heard."""
        await self._said.put(said)

    async def heard(self) -> Said:
        """What was said next, once it is."""
        return await self._said.get()

    async def tell(self, go_on: bool) -> None:
        """Answers what was heard."""
        await self._told.put(go_on)

    async def told(self) -> bool:
        """The next answer, once there is one."""
        return await self._told.get()


def _trainer(task: TrialTask, exchange: Any, scratch: Path) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    os.environ.update(TRAIN_ENVIRONMENT)
    resources = task.trial.resources
    gpu = {"GPU": float(resources.gpu)} if resources.gpu else {}
    return TorchTrainer(
        train_worker,
        train_loop_config={"task": task, "exchange": exchange},
        torch_config=TorchConfig(backend="nccl" if resources.gpu else "gloo", timeout_s=PATIENCE_S),
        scaling_config=ScalingConfig(
            num_workers=resources.workers,
            use_gpu=bool(resources.gpu),
            resources_per_worker={"CPU": float(resources.cpu), **gpu},
        ),
        run_config=RunConfig(
            name=task.trial.id,
            storage_path=str(scratch / "train"),
            failure_config=FailureConfig(max_failures=0),  # Tune takes a trial up again, with all its workers
        ),
    )


def train_worker(given: dict[str, Any]) -> None:
    """What each worker does. One that ends without the others raises: so Ray Train ends them, too."""
    from ray.train import get_context

    rank = get_context().get_world_rank()
    if rank == 0:
        _lead(given["task"], given["exchange"])
    else:
        _follow(given["task"], given["exchange"], rank)


def _lead(task: TrialTask, exchange: Any) -> None:
    def say(said: Progress | TrialResult) -> None:
        ray.get(exchange.say.remote(said))

    result = run_steps(task, say, stop=lambda: not ray.get(exchange.told.remote()))
    say(result)
    if result.status != "finished":
        raise RuntimeError(f"the trial ended: {result.status}")


def _follow(task: TrialTask, exchange: Any, rank: int) -> None:
    try:
        follow(task, rank)
    except WorkerLost:
        raise
    except Exception as error:
        time.sleep(GRACE_S)
        last_line = traceback.format_exception_only(error)[-1].strip()
        ray.get(exchange.say.remote(Trouble(rank, last_line, traceback.format_exc())))
        raise
