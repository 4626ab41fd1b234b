"""Runs one trial, in whichever process: the trial's files, its ending, and the one place where any error is caught."""

from __future__ import annotations

import errno
import json
import math
import time
import traceback
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from pathlib import Path

from cadloc.catalog import trainable
from cadloc.contract import CadlocError, Pack, Progress, TrialContext, WorkerLost
from cadloc_sweep.durable_files import CorruptFile, write_json
from cadloc_sweep.executors import TrialTask
from cadloc_sweep.ledger import read_result, write_result
from cadloc_sweep.trials import TrialPaths, TrialResult, TrialStatus
from cadloc_sweep.versions import versions

_LONGEST_LOG_BYTES = 1_000_000
_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class RuntimeExceeded(CadlocError):
    """The trial ran longer than `resources.max_runtime_s`."""


class NotFinite(CadlocError):
    """A metric is not a finite number."""


def run_trial(task: TrialTask, on_progress: Callable[[Progress], None]) -> TrialResult:
    """Runs a trial to its end in this process; returns the result that now stands in its `result.json`."""
    return run_steps(task, on_progress, stop=lambda: False)


def run_steps(task: TrialTask, on_progress: Callable[[Progress], None], stop: Callable[[], bool]) -> TrialResult:
    """Like `run_trial`, but ends the trial as `interrupted` when `stop` says so after a progress."""
    steps = trial_steps(task)
    while True:
        try:
            progress = next(steps)
        except StopIteration as end:
            result: TrialResult = end.value
            return result
        on_progress(progress)
        if stop() and not progress.finished:
            steps.close()
            return read_result(TrialPaths(task.directory))


def trial_steps(
    task: TrialTask, pack: Pack | None = None, cpus: float | None = None
) -> Generator[Progress, None, TrialResult]:
    """A trial, step by step: yields as its trainable does and returns the result, which is then on disk.

    Where `pack` is given it trains with others on a server, and has no GPU of its own. It has so many `cpus`, or those
    that its space asks for.

    An error of the trial is a result (`failed`), never an exception; but WorkerLost says nothing of the trial and is
    raised. Closing the generator ends the trial as `interrupted`; the next run takes it up from its last checkpoint.
    A finished result that stands there already is returned as it is: the worker that wrote it died before it could
    tell.
    """
    attempt = _Attempt(task, pack, cpus)
    finished = attempt.finished_before()
    if finished is not None:
        return finished
    try:
        attempt.begin()
        yield from attempt.steps()
    except GeneratorExit:
        attempt.end("interrupted")
        raise
    except WorkerLost:
        raise
    except Exception as error:  # noqa: BLE001 -- the boundary: whatever a trial raises is its result
        return attempt.failure(error)
    return attempt.end("finished")


def finished_result(task: TrialTask) -> TrialResult | None:
    """The result of an earlier attempt that finished, if there was one; failed ones are run again."""
    return _Attempt(task).finished_before()


def follow(task: TrialTask, worker: int) -> None:
    """Takes the part of one of the trial's workers, not the first, in what the first one runs; writes nothing."""
    workers = task.trial.resources.workers
    context = TrialContext(task.directory, task.stages, task.trial.device, worker, workers)
    for _ in trainable(task.trial.config.trainable)(task.trial.config, context):
        pass


def lost_result(task: TrialTask, reason: str, status: TrialStatus = "failed", trace: str | None = None) -> TrialResult:
    """The result of a trial that no worker ends: its worker was killed, the scheduler ended it, or a stage failed.

    Metrics are those of its last recorded progress. Where its worker has written that it finished, that stands.
    """
    attempt = _Attempt(task)
    finished = attempt.finished_before()
    if finished is not None:
        return finished
    attempt.metrics = _last_metrics(attempt.paths.history)
    if not attempt.paths.config.is_file():
        attempt.begin()
    return attempt.end(status, error=reason, trace=trace)


