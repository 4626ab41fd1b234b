"""Choices of factor values become trial configurations; what these refuse is told at the key that says it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from cadloc.catalog import TRAINABLES, trainable
from cadloc.config import TrialConfig, with_preset
from cadloc.contract import Fault, Json, digest, identity
from cadloc.documents import KeyPath, shown
from cadloc.faults import UNKNOWN_KEY, check, did_you_mean
from cadloc.scene_config import SceneConfig
from cadloc.settings import merged
from cadloc_sweep.designs import Choice, Factor

FaultAt: TypeAlias = Callable[[KeyPath, str, str, str], Fault]
"""Makes a fault at a path of the space's document."""

OWN_KEYS = {"scene": "`scenes`", "seed": "`repeats`"}
"""Keys of a trial's configuration that the space sets itself, and where."""


@dataclass(frozen=True)
class Arm:
    """One combination of factor values: `factors` as the space writes them, `config` for the first scene, seed 0."""

    choice: Choice
    factors: Mapping[str, Json]
    config: TrialConfig

    @property
    def label(self) -> str:
        """The factors in one line: `loss=switching(at=0.333) training.iterations=500`."""
        return " ".join(f"{name}={_short(value)}" for name, value in self.factors.items()) or "all"

    def trial_config(self, scene: SceneConfig, seed: int) -> TrialConfig:
        """The configuration of one trial of this arm."""
        return self.config.model_copy(update={"scene": scene, "seed": seed})


def resolve_arms(
    trial: Mapping[str, Any],
    factors: Sequence[Factor],
    choices: Sequence[Choice],
    scene: SceneConfig,
    fault_at: FaultAt,
) -> tuple[list[Arm], list[Fault]]:
    """The arms whose configuration is valid, and a fault for every key (once) and every arm given twice."""
    arms: list[Arm] = []
    faults: list[Fault] = []
    for choice in choices:
        origin = _Origin(trial, factors, choice)
        config, found = check(TrialConfig, _config_of(trial, factors, choice, scene), origin.reporter(fault_at))
        faults += found
        if config is not None:
            faults += trainable_faults(config.trainable, origin.reporter(fault_at))
            values = {factor.name: factor.values[choice[factor.name]] for factor in factors if factor.name in choice}
            arms.append(Arm(choice, values, config))
    return arms, list(dict.fromkeys([*faults, *_repeated(arms, factors, fault_at)]))


def trainable_faults(name: str, report: FaultAt) -> list[Fault]:
    """The fault, if any, of a trainable's name: neither in the catalogue nor a user's `module:function`."""
    allowed = f"{', '.join(TRAINABLES)}, or your own as module:function"
    if name in TRAINABLES:
        return []  # ours is there: importing it would import torch
    try:
        trainable(name)
    except KeyError:
        return [report(("trainable",), shown(name), allowed, did_you_mean(name, list(TRAINABLES)))]
    except (ImportError, AttributeError, ValueError) as error:
        found = f"{shown(name)} ({error})"
        return [report(("trainable",), found, allowed, "set PYTHONPATH so that the module can be imported")]
    return []


def own_key_faults(trial: Mapping[str, Any], factors: Sequence[Factor], fault_at: FaultAt) -> list[Fault]:
    """Faults of keys that the space sets by other means: `scene` and `seed`."""
    given: list[tuple[KeyPath, str]] = [(("trial", key), key) for key in trial]
    given += [(("factors", factor.name), factor.name.split(".")[0]) for factor in factors]
    return [
        fault_at(path, "a key that the space sets itself", f"{OWN_KEYS[key]} of the space", f"use {OWN_KEYS[key]}")
        for path, key in given
        if key in OWN_KEYS
    ]


def _config_of(
    trial: Mapping[str, Any], factors: Sequence[Factor], choice: Choice, scene: SceneConfig
) -> dict[str, Any]:
    config = with_preset(trial)
    for factor in factors:
        if factor.name in choice:
            config = merged(config, _nested(factor.name.split("."), factor.values[choice[factor.name]]))
    return {**config, "scene": scene.model_dump(mode="json"), "seed": 0}


