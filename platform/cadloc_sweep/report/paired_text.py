"""The paired comparison for people (terminal, Markdown) and for programs (CSV, JSON)."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from cadloc.contract import Json
from cadloc_sweep.report.paired import FEWEST_QUERIES, PairedArm, PairedComparison, SceneCell
from cadloc_sweep.report.statistics import Interval
from cadloc_sweep.report.tables import DOMAIN_TITLES, Table, compact_markdown, compact_rich

if TYPE_CHECKING:
    from rich.console import RenderableType

TITLES: Mapping[str, tuple[str, str, str]] = {
    "translation_error_m": ("translation error", "% of the scene's diameter", "the scene's diameter"),
    "rotation_error_deg": ("rotation error", "°", "180°"),
    "dcre_mean_pct": ("mean DCRE", "% of the image diagonal", "the image diagonal"),
}
"""Metric -> its name, its unit and the most that a median counts, in words."""


def tables(compared: PairedComparison) -> list[Table]:
    """Arms × scenes twice: the median errors, and the changes against the baseline with the pool of all scenes."""
    name, unit, _ = TITLES[compared.metric]
    scenes = tuple(f"{scene} ({count} queries)" for scene, count in compared.queries.items())
    medians = [(arm.label, *(_median(arm.cells.get(scene)) for scene in compared.queries)) for arm in compared.arms]
    baseline, validated = compared.baseline.cells, bool(compared.validation)
    changes = [
        (
            arm.label,
            *(_change(arm.cells.get(scene), baseline.get(scene)) for scene in compared.queries),
            *_pooled(arm, len(scenes)),
            *([_signed(compared.validation[arm.label])] if arm.label in compared.validation else ["–"] * validated),
        )
        for arm in compared.arms[1:]
    ]
    where = f"{compared.space}: {DOMAIN_TITLES.get(compared.test_set, compared.test_set)}"
    return [
        Table(f"{where}: median {name}, {unit}", ("arm", *scenes), tuple(medians)),
        Table(
            f"{where}: change of the median {name} against {compared.baseline.label}, %",
            ("arm", *scenes, "pooled", "better / worse", *["validation"] * validated),
            tuple(changes),
        ),
    ]


def footnote(compared: PairedComparison) -> str:
    """What the numbers are, and what they leave out."""
    cells = [cell for arm in compared.arms for cell in arm.cells.values()]
    baseline = compared.baseline.cells
    trials = ", ".join(f"{count} {status}" for status, count in compared.trials.items())
    lines = [
        f"trials: {trials}",
        "median: mean over seeds of the median over queries; change: exp(mean log ratio to the baseline's median, over "
        "the seeds that both have) − 1; below 0 is better",
        "[ ]: 95 % interval, resampling seeds and queries, the same for both arms; ! excludes 0. Where 3 seeds differ "
        "much as a whole it covers about 80 %; it leaves out what all seeds share: views, buffer, a tuned encoder",
        "pooled: mean log ratio over the scenes, about these scenes; better / worse: scenes whose own interval lies "
        "below / above 0, of those that have one",
    ]
    if compared.validation:
        lines.append(
            "validation: the pooled change of validation's medians, by which arms are chosen before a test is read"
        )
    own = sum(arm.pooled.judged for arm in compared.arms if arm.pooled is not None)
    if own > 1:
        lines.append(f"{own} intervals of single scenes: about one in twenty excludes 0 by chance")
    if any(count < FEWEST_QUERIES for count in compared.queries.values()):
        lines.append(f"pooled only: fewer than {FEWEST_QUERIES} queries; the scene is in the pool and not judged alone")
    if any(_lacks_seeds(cell, baseline.get(scene)) for arm in compared.arms for scene, cell in arm.cells.items()):
        lines.append("(n of m seeds): the arm has finished n of the baseline's m seeds, and is compared over those")
    if any(cell.pairs == 1 for cell in cells):
        lines.append("without [ ]: one seed in common says nothing about the spread over seeds")
    if any(cell.failed for cell in cells):
        most = TITLES[compared.metric][2]
        lines.append(
            f"failed: in some seed, half of the queries have no pose or are off by {most} or more; in a change, "
            "such a median counts that much, and where it is unknown the change is failed too"
        )
    return "\n".join(lines)


def as_markdown(compared: PairedComparison) -> str:
    """Both tables in GitHub's Markdown, and the footnote."""
    return "\n\n".join([*(compact_markdown(table) for table in tables(compared)), footnote(compared)]) + "\n"


def as_rich(compared: PairedComparison) -> RenderableType:
    """Both tables for a terminal, and the footnote."""
    from rich.console import Group
    from rich.text import Text

    return Group(*(compact_rich(table) for table in tables(compared)), Text(footnote(compared), style="dim"))


