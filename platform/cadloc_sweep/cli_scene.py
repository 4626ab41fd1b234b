"""`cadloc-sweep scene …`: scenes with photographs, from a folder of files to a checked scene file and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cadloc_sweep.cli_options import Settings

scene_app = typer.Typer(no_args_is_help=True, help="Bring photographs and a CAD model together.")

SceneName = Annotated[str, typer.Argument(help="A scene file.", metavar="SCENE")]


@scene_app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Where the photos, poses and CAD model are.", metavar="FOLDER")],
    cad: Annotated[Path | None, typer.Option(help="The CAD model. [default: the only one]", show_default=False)] = None,
    photos: Annotated[Path | None, typer.Option(help="Folder that photos' names start from.")] = None,
    reconstruction: Annotated[Path | None, typer.Option(help="Their poses: a folder or file.")] = None,
    registration: Annotated[Path | None, typer.Option(help="4×4 text: X_reconstruction = M · X_cad.")] = None,
    units: Annotated[str | None, typer.Option(help="m, cm, mm, in, ft, or metres per unit.")] = None,
    up: Annotated[str | None, typer.Option(help="The CAD file's axis that points up, such as z or -y.")] = None,
    to: Annotated[Path, typer.Option(help="The scene file to write.")] = Path("scene.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Replace a scene file that is there.")] = False,
) -> None:
    """Write a scene file for what is in a folder; what was guessed is said in its comments."""
    from cadloc_sweep.scene_init import Given, init_scene

    init_scene(folder, Given(cad, photos, reconstruction, registration, units, up), to, force, _say)


@scene_app.command()
def check(
    scene: SceneName,
    to: Annotated[Path | None, typer.Option(help="Folder for overlays and check.json.")] = None,
    photos: Annotated[int, typer.Option(min=1, help="At most so many photos, evenly chosen.")] = 40,
    settings: Settings = None,
) -> None:
    """Compare photos with renders at their poses; exit code 2, with the mistake's name, when they do not fit."""
    from cadloc_sweep.scene_check import check_scene
    from cadloc_sweep.scene_files import load_scene

    check_scene(load_scene(scene, settings or ()), to, _say, photos)


@scene_app.command()
def show(
    scene: SceneName,
    to: Annotated[Path | None, typer.Option(help="Folder for a top view and a sheet of pairs.")] = None,
    settings: Settings = None,
) -> None:
    """Print what a scene consists of; draw where the cameras stand and what they see."""
    from cadloc_sweep.scene_files import load_scene
    from cadloc_sweep.scene_show import show_scene

    show_scene(load_scene(scene, settings or ()), to, _say)


@scene_app.command()
def align(
    scene: SceneName,
    to: Annotated[Path, typer.Option(help="The registration to write: 4×4 text.")],
    pairs: Annotated[Path | None, typer.Option(help="Named point pairs, CSV or JSON.", show_default=False)] = None,
    start: Annotated[
        Path | None, typer.Option(help="4×4 text to start from. [default: the scene's own]", show_default=False)
    ] = None,
    refine: Annotated[bool, typer.Option(help="Refine by matches between photos and renders.")] = True,
    settings: Settings = None,
) -> None:
    """Find where the CAD model lies in the photos' reconstruction, and how well that is known."""
    from cadloc_sweep.scene_alignment import align_scene
    from cadloc_sweep.scene_files import load_scene

    align_scene(load_scene(scene, settings or ()), pairs=pairs, start=start, refine=refine, to=to, say=_say)


@scene_app.command()
def export(
    scene: Annotated[str, typer.Argument(help="A scene file, or a dataset that `render` wrote.", metavar="SCENE")],
    to: Annotated[Path, typer.Option(help="New folder.")],
    format_: Annotated[str, typer.Option("--format", help="colmap, colmap_text or ace.")] = "colmap",
    settings: Settings = None,
) -> None:
    """Write photos or views, posed in the CAD's frame, for hloc, nerfstudio, COLMAP or ACE."""
    from cadloc_sweep.scene_export import export_dataset, export_scene
    from cadloc_sweep.scene_files import load_scene

    if Path(scene).is_dir():
        lines = export_dataset(Path(scene), to, format_)
    else:
        lines = export_scene(load_scene(scene, settings or ()), to, format_)
    for line in lines:
        print(line)


def _say(line: str) -> None:
    print(line, flush=True)
