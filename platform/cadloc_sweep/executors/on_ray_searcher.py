"""What Ray Tune is given to do: trials in the plan's order, as many at once as stages under way leave room for."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.tune.search import Searcher

from cadloc_sweep.agenda import POLL_S, Agenda
from cadloc_sweep.executors import TrialTask
from cadloc_sweep.executors.on_ray_packing import Packs
from cadloc_sweep.executors.on_ray_stages import AHEAD, Building
from cadloc_sweep.failures import OutOfResources
from cadloc_sweep.trials import Resources

GAP_S = 2.0
"""So long idle actors wait for a trial whose stages are nearly there; then their CPUs are given to the stages."""


class NotKept:
    """Tune pickles all its parts to disk for a restore that never comes; locks and listeners cannot go there."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class Room:
    """How the cluster is shared while stages are still to be built: they unblock trials, and come first.

    Stages get the CPUs that they can use, trials the rest, but one trial runs whenever its stages are there. Trials on
    GPUs leave one CPU. A running trial is never ended for a stage.
    """

    def __init__(self, agenda: Agenda, building: Building) -> None:
        self._agenda, self._building = agenda, building
        self.out = 0
        """Trials that Tune has."""
        self.starting = False
        """Whether one of them waits for its actor."""

    @property
    def pieces_on_gpu(self) -> int:
        """Pieces of stages that have a GPU or wait for one."""
        return self._building.pieces_on_gpu

    def trials(self, asked: Resources, share: Resources) -> int:
        """How many trials that ask for so much Tune may have now; their `share` counts what a server has for them, too.

        With all stages there, one more than can run, to wait in Tune for its resources. It knows nothing of those of
        several workers.
        """
        held = slots(asked)
        if not self._agenda.building:
            return held + (asked.workers == 1)
        pieces = self._building.pieces
        return min(held, beside_stages(share, pieces, self.pieces_on_gpu, _total("CPU"), _total("GPU")))

    def pieces(self, resources: Resources) -> int:
        """How many pieces of stages may fly now beside trials of this size: those that can run, and some ahead.

        None ahead while a trial waits for its CPUs: it would wait behind them. Tune does not tell when workers do.
        """
        free = max(0, int(_total("CPU") - self.out * resources.cpu * resources.workers))
        return free if self.starting or (resources.workers > 1 and self.out) else free + AHEAD


def beside_stages(resources: Resources, pieces: int, pieces_on_gpu: int, cpus: float, gpus: float) -> int:
    """How many trials may run beside so many pieces of stages (some of them on GPUs) that run or could; at least 1.

    The pieces get all CPUs that they can use, at least one as more may follow; but trials on GPUs leave them one only.
    """
    reserved = 1 if resources.gpu else max(1, min(pieces, int(cpus)))
    fits = (cpus - reserved) / (resources.cpu * resources.workers)
    if resources.gpu:
        fits = min(fits, (gpus - pieces_on_gpu) / (resources.gpu * resources.workers))
    return max(1, int(fits + 1e-9))


class PlanSearcher(NotKept, Searcher):
    """Hands out the trials whose stages are there in the plan's order, no more than can run: the rest is nobody's yet.

    While Tune has nothing else to do, stages are built from here: Tune itself would look again after a second only.
    """

    def __init__(
        self, agenda: Agenda, room: Room, packs: Packs, pump: Callable[[float], bool], draining: Callable[[], bool]
    ) -> None:
        super().__init__()
        self._agenda, self._room, self._packs, self._pump, self._draining = agenda, room, packs, pump, draining

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]  # Ray forgets FINISHED
        """The next trial, None while enough are out or none is ready, FINISHED when there are no more (or draining).

        FINISHED, too, when nothing is out and nothing gets ready: actors give back what stages need.
        """
        room, end_s = self._room, time.monotonic() + GAP_S
        while self._idle() and time.monotonic() < end_s:
            self._pump(POLL_S)
        if self._idle() or not self._agenda.trials_left or self._draining():
            return str(Searcher.FINISHED)
        if self._next() is None:
            self._packs.rest(kept=0)  # another trial may wait for a GPU
            return None
        task = self._agenda.next_task()
        assert task is not None, "there was one just now"
        room.out += 1
        resources, server = self._packs.asked(task), self._packs.place(trial_id, task, room.pieces_on_gpu)
        asked = {"cpu": resources.cpu, "gpu": resources.gpu, "workers": resources.workers}
        return {"trial": task.trial.id, "server": server, **asked}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """One more may go out."""
        self._room.out -= 1
        self._packs.leave(trial_id)
        following = self._next()
        # Servers that no trial has any more stay for the next one, where no stage waits for their GPUs.
        self._packs.rest(kept=0 if following is None else self._packs.servers(following, self._room.pieces_on_gpu))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: what has run is in the ledger."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: a sweep resumes from its ledger, with a new searcher."""

    def _next(self) -> TrialTask | None:
        """The trial that may go out now, if any."""
        ready = self._agenda.ready
        if ready is None:
            return None
        most = self._room.trials(self._packs.asked(ready), self._packs.share(ready))
        return ready if self._room.out < min(most, self._packs.room(ready)) else None

    def _idle(self) -> bool:
        """Whether no trial is out and none is ready, but some are left."""
        nothing = self._room.out == 0 and self._agenda.ready is None
        return nothing and self._agenda.trials_left and not self._draining()


def check_fits(resources: Resources) -> None:
    """Raises OutOfResources for a trial that no node could hold."""
    if slots(resources) == 0:
        has = "; ".join(f"{node.get('CPU', 0):g} CPU, {node.get('GPU', 0):g} GPU" for node in _nodes())
        one = resources.workers == 1
        asks = "a trial asks" if one else f"a trial's {resources.workers} workers ask"
        raise OutOfResources(
            f"{asks} for {resources.cpu:g} CPU and {resources.gpu:g} GPU{'' if one else ' each'}; "
            f"{'no node has' if one else 'the nodes do not have'} that much ({has}); lower `resources` of the space"
        )


def _holds(node: Mapping[str, float], resources: Resources) -> int:
    by_cpu = node.get("CPU", 0.0) / resources.cpu
    by_gpu = node.get("GPU", 0.0) / resources.gpu if resources.gpu else math.inf
    return int(min(by_cpu, by_gpu) + 1e-9)


def _nodes() -> list[Mapping[str, float]]:
    """What each living node has in all."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def slots(resources: Resources) -> int:
    """How many trials of this size the cluster's living nodes hold at once."""
    return sum(_holds(node, resources) for node in _nodes()) // resources.workers


def _total(kind: str) -> float:
    """What all living nodes have of a resource."""
    return float(ray.cluster_resources().get(kind, 0.0))  # type: ignore[no-untyped-call]
