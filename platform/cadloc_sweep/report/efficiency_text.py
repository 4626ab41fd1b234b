"""The efficiency of arms for people (tables) and for programs (JSON)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fractions import Fraction

from cadloc.contract import Json
from cadloc_sweep.report.efficiency import SAME_BUDGET, Budget, Efficiency, SceneEfficiency, same_budgets
from cadloc_sweep.report.tables import Table

FINEST = 8
"""Largest denominator of a share that is written as a fraction, other than one over a whole number."""


def tables(space: str, metric: str, scenes: Sequence[SceneEfficiency]) -> list[Table]:
    """Arms × scenes, where there are several scenes; then arms × budgets for every scene."""
    overview = [_overview(space, metric, scenes)] if len(scenes) > 1 else []
    return [*overview, *(_scene_table(space, metric, scene) for scene in scenes)]


def footnote(scenes: Sequence[SceneEfficiency]) -> str:
    """What the numbers are."""
    lines = [
        "E: the baseline's final error, mean over its seeds, at its largest budget; every budget is a run of its own, "
        "its schedules fitted to it, not a point on the way of a longer run; finished trials only",
        "ratio: geometric mean over shared seeds of error / the baseline's at its largest budget [95 % t interval of "
        "the log ratios], below 1 is better, ! excludes 1; what seeds share (views, buffer, queries) is left out of it",
        "reaches E with: the fewest samples, of the budgets tried and over all of the baseline's seeds, whose mean "
        "ratio is 1 or less, as a share of the baseline's samples seen; no smaller share was looked for, and the "
        "first of several budgets, or the best of several arms, is the luckier for it",
        "at equal budget: better, the interval lies below 1; worse, it lies above 1; else not distinguishable; "
        "–, no interval. The baseline's own row is what the budget alone does",
    ]
    if not same_budgets(scenes):
        lines.append("@: share of the baseline's samples that runs which stopped early have seen, mean over seeds")
    budgets = [(scene, budget) for scene in scenes for family in scene.families for budget in family.budgets]
    if any(not budget.complete and not budget.failed for _, budget in budgets):
        lines.append("(n of m): n of the baseline's m seeds have finished at that budget; it cannot reach E")
    if any(budget.failed for _, budget in budgets):
        lines.append("failed: in some seed, half of the queries or more have no pose")
    return "\n".join(lines)


def as_json(metric: str, scenes: Sequence[SceneEfficiency]) -> str:
    """The efficiency as JSON: per scene the reference, and per family its budgets."""
    return json.dumps({"metric": metric, "scenes": [_scene_json(each) for each in scenes]}, indent=2, allow_nan=False)


def share_text(share: float) -> str:
    """A positive share as a fraction, where one is near: `1/3`, `3/4`, `2`, `0.37`."""
    whole = Fraction(1, max(1, round(1 / share)))
    for near in (whole, Fraction(share).limit_denominator(FINEST)):
        if abs(near - share) <= SAME_BUDGET * share:
            return str(near)
    return f"{share:.2g}"


def _overview(space: str, metric: str, scenes: Sequence[SceneEfficiency]) -> Table:
    labels = dict.fromkeys(family.label for scene in scenes for family in scene.families)
    rows = [(_arm_text(label, scenes), *(_overview_cell(scene, label) for scene in scenes)) for label in labels]
    title = f"{space}: share of the baseline's samples that reaches its final {metric}; verdict at equal budget"
    return Table(title, ("arm", *(scene.scene for scene in scenes)), tuple(rows))


def _arm_text(label: str, scenes: Sequence[SceneEfficiency]) -> str:
    baseline = any(family.is_baseline and family.label == label for scene in scenes for family in scene.families)
    return f"{label} (baseline)" if baseline else label


def _overview_cell(scene: SceneEfficiency, label: str) -> str:
    family = next((family for family in scene.families if family.label == label), None)
    if family is None:
        return "–"
    return f"{_reached(family)}; {_verdict(scene, family)}"


def _scene_table(space: str, metric: str, scene: SceneEfficiency) -> Table:
    planned = sorted({budget.planned for family in scene.families for budget in family.budgets})
    shares = [f"ratio at {share_text(each / scene.planned)} ({_count(each)})" for each in planned]
    rows = [
        (
            f"{family.label} (baseline)" if family.is_baseline else family.label,
            _reached(family),
            *(_cell(scene, family, each) for each in planned),
            _verdict(scene, family),
        )
        for family in scene.families
    ]
    title = f"{space}: {metric} on {scene.scene}, E = {scene.error:.3g} with {_count(scene.samples)} samples"
    seeds = f"{scene.n} seed{'s' if scene.n > 1 else ''}"
    return Table(f"{title}, {seeds}", ("arm", "reaches E with", *shares, "at equal budget"), tuple(rows))


def _reached(family: Efficiency) -> str:
    return "not reached" if family.reached is None else share_text(family.reached.share)


def _cell(scene: SceneEfficiency, family: Efficiency, planned: int) -> str:
    budget = next((budget for budget in family.budgets if budget.planned == planned), None)
    if budget is None:
        return "–"
    if budget.is_reference:
        return "1 (E)"
    notes = "" if budget.complete or budget.failed else f" ({budget.ratio.n} of {scene.n})"
    if abs(budget.seen - budget.planned) > SAME_BUDGET * budget.planned:
        notes += f" @ {share_text(budget.share)}"
    return _ratio(budget) + notes


def _ratio(budget: Budget) -> str:
    ratio = budget.ratio
    if ratio.mean is None:
        return "failed" if budget.failed else "–"
    if ratio.lo is None or ratio.hi is None:
        return f"{ratio.mean:.2f}"
    mark = " !" if budget.verdict in ("better", "worse") else ""
    return f"{ratio.mean:.2f} [{ratio.lo:.2f}, {ratio.hi:.2f}]{mark}"


def _verdict(scene: SceneEfficiency, family: Efficiency) -> str:
    equal = family.at(scene.planned)
    if equal is not None and equal.is_reference:
        return "the baseline"
    if equal is None or (equal.verdict is None and not equal.failed):
        return "–"
    said = "failed" if equal.failed else str(equal.verdict)
    share = equal.planned / scene.planned
    return said if share >= 1 - SAME_BUDGET else f"{said} (at {share_text(share)})"


def _count(samples: float) -> str:
    """Samples in thousands or millions."""
    return (
        f"{samples / 1e6:.3g} M" if samples >= 1e6 else f"{samples / 1e3:.3g} k" if samples >= 1e3 else f"{samples:g}"
    )


def _scene_json(scene: SceneEfficiency) -> dict[str, Json]:
    reference = {"error": scene.error, "n": scene.n, "samples_planned": scene.planned, "samples_seen": scene.samples}
    return {
        "scene": scene.scene,
        "reference": reference,
        "arms": [_family_json(scene, family) for family in scene.families],
    }


def _family_json(scene: SceneEfficiency, family: Efficiency) -> dict[str, Json]:
    equal = family.at(scene.planned)
    return {
        "arm": family.label,
        "baseline": family.is_baseline,
        "reached": None if family.reached is None else _budget_json(family.reached),
        "equal_budget": None if equal is None else _budget_json(equal),
        "budgets": [_budget_json(budget) for budget in family.budgets],
    }


def _budget_json(budget: Budget) -> dict[str, Json]:
    return {
        "samples_planned": budget.planned,
        "samples_seen": budget.seen,
        "share": budget.share,
        "error": budget.error,
        "n": budget.ratio.n,
        "ratio": budget.ratio.mean,
        "lo": budget.ratio.lo,
        "hi": budget.ratio.hi,
        "verdict": budget.verdict,
    }
