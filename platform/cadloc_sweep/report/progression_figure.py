"""The loss progression as a figure: a row per scene, a column per measure, a line per arm."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from cadloc_sweep.report.arm_styles import ArmStyle, ArmStyles
from cadloc_sweep.report.figure_files import check_ending, write_figure
from cadloc_sweep.report.figure_style import add_legend, plain_logarithm, quiet_axes
from cadloc_sweep.report.progress_axis import ProgressAxis
from cadloc_sweep.report.progression import MEASURES, Curve, Line, Progression

if TYPE_CHECKING:
    from matplotlib.axes import Axes

AXIS_TITLES = {
    ProgressAxis.iterations: "iterations",
    ProgressAxis.samples: "samples seen",
    ProgressAxis.seconds: "seconds of training",
}

LENGTHS_APART = 4.0
"""Runs whose lengths differ by this factor are drawn against the logarithm of the progress."""

MOST_SWITCHES = 4
"""More switches between losses are marked at the foot of a panel rather than across it."""

_Band: TypeAlias = tuple[list[float], list[float], list[float]]


def draw_progression(progression: Progression, styles: ArmStyles, metric_scenes: Sequence[str], path: Path) -> None:
    """Writes the curves as a PNG or SVG, by the path's ending; `metric_scenes` are those whose metres are metres.

    Raises InputError for another ending.
    """
    from matplotlib.figure import Figure

    check_ending(path)
    scenes = list(dict.fromkeys(curve.scene for curve in progression.curves))
    figure = Figure(figsize=(11.5, 2.6 * len(scenes) + 1.4), layout="constrained")
    panels: list[list[Axes]] = figure.subplots(len(scenes), len(MEASURES), squeeze=False).tolist()
    logarithmic = _lengths_apart(progression.curves)
    for line, scene in zip(panels, scenes, strict=True):
        for axes, (measure, title) in zip(line, MEASURES.items(), strict=True):
            curves = [each for each in progression.curves if (each.scene, each.measure) == (scene, measure)]
            _draw(axes, curves, styles, logarithmic)
            unit = "px" if measure.endswith("_px") else "m" if scene in metric_scenes else "model's units"
            axes.set_ylabel(f"{title}, {unit}", fontsize=8)
        line[0].set_title(scene, loc="left", fontsize=10, fontweight="bold", parse_math=False)
    _write_axis(panels, progression.axis, logarithmic)
    drawn = {curve.label for curve in progression.curves}
    add_legend(figure, styles, [label for label in styles.styles if label in drawn], _caption(progression))
    write_figure(figure, path)


def _write_axis(panels: Sequence[Sequence[Axes]], axis: ProgressAxis, logarithmic: bool) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    for axes in chain.from_iterable(panels):
        if not logarithmic:
            axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(EngFormatter(sep=" " if axis is ProgressAxis.samples else ""))
    for axes in panels[-1]:
        axes.set_xlabel(AXIS_TITLES[axis], fontsize=8)


def _lengths_apart(curves: Sequence[Curve]) -> bool:
    ends = [max(place for place, _ in line) for curve in curves for line in curve.seeds if line]
    return max(ends) > LENGTHS_APART * min(ends) > 0


def _draw(axes: Axes, curves: Sequence[Curve], styles: ArmStyles, logarithmic: bool) -> None:
    axes.set_yscale("log")
    for curve in curves:
        _draw_curve(axes, curve, styles.styles[curve.label], min(0.18, 0.9 / len(curves)))
    switches = [curve for curve in curves if curve.switch is not None]
    for curve in switches:
        style = styles.styles[curve.label]
        reach = 1.0 if len(switches) <= MOST_SWITCHES else 0.1
        axes.axvline(curve.switch or 0.0, 0, reach, color=style.colour, linestyle=style.dashes, linewidth=0.8, zorder=1)
    quiet_axes(axes)
    plain_logarithm(axes.yaxis)
    if logarithmic:
        axes.set_xscale("log")
    else:
        axes.set_xlim(left=0)


def _draw_curve(axes: Axes, curve: Curve, style: ArmStyle, opacity: float) -> None:
    places, means = _means(curve)
    if curve.n < 2 or curve.ragged:
        for line in filter(None, curve.seeds):
            _draw_seed(axes, line, style)
    if curve.n > 1 and places:
        axes.plot(places, means, color=style.colour, linestyle=style.dashes, linewidth=1.6)
        axes.plot(places, means, ".", color=style.colour, markersize=4)
        places, los, his = _band(curve)
        if len(places) == 1:  # a band of no width would not be seen
            axes.vlines(places, los, his, color=style.colour, alpha=0.5, linewidth=1)
        axes.fill_between(places, los, his, color=style.colour, alpha=opacity, linewidth=0)


def _draw_seed(axes: Axes, line: Line, style: ArmStyle) -> None:
    """Thin, and with a ring where the run ended."""
    places, values = zip(*line, strict=True)
    axes.plot(places, values, color=style.colour, linestyle=style.dashes, linewidth=0.9)
    axes.plot(places[-1], values[-1], "o", color=style.colour, markersize=3.5, markerfacecolor="white")


def _means(curve: Curve) -> tuple[list[float], list[float]]:
    known = [(each.place, each.interval.mean) for each in curve.milestones if each.interval.mean is not None]
    return [place for place, _ in known], [mean for _, mean in known]


def _band(curve: Curve) -> _Band:
    spans = [(each.place, each.interval.lo, each.interval.hi) for each in curve.milestones]
    known = [(place, lo, hi) for place, lo, hi in spans if lo is not None and hi is not None]
    return [place for place, _, _ in known], [lo for _, lo, _ in known], [hi for _, _, hi in known]


def _caption(progression: Progression) -> str:
    parts = [f"{progression.space}, validation on {progression.domain}"]
    if any(curve.n > 1 for curve in progression.curves):
        parts.append("line: geometric mean over seeds; band: its 95 % t interval over seeds (logarithms)")
    if any(curve.n < 2 or curve.ragged for curve in progression.curves):
        parts.append("thin: single seeds, ○ where they ended")
    if any(curve.switch is not None for curve in progression.curves):
        parts.append("vertical: switch of the loss")
    if any(each.interval.mean is None for curve in progression.curves for each in curve.milestones):
        parts.append("not drawn: validations in which half of some seed's queries have no pose")
    return "; ".join(parts)
