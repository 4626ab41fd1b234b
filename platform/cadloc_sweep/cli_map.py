"""`cadloc-sweep map …`: trained maps to and from the file that ACE keeps its heads in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cadloc_sweep.cli_report import warn

map_app = typer.Typer(no_args_is_help=True, help="Share maps with ACE and its kin.")


@map_app.command("export")
def export(
    place: Annotated[Path, typer.Argument(help="A trial's folder, or an imported map's.", metavar="DIR")],
    to: Annotated[Path, typer.Option(help="New file NAME.pt; its card becomes NAME.json.")],
    float32: Annotated[bool, typer.Option("--float32", help="All weights in single precision.")] = False,
) -> None:
    """Write a map with ACE's head as ACE's head file; the centre and the last layer keep single precision."""
    from cadloc.map_files import export_map

    for hindrance in export_map(place, to, float32=float32):
        warn(f"ACE's own program cannot use it: {hindrance}")
    print(f"{to}: {to.stat().st_size / 1e6:.1f} MB; what it does not say is in {to.with_suffix('.json')}")


@map_app.command("import")
def import_(
    head: Annotated[Path, typer.Argument(help="ACE's head file.", metavar="HEAD.pt")],
    encoder: Annotated[
        str, typer.Option(help="What it reads: ACE's encoder file, a .safetensors file, a tuned folder, or shipped.")
    ],
    to: Annotated[Path, typer.Option(help="New folder for the map.")],
    short_side: Annotated[
        int | None, typer.Option(min=8, help="Of the images it was trained on. [default: its card's, else 480]")
    ] = None,
    origin: Annotated[
        tuple[float, float, float] | None,
        typer.Option(help="Metres to add to poses. [default: its card's, else 0]"),
    ] = None,
) -> None:
    """Make a map that `localize --map` reads of ACE's head file."""
    from cadloc.map_files import Source, import_map

    for doubt in import_map(Source(head, encoder, short_side, origin), to):
        warn(f"{head}: {doubt}")
    print(f"{to}: a map; cadloc-sweep localize PHOTO --map {to}")
