"""Servers that train many trials' heads at once: an actor per GPU, or one on a CPU.

A packed trial stays a trial of Tune's: it runs in its own actor, with CPUs only, and sends each stretch of its training
to a server. The server keeps nothing between two stretches but what it can read again. So where one dies, Ray starts
it anew and sends it what it had not answered, and the trials notice only that it takes longer.
"""

from __future__ import annotations

import asyncio
import os
import threading
import traceback
from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeAlias
from uuid import uuid4

import ray
from ray.exceptions import RayActorError

from cadloc.contract import Pack, WorkerLost
from cadloc_sweep.executors import TrialTask
from cadloc_sweep.executors.on_ray_stages import NO_THREADS
from cadloc_sweep.trials import Resources

DEATHS = 2
"""How often one stretch is sent again because its server died, and as often because it broke down; then it counts as a
death of the trial's own worker."""

OnAnswer: TypeAlias = Callable[[Any], object]


class Server(Protocol):
    """What trains: `cadloc.packing.server.PackServer`. One thread takes the steps, others may admit."""

    def admit(self, request: Any, on_answer: OnAnswer) -> None:
        """Takes in a StretchRequest; its StretchAnswer is told once, from here or from a `step`."""
        ...

    def step(self) -> bool:
        """One step of every stretch taken up; False where there was none."""
        ...


MakeServer: TypeAlias = Callable[[str, int], Server]


def pack_server(device: str, slots: int) -> Server:
    """The server of heads on a device, for so many stretches at once."""
    from cadloc.packing.server import PackServer

    return PackServer(device, slots)


def sender(server: str) -> Pack:
    """Sends requests to the server of that name, one after the other, each until it is answered.

    It raises WorkerLost where the server is gone for good, or dies or breaks down too often.
    """

    def send(request: Any) -> Any:
        for _ in range(1 + DEATHS):
            answer = _answer(server, request)
            if not isinstance(answer, WorkerLost):
                return answer
        raise answer

    return send


def _answer(server: str, request: Any) -> Any:
    try:
        return ray.get(_named(server).train.remote(request))
    except RayActorError as error:
        raise WorkerLost(f"the server that trains the trial is gone: {error}") from error


def _named(server: str) -> Any:
    try:
        return ray.get_actor(server)
    except ValueError as error:
        raise WorkerLost(f"the server that trains the trial is gone: {error}") from error


