"""The `scene align` command: a registration of a scene's CAD model to its photos, written as a text file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cadloc.contract import Fault, InputError
from cadloc.scene_config import PhotosConfig, SceneConfig
from cadloc_sweep.durable_files import make_folder, write_aside

if TYPE_CHECKING:
    from cadloc.cad import CadModel
    from cadloc.geometry import Similarity


def align_scene(
    scene: SceneConfig,
    *,
    pairs: Path | None,
    start: Path | None,
    refine: bool,
    to: Path,
    say: Callable[[str], None],
) -> None:
    """Aligns the scene's CAD with its reconstruction and writes `to`: X_rec = M · X_cad, own axes, in metres.

    Begins with `pairs` (see `cadloc.alignment.read_picks`), or the registration in the file `start`, or the scene's
    own; then sparse points on the surface; then, with `refine`, photos against renders. Tells report and warnings
    by `say`. Raises InputError, with every fault of the options, before anything is computed; and, writing nothing,
    where there is no evidence to align by.
    """
    from cadloc.alignment import align, evidence_of, read_picks
    from cadloc.datasets.reading import read_reconstruction
    from cadloc.datasets.splitting import assign_splits
    from cadloc.registration import own_axes
    from cadloc.scene_models import load_scene_model

    photos = _checked(scene, pairs, start, to)
    make_folder(to.parent, "--to")
    model = load_scene_model(scene, "synthetic")
    reconstruction = read_reconstruction(photos)
    queries = [name for name, split in assign_splits(reconstruction, photos.splits).items() if split == "query"]
    picks = None if pairs is None else read_picks(pairs, reconstruction, queries=queries)
    begin = _start(photos, start, model)
    report = align(model, evidence_of(reconstruction, photos), begin, picks=picks, refine=refine, say=say)
    rows = report.rec_from_cad.matrix @ own_axes(model)
    write_aside(to, "".join(" ".join(f"{value:.18e}" for value in row) + "\n" for row in rows))
    for line in report.lines():
        say(line)
    say(f"wrote       {to}; name it as `photos.registration` in the scene file")


def _checked(scene: SceneConfig, pairs: Path | None, start: Path | None, to: Path) -> PhotosConfig:
    """The scene's photos. Raises InputError for options that cannot be followed."""
    faults = []
    if scene.photos is None:
        faults.append(Fault(scene.name, "photos", "nothing", "a scene with photos: their reconstruction is aligned to"))
    if to.exists():
        faults.append(Fault("--to", str(to), "a file that exists", "a new file", "remove it or name another"))
    if pairs is not None and start is not None:
        faults.append(Fault("--start", str(start), "a start besides --pairs", "one of the two: pairs give a start"))
    faults += [
        Fault(option, str(path), "no such file", "an existing file")
        for option, path in (("--pairs", pairs), ("--start", start))
        if path is not None and not path.is_file()
    ]
    if faults or scene.photos is None:
        raise InputError(faults)
    return scene.photos


def _start(photos: PhotosConfig, start: Path | None, model: CadModel) -> Similarity:
    """`rec_from_cad` of the file, or of the scene's own registration."""
    from cadloc.registration import rec_from_cad

    given = photos if start is None else photos.model_copy(update={"registration": str(start)})
    return rec_from_cad(given, model)
