"""The server of a device: stretches come at any time and take their steps together with others of their shape."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Hashable

import torch

from cadloc.contract import CadlocError, WorkerLost
from cadloc.packing.material import MaterialStore, Opener, open_samples
from cadloc.packing.pack import Pack, Seats, Turns
from cadloc.packing.requests import StretchAnswer, StretchRequest
from cadloc.packing.slot import OnAnswer, Slot, slot_of

CPU_BUDGET_BYTES = 8 << 30
"""Of samples kept in memory, on the CPU; of a CUDA device's memory it is half."""

ALONE = "alone"
"""In place of a shape: stretches that are trained one after the other, and nobody beside them."""

_LOG = logging.getLogger(__name__)


class PackServer:
    """Trains stretches on one device, up to `slots` of one shape at once.

    With one slot on the CPU, and for heads that cannot be packed, every stretch steps as it would at home, to the bit.
    With more, its numbers depend on how many slots there are, by rounding, but not on who else has one. One thread
    calls `step`; `admit` may be called from others, and does there what takes time. A client that is gone does not say
    so: the stretch that it was waiting for, one at most, is finished for nobody.

    Where a step fails, those that took it together are asked for again, each `alone`: on a CPU such a stretch steps as
    at home, elsewhere in a pack of one seat, and its numbers differ by rounding from those it has among others. Whoever
    fails alone is told why, and all others go on.
    """

    def __init__(self, device: str, slots: int, budget_bytes: int | None = None, opener: Opener = open_samples) -> None:
        self._device, self._slots = torch.device(device), slots
        self.store = MaterialStore(device, _budget_bytes(device) if budget_bytes is None else budget_bytes, opener)
        self._arrived: deque[Slot] = deque()
        self._waiting: dict[Hashable, deque[Slot]] = {}
        self._packs: dict[Hashable, Seats] = {}
        self._lock = threading.Lock()

    def admit(self, request: StretchRequest, on_answer: OnAnswer) -> None:
        """Takes in a stretch. `on_answer` is called once, from here or from `step`.

        A request that is wrong in itself is answered at once with what is wrong, and disturbs nobody.
        """
        try:
            slot = slot_of(request, self.store, on_answer)
        except CadlocError as error:
            on_answer(StretchAnswer(request.state, error))
            return
        if slot.stretch.over:
            slot.answer()
        else:
            with self._lock:
                self._arrived.append(slot)

    def step(self) -> bool:
        """One step of every stretch that has a seat, or of one alone; False when there was none.

        Raises what a step raised that leaves the device of no use; those that took the step have been answered.
        """
        self._take_in_arrived()
        if not self._waiting.get(ALONE) and ALONE not in self._packs:
            stepped = [self._step(shape) for shape in self._waiting]
            return any(stepped)
        self._synchronize()  # what fails of others' steps is not to be taken for its own
        return self._step(ALONE)

    def _step(self, shape: Hashable) -> bool:
        try:
            return self._step_together(shape)
        except Exception as error:  # noqa: BLE001 -- whatever it is, it concerns those of one pack
            self._give_up(shape, error)
            self._synchronize()  # raises where a kernel has failed: nothing can be computed in this process any more
            return True

    def _step_together(self, shape: Hashable) -> bool:
        """Those who wait sit down, as many as can, and all who sit take a step."""
        waiting = self._waiting[shape]
        if waiting and shape not in self._packs:
            self._make_room()
            self._packs[shape] = self._seats(waiting[0])
        pack = self._packs.get(shape)
        while pack is not None and waiting and pack.free:
            pack.seat(waiting[0])
            waiting.popleft()
        if pack is None or not pack.slots:
            return False
        pack.step()
        if shape == ALONE:
            self._synchronize()
            if not pack.slots:
                del self._packs[ALONE]  # the next one may be of another shape
        return True

    def _give_up(self, shape: Hashable, error: Exception) -> None:
        """Of a pack whose step has failed, its weights may be half way through it."""
        _LOG.warning("a step of training failed", exc_info=error)
        pack, waiting = self._packs.pop(shape, None), self._waiting[shape]
        seated = list(pack.slots) if pack is not None else []
        failed = seated or list(waiting)[:1]  # who was about to sit down
        self._waiting[shape] = deque(slot for slot in waiting if slot not in failed)
        for slot in failed:
            slot.on_answer(StretchAnswer(b"", _told(error, slot.alone)))

    def _synchronize(self) -> None:
        """Raises here what has failed on the device since."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _take_in_arrived(self) -> None:
        """Those who have come sit down to wait."""
        with self._lock:
            arrived = list(self._arrived)
            self._arrived.clear()
        for slot in arrived:
            self._waiting.setdefault(ALONE if slot.alone else slot.shape, deque()).append(slot)

    def _make_room(self) -> None:
        """Gives up packs that nobody sits in. They are kept until then: the next stretch is likely to be of theirs."""
        for shape in [shape for shape, pack in self._packs.items() if not pack.slots and not self._waiting[shape]]:
            del self._packs[shape]

    def _seats(self, like: Slot) -> Seats:
        slots = 1 if like.alone else self._slots
        as_at_home = slots == 1 and self._device.type == "cpu"  # on a device a pack of one can be recorded
        return Turns(slots) if as_at_home or like.shape is None else Pack(like, slots)


def _told(error: Exception, alone: bool) -> CadlocError | WorkerLost:
    if not alone:
        return WorkerLost("a step of training failed that several trials took together")
    return error if isinstance(error, CadlocError) else CadlocError(f"a step failed: {type(error).__name__}: {error}")


def _budget_bytes(device: str) -> int:
    return CPU_BUDGET_BYTES if torch.device(device).type == "cpu" else torch.cuda.mem_get_info(device)[1] // 2
