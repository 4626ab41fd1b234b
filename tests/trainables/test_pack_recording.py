"""Steps that are recorded once and replayed: what a recording may depend on, and what happens where there is none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from cadloc.head_config import HeadConfig
from cadloc.packing.captured import Recordings, Work, _back_to_its_stream
from cadloc.packing.requests import unpacked
from cadloc.packing.server import PackServer
from tests.trainables.pack_cases import (
    ACE,
    HEADS,
    MIXED,
    OTHERS,
    answers,
    constrained,
    new_server,
    replace_head,
    request,
    same_bits,
)


class Replayed:
    """Stands in for a recording on a device that has none: the work of its first step, on inputs copied into place."""

    made: ClassVar[list[Replayed]] = []

    def __init__(self, work: Work, inputs: Mapping[str, Tensor], pool: object) -> None:
        self._work, self._inputs = work, {name: value.clone() for name, value in inputs.items()}
        work(self._inputs)  # as a warm-up does
        self.made.append(self)

    def __call__(self, inputs: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        for name, value in self._inputs.items():
            value.copy_(inputs[name])
        return [{name: value.clone() for name, value in each.items()} for each in self._work(self._inputs)]


@pytest.mark.parametrize("head", [ACE, *HEADS[1:]], ids=lambda head: head.name)
def test_a_recorded_step_reads_nothing_but_its_inputs(head: HeadConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replayed for every later step of the same kinds, what was recorded of a first one gives the bits of eager steps;
    a switch is recorded anew."""
    configs = [replace_head(config, head) for config in (MIXED[6], MIXED[5], MIXED[0])]
    requests = [request(config, milestone=10 + i) for i, config in enumerate(configs)]
    eager = answers(new_server(3), requests)
    monkeypatch.setattr("cadloc.packing.captured.Captured", Replayed)
    Replayed.made.clear()
    for ours, theirs in zip(answers(recording_server(3, monkeypatch), requests), eager, strict=True):
        assert same_bits(unpacked(ours.state), unpacked(theirs.state))
    assert 2 <= len(Replayed.made) <= 4


def test_who_leaves_and_returns_is_not_recorded_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses of two kinds, each back for its next stretch in another order than it left, or not at all."""
    monkeypatch.setattr("cadloc.packing.captured.Captured", Replayed)
    Replayed.made.clear()
    server = recording_server(3, monkeypatch)
    first, second, third = (request(MIXED[i], milestone=2 + i) for i in (0, 2, 2))
    answers(server, [first, second, third])
    made = len(Replayed.made)
    for again in ([third, first, second], [second, first], [first], [second]):
        answers(server, again)
    assert len(Replayed.made) == made


def test_constraints_of_one_keep_nobody_else_from_being_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """They step as they are, beside a pack that is recorded and ends in the bits of eager steps."""
    [eager] = answers(new_server(2), [OTHERS[0]])
    monkeypatch.setattr("cadloc.packing.captured.Captured", Replayed)
    Replayed.made.clear()
    server = recording_server(2, monkeypatch)
    limited, ours = answers(server, [constrained(OTHERS[1]), OTHERS[0]])
    assert limited.error is None
    assert len(Replayed.made) == 1
    assert same_bits(unpacked(ours.state), unpacked(eager.state))


def recording_server(slots: int, monkeypatch: pytest.MonkeyPatch) -> PackServer:
    """Whose packs record as they would on a CUDA device."""
    server = new_server(slots)
    monkeypatch.setattr(server, "_seats", lambda like, seats=server._seats: recording(seats(like)))
    return server


def recording(seats: Any) -> Any:
    """A pack that records as it would on a CUDA device."""
    seats._recordings._on = True
    return seats


def test_a_step_that_cannot_be_recorded_is_taken_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said once why, and the stretch ends in the bits of eager steps."""

    def refuse(*_: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr("cadloc.packing.captured.Captured", refuse)
    server = recording_server(2, monkeypatch)
    [ours], [theirs] = answers(server, [OTHERS[6]]), answers(new_server(2), [OTHERS[6]])
    assert same_bits(unpacked(ours.state), unpacked(theirs.state))
    assert caplog.text.count("not permitted") == 1


@pytest.mark.parametrize("masked", [False, True])
def test_memory_that_runs_out_is_not_taken_for_work_that_cannot_be_recorded(
    masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is raised, also where the recording's end fails for it."""

    def refuse(*_: object) -> None:
        try:
            raise torch.OutOfMemoryError("out of memory")
        finally:
            if masked:
                raise RuntimeError("operation failed due to a previous error during capture")

    monkeypatch.setattr("cadloc.packing.captured.Captured", refuse)
    recordings = Recordings(torch.device("cpu"))
    recordings._on = True
    with pytest.raises(RuntimeError, match="during capture" if masked else "out of memory"):
        recordings.run("kinds", lambda inputs: pytest.fail("it was tried again"), {})


def test_a_capture_that_fails_leaves_the_thread_on_its_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch itself would go on where the capture was."""
    streams = ["the thread's"]
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: streams[-1])
    monkeypatch.setattr(torch.cuda, "set_stream", streams.append)

    def capture() -> None:
        with _back_to_its_stream():
            streams.append("the capture's")
            raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError):
        capture()
    assert torch.cuda.current_stream() == "the thread's"
