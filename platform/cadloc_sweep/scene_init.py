"""The `scene init` command: a scene file for a folder of photographs, poses and a CAD model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cadloc.contract import Fault, InputError
from cadloc.documents import Document
from cadloc.faults import validate
from cadloc.scene_config import CadConfig, PhotosConfig
from cadloc_sweep.cad_report import number_or_word
from cadloc_sweep.durable_files import write_aside

CAD_SUFFIXES = (".glb", ".gltf", ".obj", ".ply", ".stl", ".off", ".3mf", ".dae")
PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png")
_RECONSTRUCTIONS = ("sparse/0", "sparse", "poses.json", "dense/sparse", "dense", ".", "poses")
_NAME_LISTS = ("mapping", "validation", "query")
_OF_ITS_OWN = "a folder of its own: all that is in it counts as its content, and a change makes another scene"


@dataclass(frozen=True)
class Given:
    """What the user states; None is looked for."""

    cad: Path | None = None
    photos: Path | None = None
    reconstruction: Path | None = None
    registration: Path | None = None
    units: str | None = None
    up: str | None = None


@dataclass(frozen=True)
class _Found:
    cad: Path
    images: Path
    reconstruction: Path
    format: str
    registration: Path | None
    lists: dict[str, Path]


def init_scene(folder: Path, given: Given, to: Path, force: bool, say: Callable[[str], None]) -> None:
    """Writes `to`, a scene file with a comment on every guess. Raises InputError with all that is missing.

    A file that is there is replaced only with `force`. Up is where the cameras of the photos are held up; the unit
    is the file's own, or what makes the model as large as buildings are.
    """
    if to.exists() and not force:
        raise InputError(Fault("--to", str(to), "a file that is there", "a new file", "or give --force"))
    if to.suffix not in (".yaml", ".yml") or not to.resolve().parent.is_dir():
        raise InputError(Fault("--to", str(to), "such a place", "a .yaml file in a folder that exists"))
    found = _look(folder, given, to)
    units, units_comment = _units(found.cad, given.units)
    up, up_comment = _up(found, given.up, units)
    write_aside(to, _text(found, to, (units, units_comment), (up, up_comment)))
    say(f"{to}: {found.cad.name}, photos in {found.images}, {found.format} poses in {found.reconstruction}")
    say(f"units: {units}{units_comment}")
    say(f"up: {up}{up_comment}")
    if found.registration is None:
        say("registration: none: the CAD's coordinates are taken for the reconstruction's (`scene align` finds one)")
    say(f"next: cadloc-sweep scene check {to} --to check")


def _look(folder: Path, given: Given, to: Path) -> _Found:
    """The files; raises InputError with everything that is not there or not clear."""
    from cadloc.datasets.reading import detect_format

    if not folder.is_dir():
        raise InputError(Fault("FOLDER", str(folder), "no such folder", "a folder with photos, poses and a CAD model"))
    faults: list[Fault] = []
    cad = _stated("--cad", given.cad, faults) or _only_cad(folder, faults)
    images = _stated("--photos", given.photos, faults) or _image_folder(folder, faults)
    stated = _stated("--reconstruction", given.reconstruction, faults)
    places = [stated] if stated else [folder / name for name in _RECONSTRUCTIONS if (folder / name).exists()]
    kinds = [(place, kind) for place in places if place is not None and (kind := detect_format(place)) is not None]
    if not kinds:
        looked = ", ".join(str(place) for place in places) or ", ".join(_RECONSTRUCTIONS)
        allowed = "a COLMAP model, an IMC Phototourism or ACE folder, a poses.json or a pose list"
        faults.append(Fault("--reconstruction", str(folder), f"no poses in {looked}", allowed))
    place, kind = _apart(*kinds[0], to, cad, faults) if kinds else (folder, "")
    if images is not None and _holds(images, to):
        faults.append(Fault("--photos", str(images), f"a folder that {to.name} is written into too", _OF_ITS_OWN))
    registration = _stated("--registration", given.registration, faults)
    if faults or cad is None or images is None:
        raise InputError(faults)
    lists = {key: folder / f"{key}.txt" for key in _NAME_LISTS if (folder / f"{key}.txt").is_file()}
    return _Found(cad, images, place, kind, registration, lists)


def _apart(place: Path, kind: str, to: Path, cad: Path | None, faults: list[Fault]) -> tuple[Path, str]:
    """Poses that nothing else lies among: whatever is in a reconstruction's folder is part of what a scene *is*."""
    from cadloc.datasets.colmap import find_model
    from cadloc.datasets.pose_lists import pose_files

    if not any(_holds(place, other) for other in (to, cad)):
        return place, kind
    lists = pose_files(place) if kind == "pose_list" else []
    if len(lists) == 1:
        return lists[0], kind
    model = find_model(place) if kind == "colmap" else None
    if model is not None and not any(_holds(model, other) for other in (to, cad)):
        return model, kind
    found = f"poses ({kind}) among other files" + (f", {len(lists)} lists of them" if lists else "")
    faults.append(Fault("--reconstruction", str(place), found, _OF_ITS_OWN, "move them, or name a sub-folder"))
    return place, kind


def _holds(place: Path, file: Path | None) -> bool:
    return file is not None and place.is_dir() and file.resolve().is_relative_to(place.resolve())


