"""What a space asks for: trials in order, and the stages they share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from cadloc.catalog import stages_of
from cadloc.config import TrialConfig
from cadloc.contract import Fault, InputError, Json, StageSpec, digest, identity
from cadloc.prefixes import TRUNK, shared_trunks
from cadloc.scene_config import SceneConfig
from cadloc_sweep.arms import Arm
from cadloc_sweep.designs import RandomSample
from cadloc_sweep.spaces import SearchSpace
from cadloc_sweep.trials import Trial

SCHEMA = 1


@dataclass(frozen=True)
class Plan:
    """Trials (seed by seed, so that an early end leaves every arm with some), and their stages by role and key.

    What trials share of their training is one of them, `trunk`; but no part of what a trial is, nor of its result.
    `specs` holds each stage once, inputs before what is made from them. `baseline` are the factor values, without
    the scene, of the arm that others are compared with.
    """

    space_name: str
    trials: tuple[Trial, ...]
    stages: Mapping[str, Mapping[str, str]]
    specs: Mapping[str, StageSpec]
    baseline: Mapping[str, Json] | None
    warnings: tuple[str, ...]

    def levels(self, keys: Iterable[str]) -> list[list[StageSpec]]:
        """The named stages and everything they are made from: each level needs earlier ones only."""
        wanted = self._with_inputs(keys)
        depths: dict[str, int] = {}
        for key, spec in self.specs.items():
            depths[key] = 1 + max((depths[inner.key] for inner in spec.inputs.values()), default=-1)
        levels: dict[int, list[StageSpec]] = {}
        for key in self.specs:
            if key in wanted:
                levels.setdefault(depths[key], []).append(self.specs[key])
        return [levels[depth] for depth in sorted(levels)]

    @property
    def pairs(self) -> int:
        """Seeds that the arms of a scene share: differences between them are means over that many pairs."""
        return len({trial.seed for trial in self.trials})

    def is_baseline(self, trial: Trial) -> bool:
        """Whether the trial belongs to the arm that others are compared with."""
        return {name: value for name, value in trial.factors.items() if name != "scene"} == self.baseline

    def to_json(self) -> dict[str, Json]:
        """The plan for other programs: trials as in their `config.json`, stages by key."""
        return {
            "schema": SCHEMA,
            "space": self.space_name,
            "trials": [trial.to_json() for trial in self.trials],
            "stages": {trial_id: dict(roles) for trial_id, roles in self.stages.items()},
            "kinds": {key: spec.kind for key, spec in self.specs.items()},
            "baseline": None if self.baseline is None else dict(self.baseline),
            "warnings": list(self.warnings),
        }

    def _with_inputs(self, keys: Iterable[str]) -> set[str]:
        wanted = set(keys)
        for key in reversed(list(self.specs)):
            if key in wanted:
                wanted |= {inner.key for inner in self.specs[key].inputs.values()}
        return wanted


def make_plan(space: SearchSpace) -> Plan:
    """All trials of a space. Imports nothing heavy; hashes the files that trials depend on.

    Raises InputError when one of them cannot be read.
    """
    trials: list[Trial] = []
    stages: dict[str, dict[str, str]] = {}
    specs: dict[str, StageSpec] = {}
    read: list[tuple[TrialConfig, Mapping[str, StageSpec]]] = []
    for seed in range(space.repeats):
        for scene in space.scenes:
            for arm in space.arms:
                try:
                    trial, needs = _trial(space, arm, scene, seed)
                except OSError as error:
                    found = f"{error.strerror or error}, needed by {scene.name} {arm.label}"
                    raise InputError(Fault(str(error.filename), "the whole file", found, "a readable file")) from error
                keys = {role: _add_spec(spec, specs) for role, spec in needs.items()}
                trials.append(trial)
                read.append((trial.config, needs))
                stages[trial.id] = keys
    warnings = _warnings(space)
    if space.share_prefixes and space.resources.workers == 1:  # several workers share a trial in another way
        trunks = shared_trunks(read, trials[0].device)
        for number, trunk in trunks.items():
            if not trials[number].packs:
                stages[trials[number].id][TRUNK] = _add_spec(trunk, specs)
        warnings += _packed_alike(sum(trials[number].packs for number in trunks))
    return Plan(space.name, tuple(trials), stages, specs, space.baseline, tuple(warnings))


def trial_id(config: Mapping[str, Json], stage_keys: Mapping[str, str]) -> str:
    """12 hex digits of all that a trial's result depends on.

    The configuration (files by content, keys in any order, numbers in any spelling) and the stages it reads, whose
    keys cover the code that makes them and the files that its CAD model names.
    """
    return digest({"config": identity(config), "stages": stage_keys})[:12]


def _trial(space: SearchSpace, arm: Arm, scene: SceneConfig, seed: int) -> tuple[Trial, Mapping[str, StageSpec]]:
    config = arm.trial_config(scene, seed)
    needs = stages_of(config)
    plain = config.model_dump(mode="json")
    trial = Trial(
        id=trial_id(plain, {role: spec.key for role, spec in needs.items()}),
        config=config,
        factors={"scene": scene.name, **arm.factors},
        seed=seed,
        arm=digest(identity({key: value for key, value in plain.items() if key != "seed"})),
        arm_label=arm.label,
        resources=space.resources,
    )
    return trial, needs


def _add_spec(spec: StageSpec, specs: dict[str, StageSpec]) -> str:
    """Adds a stage after its inputs; returns its key."""
    key = spec.key
    if key not in specs:
        for inner in spec.inputs.values():
            _add_spec(inner, specs)
        specs[key] = spec
    return key


def _packed_alike(count: int) -> Iterator[str]:
    """A trunk would hold a device that is to train many trials at once, by itself, while they wait for it."""
    if count:
        yield (
            f"{count} trials begin alike, and share no prefix: they are packed, and train on servers side by side; "
            "with resources.pack=never they share prefixes instead"
        )


def _warnings(space: SearchSpace) -> list[str]:
    warnings: list[str] = []
    if len(space.arms) > 1 and space.repeats < 2:
        warnings.append("one seed per arm: means and differences between arms have no interval; --set repeats=3")
    if space.stop.scheduler != "none" and not isinstance(space.design, RandomSample):
        warnings.append(
            f"stop.scheduler {space.stop.scheduler} ends some trials early, and means over arms of the "
            f"{space.design.name} design are then biased; use scheduler: none to compare arms"
        )
    if isinstance(space.design, RandomSample) and space.design.samples > len(space.arms):
        warnings.append(f"design: only {len(space.arms)} combinations exist; {space.design.samples} samples asked for")
    warnings += [f"factor {name} is never varied by this design" for name in _never_varied(space)]
    return warnings


def _never_varied(space: SearchSpace) -> Sequence[str]:
    """Factors with several values of which no two are tried."""
    return [
        factor.name
        for factor in space.factors
        if len(factor.values) > 1
        and len({arm.choice[factor.name] for arm in space.arms if factor.name in arm.choice}) < 2
    ]
