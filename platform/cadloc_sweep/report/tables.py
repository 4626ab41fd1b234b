"""Results as tables for people (terminal, Markdown) and for programs (CSV, JSON)."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from cadloc.catalog import tuning_target
from cadloc_sweep.report.results import Arm, SweepResults
from cadloc_sweep.report.statistics import Interval

if TYPE_CHECKING:
    from rich.console import RenderableType

DOMAIN_TITLES = {
    "photo": "photo (simulated)",
    "real": "real photographs",
    "target": "target (simulated photos, another CAD model or real photographs: whatever the scene has)",
    "gt_poses": "gt_poses (renders at the photographs' poses)",
}
"""What a reader must know about a query set whose name alone would mislead."""

COLUMNS: dict[str, tuple[str, str]] = {
    "translation_error_median_m": ("translation m", "min"),
    "translation_error_median_pct": ("% of scene", "min"),
    "rotation_error_median_deg": ("rotation °", "min"),
    "recall_5cm_5deg": ("5 cm 5°", "max"),
    "recall_10cm_5deg": ("10 cm 5°", "max"),
    "recall_25cm_2deg": ("25 cm 2°", "max"),
    "recall_50cm_5deg": ("50 cm 5°", "max"),
    "recall_5m_10deg": ("5 m 10°", "max"),
    "recall_1pct_2deg": ("1 % 2°", "max"),
    "dcre_mean_median_pct": ("DCRE %", "min"),
    "dcre_recall_5pct": ("≤ 5 %", "max"),
    "dcre_recall_10pct": ("≤ 10 %", "max"),
    "dcre_recall_20pct": ("≤ 20 %", "max"),
    "dcre_recall_30pct": ("≤ 30 %", "max"),
    "dcre_max_recall_10pct": ("max ≤ 10 %", "max"),
    "dcre_cadloc_recall_10pct": ("CadLoc's ≤ 10 %", "max"),
    "dcre_cadloc_recall_20pct": ("CadLoc's ≤ 20 %", "max"),
    "dcre_cadloc_recall_30pct": ("CadLoc's ≤ 30 %", "max"),
}
"""Metric of a query set -> heading and which end is better. Recalls are shares of all queries, shown in percent."""

METRE_RECALLS = ("recall_5cm_5deg", "recall_10cm_5deg", "recall_25cm_2deg", "recall_50cm_5deg", "recall_5m_10deg")

LEAST_WANTED = (
    *("CadLoc's ≤ 30 %", "CadLoc's ≤ 20 %", "max ≤ 10 %", "≤ 5 %", "CadLoc's ≤ 10 %"),
    *("5 m 10°", "% of scene", "5 cm 5°", "50 cm 5°", "1 % 2°", "25 cm 2°", "10 cm 5°"),
)
"""Headings in the order in which a narrow terminal does without them."""

NARROWEST_ARM = 24
"""Characters to which the arm's column is folded before others are left out."""


@dataclass(frozen=True)
class Table:
    """A title, headings and rows of text; `starts` are the rows at which a new scene begins."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    starts: tuple[int, ...] = ()

    def fitted(self, width: int) -> Table:
        """The table without the least wanted columns, as many of them as it takes to fit into `width` characters."""
        table = self
        for heading in LEAST_WANTED:
            if table.width <= width:
                break
            table = table.without(heading)
        return table

    def without(self, heading: str) -> Table:
        """The table without one column, if it has it."""
        kept = [index for index, each in enumerate(self.headings) if each != heading]
        rows = tuple(tuple(row[index] for index in kept) for row in self.rows)
        return replace(self, headings=tuple(self.headings[index] for index in kept), rows=rows)

    @property
    def width(self) -> int:
        """Characters that the table needs, the arm's column folded."""
        columns = zip(self.headings, *self.rows, strict=True)
        widths = [max(len(cell) for cell in column) for column in columns]
        widths[1] = min(widths[1], NARROWEST_ARM)
        return sum(widths) + 3 * len(widths) + 1


def tables(results: SweepResults) -> list[Table]:
    """One table per query set, the objective's first: an arm per row, its best value per scene marked with `*`."""
    domains = sorted(results.domains, key=lambda domain: (not results.objective.startswith(f"test/{domain}/"), domain))
    made = [_domain_table(results, domain) for domain in domains]
    objective = _Column(results.objective, results.objective, results.mode)
    return made if _is_shown(results) else [_table(results, "objective", [objective]), *made]