def _stated(option: str, path: Path | None, faults: list[Fault]) -> Path | None:
    if path is not None and not path.exists():
        faults.append(Fault(option, str(path), "no such file or folder", "one that exists"))
    return path


def _only_cad(folder: Path, faults: list[Fault]) -> Path | None:
    models = sorted(path for path in folder.iterdir() if path.suffix.lower() in CAD_SUFFIXES)
    if len(models) != 1:
        found = f"{len(models)} CAD models in {folder}: {', '.join(path.name for path in models)}".rstrip(": ")
        faults.append(Fault("--cad", str(folder), found, "one model, or --cad MODEL"))
    return models[0] if models else None


def _image_folder(folder: Path, faults: list[Fault]) -> Path | None:
    for place in (folder / "images", folder / "photos", folder / "dense/images", folder / "train/rgb", folder):
        if place.is_dir() and any(path.suffix.lower() in PHOTO_SUFFIXES for path in place.iterdir()):
            return place
    faults.append(Fault("--photos", str(folder), "no folder of photos", "images/, photos/, or --photos FOLDER"))
    return None


def _units(cad: Path, stated: str | None) -> tuple[str, str]:
    """The unit as written in YAML, and a comment."""
    from cadloc.cad import inspect_cad

    if stated is not None:
        config = {"path": str(cad), "up": "z", "units": number_or_word(stated)}
        validate(CadConfig, Document("--units", config))
        return stated, ""
    unit, source = inspect_cad(CadConfig(path=str(cad), up="z")).units.rsplit(" (", 1)
    word = unit.removesuffix(" m") if " " in unit else unit
    return word, "  # guessed from its size: correct it" if source == "guess)" else "  # the file says so"


def _up(found: _Found, stated: str | None, units: str) -> tuple[str, str]:
    """The model's up axis as the photos' cameras are held, and a comment. Raises InputError for faulty photos."""
    import numpy as np

    from cadloc.cad import load_cad
    from cadloc.datasets.reading import read_reconstruction
    from cadloc.registration import posed_in_cad, rec_from_cad
    from cadloc.registration_check import held_up, up_axis_of_cameras

    config = {"path": str(found.cad), "up": stated or "z", "units": number_or_word(units)}
    cad = validate(CadConfig, Document("--up", config))
    photos = PhotosConfig(
        images=str(found.images),
        reconstruction=str(found.reconstruction),
        registration=None if found.registration is None else str(found.registration),
    )
    reconstruction = read_reconstruction(photos)
    if stated is not None:
        return stated, ""
    registration = rec_from_cad(photos, load_cad(cad))
    poses = np.stack([posed_in_cad(registration, photo.cam_from_rec) for photo in reconstruction.photos])
    up = up_axis_of_cameras(poses, cad, np.stack([held_up(photo) for photo in reconstruction.photos]))
    if up is None:
        return "z", "  # guessed: the cameras do not say; correct it"
    return up, "  # from the photos: cameras are held that way up"


def _text(found: _Found, to: Path, units: tuple[str, str], up: tuple[str, str]) -> str:
    base = to.resolve().parent

    def place(path: Path) -> str:
        whole = path.resolve()
        return json.dumps(str(whole.relative_to(base) if whole.is_relative_to(base) else whole))

    registration = (
        ["  # registration: registration.txt   # none: the CAD file's coordinates, unscaled, are the reconstruction's"]
        if found.registration is None
        else [f"  registration: {place(found.registration)}  # X_reconstruction = M · X_cad (its own axes, metres)"]
    )
    stated = [f"    {key}: {place(path)}" for key, path in found.lists.items()]
    splits = ["  splits:", *stated] if stated else [*_SEEDED_SPLITS]
    lines = [
        f"# {found.cad.name} and the photographs in {found.images.name}.",
        f"name: {json.dumps(_name(to, found))}",
        "# Are the CAD's metres metres on the ground? A model in a reconstruction's own unit: metric: false",
        "metric: true",
        "cad:",
        f"  path: {place(found.cad)}",
        f"  units: {units[0]}{units[1]}",
        f"  up: {json.dumps(up[0])}{up[1]}",
        "photos:",
        f"  images: {place(found.images)}",
        f"  reconstruction: {place(found.reconstruction)}{_beside(found)}",
        f"  format: {found.format}",
        *registration,
        *splits,
        "# depth_range_m: [1, 200]            # depths that are taken for true",
    ]
    return "\n".join(lines) + "\n"


def _beside(found: _Found) -> str:
    """A comment where COLMAP made several models that it could not join, and on the cameras of a list of poses."""
    from cadloc.datasets.colmap import numbered_models

    if found.format == "pose_list" and found.reconstruction.is_file():
        return "  # and the list of cameras beside it; in a folder of their own, a change of either is noticed"
    others = numbered_models(found.reconstruction.resolve().parent) if found.format == "colmap" else []
    return f"  # one of {len(others)} models: {', '.join(others)}" if len(others) > 1 else ""


_SEEDED_SPLITS: Sequence[str] = (
    "  # As the reconstruction states them; else by lot, the same for every run with this seed.",
    "  splits: {query_share: 0.3, validation_share: 0.2, seed: 0}",
)


def _name(to: Path, found: _Found) -> str:
    stem = to.stem if to.stem not in ("scene", "scenes") else found.cad.resolve().parent.name
    return re.sub(r"[^A-Za-z0-9_-]+", "_", stem).strip("_-")[:64] or "scene"
