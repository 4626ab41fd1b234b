"""Settings of the constraints: what the CAD model says of a predicted point, whatever the loss."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from cadloc.settings import NonNegative, OpenFraction, Positive, Settings


class DepthConstraint(Settings):
    """The predicted depth may differ from the CAD's by a factor of exp(± tolerance)."""

    name: Literal["depth"] = "depth"
    weight: Positive = 0.1
    tolerance: OpenFraction = 0.02


class RangeConstraint(Settings):
    """Points lie in front of their camera and not much beyond the farthest that any view sees."""

    name: Literal["range"] = "range"
    weight: Positive = 0.1
    nearest_m: Positive = 0.1
    farthest_ratio: Annotated[float, Field(ge=1)] = 1.2
    """Times the largest known depth of the samples."""


class FreeSpaceConstraint(Settings):
    """Seen from another mapping view, a point may not float before the surface which that view sees."""

    name: Literal["free_space"] = "free_space"
    weight: Positive = 0.1
    views: Annotated[int, Field(ge=2, le=4096)] = 256
    """Mapping views whose z-buffers are held: evenly chosen ones, where there are more."""
    tolerance_pct: NonNegative = 1.0
    """Of the surface's depth, beside `tolerance_m`."""
    tolerance_m: NonNegative = 0.05


class SurfaceConstraint(Settings):
    """Points lie on the CAD's surface, wherever: needs no true coordinate, and bears a registration that is off."""

    name: Literal["surface"] = "surface"
    weight: Positive = 0.1
    resolution: Annotated[int, Field(ge=16, le=512)] = 128
    """Cells of the distance field along the longest side of the model; 512 take 6 GB to make."""
    tolerance_m: NonNegative = 0.05
    """Beside a quarter of a cell, which is how exact the field is."""


ConstraintConfig: TypeAlias = Annotated[
    DepthConstraint | RangeConstraint | FreeSpaceConstraint | SurfaceConstraint, Field(discriminator="name")
]