def as_json(results: SweepResults) -> str:
    """The report as JSON text: `space`, `arms` per scene, `trials`. Values that do not exist are null."""
    return json.dumps(results.to_json(), indent=2, allow_nan=False)


def as_csv(results: SweepResults) -> str:
    """The arms as tidy CSV: one line per scene, arm and metric, a column per factor."""
    factors = sorted({name for arm in results.arms for name in arm.choice})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["scene", "arm", *factors, "n", "failed", "metric", "mean", "lo", "hi"])
    for arm in results.arms:
        values = [json.dumps(arm.choice.get(name)) for name in factors]
        for name, interval in arm.metrics.items():
            row = [arm.scene, arm.label, *values, interval.n, arm.failed, name, interval.mean, interval.lo, interval.hi]
            writer.writerow(row)
    return text.getvalue()


def as_markdown(results: SweepResults) -> str:
    """The tables in GitHub's Markdown, with the footnote that explains them."""
    blocks = [f"## {results.space}", *(compact_markdown(table, 2) for table in tables(results)), footnote(results)]
    return "\n\n".join(blocks) + "\n"


def as_rich(results: SweepResults, width: int) -> RenderableType:
    """The tables for a terminal of that many characters; columns that do not fit are named below."""
    from rich.console import Group
    from rich.text import Text

    whole = tables(results)
    fitted = [table.fitted(width) for table in whole]
    pairs = zip(whole, fitted, strict=True)
    hidden = list(dict.fromkeys(name for all_, kept in pairs for name in all_.headings if name not in kept.headings))
    note = f"\nnot shown for want of width (--format md has them): {', '.join(hidden)}" if hidden else ""
    return Group(*(compact_rich(table, 2) for table in fitted), Text(footnote(results) + note, style="dim"))


def footnote(results: SweepResults) -> str:
    """What the numbers are, and how many trials are behind them."""
    counts = ", ".join(f"{count} {status}" for status, count in results.counts.items()) or "none"
    lines = [
        f"objective: {results.objective} ({results.mode}); trials: {counts}",
        "mean ± half of the 95 % t interval over seeds (from two on); recalls in % of all queries; * best of its scene",
    ]
    if simulated := _simulated(results):
        lines.append(f"{simulated}: rendered with other light, texture and occluders; not real photographs")
    if any(not arm.metric for arm in results.arms):
        lines.append("–: the scene is not metric, its metres mean nothing")
    if any(arm.has_failed(name) for arm in results.arms for name in arm.metrics):
        lines.append("failed: in some seed, half of the queries or more have no pose, or one that sees nothing")
    if any("/dcre_" in name for arm in results.arms for name in arm.metrics):
        lines.append(
            "DCRE: mean displacement of the model's pixels from estimate to truth, % of the image diagonal (median); "
            "≤: share of queries below; CadLoc's: as that benchmark's program computes it, its oddities included"
        )
    if any(results.difference_from_baseline(arm) is not None for arm in results.arms):
        lines.append(f"Δ: objective minus that of {results.baseline}, paired by scene and seed; ! interval excludes 0")
    return "\n".join(lines)


def _simulated(results: SweepResults) -> str:
    """Which query sets are simulated photographs; empty: none."""
    twins = any(tuning_target(arm.outcomes[0].trial.config.scene) == "photo" for arm in results.arms)
    names = {"photo": "photo (simulated)", **({"target": "target of built-in scenes"} if twins else {})}
    return ", ".join(text for name, text in names.items() if name in results.domains)


# --- building ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Column:
    heading: str
    metric: str
    mode: str


def _domain_table(results: SweepResults, domain: str) -> Table:
    present = {name for arm in results.arms for name in arm.metrics}
    columns = [
        _Column(heading, f"test/{domain}/{name}", mode)
        for name, (heading, mode) in COLUMNS.items()
        if f"test/{domain}/{name}" in present
    ]
    return _table(results, DOMAIN_TITLES.get(domain, domain), columns)


def _is_shown(results: SweepResults) -> bool:
    """Whether the objective is a column of a query set's table already."""
    parts = results.objective.split("/")
    return len(parts) == 3 and parts[0] == "test" and parts[1] in results.domains and parts[2] in COLUMNS


