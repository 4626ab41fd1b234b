"""The keys of a space file, typed and bounded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag

from cadloc.settings import Count, Settings
from cadloc_sweep.designs import Design, Factorial
from cadloc_sweep.trials import Resources


class Objective(Settings):
    """The number by which arms are compared, and which way is better."""

    metric: str = "test/synthetic/translation_error_median_m"
    mode: Literal["min", "max"] = "min"


class NoStop(Settings):
    """Every trial runs to its end."""

    scheduler: Literal["none"] = "none"


class AshaStop(Settings):
    """Asynchronous successive halving: of every `reduction` trials at a rung, the best one goes on."""

    scheduler: Literal["asha"] = "asha"
    metric: str = "validation/synthetic/translation_error_median_m"
    """Read at every validation; its better direction is the objective's."""
    grace: Count = 1
    """Validations that every trial may reach."""
    reduction: Annotated[int, Field(ge=2)] = 3


class MedianStop(Settings):
    """A trial ends when it is worse than the median of the others' running means."""

    scheduler: Literal["median"] = "median"
    metric: str = "validation/synthetic/translation_error_median_m"
    grace: Count = 1
    min_trials: Annotated[int, Field(ge=2)] = 3


Stop: TypeAlias = Annotated[NoStop | AshaStop | MedianStop, Field(discriminator="scheduler")]

Values: TypeAlias = Annotated[tuple[Any, ...], Field(min_length=1)]


class ConditionalFactor(Settings):
    """A factor that applies only where earlier factors have certain values: `when: {loss: switching}`."""

    values: Values
    when: Annotated[Mapping[str, Any], Field(min_length=1)]


def _kind_of_factor(value: Any) -> str:
    return "conditional" if isinstance(value, Mapping | ConditionalFactor) else "list"


FactorSettings: TypeAlias = Annotated[
    Annotated[Values, Tag("list")] | Annotated[ConditionalFactor, Tag("conditional")], Discriminator(_kind_of_factor)
]


class SpaceSettings(Settings):
    """The keys of a space file.

    `trial` holds a `preset` and any keys of the trial configuration; `factors` maps a key (dotted) or a section
    of it to the values tried: a mapping is merged over the section, anything else replaces it.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
    scenes: Annotated[tuple[Any, ...], Field(min_length=1)]
    repeats: Annotated[int, Field(ge=1, le=1000)] = 1
    trial: dict[str, Any] = Field(default_factory=dict)
    factors: dict[str, FactorSettings] = Field(default_factory=dict)
    design: Design = Factorial()
    baseline: dict[str, Any] = Field(default_factory=dict)
    objective: Objective = Objective()
    stop: Stop = NoStop()
    resources: Resources = Resources()
    share_prefixes: bool = True
    """Whether trials that begin with the same steps of training take them once; results are the same."""
