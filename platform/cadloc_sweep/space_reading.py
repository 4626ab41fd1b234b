"""A space file becomes a SearchSpace; whatever is wrong is told at once: file, line, key, found, allowed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from cadloc.config import TrialConfig
from cadloc.contract import Fault, InputError, Json
from cadloc.documents import Document, KeyPath, load_document, shown
from cadloc.faults import check, did_you_mean
from cadloc.metric_names import reported_metrics
from cadloc.presets import PRESETS
from cadloc.scene_config import CadConfig, PhotosConfig, SceneConfig
from cadloc_sweep.arms import Arm, own_key_faults, resolve_arms
from cadloc_sweep.designs import Choice, Factor, LeaveOneOut, choices, reference
from cadloc_sweep.scene_files import resolve_scenes
from cadloc_sweep.space_settings import ConditionalFactor, NoStop, SpaceSettings
from cadloc_sweep.spaces import SearchSpace, shipped_folder
from cadloc_sweep.variables import Variables, overridden, split_settings

_KEYS = tuple(SpaceSettings.model_fields)
_ANY_SCENE = SceneConfig(
    name="unknown", cad=CadConfig(path="", up="z"), photos=PhotosConfig(images="", reconstruction="")
)
"""Stands in for scenes that cannot be read: it has what any arm may ask for, so only their own faults are told."""

_WEIGHT_WORDS = frozenset({"shipped", "random", "pca"})


def read_space(file: Path, settings: Sequence[str]) -> SearchSpace:
    """The space in `file`; see `cadloc_sweep.spaces.load_space`. Raises InputError with every fault."""
    own, others = split_settings(settings, _KEYS)
    variables, faults = Variables.from_settings(others)
    document = _spelled_out(load_document(file))
    for setting in own:
        document, found = overridden(document, [setting])
        document, faults = _spelled_out(document), faults + found
    try:
        document = variables.filled(document)
    except InputError as error:
        raise InputError([*faults, *error.faults]) from error
    document, found = _with_absolute_weights(document)
    return _Reading(document, variables, [*faults, *found]).space()


class _Reading:
    """One document on its way to a space: each step adds its faults, and the next goes on with what is right."""

    def __init__(self, document: Document, variables: Variables, faults: Sequence[Fault]) -> None:
        self._document = document
        self._variables = variables
        self._faults = list(faults)

    def space(self) -> SearchSpace:
        """Raises InputError with everything that was found."""
        settings = self._settings()
        scenes = self._scenes(settings)
        factors = self._factors(settings)
        arms = self._arms(settings, factors, scenes[0] if scenes else _ANY_SCENE)
        self._suits(scenes, arms)
        self._workers(settings, arms, scenes[0] if scenes else _ANY_SCENE)
        self._packs(settings, arms)
        if not self._faults:
            self._metrics(settings, scenes, arms)
        if self._faults:
            raise InputError(_first_at_each_key(self._faults))
        return SearchSpace(
            name=settings.name,
            question=self._document.comment,
            scenes=tuple(scenes),
            repeats=settings.repeats,
            factors=tuple(factors),
            arms=tuple(arms),
            design=settings.design,
            objective=settings.objective,
            stop=settings.stop,
            resources=settings.resources,
            baseline=_factors_of(reference(factors, settings.design), arms),
            resolved={**self._document.data, "scenes": [_written(scene) for scene in scenes]},
            share_prefixes=settings.share_prefixes,
        )

    def _settings(self) -> SpaceSettings:
        """The document's keys; those with faults are left at their defaults so that the others can be looked at."""
        data = self._document.data
        wrong: set[str | int] = set()

        def report(path: KeyPath, found: str, allowed: str, action: str) -> Fault:
            wrong.update(path[:1])
            return self._fault(path, found, allowed, action)

        settings, faults = check(SpaceSettings, data, report)
        if settings is not None:
            return settings
        self._faults += faults
        if not isinstance(data, Mapping):
            raise InputError(self._faults)
        usable = {key: value for key, value in data.items() if key not in wrong}
        settings, faults = check(SpaceSettings, {"name": "unnamed", "scenes": ["gate"], **usable}, self._fault)
        assert settings is not None, faults
        return settings

    def _scenes(self, settings: SpaceSettings) -> list[SceneConfig]:
        folders = [Path(self._document.file).parent, Path.cwd(), shipped_folder()]
        scenes, faults = resolve_scenes(self._document, settings.scenes, folders, self._variables)
        self._faults += [*faults, *self._variables.unused(_KEYS)]
        return scenes

    def _factors(self, settings: SpaceSettings) -> list[Factor]:
        factors: list[Factor] = []
        for name, given in settings.factors.items():
            values = tuple(given.values if isinstance(given, ConditionalFactor) else given)
            when = self._when(name, given.when, factors) if isinstance(given, ConditionalFactor) else {}
            factors.append(Factor(name, values, when, self._baseline(name, values, settings)))
        for name in settings.baseline:
            if name not in settings.factors:
                allowed = ", ".join(settings.factors) or "nothing, as there are no factors"
                self._add(("baseline", name), "an unknown factor", allowed, did_you_mean(name, list(settings.factors)))
        return factors

    def _when(self, name: str, when: Mapping[str, Json], earlier: Sequence[Factor]) -> dict[str, tuple[Json, ...]]:
        known = {factor.name: factor for factor in earlier}
        result: dict[str, tuple[Json, ...]] = {}
        for other, wanted in when.items():
            path: KeyPath = ("factors", name, "when", other)
            if other not in known:
                allowed = ", ".join(known) or "a factor written above this one"
                self._add(path, "not a factor above this one", allowed, did_you_mean(other, list(known)))
                result[other] = ()
                continue
            result[other] = tuple(wanted) if isinstance(wanted, list | tuple) else (wanted,)
            for value in result[other]:
                if known[other].index_of(value) is None:
                    self._add(path, shown(value), f"a value of {other}: {_list(known[other].values)}")
        return result

    def _baseline(self, name: str, values: tuple[Json, ...], settings: SpaceSettings) -> int:
        if name not in settings.baseline:
            return 0
        wanted = settings.baseline[name]
        index = Factor(name, values).index_of(wanted)
        if index is None:
            self._add(("baseline", name), shown(wanted), f"a value of {name}: {_list(values)}")
        return index or 0

    def _arms(self, settings: SpaceSettings, factors: Sequence[Factor], scene: SceneConfig) -> list[Arm]:
        faults = [
            *own_key_faults(settings.trial, factors, self._fault),
            *self._preset_faults(settings),
            *self._design_faults(settings, factors),
        ]
        self._faults += faults
        if faults:
            return []
        try:
            found = choices(factors, settings.design, with_baseline=bool(settings.baseline))
        except ValueError as error:
            self._add(("factors",), str(error), "fewer combinations", "use design: {name: random, samples: N}")
            return []
        arms, faults = resolve_arms(settings.trial, factors, found, scene, self._fault)
        self._faults += faults
        return arms

    def _preset_faults(self, settings: SpaceSettings) -> Iterator[Fault]:
        preset = settings.trial.get("preset")
        if preset is not None and not (isinstance(preset, str) and preset in PRESETS):
            guess = did_you_mean(str(preset), list(PRESETS))
            yield self._fault(("trial", "preset"), shown(preset), ", ".join(PRESETS), guess)

    def _design_faults(self, settings: SpaceSettings, factors: Sequence[Factor]) -> Iterator[Fault]:
        for factor in factors if isinstance(settings.design, LeaveOneOut) else ():
            if factor.baseline == len(factor.values) - 1:
                allowed = "a baseline and, last in the list, the value of the full method"
                yield self._fault(("factors", factor.name), "the baseline as the last value", allowed)

    def _suits(self, scenes: Sequence[SceneConfig], arms: Sequence[Arm]) -> None:
        """Arms were checked with the first scene; whether every other one has what they ask for is told here."""
        for scene in scenes[1:]:
            for arm in arms:
                data = arm.trial_config(scene, 0).model_dump(mode="json")
                _, faults = check(TrialConfig, data, lambda path, *rest: self._fault(("factors",), *rest))
                self._faults += faults

    def _workers(self, settings: SpaceSettings, arms: Sequence[Arm], scene: SceneConfig) -> None:
        """Whether several workers can share the trials: their batches, and one device each."""
        workers, gpu = settings.resources.workers, settings.resources.gpu
        if workers == 1:
            return
        if gpu not in (0, 1):
            self._add(
                ("resources", "gpu"), f"{gpu:g}", f"0 or 1, as each of the {workers} workers trains on one device"
            )
        for config in (arm.trial_config(scene, 0) for arm in arms):
            if config.trainable == "render_and_match":
                found, allowed = f"{workers}, and the trainable {config.trainable}", "1 where nothing is trained"
                self._add(("resources", "workers"), found, allowed)
            elif config.training.batch_size % workers:
                found, allowed = f"{workers}, and training.batch_size {config.training.batch_size}", "a divisor of it"
                self._add(("resources", "workers"), found, allowed)

    def _packs(self, settings: SpaceSettings, arms: Sequence[Arm]) -> None:
        """Whether a server can do the trials' training where one is asked for by name."""
        if settings.resources.pack != "always":
            return
        if settings.resources.workers > 1:
            found, allowed = "always, and several workers", "auto or never where workers share each trial"
            self._add(("resources", "pack"), found, allowed)
        if any(arm.trial_config(_ANY_SCENE, 0).trainable == "render_and_match" for arm in arms):
            found, allowed = "always, and the trainable render_and_match", "auto or never where nothing is trained"
            self._add(("resources", "pack"), found, allowed)

    def _metrics(self, settings: SpaceSettings, scenes: Sequence[SceneConfig], arms: Sequence[Arm]) -> None:
        """Every trial must report the metrics that it is judged and stopped by."""
        wanted: list[tuple[KeyPath, str, str]] = [(("objective", "metric"), settings.objective.metric, "")]
        if not isinstance(settings.stop, NoStop):
            wanted.append((("stop", "metric"), settings.stop.metric, "validation/"))
        for scene in scenes:
            for arm in arms:
                known = reported_metrics(arm.trial_config(scene, 0))
                for path, metric, opening in wanted if known is not None else ():
                    told = sorted(name for name in known or () if name.startswith(opening))
                    if metric not in told:
                        found = f"'{metric}', which trials on {scene.name} do not report"
                        self._add(path, found, _metric_list(told), did_you_mean(metric, told))

    def _fault(self, path: KeyPath, found: str, allowed: str, action: str = "") -> Fault:
        if path == ("design", "name") and found == "'adaptive'":
            action = "adaptive search is not available: draw combinations with {name: random, samples: N}"
        return self._document.fault(path, found, allowed, action)

    def _add(self, path: KeyPath, found: str, allowed: str, action: str = "") -> None:
        self._faults.append(self._fault(path, found, allowed, action))