def _nested(keys: Sequence[str], value: Json) -> dict[str, Any]:
    for key in reversed(keys):
        value = {key: value}
    return dict(value)


class _Origin:
    """Where the parts of one arm's configuration were written in the space."""

    def __init__(self, trial: Mapping[str, Any], factors: Sequence[Factor], choice: Choice) -> None:
        self._sources: list[tuple[KeyPath, KeyPath, Json]] = [((), ("trial",), trial)]
        for factor in factors:
            if factor.name in choice:
                index = choice[factor.name]
                inside: KeyPath = ("values", index) if factor.when else (index,)
                place: KeyPath = ("factors", factor.name, *inside)
                self._sources.append((tuple(factor.name.split(".")), place, factor.values[index]))

    def reporter(self, fault_at: FaultAt) -> FaultAt:
        """Reports faults of the configuration as faults of the space."""

        def report(path: KeyPath, found: str, allowed: str, action: str) -> Fault:
            section, place, _ = self._source(path)
            inner = path[len(section) :]
            if found == UNKNOWN_KEY and len(path) == 1:
                allowed = ", ".join(["preset", *(key for key in TrialConfig.model_fields if key not in OWN_KEYS)])
            if found == UNKNOWN_KEY and section and not inner:  # the factor's own name is the unknown key
                other = any(path[: len(s)] == s for s, _, _ in self._sources[1:] if len(s) < len(section))
                action = action or ("limit the factor by `when`" if other else "")
                return fault_at(place[:2], found, allowed, action)
            return fault_at((*place, *inner), found, allowed, action)

        return report

    def _source(self, path: KeyPath) -> tuple[KeyPath, KeyPath, Json]:
        """The source that wrote most of the path; of equals the later, which lies on top."""
        return max(reversed(self._sources), key=lambda source: _depth(source, path))


def _depth(source: tuple[KeyPath, KeyPath, Json], path: KeyPath) -> int:
    """How many keys of the path a source wrote; 0 when the path leads elsewhere."""
    section, _, value = source
    if path[: len(section)] != section:
        return 0
    for depth, part in enumerate(path[len(section) :], start=len(section)):
        if isinstance(value, Mapping) and part in value:
            value = value[str(part)]
        elif isinstance(value, list | tuple) and isinstance(part, int) and part < len(value):
            value = value[part]
        else:
            return depth
    return len(path)


def _repeated(arms: Sequence[Arm], factors: Sequence[Factor], fault_at: FaultAt) -> list[Fault]:
    """Faults of values that make an arm another value made before."""
    first: dict[str, Arm] = {}
    faults: list[Fault] = []
    for arm in arms:
        known = first.setdefault(digest(identity(arm.config.model_dump(mode="json"))), arm)
        if known is not arm:
            faults.append(_repetition(known, arm, factors, fault_at))
    return faults


def _repetition(known: Arm, arm: Arm, factors: Sequence[Factor], fault_at: FaultAt) -> Fault:
    factor = next(f for f in factors if known.choice.get(f.name) != arm.choice.get(f.name))
    index = arm.choice.get(factor.name, 0)
    path: KeyPath = ("factors", factor.name, *(("values", index) if factor.when else (index,)))
    found = f"the same configuration as {factor.name}={_short(known.factors.get(factor.name, 'left out'))}"
    return fault_at(path, found, "values that make different trials", "remove one of the two")


def _short(value: Json) -> str:
    match value:
        case Mapping():
            rest = ",".join(f"{key}={_short(item)}" for key, item in value.items() if key != "name")
            name = str(value.get("name", ""))
            return f"{name}({rest})" if rest else name
        case list() | tuple():
            return "[" + ",".join(_short(item) for item in value) + "]"
        case float():
            return f"{value:.6g}"
        case bool() | None:
            return str(value).lower()
    return str(value)
