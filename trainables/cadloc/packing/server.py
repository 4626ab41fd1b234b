"""The server of a device: stretches come at any time and take their steps together with others of their shape."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Hashable

import torch

from cadloc.contract import CadlocError
from cadloc.packing.material import MaterialStore, Opener, open_samples
from cadloc.packing.pack import Pack, Seats, Turns
from cadloc.packing.requests import StretchAnswer, StretchRequest
from cadloc.packing.slot import OnAnswer, Slot, slot_of

CPU_BUDGET_BYTES = 8 << 30
"""Of samples kept in memory, on the CPU; of a CUDA device's memory it is half."""


class PackServer:
    """Trains stretches on one device, up to `slots` of one shape at once.

    With one slot on the CPU, and for heads that cannot be packed, every stretch steps as it would at home, to the bit.
    With more, its numbers depend on how many slots there are, by rounding, but not on who else has one. One thread
    calls `step`; `admit` may be called from others, and does there what takes time. A client that is gone does not say
    so: the stretch that it was waiting for, one at most, is finished for nobody.
    """

    def __init__(self, device: str, slots: int, budget_bytes: int | None = None, opener: Opener = open_samples) -> None:
        self._slots = slots
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
        """One step of every stretch that has a seat; False when there was none."""
        self._take_in_arrived()
        for shape, pack in self._packs.items():
            waiting = self._waiting[shape]
            while waiting and pack.free:
                pack.seat(waiting.popleft())
        busy = [pack for pack in self._packs.values() if pack.slots]
        for pack in busy:
            pack.step()
        return bool(busy)

    def _take_in_arrived(self) -> None:
        """Those who have come sit down to wait."""
        with self._lock:
            arrived = list(self._arrived)
            self._arrived.clear()
        for slot in arrived:
            if slot.shape not in self._packs:
                self._make_room()
                self._packs[slot.shape], self._waiting[slot.shape] = self._seats(slot), deque()
            self._waiting[slot.shape].append(slot)

    def _make_room(self) -> None:
        """Gives up packs that nobody sits in. They are kept until then: the next stretch is likely to be of theirs."""
        for shape in [shape for shape, pack in self._packs.items() if not pack.slots and not self._waiting[shape]]:
            del self._packs[shape], self._waiting[shape]

    def _seats(self, like: Slot) -> Seats:
        alone = self._slots == 1 and like.learner.device.type == "cpu"  # a pack of one can be recorded
        if alone or like.shape is None:
            return Turns(self._slots)
        return Pack(like, self._slots)


def _budget_bytes(device: str) -> int:
    return CPU_BUDGET_BYTES if torch.device(device).type == "cpu" else torch.cuda.mem_get_info(device)[1] // 2
