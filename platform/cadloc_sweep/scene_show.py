"""The `scene show` command: what a scene consists of, where its cameras stand, and what they see."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cadloc.scene_config import SceneConfig
from cadloc_sweep.durable_files import make_folder
from cadloc_sweep.scene_check import SHORT_SIDE_PX, load_photos, number

if TYPE_CHECKING:
    from cadloc.cad import CadModel
    from cadloc.datasets.photos import PosedPhoto

PAIRS = 8


def show_scene(scene: SceneConfig, to: Path | None, say: Callable[[str], None]) -> None:
    """Says what the scene holds; with `to`, writes `top_view.png` and, where there are photos, `pairs.png` there.

    Raises InputError for files that cannot be used.
    """
    from cadloc.scene_models import load_scene_model

    model: CadModel
    posed: Sequence[PosedPhoto]
    if scene.photos is None:
        model, posed = load_scene_model(scene, "synthetic"), ()
    else:
        model, _, posed = load_photos(scene)
    for line in _lines(scene, model, posed):
        say(line)
    if to is not None:
        make_folder(to, "--to")
        _draw(to, model, posed)
        say(f"top_view.png{' and pairs.png are' if posed else ' is'} in {to}")


def _lines(scene: SceneConfig, model: CadModel, posed: Sequence[PosedPhoto]) -> Iterator[str]:
    x, y, z = model.bounds[1] - model.bounds[0]
    ground_m = model.ground_height_m if scene.ground_z_m is None else scene.ground_z_m
    yield f"scene      {scene.name}{' (built in)' if scene.built_in else ''}"
    yield f"metres     {'on the ground' if scene.metric else 'of the CAD; not metric'}"
    yield f"model      {x:.2f} × {y:.2f} × {z:.2f} m, {len(model.mesh.faces)} faces, ground at z {ground_m:.2f} m"
    for name in scene.query_sets:
        yield f"query set  {name}"
    if scene.photos is None:
        yield "photos     none"
        return
    splits = ", ".join(f"{count} {split}" for split, count in Counter(photo.split for photo in posed).items())
    yield f"photos     {len(posed)}: {splits}"
    yield f"poses      {scene.photos.reconstruction}"
    yield f"cameras    {', '.join(sorted({photo.photo.camera.model for photo in posed}))}"
    heights = sorted(float(photo.cad_from_cam[2, 3]) - ground_m for photo in posed)
    yield f"heights    {heights[0]:.1f} … {heights[-1]:.1f} m above the ground"
    yield f"registered {scene.photos.registration or 'the CAD stands in the reconstruction itself'}"


def _draw(to: Path, model: CadModel, posed: Sequence[PosedPhoto]) -> None:
    from cadloc.overlays import write_sheet, write_top_view
    from cadloc.pose_conventions import evenly
    from cadloc.registration_check import check_photo
    from cadloc.rendering import process_renderer

    write_top_view(to / "top_view.png", model, [(photo.split, photo.cad_from_cam) for photo in posed])
    if posed:
        renderer = process_renderer("gl")
        checks = [check_photo(photo, model, SHORT_SIDE_PX, renderer) for photo in evenly(posed, PAIRS)]
        labels = [f"{check.name} ({check.split}), offset {number(check.offset_px)} px" for check in checks]
        write_sheet(to / "pairs.png", [(check.photo, check.render, check.mask) for check in checks], labels)
