"""The domain matrix as a figure: one line per scene, one column per metric, bright is good."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from cadloc_sweep.report.domain_matrix import (
    METRICS,
    Cell,
    DomainMatrix,
    QueryCounts,
    cell_text,
    column_heading,
    footnote,
    is_recall,
    matrices,
    seeds_of,
    title_of,
)
from cadloc_sweep.report.figure_files import check_ending, write_figure
from cadloc_sweep.report.results import SweepResults

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize


def draw_matrix(
    results: SweepResults, path: Path, metrics: Sequence[str] = METRICS, queries: QueryCounts | None = None
) -> None:
    """Writes the matrices as a PNG or SVG, by the path's ending: one line per matrix, one column per metric.

    Colour is the logarithm of an error, or a recall; one scale per metric, bright is good. InputError: another ending,
    or metrics that `matrices` refuses.
    """
    from matplotlib.figure import Figure

    check_ending(path)
    drawn = matrices(results, metrics)
    heights = [0.9 + 0.62 * len(matrix.rows) for matrix in drawn]
    width = 1.6 + 1.35 * max(len(matrix.test_sets) for matrix in drawn)
    figure = Figure(figsize=(width * len(metrics) + 1, sum(heights) + 0.9), layout="constrained")
    grid = figure.subplots(len(drawn), len(metrics), squeeze=False, height_ratios=heights)
    for column, metric in enumerate(metrics):
        scale = _Scale.of([cell for matrix in drawn for key, cell in matrix.cells.items() if key[0] == metric], metric)
        for axes, matrix in zip(grid[:, column], drawn, strict=True):
            _draw(axes, matrix, metric, scale, queries)
        grid[0, column].set_title(f"{title_of(metric)}\n{grid[0, column].get_title()}", fontsize=9, parse_math=False)
    figure.supxlabel(footnote(), fontsize=7)
    write_figure(figure, path)


@dataclass(frozen=True)
class _Scale:
    """Colours of one metric, the same in every matrix."""

    norm: Normalize
    colours: Colormap
    least: float

    @classmethod
    def of(cls, cells: Sequence[Cell], metric: str) -> _Scale:
        from matplotlib import colormaps
        from matplotlib.colors import LogNorm, Normalize

        if is_recall(metric):
            return cls(Normalize(0, 1), colormaps["viridis"], 0.0)
        means = [cell.interval.mean for cell in cells if cell.interval.mean is not None and not cell.failed]
        positive = [mean for mean in means if mean > 0] or [1.0]
        least = min(positive)
        return cls(LogNorm(least, max(max(positive), 1.01 * least)), colormaps["viridis_r"], least)

    def colour(self, cell: Cell | None) -> tuple[float, float, float, float]:
        """White where there is no number, grey where it stands for failures."""
        if cell is None or cell.interval.mean is None:
            return (1.0, 1.0, 1.0, 1.0)
        if cell.failed:
            return (0.6, 0.6, 0.6, 1.0)
        red, green, blue, _ = self.colours(self.norm(max(cell.interval.mean, self.least)))
        return (red, green, blue, 1.0)


def _draw(axes: Axes, matrix: DomainMatrix, metric: str, scale: _Scale, queries: QueryCounts | None) -> None:
    labels = [label for label, _ in matrix.rows]
    cells = [[matrix.cells.get((metric, label, each)) for each in matrix.test_sets] for label in labels]
    colours = [[scale.colour(cell) for cell in line] for line in cells]
    axes.imshow(colours, aspect="auto")
    for (i, line), (j, _) in product(enumerate(cells), enumerate(matrix.test_sets)):
        red, green, blue, _ = colours[i][j]
        ink = "black" if 0.3 * red + 0.6 * green + 0.1 * blue > 0.5 else "white"
        cell = line[j]
        seeds = "" if cell is None else f"\nn = {seeds_of(cell.interval.n, matrix.rows[i][1])}"
        axes.text(j, i, cell_text(cell, metric) + seeds, ha="center", va="center", color=ink, fontsize=8)
    tested = [column_heading(matrix, each, queries).replace(" (", "\n(") for each in matrix.test_sets]
    axes.set_xticks(range(len(tested)), tested, fontsize=8)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.set_xlabel("tested on", fontsize=8)
    axes.set_ylabel("trained on", fontsize=8)
    axes.set_title(matrix.title, fontsize=9, parse_math=False)
    axes.tick_params(length=0)
