"""A search space: one question, the arms that answer it, and where its file is found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cadloc.contract import Fault, InputError, Json
from cadloc.faults import did_you_mean
from cadloc.scene_config import SceneConfig
from cadloc_sweep.arms import Arm
from cadloc_sweep.designs import Design, Factor
from cadloc_sweep.space_settings import Objective, Stop
from cadloc_sweep.trials import Resources


@dataclass(frozen=True)
class SearchSpace:
    """Every scene × arm × seed of one question.

    `baseline` are the factor values of the arm that the others are compared with; None when it is not tried.
    `resolved` is the file's data with every variable filled in and every file name absolute. `share_prefixes`: trials
    that begin with the same steps of training take them once.
    """

    name: str
    question: str
    scenes: tuple[SceneConfig, ...]
    repeats: int
    factors: tuple[Factor, ...]
    arms: tuple[Arm, ...]
    design: Design
    objective: Objective
    stop: Stop
    resources: Resources
    baseline: Mapping[str, Json] | None
    resolved: Mapping[str, Json]
    share_prefixes: bool = True


def load_space(name_or_path: str, settings: Sequence[str] = ()) -> SearchSpace:
    """The space in a file, or shipped under a name, with `settings` laid on top.

    A setting is `key=value` for any key of the space (`repeats=3`, `trial.training.iterations=500`, typed like
    YAML) or `variable=value` for a `${variable}` of the space or of its scene files. Raises InputError with
    every fault found; nothing heavy is imported.
    """
    from cadloc_sweep.space_reading import read_space

    return read_space(find_space(name_or_path), settings)


def find_space(name_or_path: str) -> Path:
    """The space file: a path, else the name of a shipped one. Raises InputError when it is neither."""
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    shipped = shipped_spaces()
    if path.stem in shipped and path.parent == Path():
        return shipped[path.stem]
    found = "a folder" if path.is_dir() else "no such file, and no shipped space of this name"
    guess = did_you_mean(path.stem, list(shipped))
    raise InputError(Fault(name_or_path, "the space", found, f"a .yaml file, or {', '.join(shipped)}", guess))


def shipped_spaces() -> dict[str, Path]:
    """Spaces that come with the project, by name."""
    return {path.stem: path for path in sorted(shipped_folder().glob("*.yaml"))}


def shipped_folder() -> Path:
    """`search_spaces`: inside the package when installed from a wheel, at the repository's top otherwise."""
    inside = Path(__file__).parent / "search_spaces"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "search_spaces"
