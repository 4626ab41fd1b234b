"""Pictures of a trial: its curves, and what it makes of a few queries."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cadloc.cad import CadModel
from cadloc.config import TrialConfig
from cadloc.datasets.ace_layout import Dataset, View
from cadloc.evaluation import Evaluation
from cadloc.geometry import Array
from cadloc.localization import Estimate
from cadloc.queries import Queries
from cadloc.rendering import Light, process_renderer
from cadloc.scene_models import kept_scene_model
from cadloc.whole_files import write_bytes

OVERLAY_WEIGHT = 0.55

# Margins are given, not worked out: a layout that fits itself draws everything twice, which is a second of every trial.


def draw_curves(path: Path, history: Sequence[Mapping[str, float]]) -> None:
    """Loss in training and validation, and pose errors in validation, over the samples seen."""
    seen = [row["train/samples_seen"] for row in history]
    figure = Figure(figsize=(11, 3.4))
    margins = {"left": 0.05, "right": 0.99, "bottom": 0.15, "top": 0.9, "wspace": 0.24}
    loss, translation, rotation = figure.subplots(1, 3, gridspec_kw=margins)
    prefix = "validation/synthetic"
    for unit in ("m", "px"):
        _curve(loss, seen, history, f"train/loss_{unit}", f"training, {unit}")
        _curve(loss, seen, history, f"{prefix}/loss_{unit}", f"validation, {unit}")
    _curve(translation, seen, history, f"{prefix}/translation_error_median_m", "translation, m")
    _curve(translation, seen, history, f"{prefix}/scene_coordinate_error_median_m", "scene coordinate, m")
    _curve(rotation, seen, history, f"{prefix}/rotation_error_median_deg", "rotation, deg")
    for axes, title in ((loss, "loss"), (translation, "median error"), (rotation, "median error")):
        axes.set(title=title, xlabel="samples seen", yscale="log")
        axes.legend(frameon=False)
        axes.locator_params(axis="x", nbins=4)
    _save(figure, path)


def draw_queries(
    path: Path, config: TrialConfig, stages: Mapping[str, Path], name: str, evaluation: Evaluation
) -> None:
    """The best, the median and the worst localized query of set `name`, each in a row of four pictures.

    The query; its true scene coordinates as colours; the predicted ones; and the query mixed with a render of the
    scene's CAD model at the estimated pose, where a right pose shows no double edges.
    """
    queries = Queries.open(stages[f"queries/{name}"])
    views = {view.name: view for view in Dataset.open(stages[f"views/{name}"]).views("query")}
    model = kept_scene_model(config.scene)
    order = np.argsort(evaluation.errors.translation_m, kind="stable")
    shown = list(dict.fromkeys(order[[0, len(order) // 2, -1]].tolist()))
    height = 2.7 * len(shown)
    figure = Figure(figsize=(13, height))
    margins = {"left": 0.005, "right": 0.995, "bottom": 0.05 / height, "top": 1 - 0.25 / height, "wspace": 0.02}
    grid = figure.subplots(len(shown), 4, squeeze=False, gridspec_kw={**margins, "hspace": 0.12})
    for axes, i in zip(grid, shown, strict=True):
        true = queries.on_grid(i, queries.scene_coordinates[queries.cells(i)])
        predicted = queries.on_grid(i, evaluation.scene_coordinates[queries.cells(i)])
        known = np.isfinite(true).all(axis=-1)
        view = views[queries.names[i]]
        pictures = {
            queries.names[i]: view.read_image(),
            "scene coordinates": _coloured(true, model.bounds, known),
            "predicted": _coloured(predicted, model.bounds, known),
            _title(evaluation, i): _overlaid(view, evaluation.estimates[i], model, config),
        }
        for place, (title, picture) in zip(axes, pictures.items(), strict=True):
            place.imshow(picture, interpolation="nearest")
            place.set_title(title, fontsize=8)
            place.set_axis_off()
    _save(figure, path)


def _curve(axes: Axes, seen: Sequence[float], history: Sequence[Mapping[str, float]], name: str, label: str) -> None:
    points = [(samples, row[name]) for samples, row in zip(seen, history, strict=True) if name in row]
    if points:
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label)


def _coloured(points: NDArray[np.float32], bounds: Array, known: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Points (rows, cols, 3) as colours: x, y, z across the model's bounds (2, 3) are red, green, blue."""
    colours = np.nan_to_num((points - bounds[0]) / (bounds[1] - bounds[0])).clip(0, 1)
    return np.where(known[..., None], colours, 1.0)


def _overlaid(view: View, estimate: Estimate, model: CadModel, config: TrialConfig) -> NDArray[np.uint8]:
    image = view.read_image()
    if estimate.cad_from_cam is None:
        return image
    renderer = process_renderer(config.views.backend)
    size = (image.shape[1], image.shape[0])
    render = renderer.render(model, estimate.cad_from_cam, view.intrinsics, *size, Light())
    mixed = OVERLAY_WEIGHT * render.image + (1 - OVERLAY_WEIGHT) * image
    return np.where(render.mask[..., None], mixed, image).astype(np.uint8)


def _title(evaluation: Evaluation, i: int) -> str:
    if evaluation.estimates[i].cad_from_cam is None:
        return "not localized"
    return f"{evaluation.errors.translation_m[i]:.2f} m, {evaluation.errors.rotation_deg[i]:.2f} deg"


def _save(figure: Figure, path: Path) -> None:
    content = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(content, format="png")
    write_bytes(path, content.getvalue())
