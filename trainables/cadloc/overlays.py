"""Pictures of a registration: photo over render, and where the cameras stand about the model."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cadloc.cad import CadModel
from cadloc.geometry import Array

Pair: TypeAlias = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.bool_]]

_FIELDS = 10  # of the checkerboard, along the shorter side
_EDGE_COLOUR = (255, 0, 0)
_JPEG_QUALITY = 88
_SHEET_COLUMNS = 2
_FOOTPRINT_POINTS = 20_000
_SPLIT_COLOURS = {"mapping": "tab:blue", "validation": "tab:orange", "query": "tab:red"}


def write_overlay(path: Path, photo: NDArray[np.uint8], render: NDArray[np.uint8], mask: NDArray[np.bool_]) -> None:
    """Writes the photo with the render's edges in red, beside a checkerboard of photo and render, as JPEG or PNG.

    Photo and render are (H, W, 3) uint8 RGB; where `mask` (H, W) is false the photo stands in both. In the
    checkerboard, lines that go on across the fields' borders are where they should be. Raises OSError.
    """
    picture = cv2.cvtColor(overlay(photo, render, mask), cv2.COLOR_RGB2BGR)
    ok, data = cv2.imencode(path.suffix, picture, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    assert ok, f"{path}: not encodable: {picture.shape}"
    path.write_bytes(data.tobytes())


def overlay(photo: NDArray[np.uint8], render: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The picture (H, 2 W, 3) that `write_overlay` writes."""
    edged = np.where(_edges(render, mask)[..., None], np.array(_EDGE_COLOUR, np.uint8), photo)
    board = np.where((_fields(mask.shape) & mask)[..., None], render, photo)
    return np.asarray(np.concatenate([edged, board], axis=1), np.uint8)


def _edges(render: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Edges of what is drawn and the model's outline."""
    gray = cv2.cvtColor(render, cv2.COLOR_RGB2GRAY)
    seen = mask.astype(np.uint8)
    outline = cv2.dilate(seen, np.ones((3, 3), np.uint8)) - cv2.erode(seen, np.ones((3, 3), np.uint8))
    inner = (cv2.Canny(gray, 80, 200) > 0) & mask
    return np.asarray(inner | (cv2.Canny(outline * 255, 80, 200) > 0))


def _fields(shape: tuple[int, ...]) -> NDArray[np.bool_]:
    side = max(1, min(shape) // _FIELDS)
    rows, columns = np.indices(shape) // side
    return np.asarray((rows + columns) % 2 == 1)


def write_sheet(path: Path, pairs: Sequence[Pair], labels: Sequence[str]) -> None:
    """Overlays of several pairs (photo, render, mask), two in a row, each under its label. Raises OSError."""
    rows = -(-len(pairs) // _SHEET_COLUMNS)
    figure = Figure(figsize=(8.5 * _SHEET_COLUMNS, 3.2 * rows), layout="constrained")
    for place, (pair, label) in enumerate(zip(pairs, labels, strict=True), 1):
        axes = figure.add_subplot(rows, _SHEET_COLUMNS, place)
        axes.imshow(overlay(*pair))
        axes.set_title(label, fontsize=9)
        axes.set_axis_off()
    _save(figure, path)


def write_top_view(path: Path, model: CadModel, cameras: Sequence[tuple[str, Array]]) -> None:
    """The model's surface from above in grey, and cameras (split, `cad_from_cam` (4, 4)) with their view directions.

    Raises OSError.
    """
    figure = Figure(figsize=(8, 8), layout="constrained")
    axes = figure.add_subplot()
    area = model.mesh.area_faces
    drawn = np.random.default_rng(0).choice(len(area), _FOOTPRINT_POINTS, p=area / area.sum())
    footprint = model.mesh.triangles_center[drawn]
    lowest, highest = model.bounds[:, 2]
    greys = {"cmap": "Greys", "vmin": 1.5 * lowest - 0.5 * highest, "vmax": highest}  # the higher the darker
    axes.scatter(footprint[:, 0], footprint[:, 1], s=3, c=footprint[:, 2], linewidths=0, **greys)
    reach_m = 0.06 * max(model.diameter_m, 1e-6)
    for split in dict.fromkeys(split for split, _ in cameras):
        poses = np.stack([pose for other, pose in cameras if other == split])
        x, y = poses[:, 0, 3], poses[:, 1, 3]
        aim = reach_m * poses[:, :2, 2]
        axes.quiver(x, y, *aim.T, color=_SPLIT_COLOURS[split], angles="xy", scale_units="xy", scale=1, width=0.003)
        axes.scatter(x, y, s=14, color=_SPLIT_COLOURS[split], label=f"{split} ({len(poses)})")
    axes.set(aspect="equal", xlabel="x, m", ylabel="y, m", title=f"{model.name} from above")
    if cameras:
        axes.legend(frameon=False)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    picture = io.BytesIO()
    figure.savefig(picture, format=path.suffix.removeprefix("."), dpi=100)
    path.write_bytes(picture.getvalue())
