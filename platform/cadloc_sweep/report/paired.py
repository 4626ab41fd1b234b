"""Arms against the baseline, query by query: ratios of median errors, per scene and over all scenes.

Scenes differ in size, so errors are compared as ratios; seeds are few, so the queries they share count too.
"""

from __future__ import annotations

import csv
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from cadloc.contract import Fault, InputError, Json
from cadloc.faults import did_you_mean
from cadloc_sweep.report.paired_bootstrap import Array, draws, log_medians, log_ratios, percent_interval
from cadloc_sweep.report.paired_validation import validation_changes
from cadloc_sweep.report.results import Arm, SweepResults
from cadloc_sweep.report.statistics import Interval
from cadloc_sweep.trials import SweepPaths

FEWEST_QUERIES = 8
"""A scene with fewer has no interval of its own: the median of a handful of queries is whatever one of them is."""

METRICS: Mapping[str, tuple[str, float]] = {
    "translation_error_m": ("m", math.inf),
    "rotation_error_deg": ("deg", 180.0),
    "dcre_mean_pct": ("pct", 100.0),
}
"""Column of the pose tables -> its unit, and the most that a median counts. Metres become percent of the scene's
diameter where that is known, of which a median then counts at most 100."""


@dataclass(frozen=True, eq=False)
class SceneCell:
    """One arm on one scene, over its `seeds` finished trials that have a pose table of `queries` queries.

    `median` is the mean over seeds of the median error in `unit` (pct of the diameter where it is known), None without
    seeds; `failed` where some seed's median query has no pose or is off by more than the cap. `log_ratios`
    (1 + RESAMPLES,) is the log of the change against the baseline over the `pairs` seeds that both have, and what
    resampling made of it; None for the baseline itself, and without a pair.
    """

    queries: int
    seeds: int
    median: float | None
    unit: str
    failed: bool
    pairs: int
    log_ratios: Array | None

    @property
    def change(self) -> Interval | None:
        """Change against the baseline in percent; no bounds from fewer than two pairs or `FEWEST_QUERIES`."""
        if self.log_ratios is None:
            return None
        return percent_interval(self.log_ratios, self.pairs, bounds=self.pairs > 1 and self.queries >= FEWEST_QUERIES)


@dataclass(frozen=True)
class Pooled:
    """Change in percent: the mean over `change.n` scenes of the log ratio; how many of the scenes with an interval of
    their own (`judged`) lie wholly below and above zero."""

    change: Interval
    better: int
    worse: int
    judged: int


@dataclass(frozen=True)
class PairedArm:
    """One arm on all scenes on which it has results, by the scene's name."""

    label: str
    factors: Mapping[str, Json]
    is_baseline: bool
    cells: Mapping[str, SceneCell]

    @cached_property
    def pooled(self) -> Pooled | None:
        """Over the scenes on which the arm was compared, however few their queries; None without one.

        Bootstrapped within every scene at once: the interval is about these scenes, not about others like them.
        """
        compared = [cell for cell in self.cells.values() if cell.log_ratios is not None]
        ratios = [cell.log_ratios for cell in compared if cell.log_ratios is not None]
        if not ratios:
            return None
        change = percent_interval(np.mean(ratios, axis=0), len(ratios), bounds=all(cell.pairs > 1 for cell in compared))
        known = [own for cell in compared if (own := cell.change) is not None and own.lo is not None]
        better = sum(own.hi is not None and own.hi < 0 for own in known)
        worse = sum(own.lo is not None and own.lo > 0 for own in known)
        return Pooled(change, better, worse, len(known))


@dataclass(frozen=True)
class PairedComparison:
    """The arms of a sweep, the baseline first, on one query set. `queries` per scene that has any; `trials` is the
    number of the sweep's trials by status, of which finished ones alone take part; `validation` what
    `validation_changes` says of the arms."""

    space: str
    test_set: str
    metric: str
    arms: tuple[PairedArm, ...]
    queries: Mapping[str, int]
    trials: Mapping[str, int]
    validation: Mapping[str, float] = field(default_factory=dict)

    @property
    def baseline(self) -> PairedArm:
        """The arm that the others are compared with."""
        return self.arms[0]


