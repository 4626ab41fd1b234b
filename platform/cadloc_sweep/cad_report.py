"""The `cad inspect` command: a CAD file's report as JSON and as lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from cadloc.contract import Json
from cadloc.documents import Document
from cadloc.faults import validate
from cadloc.scene_config import CadConfig


def report_cad(path: Path, units: str | None, up: str) -> dict[str, Json]:
    """What `cadloc.cad.inspect_cad` found, as JSON. Raises InputError, also for units or an axis that do not exist."""
    from cadloc.cad import inspect_cad

    given = {"path": str(path), "up": up, "units": number_or_word(units)}
    found = asdict(inspect_cad(validate(CadConfig, Document("the command line", given))))
    return {key: value.tolist() if hasattr(value, "tolist") else value for key, value in found.items()}


def report_lines(found: Mapping[str, Json]) -> Iterator[str]:
    """The report for people."""
    (x0, y0, z0), (x1, y1, z1) = found["bounds_m"]
    yield f"file        {found['file']}"
    yield f"units       {found['units']}"
    yield f"bounds      x {x0:.2f} … {x1:.2f}  y {y0:.2f} … {y1:.2f}  z {z0:.2f} … {z1:.2f} m"
    yield f"size        {x1 - x0:.2f} × {y1 - y0:.2f} × {z1 - z0:.2f} m, ground at z {found['ground_height_m']:.2f} m"
    if any(found["origin_m"]):
        yield "origin      " + ", ".join(f"{value:.3f}" for value in found["origin_m"]) + " m was subtracted"
    yield f"faces       {found['faces']} on {found['surfaces']} surfaces"
    yield f"dropped     {found['degenerate_faces']} without area, {found['duplicate_faces']} duplicates"
    yield f"holes       {found['open_edges']} open edges"
    yield f"textures    {found['textures_found']} found, {len(found['textures_missing'])} missing"
    yield from (f"missing     {name}" for name in found["textures_missing"])
    yield from (f"warning     {warning}" for warning in found["warnings"])


def number_or_word(units: str | None) -> Json:
    """A unit from the command line: metres per unit as a number, or a word that the settings themselves judge."""
    try:
        return None if units is None else float(units)
    except ValueError:
        return units