class Serving:
    """A server whose steps have a thread of their own, which sleeps where there is nothing to train."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._unanswered: list[OnAnswer] = []
        self._lock, self._news = threading.Lock(), threading.Event()
        self.broken = False
        threading.Thread(target=self._run, daemon=True).start()

    def submit(self, request: Any, on_answer: OnAnswer) -> None:
        """From any thread but that of the steps, which this does not hold up while it reads what the request names.

        The answer, or WorkerLost where the server breaks down, is told from whichever thread. Raises what `admit` does.
        """
        with self._lock:
            self._unanswered.append(on_answer)
        try:
            self._server.admit(request, lambda answer: self._answer(on_answer, answer))
        except Exception:
            self._settle(on_answer)
            raise
        self._news.set()
        if self.broken:  # since before the thread's end or after it
            self._answer(on_answer, _broken("it is not there any more"))

    def _run(self) -> None:
        try:
            while True:
                while self._server.step():
                    pass
                self._news.wait()
                self._news.clear()
        except Exception as error:  # noqa: BLE001 -- what the server does not tell one client is told to all
            reason = "".join(traceback.format_exception(error))
        self.broken = True
        for on_answer in list(self._unanswered):
            self._answer(on_answer, _broken(reason))

    def _answer(self, on_answer: OnAnswer, answer: Any) -> None:
        if self._settle(on_answer):
            on_answer(answer)

    def _settle(self, on_answer: OnAnswer) -> bool:
        """Whether it was still to be answered."""
        with self._lock:
            waiting = on_answer in self._unanswered
            if waiting:
                self._unanswered.remove(on_answer)
        return waiting


def _broken(reason: str) -> WorkerLost:
    return WorkerLost(f"the server that trains the trial broke down: {reason}")


class PackingActor:
    """What Ray runs: requests come to its event loop, are taken in by threads, and trained by the one of `Serving`."""

    def __init__(self, make_server: MakeServer, device: str, slots: int) -> None:
        self._serving = Serving(make_server(device, slots))

    async def train(self, request: Any) -> Any:
        """The answer; a WorkerLost is one too."""
        if self._serving.broken:  # a device that failed is of no more use to its process
            os._exit(1)  # Ray starts another, and sends it this
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[Any] = loop.create_future()

        def tell(answer: Any) -> None:
            loop.call_soon_threadsafe(answered.set_result, answer)

        await asyncio.to_thread(self._serving.submit, request, tell)
        return await answered


class Packs:
    """Which trials of a run are packed, on which server, and the servers themselves.

    They are made for the first trials that are placed, and stay until they `rest`. As many trials run as there are
    slots; each asks for an equal share of the CPUs but one per server, or for what its space says where that is less.
    """

    def __init__(self, make_server: MakeServer = pack_server) -> None:
        self._make_server = make_server
        self._cpus = sum(node.get("CPU", 0.0) for node in _nodes())
        self._gpus = sum(int(node.get("GPU", 0.0)) for node in _nodes())
        self._servers: dict[int, tuple[str, Any]] = {}
        self._placed: dict[str, int] = {}
        self._hot: dict[int, set[tuple[str, ...]]] = {}

    def packed(self, task: TrialTask) -> bool:
        """Whether a server trains the trial; one that asks for a GPU where there is none is turned away elsewhere."""
        return task.trial.packs and self._count(task) > 0

    def asked(self, task: TrialTask) -> Resources:
        """What the trial's own actor asks for."""
        resources = task.trial.resources
        if not self.packed(task):
            return resources
        left = max(self._cpus - self._count(task), self._cpus / 2)
        share = int(1e4 * left / self.room(task)) / 1e4  # Ray counts to four places
        return resources.model_copy(update={"cpu": max(1e-4, min(resources.cpu, share)), "gpu": 0})

    def share(self, task: TrialTask) -> Resources:
        """What the trial asks for and, where it is packed, its slot's part of the server's GPU."""
        asked, trial = self.asked(task), task.trial
        on_gpu = self.packed(task) and trial.device == "cuda"
        return asked.model_copy(update={"gpu": 1 / trial.resources.slots}) if on_gpu else asked

    def compete(self, tasks: Iterable[TrialTask]) -> bool:
        """Whether servers and trials that are not packed want the same GPUs."""
        return len({self.packed(task) for task in tasks if task.trial.device == "cuda"}) == 2

    def servers(self, task: TrialTask, pieces_on_gpu: int) -> int:
        """How many servers trials like this one may have beside so many pieces of stages on GPUs; 0 if not packed."""
        if not self.packed(task):
            return 0
        return self._count(task) - (pieces_on_gpu if task.trial.device == "cuda" else 0)

    def room(self, task: TrialTask) -> float:
        """How many trials like this one the servers train at once; infinite where it is not packed."""
        return self._count(task) * task.trial.resources.slots if self.packed(task) else float("inf")

    def place(self, placed: str, task: TrialTask, pieces_on_gpu: int = 0) -> str | None:
        """Name of the server that is to train the trial, until it `leave`s; None where it is not packed.

        It is the one with the fewest trials, of those that it may have beside so many pieces, or the first; of several,
        one that has had the trial's buffers before.
        """
        if not self.packed(task):
            return None
        buffers = tuple(str(path) for role, path in sorted(task.stages.items()) if role.startswith("buffer/"))
        loads = list(self._placed.values())
        few = range(max(1, self.servers(task, pieces_on_gpu)))
        index = min(few, key=lambda i: (loads.count(i), buffers not in self._hot.get(i, ())))
        self._placed[placed] = index
        self._hot.setdefault(index, set()).add(buffers)
        if index not in self._servers:
            self._servers[index] = self._start(task)
        return self._servers[index][0]

    def leave(self, placed: str) -> None:
        """The trial has ended."""
        self._placed.pop(placed, None)

    def rest(self, kept: int) -> None:
        """Gives back the servers that no trial has, but for the first `kept`: what waits for their GPUs gets them."""
        for index in [each for each in self._servers if each >= kept and each not in self._placed.values()]:
            self._give_back(index)

    def close(self) -> None:
        """Gives all servers back; more can be placed."""
        for index in list(self._servers):
            self._give_back(index)

    def _give_back(self, index: int) -> None:
        ray.kill(self._servers.pop(index)[1])
        self._hot.pop(index, None)

    def _count(self, task: TrialTask) -> int:
        return self._gpus if task.trial.device == "cuda" else 1

    def _start(self, task: TrialTask) -> tuple[str, Any]:
        """A server that need not wait for a CPU: the trials that wait for it may have them all."""
        name, device = f"pack-{uuid4().hex}", task.trial.device
        server = ray.remote(PackingActor).options(
            name=name,
            num_cpus=0,
            num_gpus=int(device == "cuda"),
            max_restarts=-1,
            max_task_retries=DEATHS,
            runtime_env={"env_vars": NO_THREADS},  # the same bits whoever runs it
        )
        return name, server.remote(self._make_server, device, task.trial.resources.slots)


def _nodes() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
