"""Settings of heads, schedules and the pose solver: what implies what, and what together would do nothing."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from cadloc.catalog import stages_of
from cadloc.config import TrialConfig
from cadloc.contract import identity
from cadloc.head_config import EnsembleHead, GlaceHead
from cadloc.training_config import Plateau

GATE = {"name": "gate", "built_in": True}
GLACE = {"name": "glace"}
PROSAC = {"sampling": "prosac"}
SURE = {"name": "uncertain_coordinate"}


def trial(**keys: Any) -> TrialConfig:
    """A trial on a built-in scene."""
    return TrialConfig.model_validate({"scene": GATE, **keys})


def test_the_head_glace_implies_its_trainable() -> None:
    """Said or not, it is the same trial; a trial read back from what was written is the same, too."""
    implied, said = trial(head=GLACE), trial(head=GLACE, trainable="glace")
    assert implied.trainable == "glace"
    assert identity(implied.model_dump(mode="json")) == identity(said.model_dump(mode="json"))
    assert TrialConfig.model_validate(implied.model_dump(mode="json")) == said
    assert trial(head=GlaceHead()).trainable == "glace"
    assert trial(head=GLACE, trainable="mine:train").trainable == "mine:train"


@pytest.mark.parametrize("head", [{"name": "ace"}, {"name": "anchor"}, {"name": "ensemble"}])
def test_other_heads_leave_the_trainable_as_it_was(head: dict[str, str]) -> None:
    """What trains them reads cells alone, and asks for no global feature."""
    config = trial(head=head)
    assert config.trainable == "ace"
    assert not [role for role in stages_of(config) if role.startswith("global_features")]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"head": GLACE, "trainable": "ace"}, "head.name = glace: the trainable ace does not train it"),
        ({"head": {"name": "ace"}, "trainable": "glace"}, "head.name = ace: the trainable glace does not train it"),
        ({"head": {"name": "ensemble", "member": GLACE}}, "member"),
        ({"head": {"name": "ensemble", "members": 1}}, "members"),
        ({"head": {"name": "ensemble", "member": {"name": "anchor", "anchors": 900}}, "buffer": {"samples": 800},
          "training": {"batch_size": 8}}, "head.anchors = 900 is more than buffer.samples = 800"),
        ({"head": {**GLACE, "query": "retrieved", "global_features": None}}, "nothing to retrieve views by"),
        ({"head": {**GLACE, "centres": 0}}, "centres"),
        ({"head": {"name": "ace", "centres": 5}}, "centres"),
        ({"head": {"name": "ace"}, "localization": PROSAC}, "nothing says how sure"),
        ({"head": GLACE, "localization": PROSAC}, "nothing says how sure"),
        ({"head": {"name": "ensemble"}, "localization": PROSAC}, "nothing says how sure"),
        ({"localization": {**PROSAC, "solver": "opencv"}}, "prosac"),
        ({"loss": SURE, "localization": {**PROSAC, "solver": "opencv"}}, "prosac"),
        ({"training": {"schedule": {"name": "plateau", "cool_down": 0}}}, "cool_down"),
        ({"training": {"schedule": {"name": "plateau", "early_stop": {"share": 1}}}}, "share"),
        ({"training": {"schedule": {"name": "one_cycle", "early_stop": {}}}}, "early_stop"),
        ({"buffer": {"cells": "background"}}, "cells"),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_refused(keys: dict[str, Any], said: str) -> None:
    """With the key that is wrong."""
    with pytest.raises(ValidationError, match=said.replace(".", r"\.")):
        trial(**keys)


@pytest.mark.parametrize(
    "keys",
    [
        {"head": {"name": "anchor"}},
        {"head": {"name": "ensemble", "member": {"name": "anchor"}}},
        {"head": {"name": "ace"}, "loss": SURE},
        {"head": GLACE, "loss": SURE},
        {"head": {"name": "ensemble"}, "loss": SURE},
    ],
)
def test_prosac_goes_with_all_that_say_how_sure_they_are(keys: dict[str, Any]) -> None:
    """Anchors by their probability, all others under the loss that teaches it."""
    assert trial(**keys, localization=PROSAC).localization.sampling == "prosac"


def test_settings_of_choices_have_their_defaults() -> None:
    """An ensemble is four ACE heads, a plateau that is told to stop early knows the published rule."""
    head = trial(head={"name": "ensemble"}).head
    assert isinstance(head, EnsembleHead)
    assert (head.members, head.member.name) == (4, "ace")
    schedule = trial(training={"schedule": {"name": "plateau", "early_stop": {}}}).training.schedule
    assert isinstance(schedule, Plateau)
    assert schedule.early_stop is not None
    assert (schedule.early_stop.share, schedule.early_stop.within_px, schedule.early_stop.window) == (0.7, 10, 100)


def test_buffers_of_the_model_are_those_that_were_stored_before_there_was_a_choice() -> None:
    """Their stage does not name the choice; a buffer of any cells is another one, of the same views."""
    plain, said, every = (
        stages_of(trial(buffer={"samples": 9000, **cells})) for cells in ({}, {"cells": "model"}, {"cells": "any"})
    )
    slice_ = plain["buffer/synthetic"].config["buffer"]
    assert isinstance(slice_, dict)
    assert set(slice_) == {"samples", "passes", "augmentation", "seed"}
    assert said["buffer/synthetic"].key == plain["buffer/synthetic"].key
    assert every["buffer/synthetic"].key != plain["buffer/synthetic"].key
    assert every["views/synthetic"].key == plain["views/synthetic"].key
    assert every["queries/synthetic"].key == plain["queries/synthetic"].key
