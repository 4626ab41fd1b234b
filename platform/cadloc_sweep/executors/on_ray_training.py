"""Ray Train: several workers, on CPUs or one GPU each, take the steps of one pre-training run together.

Ray starts the processes, joins them with `torch.distributed` (gloo on CPUs, nccl on GPUs) and starts all of them again
when one dies; the run then goes on from its own checkpoint. The run's directory must be one that all workers see.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cadloc.contract import CadlocError, Json
from cadloc_sweep.executors.on_ray import RayExecutor, worker_environment
from cadloc_sweep.failures import ExecutorUnreachable, OutOfResources

if TYPE_CHECKING:
    from cadloc.pretraining_config import PretrainingConfig
    from cadloc.pretraining_history import Row

RETRIES = 2
"""How often dying workers (memory, node) are started again."""


@dataclass(frozen=True)
class TrainingJob:
    """A pre-training run in a directory, and how many workers share it. Safe to send.

    `gpus` is 0 or 1: a worker trains on one device. `loaders` are processes per worker that draw data ahead.
    `make_listener` is called in the first worker; what it returns hears of every row of the history.
    """

    config: PretrainingConfig
    directory: Path
    workers: int = 1
    gpus: int = 0
    loaders: int = 0
    make_listener: Callable[[], Callable[[Row], None]] | None = None

    @property
    def needed(self) -> dict[str, float]:
        """Resources of one worker."""
        return {"CPU": 1.0 + self.loaders, **({"GPU": float(self.gpus)} if self.gpus else {})}


class RayTraining(RayExecutor):
    """A Ray of our own or a cluster, as for sweeps, that pre-trains encoders."""

    def pretrain(
        self, job: TrainingJob, on_building: Callable[[int, int], None] = lambda done, buildings: None
    ) -> dict[str, Json]:
        """Renders what is missing of the pool, a building per core, trains, and returns the encoder's card.

        `on_building` hears how many of how many buildings are rendered. Raises what `cadloc.pretraining.pretrain`
        raises, ExecutorUnreachable, OutOfResources when the workers fit nowhere or keep dying, KeyboardInterrupt after
        a Ctrl-C: called again it goes on.
        """
        from cadloc.pretraining import claim

        claim(job.directory, job.config)
        self._connect()
        _check_room(job)
        _render_pool(job, on_building)
        answer = _trained(job)
        if isinstance(answer, CadlocError):
            raise answer
        card: dict[str, Json] = answer
        return card


def _check_room(job: TrainingJob) -> None:
    import ray

    there = ray.cluster_resources()  # type: ignore[no-untyped-call]
    short = {name: job.workers * need for name, need in job.needed.items() if there.get(name, 0) < job.workers * need}
    if short:
        wanted = ", ".join(f"{need:g} {name}" for name, need in short.items())
        has = ", ".join(f"{there.get(name, 0):g} {name}" for name in short)
        raise OutOfResources(f"{job.workers} workers need {wanted}; the cluster has {has}")


def _render_pool(job: TrainingJob, on_building: Callable[[int, int], None]) -> None:
    import ray
    from ray.exceptions import RayError

    from cadloc.pretraining_data import Pool, render_piece
    from cadloc_sweep.executors.on_ray_stages import NO_THREADS, original

    folder, config = job.directory / "pool", job.config.pool
    folder.mkdir(parents=True, exist_ok=True)
    pool = Pool.below(folder, config)
    variables = {**worker_environment(), **NO_THREADS}
    task = ray.remote(num_cpus=1, max_retries=RETRIES, runtime_env={"env_vars": variables})(render_piece)
    waiting = [task.remote(config, pool, index) for index in pool.missing()]
    try:
        while waiting:
            done, waiting = ray.wait(waiting)
            ray.get(done)
            on_building(config.buildings - len(waiting), config.buildings)
    except RayError as error:
        raise original(error) from error


def _trained(job: TrainingJob) -> Any:
    """What the first worker returned: the card, or the error of ours that all workers ended with.

    Ray's own errors go through where they stand for what nobody foresaw in a worker.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, WorkerGroupError
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

    # Ray's annotations are those of its older Train, which returned nothing.
    trainer: Any = TorchTrainer(
        train_worker,  # type: ignore[arg-type]
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="nccl" if job.gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=job.workers, use_gpu=bool(job.gpus), resources_per_worker=dict(job.needed)
        ),
        run_config=RunConfig(
            name="pretraining",
            storage_path=str(job.directory.resolve() / "ray"),
            failure_config=FailureConfig(max_failures=RETRIES),
        ),
    )
    before = signal.getsignal(signal.SIGINT)  # Ray puts its own handler there, and leaves it
    try:
        answer = trainer.fit().return_value
    except SystemExit as error:  # how Ray's handler ends
        raise KeyboardInterrupt from error
    except WorkerGroupError as error:
        if any(isinstance(failure, UserExceptionWithTraceback) for failure in error.worker_failures.values()):
            raise
        raise OutOfResources(f"workers died {RETRIES + 1} times: {error}") from error
    except TrainingFailedError as error:
        raise ExecutorUnreachable(f"Ray Train does not run: {error}") from error
    finally:
        signal.signal(signal.SIGINT, before)
    if answer is None:  # aborted
        raise KeyboardInterrupt
    return answer


def train_worker(given: dict[str, Any]) -> dict[str, Json] | CadlocError:
    """What each worker does: its part of every step. Errors of ours are answers: to try them again would not help."""
    from ray.train.torch import get_device

    from cadloc.pretraining import Site, pretrain
    from cadloc.workers import Workers

    job: TrainingJob = given["job"]
    workers = Workers.joined()
    heard = job.make_listener is not None and workers.rank == 0
    listener = job.make_listener() if heard and job.make_listener is not None else None
    try:
        return pretrain(job.config, job.directory, Site(workers, str(get_device()), job.loaders, listener))
    except CadlocError as error:
        return error
