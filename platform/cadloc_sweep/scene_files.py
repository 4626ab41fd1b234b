"""The scenes a space names: built-in ones, scene files, or written out in place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from cadloc.contract import Fault, InputError, Json
from cadloc.documents import Document, KeyPath, load_document, shown
from cadloc.faults import check, did_you_mean
from cadloc.scene_config import BUILT_IN_SCENES, CadConfig, PhotosConfig, SceneConfig
from cadloc_sweep.variables import Variables

SUFFIXES = (".yaml", ".yml")
_NAME_LISTS = ("mapping", "validation", "query")


def resolve_scenes(
    document: Document, entries: Sequence[Json], folders: Sequence[Path], variables: Variables
) -> tuple[list[SceneConfig], list[Fault]]:
    """The scenes of a space's `scenes` list, file names absolute, and the faults of those that cannot be used.

    Scene files are looked up in `folders` in turn.
    """
    scenes: list[SceneConfig] = []
    faults: list[Fault] = []
    for index, entry in enumerate(entries):
        path: KeyPath = ("scenes", index)
        try:
            scene = _scene(document, path, entry, folders, variables)
        except InputError as error:
            faults += error.faults
            continue
        if scene.name in {known.name for known in scenes}:
            faults.append(document.fault(path, f"scene '{scene.name}' a second time", "each scene once"))
        scenes.append(scene)
    return scenes, faults


def load_scene(name_or_path: str, settings: Sequence[str] = (), folders: Sequence[Path] = ()) -> SceneConfig:
    """A built-in scene, or the one in a scene file; `settings` are `variable=value`, all used. Raises InputError."""
    variables, faults = Variables.from_settings(settings)
    document = Document("the command line", {"scenes": [name_or_path]})
    scenes, found = resolve_scenes(document, [name_or_path], [Path.cwd(), *folders], variables)
    faults += [*found, *variables.unused(())]
    if faults:
        raise InputError(faults)
    return scenes[0]


def check_models(scenes: Sequence[SceneConfig]) -> list[str]:
    """Loads every CAD model once, and every photo's pose; returns what can be lived with.

    Raises InputError for models, reconstructions, registrations and splits that cannot be used. Imports the mesh
    readers: seconds, not milliseconds.
    """
    configs = {config.model_dump_json(): config for scene in scenes for _, config in _cad_configs(scene)}
    if not configs:
        return []
    from cadloc.cad import CadModel, load_cad
    from cadloc.datasets.photos import posed_photos

    warnings: list[str] = []
    faults: list[Fault] = []
    models: dict[str, CadModel] = {}
    for key, config in configs.items():
        try:
            models[key] = load_cad(config)
            warnings += [f"{config.path}: {warning}" for warning in models[key].warnings]
        except InputError as error:
            faults += error.faults
    for scene in scenes:
        model = models.get(scene.cad.model_dump_json()) if scene.cad is not None else None
        try:
            if scene.photos is not None and model is not None:
                posed_photos(scene.photos, model)
        except InputError as error:
            faults += error.faults
    if faults:
        raise InputError(faults)
    return warnings


def _scene(
    document: Document, path: KeyPath, entry: Json, folders: Sequence[Path], variables: Variables
) -> SceneConfig:
    match entry:
        case str() if entry in BUILT_IN_SCENES:
            return SceneConfig(name=entry, built_in=True)
        case str():
            file = _scene_file(document, path, entry, folders)
            return _checked(variables.filled(load_document(file)), (), file.parent)
        case Mapping():
            return _checked(document, path, Path(document.file).parent)
    allowed = f"{', '.join(BUILT_IN_SCENES)}, the path of a scene file, or a scene written out"
    raise InputError(document.fault(path, shown(entry), allowed))


def _scene_file(document: Document, path: KeyPath, entry: str, folders: Sequence[Path]) -> Path:
    names = [entry] if Path(entry).suffix in SUFFIXES else [entry, f"scenes/{entry}.yaml"]
    places = [folder / name for name in names for folder in folders]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        allowed = f"{', '.join(BUILT_IN_SCENES)}, or the path of an existing scene file"
        raise InputError(document.fault(path, shown(entry), allowed, did_you_mean(entry, BUILT_IN_SCENES)))
    return found


def _checked(document: Document, at: KeyPath, folder: Path) -> SceneConfig:
    """The scene at a path of a document, its files existing and absolute. Raises InputError."""
    data = document.get(at)

    def fault_at(path: KeyPath, found: str, allowed: str, action: str) -> Fault:
        return document.fault((*at, *path), found, allowed, action)

    scene, faults = check(SceneConfig, data, fault_at)
    if scene is None:
        raise InputError(faults)
    absolute = scene.model_copy(update=_absolute(scene, folder))
    faults = list(_file_faults(absolute, document, at))
    if faults:
        raise InputError(faults)
    return absolute


def _absolute(scene: SceneConfig, folder: Path) -> dict[str, object]:
    def place(path: str | None) -> str | None:
        return None if path is None else _place(path, folder)

    def cad_of(cad: CadConfig) -> CadConfig:
        return cad.model_copy(update={"path": place(cad.path)})

    query_sets = {
        name: query.model_copy(update={"cad": cad_of(query.cad), "registration": place(query.registration)})
        for name, query in scene.query_sets.items()
    }
    photos = scene.photos
    if photos is not None:
        lists = {key: place(getattr(photos.splits, key)) for key in _NAME_LISTS}
        places = {key: place(getattr(photos, key)) for key in ("images", "reconstruction", "registration")}
        photos = photos.model_copy(update={**places, "splits": photos.splits.model_copy(update=lists)})
    cad = None if scene.cad is None else cad_of(scene.cad)
    return {"cad": cad, "query_sets": query_sets, "photos": photos}


def _place(path: str, folder: Path) -> str:
    return str((folder / Path(path).expanduser()).resolve())


def _cad_configs(scene: SceneConfig) -> Iterator[tuple[KeyPath, CadConfig]]:
    if scene.cad is not None:
        yield ("cad",), scene.cad
    for name, query in scene.query_sets.items():
        yield ("query_sets", name, "cad"), query.cad


def _file_faults(scene: SceneConfig, document: Document, at: KeyPath) -> Iterator[Fault]:
    for key, cad in _cad_configs(scene):
        path = Path(cad.path)
        if not path.is_file():
            yield document.fault((*at, *key, "path"), f"no file {path}", "an existing CAD file")
        elif path.stat().st_size == 0:
            yield document.fault((*at, *key, "path"), f"the empty file {path}", "a CAD file")
    for name, query in scene.query_sets.items():
        if query.registration is not None:
            yield from _registration_faults(
                Path(query.registration), document, (*at, "query_sets", name, "registration")
            )
    if scene.photos is not None:
        yield from _photo_faults(scene.photos, document, (*at, "photos"))


def _photo_faults(photos: PhotosConfig, document: Document, at: KeyPath) -> Iterator[Fault]:
    """Places that are not there; what is in them, `cadloc-sweep scene check` reads."""
    if not Path(photos.images).is_dir():
        yield document.fault((*at, "images"), f"no folder {photos.images}", "a folder of photographs")
    if not Path(photos.reconstruction).exists():
        found, allowed = f"nothing at {photos.reconstruction}", "a reconstruction's file or folder"
        yield document.fault((*at, "reconstruction"), found, allowed)
    if photos.registration is not None:
        yield from _registration_faults(Path(photos.registration), document, (*at, "registration"))
    for key in _NAME_LISTS:
        named = getattr(photos.splits, key)
        if named is not None and not Path(named).is_file():
            allowed = "a text file with one photo name per line"
            yield document.fault((*at, "splits", key), f"no file {named}", allowed)


def _registration_faults(path: Path, document: Document, at: KeyPath) -> Iterator[Fault]:
    """A registration is a text of 4×4 finite numbers with the last row 0 0 0 1."""
    if not path.is_file():
        yield document.fault(at, f"no file {path}", "a text file of 4×4 numbers")
        return
    try:
        rows = [[float(word) for word in line.split()] for line in path.read_text().splitlines() if line.strip()]
    except ValueError:
        yield document.fault(at, f"{path} with words that are not numbers", "a text file of 4×4 numbers")
        return
    if (
        [len(row) for row in rows] != [4] * 4
        or rows[3] != [0, 0, 0, 1]
        or not all(abs(x) < 1e9 for row in rows for x in row)
    ):
        yield document.fault(at, f"{path} with something else", "4×4 finite numbers, the last row 0 0 0 1")
