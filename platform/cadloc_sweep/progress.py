"""What a running sweep looks like in a terminal, and as plain lines where there is none."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from cadloc.contract import StageSpec
from cadloc.prefixes import TRUNK
from cadloc_sweep.executors import StageEvent, TrialEvent
from cadloc_sweep.space_settings import Objective
from cadloc_sweep.trials import Trial

if TYPE_CHECKING:
    from cadloc_sweep.outcomes import Outcome
    from cadloc_sweep.plan import Plan

PLAIN_EVERY_S = 15.0
"""Plain lines tell the progress of a stage at most this often."""


@dataclass
class SweepState:
    """What is known of a running sweep: a plain model that both displays draw."""

    objective: Objective
    trials: dict[str, Trial] = field(default_factory=dict)
    to_run: int = 0
    running: dict[str, float] = field(default_factory=dict)
    """Share done of each running trial, by id."""
    latest: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    best: dict[str, tuple[float, str]] = field(default_factory=dict)
    """By scene: the best objective so far, and the label of its arm."""
    trials_began_s: float | None = None

    def planned(self, plan: Plan, ended: int) -> None:
        """A run begins."""
        self.trials = {trial.id: trial for trial in plan.trials}
        self.to_run = len(plan.trials) - ended

    def trial_event(self, event: TrialEvent) -> None:
        """A trial moves on."""
        if event.kind == "started":
            self.trials_began_s = self.trials_began_s or time.monotonic()
            self.running[event.trial_id] = 0.0
        elif event.progress is not None:
            share = event.progress.step / self.trials[event.trial_id].config.training.iterations
            self.running[event.trial_id] = min(share, 1.0)
            self.latest[event.trial_id] = _latest(event.progress.metrics)
        elif event.result is not None:
            self.running.pop(event.trial_id, None)
            self.latest.pop(event.trial_id, None)
            self.counts[event.result.status] = self.counts.get(event.result.status, 0) + 1
            self.note_best(self.trials[event.trial_id], event.result.metrics.get(self.objective.metric))

    @property
    def ended(self) -> int:
        """Number of trials that ended in this run."""
        return sum(self.counts.values())

    @property
    def eta_s(self) -> float | None:
        """Seconds until the last trial ends at the pace so far; None before the first tenth of a trial."""
        done = self.ended + sum(self.running.values())
        if self.trials_began_s is None or done < 0.1:
            return None
        return (self.to_run - done) * (time.monotonic() - self.trials_began_s) / done

    def summary(self) -> str:
        """The trials in one line."""
        counts = " ".join(f"{count} {status}" for status, count in self.counts.items())
        parts = [f"{self.ended}/{self.to_run} trials", counts, f"{len(self.running)} running" if self.running else ""]
        if (left_s := self.eta_s or 0.0) >= 1:
            parts.append(f"about {duration(left_s)} left")
        return " · ".join(part for part in parts if part)

    def note_best(self, trial: Trial, value: float | None) -> None:
        """Remembers the value if it is its scene's best; None is no value."""
        if value is None:
            return
        known = self.best.get(trial.scene)
        better = known is None or (value < known[0] if self.objective.mode == "min" else value > known[0])
        if better:
            self.best[trial.scene] = (value, f"{trial.arm_label} #{trial.seed}")


