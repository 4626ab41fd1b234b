"""Packing: a stretch ends as it would alone, whoever shares its device, comes, leaves or is lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cadloc.head_config import EnsembleHead, HeadConfig
from cadloc.loss_config import (
    CoordinateLoss,
    FadeLoss,
    LossConfig,
    ReprojectionLoss,
    SwitchingLoss,
    UncertainCoordinateLoss,
)
from cadloc.losses import phase_at
from cadloc.losses.phase import Prediction
from cadloc.packing.requests import unpacked
from cadloc.training_config import EarlyStop, Plateau
from tests.trainables.pack_cases import (
    ACE,
    HEADS,
    MIXED,
    OTHERS,
    SAMPLES,
    answers,
    at_home,
    constrained,
    difference,
    new_server,
    plain,
    request,
    same_bits,
    tensors,
    training,
    trial,
)


def test_a_step_in_a_pack_is_the_step_alone() -> None:
    """Under every loss, at its own rate and seed, gradients and losses of a step agree to 1e-5."""
    requests = [request(config, milestone=1) for config in MIXED]
    for answer, asked in zip(answers(new_server(len(requests)), requests), requests, strict=True):
        ours, alone = tensors(unpacked(answer.state)), tensors(at_home(asked))
        moments = [name for name in ours if "exp_avg" in name or name.startswith("window/")]
        assert max(difference(ours[name], alone[name]) for name in moments) < 1e-5


def test_the_last_steps_of_a_long_run_are_those_alone() -> None:
    """Where the threshold falls fastest, progress 0.9998, losses still agree to 1e-5, and gradients."""
    config = trial(CoordinateLoss(kernel="dyntanh"), iterations=25_000)
    asked = request(config, milestone=24_996, step=24_995)
    [answer] = answers(new_server(2), [asked])
    ours, alone = tensors(unpacked(answer.state)), tensors(at_home(asked))
    moments = [name for name in ours if "exp_avg" in name or name.startswith("window/")]
    assert max(difference(ours[name], alone[name]) for name in moments) < 1e-5


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.name)
def test_every_kind_of_head_is_packed(head: HeadConfig, precision: str) -> None:
    """Whether they know points or rays only, and with a deviation; half precision rounds a bias once more."""
    losses: list[LossConfig] = [CoordinateLoss(), ReprojectionLoss(), UncertainCoordinateLoss()]
    requests = [request(trial(loss, head, seed, precision=precision), milestone=1) for seed, loss in enumerate(losses)]
    half = precision == "bfloat16"
    for answer, asked in zip(answers(new_server(3), requests), requests, strict=True):
        ours, alone = tensors(unpacked(answer.state)), tensors(at_home(asked))
        names = [name for name in ours if name.startswith("window/") or (name.endswith("exp_avg") and not half)]
        assert max(difference(ours[name], alone[name]) for name in names) < (0.02 if half else 1e-5)


def test_a_run_in_a_pack_is_as_good_as_alone() -> None:
    """After all its steps, past every switch, the last stretch's loss agrees within two percent."""
    requests = [request(config, milestone=30) for config in (MIXED[0], MIXED[5], MIXED[6])]
    for answer, asked in zip(answers(new_server(len(requests)), requests), requests, strict=True):
        ours, alone = unpacked(answer.state)["window"], at_home(asked)["window"]
        assert ours["counts"] == alone["counts"]
        for name, total in alone["sums"].items():
            assert float(ours["sums"][name]) == pytest.approx(float(total), rel=0.02)


@pytest.mark.parametrize("neighbours", [[1, 2, 3], [5, 0]])
def test_who_shares_a_pack_leaves_no_trace(neighbours: list[int]) -> None:
    """Bits of a stretch are those it has among other losses and seeds, at another seat, begun at another step."""
    [expected, *_] = answers(new_server(4), [OTHERS[6], OTHERS[4]])
    around = [OTHERS[i] for i in neighbours]
    *_, found = answers(new_server(4), [*around, OTHERS[6]], late=3)
    assert same_bits(unpacked(found.state), unpacked(expected.state))