def _table(results: SweepResults, title: str, columns: Sequence[_Column]) -> Table:
    compared = any(results.difference_from_baseline(arm) is not None for arm in results.arms)
    delta = compared and any(column.metric == results.objective for column in columns)
    failed = any(arm.failed for arm in results.arms)
    headings = ("scene", "arm", "n", *(("failed",) if failed else ()), *(column.heading for column in columns))
    best = {(column.metric, scene): _best(results, column, scene) for column in columns for scene in results.scenes}
    rows = []
    for arm in results.arms:
        cells = [_cell(arm, column, best[column.metric, arm.scene]) for column in columns]
        lost = [str(arm.failed)] if failed else []
        difference = [_delta(results, arm)] if delta else []
        rows.append((arm.scene, arm.label, str(arm.n), *lost, *cells, *difference))
    starts = tuple(index + 1 for index, (one, next_) in enumerate(pairwise(results.arms)) if one.scene != next_.scene)
    return Table(f"{results.space}: {title}", (*headings, *(("Δ",) if delta else ())), tuple(rows), starts)


def _best(results: SweepResults, column: _Column, scene: str) -> float | None:
    means = [
        arm.metrics[column.metric].mean
        for arm in results.arms
        if arm.scene == scene and column.metric in arm.metrics and not arm.has_failed(column.metric)
    ]
    known = [mean for mean in means if mean is not None]
    if len(set(known)) < 2:
        return None
    return min(known) if column.mode == "min" else max(known)


def _cell(arm: Arm, column: _Column, best: float | None) -> str:
    interval = arm.metrics.get(column.metric)
    if interval is None or interval.mean is None or not _means_something(arm, column.metric):
        return "–"
    if arm.has_failed(column.metric):
        return "failed"
    mark = "*" if best is not None and interval.mean == best else ""
    return _number(interval, _percent if "recall_" in column.metric else _digits) + mark


def _means_something(arm: Arm, metric: str) -> bool:
    """Metres of a scene that is not metric mean nothing; shares of its size, degrees and DCRE do."""
    name = metric.rpartition("/")[2]
    return arm.metric or not (name.endswith("_m") or name in METRE_RECALLS)


def _number(interval: Interval, shown: Callable[[float], str]) -> str:
    assert interval.mean is not None
    return shown(interval.mean) + ("" if interval.hi is None else f" ± {shown(interval.hi - interval.mean)}")


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _digits(value: float) -> str:
    """Three significant digits without an exponent, so that a column can be compared by eye."""
    size = abs(value)
    decimals = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3
    return f"{value:.{decimals}f}"


def _delta(results: SweepResults, arm: Arm) -> str:
    difference = results.difference_from_baseline(arm)
    if difference is None or difference.mean is None:
        return "–"
    sign = "+" if difference.mean > 0 else ""
    return sign + _number(difference, _digits) + (" !" if difference.decided else "")


# --- drawing ----------------------------------------------------------------------------------------------


def compact_markdown(table: Table, texts: int = 1) -> str:
    """A table in GitHub's Markdown, its first `texts` columns to the left; the best values are bold."""
    rule = tuple("---" if index < texts else "--:" for index in range(len(table.headings)))
    lines = ("| " + " | ".join(map(_markdown, line)) + " |" for line in (table.headings, rule, *table.rows))
    return "\n".join([f"### {table.title}", "", *lines])


def compact_rich(table: Table, texts: int = 1) -> RenderableType:
    """A table for a terminal, its first `texts` columns to the left; the best values and cells with a `!` stand out.

    Of more than one such column the second may take several lines, all others none.
    """
    from rich.markup import escape
    from rich.table import Table as RichTable

    drawn = RichTable(title=escape(table.title), title_justify="left")
    for index, heading in enumerate(table.headings):
        side: Literal["left", "right"] = "left" if index < texts else "right"
        drawn.add_column(escape(heading), justify=side, no_wrap=texts > 1 and index != 1)
    for index, row in enumerate(table.rows):
        if index in table.starts:
            drawn.add_section()
        drawn.add_row(*(f"[{_style(cell)}]{escape(cell)}[/]" if _style(cell) else escape(cell) for cell in row))
    return drawn


def _markdown(cell: str) -> str:
    return (f"**{cell.removesuffix('*')}**" if cell.endswith("*") else cell).replace("|", "\\|")


def _style(cell: str) -> str:
    return "bold green" if cell.endswith("*") else "bold" if " !" in cell else ""