class PlainDisplay:
    """One line per thing that happened: for logs and pipes."""

    def __init__(self, console: Console, objective: Objective) -> None:
        self._console = console
        self._state = SweepState(objective)
        self._said_s: dict[str, float] = {}

    def __enter__(self) -> PlainDisplay:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def planned(self, plan: Plan, ended: int) -> None:
        """Says how many trials there are."""
        self._state.planned(plan, ended)
        self._say(f"{plan.space_name}: {len(plan.trials)} trials, {ended} ended before, {self._state.to_run} to run")

    def stages_wanted(self, missing: Sequence[StageSpec]) -> None:
        """Says what is built first."""
        if missing:
            kinds = Counter(spec.kind for spec in missing)
            self._say(f"stages to build: {', '.join(f'{count} {kind}' for kind, count in kinds.items())}")

    def stage_event(self, event: StageEvent) -> None:
        """Says that a stage is complete, or now and then how far it is."""
        label, key, now = stage_label(event.job.spec), event.job.spec.key, time.monotonic()
        if event.kind == "chunk" and now - self._said_s.setdefault(key, now) > PLAIN_EVERY_S:
            self._said_s[key] = now
            self._say(f"stage {label}: {event.done}/{event.total}")
        if event.kind != "chunk":
            self._say(f"stage {label}: {event.kind} after {duration(event.seconds)} of work")

    def trial_event(self, event: TrialEvent) -> None:
        """Says that a trial started or ended."""
        self._state.trial_event(event)
        name = _trial_name(self._state.trials[event.trial_id])
        if event.kind == "started":
            self._say(f"trial {event.trial_id} {name}: started")
        elif event.result is not None:
            value = event.result.metrics.get(self._state.objective.metric)
            told = event.result.error or ("" if value is None else f"{self._state.objective.metric} {value:.4g}")
            self._say(f"trial {event.trial_id} {name}: {event.result.status} {told}".rstrip())
            self._say(self._state.summary())

    def note(self, text: str) -> None:
        """Says it."""
        self._say(f"note: {text}")

    def ended(self, outcome: Outcome) -> None:
        """Nothing: the command line tells the outcome."""

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class LiveDisplay:
    """Bars for stages and trials, what runs now, the best so far; redrawn four times a second by its own thread."""

    def __init__(self, console: Console, objective: Objective) -> None:
        self._console = console
        self._state = SweepState(objective)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bars = Progress(*columns, console=console)
        self._stages: dict[str, TaskID] = {}
        self._to_build: TaskID | None = None
        self._trials: TaskID | None = None
        self._live = Live(console=console, get_renderable=self._drawn, refresh_per_second=4, transient=True)

    def __enter__(self) -> LiveDisplay:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def planned(self, plan: Plan, ended: int) -> None:
        """The bar of the trials appears."""
        self._state.planned(plan, ended)
        if self._state.to_run:
            self._trials = self._bars.add_task("trials", total=self._state.to_run, start=False)

    def stages_wanted(self, missing: Sequence[StageSpec]) -> None:
        """The bar of the stages appears; one of its own has each stage under way, of hundreds a few."""
        if missing:
            self._to_build = self._bars.add_task("stages", total=len(missing))

    def stage_event(self, event: StageEvent) -> None:
        """A bar grows; a complete one is gone."""
        spec = event.job.spec
        if spec.key not in self._stages:
            self._stages[spec.key] = self._bars.add_task(escape(stage_label(spec)), total=None)
        self._bars.update(self._stages[spec.key], completed=event.done, total=event.total or None)
        if event.kind == "failed":
            self.note(f"stage {stage_label(spec)} failed: {event.error}")
        if event.kind != "chunk":
            self._bars.remove_task(self._stages.pop(spec.key))
            if self._to_build is not None:
                self._bars.advance(self._to_build)

    def trial_event(self, event: TrialEvent) -> None:
        """The trials' bar grows by shares of trials."""
        self._state.trial_event(event)
        if self._trials is not None:
            self._bars.start_task(self._trials)
            self._bars.update(self._trials, completed=self._state.ended)
        if event.result is not None and event.result.status == "failed":
            self.note(f"trial {event.trial_id} {_trial_name(self._state.trials[event.trial_id])}: {event.result.error}")

    def note(self, text: str) -> None:
        """Stands above the bars and stays."""
        self._console.print(f"note: {text}", markup=False, highlight=False, soft_wrap=True)

    def ended(self, outcome: Outcome) -> None:
        """The display disappears; the command line tells the outcome."""
        self._live.stop()

    def _drawn(self) -> Group:
        running = Table.grid(padding=(0, 2))
        state = self._state
        for trial_id, share in list(state.running.items()):
            name = _trial_name(state.trials[trial_id])
            running.add_row("  running", escape(name), f"{share:.0%}", escape(state.latest.get(trial_id, "")))
        for scene, (value, label) in list(state.best.items()):
            running.add_row("  best", escape(f"{scene} {label}"), f"{value:.4g}", state.objective.metric)
        return Group(self._bars, Text(state.summary() if state.to_run else ""), running)


def make_display(console: Console, objective: Objective) -> PlainDisplay | LiveDisplay:
    """The live display on a terminal, plain lines elsewhere."""
    return LiveDisplay(console, objective) if console.is_terminal else PlainDisplay(console, objective)


def stage_label(spec: StageSpec) -> str:
    """A stage in a few words: its kind, its scene (its inputs', where it has none), what tells it from others."""
    if spec.kind == TRUNK:
        trial = spec.config["trial"]
        return f"{TRUNK} {_named(trial['scene'])} {_named(trial['loss'])} until step {spec.config['until']}"
    own = [_named(spec.config[key]) for key in ("scene", "source", "encoder") if key in spec.config]
    inner = [stage_label(each).split(" ", 1)[-1] for role, each in spec.inputs.items() if role in ("views", "photos")]
    tuned = spec.inputs.get("encoder", spec)
    projected = spec.inputs.get("projection", spec)
    told = ((tuned.config, "finetuning"), (projected.config, "projection"), (spec.config, "split"))
    last = [_named(config[key]) for config, key in told if key in config]
    return " ".join(part for part in dict.fromkeys([spec.kind, *inner, *own, *last]) if part)


def duration(seconds: float) -> str:
    """Seconds, minutes or hours with two leading figures: `42 s`, `3 min 10 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _named(value: object) -> str:
    if not (isinstance(value, dict) and "name" in value):
        return str(value)
    return f"{value['name']} {value['dimensions']}" if "dimensions" in value else str(value["name"])


def _trial_name(trial: Trial) -> str:
    return f"{trial.scene} {trial.arm_label} #{trial.seed}"


def _latest(metrics: Mapping[str, float]) -> str:
    """The one number that tells how a running trial does."""
    shown = [(name, value) for name, value in metrics.items() if name.endswith("translation_error_median_m")]
    return " ".join(f"{name} {value:.3g}" for name, value in shown[:1])