def compare(
    results: SweepResults,
    paths: SweepPaths,
    test_set: str,
    metric: str = "translation_error_m",
    note: Callable[[str], None] = lambda _: None,
) -> PairedComparison:
    """Every arm against the sweep's baseline, by the pose tables of the finished trials on `test_set`.

    A missing or malformed table, and one with other queries than the scene's first, is noted and left out. Raises
    InputError for a sweep without a baseline or without another arm, an unknown query set, and a metric that no
    table has.
    """
    _check(results, paths, test_set, metric)
    scenes = {scene: _read_scene(results, paths, scene, test_set, metric, note) for scene in results.scenes}
    choices = {arm.label: arm.choice for arm in _baseline_first(results.arms, results)}
    cells = {scene: table.cells(next(iter(choices))) for scene, table in scenes.items()}
    arms = tuple(
        PairedArm(label, choice, index == 0, {scene: each[label] for scene, each in cells.items() if label in each})
        for index, (label, choice) in enumerate(choices.items())
    )
    queries = {scene: len(table.queries) for scene, table in scenes.items() if table.queries}
    validation = validation_changes(results, test_set, metric)
    return PairedComparison(results.space, test_set, metric, arms, queries, results.counts, validation)


# --- reading ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _SceneErrors:
    """Errors (Q,) of one scene's trials by arm and seed, in `unit` and their queries in one order.

    A median counts at most `cap`, infinite where it is not known.
    """

    scene: str
    queries: tuple[str, ...]
    unit: str
    cap: float
    errors: Mapping[str, Mapping[int, Array]]

    def cells(self, baseline: str) -> dict[str, SceneCell]:
        """What each arm has on this scene. Draws depend on the scene alone, so that arms share them."""
        if not self.queries:
            return {}
        query_draws = draws(self._generator(0), len(self.queries))
        medians = {
            arm: {seed: log_medians(errors, query_draws, self.cap) for seed, errors in by_seed.items()}
            for arm, by_seed in self.errors.items()
        }
        return {
            arm: self._cell(arm, {} if arm == baseline else medians.get(baseline, {}), medians[arm]) for arm in medians
        }

    def _cell(self, arm: str, baseline: Mapping[int, Array], own: Mapping[int, Array]) -> SceneCell:
        medians = [float(np.median(errors)) for errors in self.errors[arm].values()]
        shared = sorted(set(own) & set(baseline))
        ratios = None
        if shared:
            ours, theirs = (np.stack([each[seed] for seed in shared]) for each in (own, baseline))
            ratios = log_ratios(ours, theirs, draws(self._generator(len(shared)), len(shared)))
        return SceneCell(
            queries=len(self.queries),
            seeds=len(medians),
            median=float(np.mean(medians)) if medians else None,
            unit=self.unit,
            failed=any(median >= self.cap for median in medians),
            pairs=len(shared),
            log_ratios=ratios,
        )

    def _generator(self, stream: int) -> np.random.Generator:
        return np.random.default_rng([zlib.crc32(self.scene.encode()), stream])


def read_errors(table: Path, metric: str) -> dict[str, float]:
    """Error of each query of a pose table, infinite without a pose. Raises OSError, and ValueError if malformed."""
    errors: dict[str, float] = {}
    for name, value in _rows(table, "name", metric):
        error = float(value)
        if not error >= 0 or not name or name in errors:
            raise ValueError(f"{metric} of query {name!r}: {value}, or the query twice")
        errors[name] = error
    if not errors:
        raise ValueError("no queries")
    return errors


def _rows(table: Path, *columns: str) -> Iterator[list[str]]:
    with table.open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            values = [row.get(column) for column in columns]
            if None in values:
                raise ValueError(f"no {columns[values.index(None)]} in line {row}")
            yield [str(value) for value in values]