def _spelled_out(document: Document) -> Document:
    """`design: factorial` is short for `design: {name: factorial}`."""
    design = document.data.get("design") if isinstance(document.data, Mapping) else None
    if not isinstance(design, str):
        return document
    return document.with_value(("design",), {"name": design}, document.place(("design",)))


def _with_absolute_weights(document: Document) -> tuple[Document, list[Fault]]:
    """Files of weights, seen from the space's folder (from the current one in `--set`), absolute."""
    faults: list[Fault] = []
    for path, text in list(_weights(document.data, ())):
        place = document.place(path)
        folder = Path.cwd() if place.file == "--set" else Path(document.file).parent
        file = (folder / Path(text).expanduser()).resolve()
        if not file.is_file():
            allowed = "shipped, random (encoders), pca (global features), or the path of an existing file"
            faults.append(document.fault(path, f"no file {file}", allowed, did_you_mean(text, list(_WEIGHT_WORDS))))
        document = document.with_value(path, str(file), place)
    return document, faults


def _weights(data: Json, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    """Every value of a key `weights` (or of a factor `….weights`) that is no word of its own."""
    if isinstance(data, str):
        keys = [part for part in path if isinstance(part, str) and part != "values"]
        if keys and keys[-1].split(".")[-1] == "weights" and data not in _WEIGHT_WORDS:
            yield path, data
    elif isinstance(data, Mapping):
        for key, value in data.items():
            yield from _weights(value, (*path, key))
    elif isinstance(data, list):
        for index, value in enumerate(data):
            yield from _weights(value, (*path, index))


def _factors_of(choice: Choice, arms: Sequence[Arm]) -> Mapping[str, Json] | None:
    return next((arm.factors for arm in arms if arm.choice == choice), None)


def _written(scene: SceneConfig) -> Json:
    return scene.name if scene.built_in else scene.model_dump(mode="json", exclude_defaults=True)


def _list(values: Sequence[Json]) -> str:
    return ", ".join(
        str(value["name"]) if isinstance(value, Mapping) and "name" in value else shown(value) for value in values
    )


def _metric_list(names: Sequence[str]) -> str:
    """Metrics in few words: what they are of, and then their last parts, each once."""
    openings = list(dict.fromkeys(name.rpartition("/")[0] for name in names))
    endings = list(dict.fromkeys(name.rpartition("/")[2] for name in names))
    return f"{' | '.join(openings)} followed by / and one of {', '.join(endings)}"


def _first_at_each_key(faults: Sequence[Fault]) -> list[Fault]:
    """A value that several arms or scenes refuse is told once."""
    first: dict[tuple[str, str, int | None], Fault] = {}
    for fault in faults:
        first.setdefault((fault.file, fault.key, fault.line), fault)
    return list(first.values())
