"""What every group of settings is made of: a frozen base, and types with bounds. Pydantic only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Fraction = Annotated[float, Field(ge=0, le=1)]
OpenFraction = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Degrees = Annotated[float, Field(ge=0, le=180)]
Azimuth = Annotated[float, Field(ge=-360, le=360)]
Scale = Annotated[float, Field(ge=0.1, le=4)]
JpegQuality = Annotated[int, Field(ge=20, le=100)]


def _ascending(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] > ends[1]:
        raise ValueError(f"a range from {ends[0]:g} down to {ends[1]:g}; write the smaller end first")
    return ends


Ascending = AfterValidator(_ascending)
AtLeastOne = Field(min_length=1)


class Settings(BaseModel):
    """Frozen, and a key nobody reads is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the keys of `over` laid on top, mapping by mapping.

    A choice (a mapping with `name`) that names another variant replaces the whole mapping: the other
    variant's settings mean nothing to it.
    """
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping) and not _other_choice(old, value):
            result[key] = merged(old, value)
        else:
            result[key] = value
    return result


def _other_choice(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return "name" in new and new["name"] != old.get("name", new["name"])