def _read_scene(
    results: SweepResults, paths: SweepPaths, scene: str, test_set: str, metric: str, note: Callable[[str], None]
) -> _SceneErrors:
    queries: tuple[str, ...] = ()
    arms = _baseline_first((arm for arm in results.arms if arm.scene == scene), results)
    errors: dict[str, dict[int, Array]] = {arm.label: {} for arm in arms}
    for label, outcome in ((arm.label, outcome) for arm in arms for outcome in arm.finished):
        table = paths.trial(outcome.trial.id).poses(test_set)
        if not table.exists() and not any(name.startswith(f"test/{test_set}/") for name in outcome.metrics):
            continue  # the scene has no such query set
        try:
            found = read_errors(table, metric)
        except (OSError, ValueError, csv.Error) as error:
            note(f"{table}: {error.strerror if isinstance(error, OSError) else error}; left out")
            continue
        queries = queries or tuple(found)
        if set(found) != set(queries):
            note(f"{table}: other queries than the scene's first table; left out")
            continue
        errors[label][outcome.trial.seed] = np.array([found[name] for name in queries])
    diameter_m = _diameter_m(arms, test_set)
    if METRICS[metric][0] == "m" and diameter_m is not None:
        shares = {arm: {seed: 100 * each / diameter_m for seed, each in own.items()} for arm, own in errors.items()}
        return _SceneErrors(scene, queries, "pct", 100.0, shares)
    return _SceneErrors(scene, queries, *METRICS[metric], errors)


def _diameter_m(arms: Iterable[Arm], test_set: str) -> float | None:
    """The scene's diameter, by a finished trial's median error in metres and in percent of it."""
    for outcome in (outcome for arm in arms for outcome in arm.finished):
        error_m, error_pct = (
            outcome.metrics.get(f"test/{test_set}/translation_error_median_{unit}") for unit in ("m", "pct")
        )
        if error_m and error_pct:
            return 100 * error_m / error_pct
    return None


# --- faults -----------------------------------------------------------------------------------------------


def _check(results: SweepResults, paths: SweepPaths, test_set: str, metric: str) -> None:
    place = str(paths.directory)
    if results.baseline is None:
        action = "a space of one_factor, leave_one_out or factorial design has one; a random one where it names it"
        raise InputError(
            Fault(place, "--paired", "a sweep without a baseline", "one that has tried its baseline", action)
        )
    if len({arm.label for arm in results.arms}) < 2:
        raise InputError(Fault(place, "--paired", "the baseline alone", "two arms or more"))
    tables = [table for found in _finished_folders(results, paths) for table in found.glob("poses_*.csv")]
    sets = sorted({table.stem.removeprefix("poses_") for table in tables})
    if test_set not in sets:
        allowed = ", ".join(sets) or "none: no finished trial has a table of poses"
        raise InputError(Fault(place, "--paired", test_set, allowed, did_you_mean(test_set, sets)))
    measured = {name for table in tables if table.stem == f"poses_{test_set}" for name in _columns(table)}
    metrics = [name for name in METRICS if name in measured]
    if metric not in metrics:
        allowed = ", ".join(metrics) or f"none: no table of {test_set} has one of {', '.join(METRICS)}"
        raise InputError(Fault(place, "--paired-metric", metric, allowed, did_you_mean(metric, metrics)))


def _finished_folders(results: SweepResults, paths: SweepPaths) -> list[Path]:
    return [paths.trial(outcome.trial.id).directory for arm in results.arms for outcome in arm.finished]


def _columns(table: Path) -> list[str]:
    try:
        with table.open(newline="", encoding="utf-8") as lines:
            return next(csv.reader(lines), [])
    except (OSError, ValueError, csv.Error):
        return []  # told when it is read


def _baseline_first(arms: Iterable[Arm], results: SweepResults) -> list[Arm]:
    return sorted(arms, key=lambda arm: arm.choice != results.baseline_choice)