def as_json(compared: PairedComparison) -> str:
    """The comparison as JSON: per arm its scenes and its pool; changes in percent, null where there is none."""
    content = {
        "space": compared.space,
        "test_set": compared.test_set,
        "metric": compared.metric,
        "trials": dict(compared.trials),
        "validation_change_pct": dict(compared.validation),
        "baseline": compared.baseline.label,
        "arms": [_arm_json(arm) for arm in compared.arms],
    }
    return json.dumps(content, indent=2, allow_nan=False)


def as_csv(compared: PairedComparison) -> str:
    """Tidy CSV: one line per arm and scene, and one per arm without a scene: its pool (`pairs` are then scenes)."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["arm", "scene", "queries", "seeds", "median", "unit", "failed", "pairs", "change_pct", "lo", "hi"])
    for arm in compared.arms:
        for scene, cell in arm.cells.items():
            values = [cell.queries, cell.seeds, _known_median(cell), cell.unit, cell.failed, *_numbers(cell.change)]
            writer.writerow([arm.label, scene, *values])
        if arm.pooled is not None:
            writer.writerow([arm.label, *[""] * 6, *_numbers(arm.pooled.change)])
    return text.getvalue()


TEXTS: Mapping[str, Callable[[PairedComparison], str]] = {"json": as_json, "csv": as_csv, "md": as_markdown}
"""Format -> the comparison as text in it."""


# --- cells ------------------------------------------------------------------------------------------------


def _median(cell: SceneCell | None) -> str:
    if cell is None or cell.median is None:
        return "–"
    if cell.failed:
        return "failed"
    size = abs(cell.median)
    digits = f"{cell.median:.{0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3}f}"
    return digits + (" m" if cell.unit == "m" else "")


def _change(cell: SceneCell | None, baseline: SceneCell | None) -> str:
    change = None if cell is None else cell.change
    if cell is None or baseline is None or change is None:
        return "–"
    missing = f" ({cell.pairs} of {baseline.seeds} seeds)" if _lacks_seeds(cell, baseline) else ""
    return interval_text(change) + missing + (" (pooled only)" if cell.queries < FEWEST_QUERIES else "")


def _lacks_seeds(cell: SceneCell, baseline: SceneCell | None) -> bool:
    return cell.log_ratios is not None and baseline is not None and cell.pairs < baseline.seeds


def _pooled(arm: PairedArm, scenes: int) -> tuple[str, str]:
    pooled = arm.pooled
    if pooled is None:
        return "–", "–"
    missing = f" ({pooled.change.n} of {scenes} scenes)" if pooled.change.n < scenes else ""
    return interval_text(pooled.change) + missing, f"{pooled.better} / {pooled.worse} of {pooled.judged}"


def interval_text(change: Interval) -> str:
    """A change in percent, its bounds where it has some, and `!` where they exclude zero."""
    if change.mean is None:
        return "failed"
    if change.lo is None or change.hi is None:
        return _signed(change.mean)
    return f"{_signed(change.mean)} [{_signed(change.lo)}, {_signed(change.hi)}]{' !' if change.decided else ''}"


def _signed(percent: float) -> str:
    """With its sign, and a decimal where it is small: `−12`, `+3.4`, `0`."""
    text = f"{percent:+.{0 if abs(percent) >= 10 else 1}f}"
    return "0" if float(text) == 0 else text.replace("-", "−")


# --- programs ---------------------------------------------------------------------------------------------


def _arm_json(arm: PairedArm) -> dict[str, Json]:
    scenes = {
        scene: {
            "queries": cell.queries,
            "seeds": cell.seeds,
            "median": _known_median(cell),
            "unit": cell.unit,
            "failed": cell.failed,
            "change": _interval_json(cell.change),
        }
        for scene, cell in arm.cells.items()
    }
    pooled = arm.pooled
    counts = {} if pooled is None else {"better": pooled.better, "worse": pooled.worse, "judged": pooled.judged}
    pool = None if pooled is None else {"change": _interval_json(pooled.change), **counts}
    return {"arm": arm.label, "factors": dict(arm.factors), "scenes": scenes, "pooled": pool}


def _interval_json(change: Interval | None) -> Json:
    return (
        None if change is None else {"n": change.n, "mean_pct": change.mean, "lo_pct": change.lo, "hi_pct": change.hi}
    )


def _numbers(change: Interval | None) -> list[float | None]:
    return [None] * 4 if change is None else [change.n, change.mean, change.lo, change.hi]


def _known_median(cell: SceneCell) -> float | None:
    return None if cell.failed else cell.median
