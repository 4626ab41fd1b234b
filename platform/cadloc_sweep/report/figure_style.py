"""What figures of a report share: quiet axes, plain numbers, and a legend below for few arms or many."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from cadloc_sweep.report.arm_styles import ArmStyles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

CHARACTER_IN, HANDLE_IN = 0.068, 0.65
"""Inches that a character and a sample of the line take, at the legend's size of 8 points."""

CAPTION_IN = 0.06
"""Inches of a caption's character, at 7.5 points."""

LINE_IN = 0.16

SHORT_SPAN = 5.0
"""A logarithmic axis that spans less than this factor has ticks as a linear one: 1, 2 and 5 may all lie outside."""


def quiet_axes(axes: Axes, *, grid: Literal["both", "y"] = "both") -> None:
    """Two sides of the frame, a pale grid behind what is drawn, small numbers."""
    axes.grid(True, axis=grid, which="major", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def plain_logarithm(axis: Axis) -> None:
    """Ticks of a logarithmic axis at 1, 2 and 5, written as 0.2 rather than 2 × 10⁻¹; call it once the limits stand."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    low, high = axis.get_view_interval()
    decades = high > 200 * low
    locator = LogLocator(subs=(1.0,) if decades else (1.0, 2.0, 5.0)) if high > SHORT_SPAN * low else MaxNLocator(5)
    axis.set_major_locator(locator)
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def add_legend(figure: Figure, styles: ArmStyles, labels: Sequence[str], caption: str, *, bars: bool = False) -> None:
    """Puts arms (by label) and a caption below the axes; the figure grows by what they need."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    chosen = [styles.styles[label] for label in labels]
    handles: list[Patch | Line2D] = [
        Patch(facecolor=style.colour, hatch=style.hatch, edgecolor="white", label=style.legend)
        if bars
        else Line2D([], [], color=style.colour, linestyle=style.dashes, linewidth=1.8, label=style.legend)
        for style in chosen
    ]
    width, height = figure.get_size_inches()
    longest = max(len(line) for style in chosen for line in style.legend.splitlines())
    columns = max(1, min(len(chosen), int(width / (CHARACTER_IN * longest + HANDLE_IN))))
    lines = max(1 + style.legend.count("\n") for style in chosen) * -(-len(chosen) // columns)
    figure.set_size_inches(width, height + LINE_IN * lines)
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=columns,
        fontsize=8,
        frameon=False,
        handlelength=3.0,
        title=styles.title or None,
        title_fontsize=8,
    )
    figure.align_ylabels()
    wrapped = "\n".join(textwrap.wrap(caption, int(width / CAPTION_IN)))
    figure.suptitle(wrapped, fontsize=7.5, color="0.3", x=0.01, ha="left", parse_math=False)
