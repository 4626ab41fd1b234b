"""A server of packs: what it answers, what it keeps, and whom a failure reaches."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cadloc.config import TrialConfig
from cadloc.constraint_config import SurfaceConstraint
from cadloc.contract import CadlocError, DivergenceError, InputError, WorkerLost
from cadloc.distance_field import CARD, OFFSETS
from cadloc.head_config import AceHead
from cadloc.learner import Learner
from cadloc.loss_config import (
    CoordinateLoss,
    ReprojectionLoss,
    SwitchingLoss,
)
from cadloc.packing.material import MaterialStore, open_samples
from cadloc.packing.remote import PackedRunner
from cadloc.packing.requests import StretchAnswer, StretchRequest, unpacked
from cadloc.packing.server import PackServer
from cadloc.packing.slot import Slot
from cadloc.samples import Samples
from cadloc.training import Training
from tests.trainables.pack_cases import (
    OTHERS,
    SAMPLES,
    STAGES,
    answers,
    at_home,
    drive,
    new_head,
    new_server,
    plain,
    request,
    same_bits,
    training,
    trial,
)


def test_an_answer_holds_nothing_of_other_slots() -> None:
    """It is of the same size whatever the number of slots."""
    sizes = [len(answers(new_server(slots), [OTHERS[0]])[0].state) for slots in (2, 8)]
    assert sizes[0] == sizes[1]


def test_a_lost_server_costs_a_stretch_and_no_bit() -> None:
    """The same request, sent to another server after the first was thrown away half way."""
    lost = new_server(2)
    lost.admit(OTHERS[6], lambda _: pytest.fail("it was lost before it could answer"))
    for _ in range(5):
        lost.step()
    first, again = (answers(new_server(2), [OTHERS[6]])[0] for _ in range(2))
    assert same_bits(unpacked(first.state), unpacked(again.state))


def test_samples_are_opened_again_after_others_took_their_place() -> None:
    """A budget for one buffer holds one; what is asked for twice in a row is opened once."""
    opened = list[Path]()

    def opener(config: TrialConfig, stages: Mapping[str, Path], device: str) -> Samples:
        opened.append(stages["buffer/synthetic"])
        return replace(SAMPLES)

    server = PackServer("cpu", 2, budget_bytes=1, opener=opener)
    for name in ("a", "a", "b", "a"):
        [answer] = answers(server, [replace(OTHERS[2], stages={"buffer/synthetic": Path(name)})])
        assert answer.error is None
    assert opened == [Path("a"), Path("b"), Path("a")]
    assert len(server.store) == 1


def test_constraints_count_among_what_is_kept(tmp_path: Path) -> None:
    """With the field that they read, samples exceed a budget for themselves twice: the others go."""
    np.save(tmp_path / OFFSETS, np.zeros((8, 8, 8, 3), np.float16))
    (tmp_path / CARD).write_text(json.dumps({"origin_m": [0, 0, 0], "spacing_m": 0.5}))
    limited = OTHERS[0].config.model_copy(update={"constraints": (SurfaceConstraint(),)})
    alone = MaterialStore("cpu", 0, lambda config, stages, device: replace(SAMPLES))
    alone.of(OTHERS[0].config, STAGES)
    store = MaterialStore("cpu", 2 * alone.size_bytes, lambda config, stages, device: replace(SAMPLES))
    for stage in ("a", "b"):
        store.of(OTHERS[0].config, {"buffer/synthetic": Path(stage)})
    assert len(store) == 2
    stages = {"buffer/synthetic": Path("b"), "distance_field": tmp_path}
    _, limits = store.of(limited, stages)
    assert limits is store.of(limited, stages)[1] is not None
    assert len(store) == 1
    assert store.size_bytes - alone.size_bytes >= 4 * 8**3 * 4


def test_what_is_wrong_with_one_request_is_told_to_its_client_alone() -> None:
    """Nonsense, another head's state, a batch too large, stages that are absent: the neighbour's bits stay."""
    other = request(trial(CoordinateLoss(), AceHead(width=48)))
    large = request(trial(CoordinateLoss(), batch_size=10_000))
    wrong = [replace(OTHERS[2], state=b"nonsense"), replace(OTHERS[2], state=other.state), large]
    good, *found = answers(new_server(2), [OTHERS[6], *wrong], late=2)
    assert all(isinstance(answer.error, CadlocError) for answer in found)
    assert isinstance(found[-1].error, InputError)
    [expected] = answers(new_server(2), [OTHERS[6]])
    assert same_bits(unpacked(good.state), unpacked(expected.state))
    [absent] = answers(PackServer("cpu", 2), [OTHERS[2]])
    assert isinstance(absent.error, InputError)
    assert "buffer/synthetic" in str(absent.error)


def test_divergence_ends_one_stretch(tmp_path: Path) -> None:
    """Its client gets the state in which it showed, and the error; its neighbour goes on beside the NaN."""
    state = torch.load(io.BytesIO(OTHERS[2].state), weights_only=True)
    state["head"]["read_out.bias"].fill_(torch.nan)
    content = io.BytesIO()
    torch.save(state, content)
    neighbour = replace(OTHERS[6], milestone=15)
    sick, well = answers(new_server(2), [replace(OTHERS[2], state=content.getvalue()), neighbour])
    assert isinstance(sick.error, DivergenceError)
    assert unpacked(sick.state)["progression"]["step"] == 12
    assert well.error is None
    [expected] = answers(new_server(2), [neighbour])
    assert same_bits(unpacked(well.state), unpacked(expected.state))


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> StretchRequest:
    """A stretch whose fourth step fails, wherever it is taken."""
    batch = Learner.batch

    def fail(self: Learner, step: int) -> Any:
        if self.config.seed == 13 and step == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return batch(self, step)

    monkeypatch.setattr(Learner, "batch", fail)
    return request(trial(ReprojectionLoss(), seed=13))


def test_a_step_that_fails_is_told_to_whoever_fails_alone(poisoned: StretchRequest) -> None:
    """All who took it are asked to come again, each alone; stretches of another shape notice nothing."""
    other = request(trial(CoordinateLoss(), AceHead(width=48)))
    together = [OTHERS[6], poisoned, OTHERS[4]]
    server = new_server(4)
    *told, beside = answers(server, [*together, other])
    assert all(isinstance(answer.error, WorkerLost) and not answer.state for answer in told)
    [expected] = answers(new_server(4), [other])
    assert same_bits(unpacked(beside.state), unpacked(expected.state))
    found = answers(server, [*(replace(each, alone=True) for each in together), other])
    assert "OutOfMemoryError: CUDA out of memory" in str(found[1].error)
    assert isinstance(found[1].error, CadlocError)
    for asked, answer in ((OTHERS[6], found[0]), (OTHERS[4], found[2])):
        assert same_bits(unpacked(answer.state), at_home(asked))
    assert same_bits(unpacked(found[3].state), unpacked(expected.state))


def test_a_trial_is_not_lost_for_what_its_neighbours_do(poisoned: StretchRequest, tmp_path: Path) -> None:
    """Whoever shares every pack with one that fails ends as at home; the one that fails has its own error."""
    well, sick = trial(SwitchingLoss(at=0.3)), poisoned.config
    runner = PackedRunner(lambda asked: answers(new_server(2), [asked, poisoned])[0], STAGES)
    begun = Training(new_head(well, fitted=False), SAMPLES, well, tmp_path / "a", runner=runner)
    begun.start()
    list(begun.run(lambda head: {}))
    unbroken = training(well, tmp_path / "b", None)
    list(unbroken.run(lambda head: {}))
    assert plain(begun.progression.history) == plain(unbroken.progression.history)
    with pytest.raises(CadlocError, match="out of memory"):
        list(training(sick, tmp_path / "c", 2).run(lambda head: {}))


def test_who_finds_no_room_for_a_pack_comes_again_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """That is the first to sit down; the others wait for the pack that is made for the next."""
    server, made = new_server(2), list[Slot]()

    def seats(like: Slot, given: Any = server._seats) -> Any:
        made.append(like)
        if len(made) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return given(like)

    monkeypatch.setattr(server, "_seats", seats)
    first, second = answers(server, [OTHERS[4], OTHERS[6]])
    assert isinstance(first.error, WorkerLost)
    [expected] = answers(new_server(2), [OTHERS[6]])
    assert same_bits(unpacked(second.state), unpacked(expected.state))


def test_a_server_whose_device_has_failed_says_so(poisoned: StretchRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those whose step it was are answered; then nothing can be computed there any more."""

    def fail() -> None:
        if found:
            raise RuntimeError("device-side assert triggered")

    server, found = new_server(2), list[StretchAnswer]()
    monkeypatch.setattr(server, "_synchronize", fail)
    server.admit(replace(poisoned, alone=True), found.append)
    server.admit(OTHERS[6], lambda _: pytest.fail("it was not its step"))
    with pytest.raises(RuntimeError, match="device-side assert"):
        drive(server)
    assert isinstance(found[0].error, CadlocError)


def test_a_server_opens_the_samples_that_a_trial_opens(tmp_path: Path) -> None:
    """Of all buffers it is trained on, one after the other, from the stages that a request names."""
    arrays = {name: getattr(SAMPLES, name).numpy() for name in ("features", "pixels", "scene_coordinates")}
    arrays |= {"view": SAMPLES.view.numpy().astype(np.int32)}
    arrays |= {name: getattr(SAMPLES, name).double().numpy() for name in ("cam_from_cad", "intrinsics")}
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    config = trial(SwitchingLoss(at=0.2)).model_copy(update={"train_on": ("synthetic", "photo")})
    stages = {"buffer/synthetic": tmp_path, "buffer/photo": tmp_path}
    opened = open_samples(config, stages, "cpu")
    assert torch.equal(opened.features, torch.cat([SAMPLES.features] * 2))
    assert torch.equal(opened.batch(torch.tensor([500])).pixels, SAMPLES.pixels[20:21])
    [found] = answers(PackServer("cpu", 1), [replace(OTHERS[6], stages={"buffer/synthetic": tmp_path})])
    assert same_bits(unpacked(found.state), at_home(OTHERS[6]))