class _Attempt:
    """One attempt at a trial: its clock, its files, its latest metrics."""

    def __init__(self, task: TrialTask, pack: Pack | None = None, cpus: float | None = None) -> None:
        self.trial = task.trial
        self.paths = TrialPaths(task.directory)
        self.metrics: dict[str, float] = {}
        self._stages, self._pack = task.stages, pack
        self._cpus = self.trial.resources.cpu if cpus is None else cpus
        self._started = time.time()
        self._clock = time.perf_counter()

    def finished_before(self) -> TrialResult | None:
        """The result of an earlier attempt that finished, if there was one; failed ones are run again."""
        with suppress(FileNotFoundError, NotADirectoryError, CorruptFile):
            result = read_result(self.paths)
            if result.status == "finished":
                self._forget_checkpoint()
                return result
        return None

    def begin(self) -> None:
        """A fresh directory gets its `config.json`; an earlier, unfinished attempt's result goes."""
        self.paths.directory.mkdir(parents=True, exist_ok=True)
        self.paths.result.unlink(missing_ok=True)
        write_json(self.paths.config, self.trial.to_json())

    def steps(self) -> Generator[Progress, None, None]:
        """The trainable's progress, recorded."""
        limit_s = self.trial.resources.max_runtime_s or math.inf
        finished = False
        with closing(_generator(trainable(self.trial.config.trainable)(self.trial.config, self._context()))) as run:
            for number, progress in enumerate(run):
                self._record(progress, first=number == 0)
                finished = progress.finished
                yield progress
                if self._seconds() > limit_s and not finished:
                    raise RuntimeExceeded(f"ran longer than resources.max_runtime_s = {limit_s:g}")
        if not finished:
            raise RuntimeError("the trainable ended without a finished progress")

    def _context(self) -> TrialContext:
        resources = self.trial.resources
        return TrialContext(
            self.paths.directory,
            self._stages,
            self.trial.device if self._pack is None else "cpu",  # the GPU is the server's
            workers=resources.workers,
            pack=self._pack,
            cpus=max(1, int(self._cpus)),
        )

    def failure(self, error: Exception) -> TrialResult:
        """The result of an error. A full disk is no fault of the trial's: it is interrupted, and says so."""
        text = "".join(traceback.format_exception(error))
        full = isinstance(error, OSError) and error.errno in _DISK_FULL
        last_line = traceback.format_exception_only(error)[-1].strip()
        return self.end("interrupted" if full else "failed", last_line, text, out_of_disk=full)

    def end(
        self, status: TrialStatus, error: str | None = None, trace: str | None = None, out_of_disk: bool = False
    ) -> TrialResult:
        """The result, written to `result.json` unless the disk is full."""
        result = TrialResult(
            id=self.trial.id,
            status=status,
            metrics=self.metrics,
            error=error,
            traceback=trace,
            log=str(self.paths.log) if error else None,
            seconds=round(self._seconds(), 3),
            versions=versions(),
            device=self.trial.device,
            started=round(self._started, 3),
            ended=round(time.time(), 3),
            out_of_disk=out_of_disk,
        )
        if error:
            self._log(f"{trace or error}\n")
        try:
            write_result(self.paths, result)
        except OSError:
            if not out_of_disk:
                raise
        if status == "finished":
            self._forget_checkpoint()
        return result

    def _forget_checkpoint(self) -> None:
        """After the result is on disk, not before: whoever is killed in between must not train from the start."""
        with suppress(OSError):  # one that stays takes room and does no harm
            self.paths.checkpoint.unlink(missing_ok=True)

    def _record(self, progress: Progress, first: bool) -> None:
        broken = [name for name, value in progress.metrics.items() if not math.isfinite(value)]
        if broken:
            raise NotFinite(f"{', '.join(broken)} at step {progress.step}: not a finite number")
        if first:
            _forget_from(self.paths.history, progress)
            self.metrics = _last_metrics(self.paths.history)
        self.metrics.update({name: float(value) for name, value in progress.metrics.items()})
        with open(self.paths.history, "a", encoding="utf-8") as file:
            file.write(json.dumps({**_plain(progress), "time_s": round(self._seconds(), 3)}) + "\n")

    def _log(self, text: str) -> None:
        """Appends to the log, which never grows beyond about a megabyte."""
        with suppress(OSError):
            old = self.paths.log.read_text(encoding="utf-8", errors="replace") if self.paths.log.is_file() else ""
            stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
            self.paths.log.write_text(f"{old}[{stamp} UTC] {text}"[-_LONGEST_LOG_BYTES:], encoding="utf-8")

    def _seconds(self) -> float:
        return time.perf_counter() - self._clock


def _generator(run: object) -> Generator[Progress, None, None]:
    if not isinstance(run, Generator):
        raise TypeError(f"a trainable must be a generator function; this one returned {type(run).__name__}")
    return run


def _plain(progress: Progress) -> dict[str, object]:
    return {
        "step": progress.step,
        "samples_seen": progress.samples_seen,
        "metrics": {name: float(value) for name, value in progress.metrics.items()},
        "finished": progress.finished,
    }


def read_history(path: Path) -> list[Progress]:
    """The progress recorded in a `history.jsonl`; a last line cut off by a kill is left out."""
    found: list[Progress] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        with suppress(ValueError, KeyError, TypeError):
            data = json.loads(line)
            found.append(Progress(data["step"], data["samples_seen"], data["metrics"], data["finished"]))
    return found


def _forget_from(path: Path, first: Progress) -> None:
    """Drops what an earlier attempt recorded from the step on at which this one goes on."""
    if path.is_file():
        kept = [_plain(old) for old in read_history(path) if (old.step, old.finished) < (first.step, first.finished)]
        path.write_text("".join(json.dumps(entry) + "\n" for entry in kept), encoding="utf-8")


def _last_metrics(path: Path) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for progress in read_history(path):
        metrics.update(progress.metrics)
    return metrics
