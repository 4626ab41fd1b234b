"""What tuning did to each arm's encoder, from the card and history beside its maps: agreement, forgetting, conflicts.

Of validation views only. A scene's seeds share one tuned encoder, so the first finished trial speaks for all.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cadloc.contract import Fault, InputError, Json
from cadloc_sweep.report.results import Arm, SweepResults
from cadloc_sweep.report.tables import Table
from cadloc_sweep.trials import SweepPaths

MEASURES: Mapping[str, str] = {
    "precision": "photo → render precision, %",
    "agreement": "agreement, cosine",
    "synthetic_precision": "render → render precision, %",
    "kept": "kept, cosine",
}
"""Measure -> heading. Shares are shown in percent."""


@dataclass(frozen=True)
class Tuning:
    """One arm's tuned encoder on one scene: measures of validation views before and after, and the lowest mean cosine
    between the gradients of two objectives (`conflict`: A~B), None where the run looked at no two."""

    scene: str
    arm: str
    before: Mapping[str, float]
    after: Mapping[str, float]
    conflict: str | None
    cosine: float | None


def read_tunings(results: SweepResults, paths: SweepPaths) -> tuple[Tuning, ...]:
    """The tunings of a sweep, scene by scene. Raises InputError where no finished trial has a tuned encoder."""
    found = [tuning for arm in results.arms if (tuning := _tuning(arm, paths)) is not None]
    if not found:
        allowed = "a sweep whose finished trials tuned an encoder (`trial.finetuning`)"
        raise InputError(Fault(results.space, "--tuning", "no tuned encoder beside any map", allowed))
    return tuple(found)


def tables(space: str, tunings: Sequence[Tuning]) -> list[Table]:
    """One table per scene: an arm per row, before → after."""
    return [_scene_table(space, scene, tunings) for scene in dict.fromkeys(tuning.scene for tuning in tunings)]


def as_json(tunings: Sequence[Tuning]) -> str:
    """A list of what `Tuning` holds."""
    return json.dumps([asdict(tuning) for tuning in tunings], indent=2, allow_nan=False)


def footnote() -> str:
    """What the numbers are."""
    return (
        "validation views, before → after; precision: share of cells whose most similar cell of the other "
        "picture is the right one or next to it; kept: likeness of renders' features to the untuned encoder's; "
        "conflict: the two objectives whose gradients have the lowest mean cosine (below zero: against each other)"
    )


def _tuning(arm: Arm, paths: SweepPaths) -> Tuning | None:
    for outcome in arm.finished:
        folder = paths.trial(outcome.trial.id).directory / "encoder"
        if (folder / "card.json").is_file():
            card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
            conflict, cosine = _worst_conflict(folder / "history.csv")
            before, after = (_measures(card[when]) for when in ("before", "after"))
            return Tuning(arm.scene, arm.label, before, after, conflict, cosine)
    return None


def _measures(values: Mapping[str, Json]) -> dict[str, float]:
    named = {name: values.get(f"validation/{name}") for name in MEASURES}
    return {name: float(value) for name, value in named.items() if isinstance(value, int | float)}


def _worst_conflict(history: Path) -> tuple[str | None, float | None]:
    if not history.is_file():
        return None, None
    with history.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    names = [name for name in (rows[0] if rows else ()) if name.startswith("cosine/")]
    means = {name: _mean([float(row[name]) for row in rows if row[name]]) for name in names}
    known = {name.removeprefix("cosine/"): mean for name, mean in means.items() if math.isfinite(mean)}
    if not known:
        return None, None
    lowest = min(known, key=lambda name: known[name])
    return lowest, known[lowest]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _scene_table(space: str, scene: str, tunings: Sequence[Tuning]) -> Table:
    rows = [
        (tuning.arm, *(_change(tuning, name) for name in MEASURES), _conflict(tuning))
        for tuning in tunings
        if tuning.scene == scene
    ]
    return Table(f"{space}: tuning on {scene}", ("arm", *MEASURES.values(), "conflict"), tuple(rows))


def _change(tuning: Tuning, name: str) -> str:
    before, after = tuning.before.get(name), tuning.after.get(name)
    if before is None or after is None:
        return "–"
    shown = "{:.1f} → {:.1f}" if "%" in MEASURES[name] else "{:.2f} → {:.2f}"
    factor = 100 if "%" in MEASURES[name] else 1
    return shown.format(factor * before, factor * after)


def _conflict(tuning: Tuning) -> str:
    return "–" if tuning.cosine is None else f"{tuning.conflict} {tuning.cosine:+.2f}".replace("-", "−")
