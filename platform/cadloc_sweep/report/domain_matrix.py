"""Trained on × tested on: the domain gap of a sweep as numbers and as Markdown."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TypeAlias

from cadloc.contract import Fault, InputError, Json, canonical
from cadloc_sweep.report.results import Arm, SweepResults
from cadloc_sweep.report.statistics import Interval
from cadloc_sweep.trials import SweepPaths

METRICS = ("translation_error_median_pct", "dcre_recall_10pct")
"""What is shown unless other metrics of a query set are asked for."""

TEST_SETS = ("real", "gt_poses", "synthetic")
"""The columns: from the photographs, over renders at their poses, to renders at other poses."""

TITLES = {
    "translation_error_median_pct": "median translation error, % of the scene's diameter",
    "translation_error_median_m": "median translation error, m",
    "rotation_error_median_deg": "median rotation error, °",
    "dcre_mean_median_pct": "median of the mean DCRE, % of the image diagonal",
    "dcre_recall_10pct": "queries with a mean DCRE below 10 % of the diagonal, %",
    "dcre_recall_20pct": "queries with a mean DCRE below 20 % of the diagonal, %",
}

QueryCounts: TypeAlias = Mapping[tuple[str, str], int]
"""(scene, test set) -> number of queries."""


@dataclass(frozen=True)
class Cell:
    """One metric of one arm on one test set, over the finished seeds; `failed` where an error is a stand-in."""

    interval: Interval
    failed: bool


@dataclass(frozen=True)
class DomainMatrix:
    """The arms of one scene that differ in `train_on` only.

    `choice` says their other factors in one line. Rows are (label, arm), columns the test sets that some arm has;
    `cells` has those that exist by (metric, row's label, test set).
    """

    scene: str
    choice: str
    rows: tuple[tuple[str, Arm], ...]
    test_sets: tuple[str, ...]
    cells: Mapping[tuple[str, str, str], Cell]

    @property
    def title(self) -> str:
        """Scene and other factors."""
        return " · ".join(part for part in (self.scene, self.choice) if part)


def matrices(results: SweepResults, metrics: Sequence[str] = METRICS) -> tuple[DomainMatrix, ...]:
    """A matrix per scene and combination of the other factors, in the plan's order.

    Rows are what the arms were trained on, whether it is a factor or the same for all. InputError: metrics that no
    finished trial has, on any of `TEST_SETS`.
    """
    reported = {name for arm in results.arms for name in arm.metrics}
    known = {
        name.rsplit("/", 1)[1] for name in reported if name.startswith(tuple(f"test/{each}/" for each in TEST_SETS))
    }
    faults = [
        Fault(
            results.space,
            "metric",
            metric,
            ", ".join(sorted(known)) or f"none: no finished trial was tested on {', '.join(TEST_SETS)}",
        )
        for metric in metrics
        if metric not in known
    ]
    if faults:
        raise InputError(faults)
    groups: dict[tuple[str, str], list[Arm]] = {}
    for arm in results.arms:
        groups.setdefault((arm.scene, canonical(_others(arm))), []).append(arm)
    return tuple(_matrix(arms, metrics) for arms in groups.values())


def count_queries(paths: SweepPaths, results: SweepResults) -> dict[tuple[str, str], int]:
    """Number of queries of each scene's test sets, by the pose tables of its finished trials; those without: absent.

    Trials of a scene that disagree (their views were set up differently) give the smallest number.
    """
    counts: dict[tuple[str, str], int] = {}
    finished = (outcome for arm in results.arms for outcome in arm.finished)
    for outcome, test_set in product(finished, TEST_SETS):
        table = paths.trial(outcome.trial.id).poses(test_set)
        if table.is_file():
            with table.open(newline="", encoding="utf-8") as lines:
                number = sum(1 for _ in csv.DictReader(lines))
            key = (outcome.trial.scene, test_set)
            counts[key] = min(number, counts.get(key, number))
    return counts


def has_matrix(results: SweepResults) -> bool:
    """Whether arms differ in what they were trained on, and some trial has each of `METRICS`."""
    reported = {name for arm in results.arms for name in arm.metrics}
    measured = all(any(f"test/{each}/{metric}" in reported for each in TEST_SETS) for metric in METRICS)
    return measured and len({_trained_on(arm) for arm in results.arms}) > 1


def matrix_markdown(results: SweepResults, metrics: Sequence[str] = METRICS, queries: QueryCounts | None = None) -> str:
    """A table per matrix and metric in GitHub's Markdown, and a line that says what the numbers are."""
    blocks = []
    for matrix, metric in product(matrices(results, metrics), metrics):
        head = [
            "trained on \\ tested on",
            *(column_heading(matrix, test_set, queries) for test_set in matrix.test_sets),
            "seeds",
        ]
        lines = [f"### {matrix.title}: {title_of(metric)}", "", _line(head), "|---|" + "--:|" * (len(head) - 1)]
        for label, arm in matrix.rows:
            cells = [cell_text(matrix.cells.get((metric, label, test_set)), metric) for test_set in matrix.test_sets]
            lines.append(_line([label, *cells, seeds_of(arm.n, arm)]))
        blocks.append("\n".join(lines))
    return "\n\n".join([*blocks, footnote()]) + "\n"


def footnote() -> str:
    """What the numbers of a matrix are."""
    return (
        "mean ± half of the 95 % t interval over n finished seeds (from two on), about seeds alone: all saw the same "
        "queries; recalls in % of all queries; "
        "failed: in some seed, half of the queries or more have no pose, or one that sees nothing"
    )


# --- building ---------------------------------------------------------------------------------------------


def _matrix(arms: Sequence[Arm], metrics: Sequence[str]) -> DomainMatrix:
    rows = tuple(sorted(((" + ".join(_trained_on(arm)), arm) for arm in arms), key=lambda row: _order(row[1])))
    cells = {
        (metric, label, test_set): _cell(arm, f"test/{test_set}/{metric}")
        for metric, (label, arm), test_set in product(metrics, rows, TEST_SETS)
        if f"test/{test_set}/{metric}" in arm.metrics
    }
    tested = {test_set for _, _, test_set in cells}
    others = " ".join(f"{name}={_short(value)}" for name, value in _others(arms[0]).items())
    return DomainMatrix(arms[0].scene, others, rows, tuple(each for each in TEST_SETS if each in tested), cells)


def _cell(arm: Arm, metric: str) -> Cell:
    return Cell(arm.metrics[metric], arm.has_failed(metric))


def _others(arm: Arm) -> dict[str, Json]:
    return {name: value for name, value in arm.choice.items() if name != "train_on"}


def _trained_on(arm: Arm) -> tuple[str, ...]:
    return tuple(arm.outcomes[0].trial.config.train_on)


def _order(arm: Arm) -> tuple[int, list[int]]:
    """Single domains before mixtures, in the order of the columns."""
    domains = _trained_on(arm)
    return len(domains), [TEST_SETS.index(domain) for domain in domains]


def is_recall(metric: str) -> bool:
    """Whether the metric is a share of queries, where more is better; all others are errors."""
    return "recall" in metric


def _short(value: Json) -> str:
    return str(value["name"]) if isinstance(value, Mapping) and set(value) == {"name"} else canonical(value).strip('"')


# --- text -------------------------------------------------------------------------------------------------


def title_of(metric: str) -> str:
    """The metric in words, if there are any for it."""
    return TITLES.get(metric, metric)


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def column_heading(matrix: DomainMatrix, test_set: str, queries: QueryCounts | None) -> str:
    """The test set with its number of queries, where known."""
    number = (queries or {}).get((matrix.scene, test_set))
    return test_set if number is None else f"{test_set} ({number} queries)"


def seeds_of(n: int, arm: Arm) -> str:
    """`n`, and out of how many seeds if some are missing."""
    return str(n) if n == len(arm.outcomes) else f"{n} of {len(arm.outcomes)}"


def cell_text(cell: Cell | None, metric: str) -> str:
    """Mean and half interval, `failed`, or a dash where there is no number."""
    if cell is None or cell.interval.mean is None:
        return "–"
    if cell.failed:
        return "failed"
    factor = 100.0 if is_recall(metric) else 1.0
    mean, hi = factor * cell.interval.mean, cell.interval.hi
    decimals = 1 if is_recall(metric) else _decimals(mean)
    return f"{mean:.{decimals}f}" if hi is None else f"{mean:.{decimals}f} ± {factor * hi - mean:.{decimals}f}"


def _decimals(value: float) -> int:
    """Decimals of three significant digits without an exponent."""
    return 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
