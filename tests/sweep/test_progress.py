"""Both displays tell the same story, and none of it changes the sweep."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from cadloc.contract import StageSpec
from cadloc_sweep.plan import make_plan
from cadloc_sweep.progress import LiveDisplay, PlainDisplay, SweepState, duration, make_display, stage_label
from cadloc_sweep.space_settings import Objective
from cadloc_sweep.spaces import load_space
from cadloc_sweep.stages import StageStore
from cadloc_sweep.sweep import run_sweep

if TYPE_CHECKING:
    from conftest import ToySweep


def shown(toys: ToySweep, terminal: bool) -> str:
    """All that a run of the sweep writes to its console."""
    from cadloc_sweep.executors.inline import InlineExecutor

    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=120)
    space = load_space(str(toys.file), ["repeats=1"])
    plan, store = make_plan(space), StageStore(toys.paths.store)
    with make_display(console, space.objective) as display:
        assert isinstance(display, LiveDisplay if terminal else PlainDisplay)
        run_sweep(space, plan, toys.paths, store, InlineExecutor, [], display)
        display.note("[bold]as it is[/bold]")
    return text.getvalue()


def test_plain_lines_tell_stages_trials_and_notes(toys: ToySweep) -> None:
    """A log names every trial's start and end, every stage, the counts, and has no escape codes in it."""
    text = shown(toys, terminal=False)
    assert "\x1b" not in text
    for trial in toys.plan("repeats=1").trials:
        assert f"trial {trial.id} {trial.scene} {trial.arm_label} #0: started" in text
        assert f"trial {trial.id} {trial.scene} {trial.arm_label} #0: finished" in text
    assert "4/4 trials · 4 finished" in text
    assert text.count("built after") == 4
    assert "note: [bold]as it is[/bold]" in text


def test_the_live_display_draws_and_goes_away(toys: ToySweep) -> None:
    """On a terminal there are bars and the best so far; notes stay as they were written."""
    text = shown(toys, terminal=True)
    assert "trials" in text
    assert "note: [bold]as it is[/bold]" in text


def test_the_best_is_the_objectives_best_per_scene(toys: ToySweep) -> None:
    """Under `min` the lowest value wins, under `max` the highest, each scene for itself."""
    trials = toys.plan("repeats=1").trials
    for mode, wanted in (("min", 1.0), ("max", 3.0)):
        state = SweepState(Objective(metric="x", mode=mode))
        for value in (2.0, 1.0, 3.0):
            state.note_best(trials[0], value)
        state.note_best(trials[0], None)
        assert {scene: best for scene, (best, _) in state.best.items()} == {trials[0].scene: wanted}


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (60, "1 min 00 s"), (3599, "59 min 59 s"), (7500, "2 h 05 min")]
)
def test_durations_have_two_leading_figures(seconds: float, text: str) -> None:
    """Seconds, minutes or hours, rounded."""
    assert duration(seconds) == text


def test_a_stage_is_named_by_what_tells_it_from_others() -> None:
    """Scene and source of the views, and the encoder on top of them."""
    views = StageSpec("views", "1", {"scene": {"name": "gate"}, "source": "photo"})
    queries = StageSpec("queries", "1", {"encoder": {"name": "small"}, "split": "query"}, {"views": views})
    assert stage_label(views) == "views gate photo"
    assert stage_label(queries) == "queries gate photo small query"


def test_a_stage_made_with_a_tuned_encoder_names_the_strategy() -> None:
    """Not the photos and views that the tuning has seen: they are told where the encoder is."""
    views, photo = (StageSpec("views", "1", {"scene": {"name": "gate"}, "source": s}) for s in ("synthetic", "photo"))
    settings = {"encoder": {"name": "small"}, "finetuning": {"name": "features"}}
    encoder = StageSpec("encoder", "1", settings, {"photos": photo, "renders": views, "synthetic": views})
    buffer = StageSpec("buffer", "2", {"encoder": {"name": "small"}}, {"views": views, "encoder": encoder})
    assert stage_label(encoder) == "encoder gate photo small features"
    assert stage_label(buffer) == "buffer gate synthetic small features"
