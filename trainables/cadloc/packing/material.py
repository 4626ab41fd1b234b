"""What a server reads of stages: samples and constraints, shared by all stretches that name the same ones."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from cadloc import constraints
from cadloc.buffer import Buffer
from cadloc.config import TrialConfig
from cadloc.constraints import Constraints
from cadloc.contract import Fault, InputError
from cadloc.global_features import GlobalFeatures
from cadloc.head_config import GlaceHead
from cadloc.samples import Samples

_READ_BY_CONSTRAINTS = ("views/synthetic", "distance_field")

Stages = Mapping[str, Path]


@dataclass(frozen=True)
class Material:
    """Samples on the server's device, and the constraints about their scene, by configuration and stages.

    Not for several threads at once: `MaterialStore` sees to that.
    """

    samples: Samples
    known: dict[object, Constraints | None] = field(default_factory=dict)

    def constraints(self, config: TrialConfig, stages: Stages) -> Constraints | None:
        """Of a trial. Raises InputError for views without depth."""
        key = (tuple(config.constraints), *(stages.get(role) for role in _READ_BY_CONSTRAINTS))
        if key not in self.known:
            self.known[key] = constraints.build(config.constraints, stages, self.samples)
        return self.known[key]

    @property
    def size_bytes(self) -> int:
        """Of the tensors of samples and constraints."""
        return _nbytes(self.samples) + _nbytes(self.known)


def open_samples(config: TrialConfig, stages: Stages, device: str) -> Samples:
    """The samples that a trial is trained on, as `cadloc.regression` opens them.

    Raises InputError for a stage that is not where the request says.
    """
    told = isinstance(config.head, GlaceHead) and config.head.global_features is not None
    parts = []
    for name in config.train_on:
        roles = [f"buffer/{name}", *([f"global_features/{name}"] if told else [])]
        for role in roles:
            if role not in stages or not Path(stages[role]).is_dir():
                raise InputError(Fault("request", f"stages.{role}", str(stages.get(role)), "a finished stage"))
        about = GlobalFeatures.open(stages[roles[1]]).vectors if told else None
        parts.append(Samples.from_buffer(Buffer.open(stages[roles[0]]), device, about))
    return Samples.joined(parts)


Opener = Callable[[TrialConfig, Stages, str], Samples]


class MaterialStore:
    """Samples, and constraints about them, by the stages they are read from.

    Those used longest ago go first when all exceed `budget_bytes`. The last used ones always stay, and what a running
    stretch holds lives as long as that. May be asked from any thread.
    """

    def __init__(self, device: str, budget_bytes: int, opener: Opener = open_samples) -> None:
        self._device, self._budget_bytes, self._opener = device, budget_bytes, opener
        self._kept: OrderedDict[tuple[str, ...], Material] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def size_bytes(self) -> int:
        """Of all that is kept."""
        return sum(each.size_bytes for each in self._kept.values())

    def of(self, config: TrialConfig, stages: Stages) -> tuple[Samples, Constraints | None]:
        """What a trial is trained on, and its constraints: opened if they must be, one after the other.

        Raises InputError for stages that are not where the request says, or hold no depth where it is needed.
        """
        key = _key(config, stages)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = Material(self._opener(config, stages, self._device))
            self._kept.move_to_end(key)
            material = self._kept[key]
            limits = material.constraints(config, stages)
            while len(self._kept) > 1 and self.size_bytes > self._budget_bytes:
                self._kept.popitem(last=False)
        return material.samples, limits


def _key(config: TrialConfig, stages: Stages) -> tuple[str, ...]:
    told = isinstance(config.head, GlaceHead) and config.head.global_features is not None
    kinds = ("buffer", "global_features") if told else ("buffer",)
    return tuple(str(stages.get(f"{kind}/{name}")) for name in config.train_on for kind in kinds)


def _nbytes(value: object) -> int:
    """Of all tensors in an object, or in a mapping of objects."""
    if isinstance(value, Tensor):
        return value.nbytes
    held = value if isinstance(value, Mapping) else getattr(value, "__dict__", {})
    return sum(_nbytes(each) for each in held.values())
