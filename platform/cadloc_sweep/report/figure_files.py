"""Figures of a report as files: which endings there are, and how one is written."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

from cadloc.contract import Fault, InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg")
"""Endings of a figure's path."""


def check_ending(path: Path) -> None:
    """Raises InputError for a figure that is neither a PNG nor an SVG, by its path's ending."""
    if path.suffix.lower() not in FORMATS:
        raise InputError(Fault(str(path), "the figure's ending", path.suffix or "none", ", ".join(FORMATS)))


def write_figure(figure: Figure, path: Path) -> None:
    """Written aside and renamed: a reader finds the old figure or the new one, whole."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    content = io.BytesIO()
    with rc_context({"svg.fonttype": "none"}):  # text stays text: it can be searched and copied
        figure.savefig(content, format=path.suffix[1:].lower(), dpi=150)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_bytes(content.getvalue())
    os.replace(aside, path)
