"""Plans, sweeps and stores at a glance: the tables of `plan`, `status` and `store ls`."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from cadloc.contract import Json
from cadloc_sweep.costs import Cost, Sharing
from cadloc_sweep.plan import Plan
from cadloc_sweep.progress import duration
from cadloc_sweep.report.results import PLANNED, SweepResults, TrialOutcome
from cadloc_sweep.stages import StageEntry
from cadloc_sweep.trials import SweepPaths
from cadloc_sweep.worker import read_history

WIDE = 180
"""Characters per line of tables that go into a file or a pipe."""


def output() -> Console:
    """Standard output; wide where it is a file or a pipe, which nobody could widen."""
    return Console() if sys.stdout.isatty() else Console(width=WIDE)


def plan_overview(plan: Plan, cost: Cost) -> RenderableType:
    """Arms and their trials, the stages they share, what the next run costs, and warnings."""
    arms = Table(title=f"{plan.space_name}: {len(plan.trials)} trials", title_justify="left")
    for heading in ("scene", "arm", "seeds", "trials"):
        arms.add_column(heading)
    groups: dict[str, list[int]] = {}
    for index, trial in enumerate(plan.trials):
        groups.setdefault(trial.arm, []).append(index)
    for indices in groups.values():
        first = plan.trials[indices[0]]
        seeds = ", ".join(str(plan.trials[index].seed) for index in indices)
        ids = " ".join(plan.trials[index].id for index in indices)
        arms.add_row(first.scene, escape(first.arm_label), seeds, ids)
    return Group(arms, Text("\n".join(plan_lines(plan, cost))))


def plan_lines(plan: Plan, cost: Cost) -> Iterator[str]:
    """What arms are compared by, shared stages, cost and warnings, a line each."""
    if plan.pairs > 1:
        yield f"arms of a scene are compared over {plan.pairs} paired seeds, by 95 % t intervals"
    uses = _uses(plan)
    for kind, count in Counter(spec.kind for spec in plan.specs.values()).items():
        yield f"stage {kind}: {count} shared by {uses[kind]} uses, {cost.stages.get(kind, 0)} to build"
    every = (trial.resources for trial in plan.trials)
    for workers, cpu, gpu in dict.fromkeys((each.workers, each.cpu, each.gpu) for each in every):
        if workers > 1:
            yield f"{workers} workers share each trial: {workers * cpu:g} CPU and {workers * gpu:g} GPU in all"
    if cost.sharing.trials:
        yield _sharing_words(cost.sharing)
    yield f"next run: {cost.trials} trials, {sum(cost.stages.values())} stages; {_cost_words(cost)}"
    for warning in plan.warnings:
        yield f"warning: {warning}"


def _uses(plan: Plan) -> Counter[str]:
    """By kind, how often a trial reads a stage, or another stage is made from it."""
    uses = Counter(plan.specs[key].kind for roles in plan.stages.values() for key in dict.fromkeys(roles.values()))
    uses.update(inner.kind for spec in plan.specs.values() for inner in spec.inputs.values())
    return uses


def _sharing_words(sharing: Sharing) -> str:
    steps = f"{sharing.steps:,} of their {sharing.steps_alone:,} steps ({sharing.steps / sharing.steps_alone:.0%})"
    known = f", about {duration(sharing.seconds)} of training instead of {duration(sharing.seconds_alone)}"
    return f"{sharing.trials} trials share prefixes: {steps}{known if sharing.seconds_alone else ''}"


def _cost_words(cost: Cost) -> str:
    known = cost.trial_seconds + cost.stage_seconds
    unknown = cost.unknown_trials + cost.unknown_stages
    words = f"about {duration(known)} of work" if known else ""
    doubt = (
        f"{cost.unknown_trials} trials and {cost.unknown_stages} stages of unknown cost: nothing that ran here tells"
    )
    return "; ".join(part for part in (words, doubt if unknown else "") if part) or "nothing to do"


def status_overview(results: SweepResults, paths: SweepPaths) -> RenderableType:
    """Every trial with its state, and the counts."""
    drawn = Table(title=f"{results.space}: {paths.directory}", title_justify="left")
    for heading in ("trial", "scene", "arm", "seed", "status", results.objective, "time"):
        drawn.add_column(heading)
    for outcome in results.outcomes:
        row = status_row(outcome, results.objective, paths)
        cells = (row["id"], row["scene"], row["arm"], row["seed"], row["status"], row["objective"], row["seconds"])
        drawn.add_row(*(escape(_shown(cell)) for cell in cells[:-1]), duration(cells[-1]) if cells[-1] else "")
    counts = ", ".join(f"{count} {status}" for status, count in results.counts.items())
    return Group(drawn, Text(counts))


def status_row(outcome: TrialOutcome, objective: str, paths: SweepPaths) -> dict[str, Json]:
    """One trial's state; `begun` where it left progress but no end yet, with the step it has reached."""
    trial, result = outcome.trial, outcome.result
    history = read_history(paths.trial(trial.id).history)
    begun = outcome.status == PLANNED and history
    return {
        "id": trial.id,
        "scene": trial.scene,
        "arm": trial.arm_label,
        "seed": trial.seed,
        "status": f"begun (step {history[-1].step})" if begun else outcome.status,
        "objective": outcome.metrics.get(objective),
        "seconds": result.seconds if result else None,
        "error": result.error if result else None,
    }


def store_overview(entries: Sequence[StageEntry], root: Path) -> RenderableType:
    """Every stored stage, and their sum."""
    drawn = Table(title=str(root), title_justify="left")
    for heading in ("kind", "key", "items", "MB", "built in", "last used"):
        drawn.add_column(heading)
    for entry in entries:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        size = f"{entry.bytes / 1e6:.1f}"
        drawn.add_row(entry.kind, entry.key, str(entry.items), size, duration(entry.seconds), used)
    total = sum(entry.bytes for entry in entries) / 1e6
    return Group(drawn, Text(f"{len(entries)} stages, {total:.1f} MB"))


def _shown(value: Json) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