def test_a_stretch_alone_is_run_as_at_home() -> None:
    """With one slot, in the same bits; so is an ensemble, whose members take turns, among others."""
    ensemble = request(trial(SwitchingLoss(at=0.1), EnsembleHead(members=2, member=ACE)))
    for slots, asked in ((1, OTHERS[6]), (4, ensemble)):
        [answer, _] = answers(new_server(slots), [asked, OTHERS[0]])
        assert same_bits(unpacked(answer.state), at_home(asked))


def test_a_freed_slot_is_taken_at_once() -> None:
    """Three stretches of unequal length in two slots: each ends in the bits it has by itself."""
    requests = [request(config, milestone=3 + 2 * i) for i, config in enumerate(MIXED[4:7])]
    for answer, asked in zip(answers(new_server(2), requests), requests, strict=True):
        [expected] = answers(new_server(2), [asked])
        assert same_bits(unpacked(answer.state), unpacked(expected.state))


@pytest.mark.parametrize(("first", "then"), [(1, None), (None, 1), (2, 2)])
def test_packed_and_plain_runs_resume_each_others_checkpoints(
    first: int | None, then: int | None, tmp_path: Path
) -> None:
    """Where they step alone, history and weights end in the bits of an unbroken run; else within two percent."""
    config = trial(SwitchingLoss(at=0.3))
    unbroken = training(config, tmp_path / "a", None)
    list(unbroken.run(lambda head: {}))
    begun = training(config, tmp_path / "b", first).run(lambda head: {})
    next(begun)
    begun.close()  # type: ignore[attr-defined]
    resumed = training(config, tmp_path / "b", then)
    assert resumed.progression.step == 15
    list(resumed.run(lambda head: {}))
    assert resumed.progression.step == 30
    if 2 not in (first, then):
        assert plain(resumed.progression.history) == plain(unbroken.progression.history)
    last, expected = (run.progression.history[-1]["train/loss_px"] for run in (resumed, unbroken))
    assert last == pytest.approx(expected, rel=0.02)


def test_an_early_stop_comes_at_the_same_step(tmp_path: Path) -> None:
    """A map that fits from the start cools down at the first check, packed or not, and its slot is free then."""
    rule = EarlyStop(share=0.01, within_px=200, window=10)
    config = trial(CoordinateLoss(), schedule=Plateau(cool_down=0.2, early_stop=rule), iterations=80)
    here, there = training(config, tmp_path / "a", None), training(config, tmp_path / "b", 2)
    for run in (here, there):
        list(run.run(lambda head: {}))
    assert here.progression.step == there.progression.step < 80
    assert there.progression.cooling_from == here.progression.cooling_from


def test_constraints_act_in_a_pack_as_alone() -> None:
    """What they draw and read stays the slot's own; their means are part of the history."""
    asked, other = (constrained(replace(OTHERS[i], milestone=1)) for i in (0, 1))
    ours, _ = answers(new_server(2), [asked, other])
    [alone] = answers(new_server(1), [asked])
    sums = [unpacked(answer.state)["window"]["sums"] for answer in (ours, alone)]
    assert "train/constraint_depth_px" in sums[0]
    for name, value in sums[1].items():
        assert float(sums[0][name]) == pytest.approx(float(value), rel=1e-5)


KERNELS = ["dyntanh", "tanh", "l1", "l1_sqrt", "l1_log", "geman_mcclure", "barron"]


@pytest.mark.parametrize("kernel", KERNELS)
def test_schedules_may_be_tensors(kernel: str) -> None:
    """A loss at a moment is the same whether the moment is a number or lies on the device; limits included."""
    batch = SAMPLES.batch(torch.arange(50))
    seen = Prediction(batch.targets + 0.3)
    for loss in (
        ReprojectionLoss.model_validate({"kernel": kernel}),
        FadeLoss(reprojection=ReprojectionLoss.model_validate({"kernel": kernel})),
    ):
        for progress in (0.0, 0.2, 0.5, 0.9998, 1.0):
            phase = phase_at(loss, progress, SAMPLES.scale)
            moved = replace(phase, progress=torch.tensor(progress, dtype=torch.float64))  # type: ignore[type-var]
            found = moved.loss(seen, batch)
            assert found.dtype == torch.float32
            assert float(found) == pytest.approx(float(phase.loss(seen, batch)), rel=1e-6)
