"""What training asks of a loss at a moment of the run."""

from __future__ import annotations

from typing import Literal, Protocol, TypeAlias

from torch import Tensor

from cadloc.samples import Batch

Unit: TypeAlias = Literal["m", "px"]

Evidence: TypeAlias = Literal["points", "rays"]
"""What a loss lets a head know of a sample: its scene coordinate, or its pixel and camera only."""


class Phase(Protocol):
    """A loss with all its schedules resolved."""

    @property
    def unit(self) -> Unit:
        """Unit of the loss."""
        ...

    @property
    def evidence(self) -> Evidence:
        """What else may supervise the head while this loss acts."""
        ...

    def loss(self, coordinates: Tensor, batch: Batch) -> Tensor:
        """Scalar loss of predicted coordinates (B, 3) in `cad`, in the loss's own unit."""
        ...

    def metres_per_unit(self, metres_per_pixel: float) -> float:
        """Factor that makes metres of the loss's unit in a scene where a pixel spans `metres_per_pixel`."""
        ...
