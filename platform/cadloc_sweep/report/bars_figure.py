"""The accuracy bars as a figure: groups are scenes, bars are arms, dots are seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cadloc_sweep.report.arm_styles import ArmStyle, ArmStyles
from cadloc_sweep.report.bars import Bar, Bars
from cadloc_sweep.report.figure_files import check_ending, write_figure
from cadloc_sweep.report.figure_style import add_legend, plain_logarithm, quiet_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_BARS = 60
"""Of one line of the figure; more scenes go onto the next."""

GAP = 1.2
"""Between groups, in widths of a bar."""

BAR_IN = 0.17
"""Inches across one bar."""


def draw_bars(bars: Bars, styles: ArmStyles, metric_scenes: Sequence[str], path: Path) -> None:
    """Writes the bars as a PNG or SVG, by the path's ending; `metric_scenes` are those whose metres are metres.

    The axis is logarithmic where values span more than a decade. Raises InputError for another ending.
    """
    from matplotlib.figure import Figure

    check_ending(path)
    groups = _groups(bars, metric_scenes)
    labels = [label for label in styles.styles if any(bar.label == label for bar in bars.bars)]
    lines = _lines(groups, len(labels))
    width = max(7.0, 1.0 + BAR_IN * len(lines[0]) * (len(labels) + GAP))
    figure = Figure(figsize=(width, 3.2 * len(lines) + 0.8), layout="constrained")
    bottom = _bottom(bars)
    for axes, line in zip(figure.subplots(len(lines), 1, squeeze=False)[:, 0], lines, strict=True):
        _draw_line(axes, line, labels, styles, bottom)
        axes.set_xlim(-1.2, len(lines[0]) * (len(labels) + GAP) - GAP + 0.2)
        axes.set_ylabel(bars.metric + (", %" if bars.percent else ""), fontsize=8, parse_math=False)
    _share_height(figure.axes, bars, bottom)
    add_legend(figure, styles, labels, _caption(bars), bars=True)
    write_figure(figure, path)


def _groups(bars: Bars, metric_scenes: Sequence[str]) -> dict[str, list[Bar]]:
    """The bars by scene, under what is written below them."""
    groups: dict[str, list[Bar]] = {}
    for bar in bars.bars:
        units = bars.metric.endswith("_m") and bar.scene not in metric_scenes
        groups.setdefault(f"{bar.scene}\n(model's units)" if units else bar.scene, []).append(bar)
    return groups


def _lines(groups: dict[str, list[Bar]], arms: int) -> list[dict[str, list[Bar]]]:
    """The groups, about as many to every line."""
    items = list(groups.items())
    number = min(len(items), math.ceil(len(items) * arms / MOST_BARS))
    each = math.ceil(len(items) / number)
    return [dict(items[start : start + each]) for start in range(0, len(items), each)]


def _bottom(bars: Bars) -> float:
    """Where bars stand: on zero, or under the smallest value of a logarithmic axis."""
    return 0.6 * min(value for bar in bars.drawn for value in bar.seeds) if bars.logarithmic else 0.0


def _draw_line(
    axes: Axes, groups: Mapping[str, Sequence[Bar]], labels: Sequence[str], styles: ArmStyles, bottom: float
) -> None:
    if bottom > 0:
        axes.set_yscale("log")
    step = len(labels) + GAP
    for place, bars in enumerate(groups.values()):
        for bar in bars:
            _draw_bar(axes, place * step + labels.index(bar.label), bar, styles.styles[bar.label], bottom)
    middles = [place * step + (len(labels) - 1) / 2 for place in range(len(groups))]
    axes.set_xticks(middles, list(groups))
    quiet_axes(axes, grid="y")
    axes.tick_params(axis="x", length=0, labelsize=9)


def _draw_bar(axes: Axes, place: float, bar: Bar, style: ArmStyle, bottom: float) -> None:
    """A bar, its whisker (cut where the axis ends) and its seeds side by side; a word where there is no number."""
    mean, lo, hi = bar.interval.mean, bar.interval.lo, bar.interval.hi
    if mean is None or bar.failed:
        at = {"rotation": 90, "fontsize": 7, "color": "0.4", "ha": "center", "va": "bottom"}
        axes.text(place, 0.02, " failed" if bar.failed else " no trial", at, transform=axes.get_xaxis_transform())
        return
    axes.bar(place, mean - bottom, 0.86, bottom, color=style.colour, hatch=style.hatch, edgecolor="white", linewidth=0)
    if lo is not None and hi is not None:
        whisker = [[mean - max(lo, bottom)], [hi - mean]]
        axes.errorbar(place, mean, whisker, color="black", capsize=2.5, linewidth=0.9, capthick=0.9)
    count = len(bar.seeds)
    places = [place + 0.5 * ((seed + 0.5) / count - 0.5) for seed in range(count)]
    axes.scatter(places, bar.seeds, s=11, color="white", edgecolors="black", linewidths=0.6, zorder=3, clip_on=False)


def _share_height(all_axes: Sequence[Axes], bars: Bars, bottom: float) -> None:
    tops = [value for bar in bars.drawn for value in (*bar.seeds, bar.interval.hi) if value is not None]
    top = max(tops, default=1.0) or 1.0
    for axes in all_axes:
        axes.set_ylim(bottom, 1.25 * top if bottom > 0 else min(1.05 * top, 101.0) if bars.percent else 1.05 * top)
        if bottom > 0:
            plain_logarithm(axes.yaxis)


def _caption(bars: Bars) -> str:
    text = (
        f"{bars.space}: mean over seeds; whisker: 95 % t interval over seeds (from two on), about seeds alone; ○ seed"
    )
    if any(bar.interval.lo is not None and bar.interval.lo < _bottom(bars) for bar in bars.drawn):
        text += "; whiskers end where the axis does"
    if any(bar.failed for bar in bars.bars):
        text += "; failed: in some seed, half of the queries or more have no pose"
    return text
