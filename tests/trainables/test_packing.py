"""Packing: a stretch ends as it would alone, whoever shares its device, comes, leaves or is lost."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from cadloc.config import TrialConfig
from cadloc.constraint_config import DepthConstraint, RangeConstraint, SurfaceConstraint
from cadloc.contract import CadlocError, DivergenceError, InputError, WorkerLost
from cadloc.distance_field import CARD, OFFSETS
from cadloc.geometry import inverse, look_at, pinhole, project, transform_points
from cadloc.head_config import AceHead, AnchorHead, EnsembleHead, GlaceHead, HeadConfig
from cadloc.heads import build
from cadloc.heads.head import Head
from cadloc.learner import Learner
from cadloc.loss_config import (
    CoordinateLoss,
    FadeLoss,
    LateralRadialLoss,
    LossConfig,
    PerSampleSwitchLoss,
    ReprojectionLoss,
    SwitchingLoss,
    UncertainCoordinateLoss,
    predicts_deviation,
)
from cadloc.losses import phase_at
from cadloc.losses.phase import Prediction
from cadloc.packing.captured import Recordings, Work, _back_to_its_stream
from cadloc.packing.material import MaterialStore, open_samples
from cadloc.packing.remote import PackedRunner
from cadloc.packing.requests import StretchAnswer, StretchRequest, packed, take_up, unpacked
from cadloc.packing.server import PackServer
from cadloc.packing.slot import Slot
from cadloc.samples import Samples
from cadloc.scene_config import SceneConfig
from cadloc.stretch import Here, Progression, Stretch
from cadloc.training import Training
from cadloc.training_config import EarlyStop, Plateau, TrainingConfig

CHANNELS, BATCH = 24, 64
ACE = AceHead(width=32, blocks=1)
STAGES = {"buffer/synthetic": Path("wall")}


def wall_samples(views: int = 8, per_view: int = 60, told: int = 0) -> Samples:
    """Cells of cameras before a wavy wall of 8 × 4 m; features are smooth functions of the point."""
    generator = np.random.default_rng(0)
    waves, phases = generator.normal(0, 0.6, (3, CHANNELS)), generator.uniform(0, 6, CHANNELS)
    x, z = generator.uniform(-4, 4, (views, per_view)), generator.uniform(0, 4, (views, per_view))
    xyz = np.stack([x, 0.5 * np.sin(2 * x), z], axis=-1)
    K = pinhole(480, 360, 65)
    cam_from_cad = inverse(np.stack([look_at([eye, -10, 1.6], [0, 0, 2]) for eye in np.linspace(-5, 5, views)]))
    vectors = torch.nn.functional.normalize(torch.from_numpy(generator.normal(0, 1, (views, told))).float(), dim=1)
    return Samples(
        torch.from_numpy(np.cos(xyz @ waves + phases).reshape(-1, CHANNELS).astype(np.float16)),
        torch.from_numpy(project(transform_points(cam_from_cad, xyz), K).reshape(-1, 2).astype(np.float32)),
        torch.arange(views).repeat_interleave(per_view),
        torch.from_numpy(xyz.reshape(-1, 3).astype(np.float32)),
        torch.from_numpy(cam_from_cad.astype(np.float32)),
        torch.from_numpy(np.stack([K] * views).astype(np.float32)),
        vectors if told else None,
    )


SAMPLES, TOLD = wall_samples(), wall_samples(told=8)


def trial(loss: LossConfig, head: HeadConfig = ACE, seed: int = 0, **training: object) -> TrialConfig:
    """30 steps of batches of 64."""
    settings = {"iterations": 30, "batch_size": BATCH, "learning_rate": 3e-3, "validations": 2, **training}
    return TrialConfig(
        scene=SceneConfig(name="gate", built_in=True),
        head=head,
        loss=loss,
        seed=seed,
        training=TrainingConfig.model_validate(settings),
    )


def samples_of(config: TrialConfig) -> Samples:
    """With global features for those who are told some."""
    return TOLD if isinstance(config.head, GlaceHead) else SAMPLES


def new_head(config: TrialConfig, fitted: bool = True) -> Head:
    """A head at step 0."""
    told = 8 if isinstance(config.head, GlaceHead) else 0
    deviation = predicts_deviation(config.loss)
    head = build(config.head, CHANNELS, config.seed, global_dimensions=told, deviation=deviation)
    if fitted:
        head.fit(samples_of(config), config.seed, phase_at(config.loss, 0.0, SAMPLES.scale).evidence)
    return head


def request(config: TrialConfig, milestone: int = 12, step: int = 0) -> StretchRequest:
    """A stretch of a trial whose head has learnt nothing yet, by default the first one."""
    learner = Learner(new_head(config), samples_of(config), config)
    return StretchRequest(config, STAGES, packed(Stretch(learner, Progression(step), milestone)), milestone)


def new_server(slots: int) -> PackServer:
    """Whose samples are those above, whatever the stages."""
    return PackServer("cpu", slots, opener=lambda config, stages, device: samples_of(config))


def answers(server: PackServer, requests: Sequence[StretchRequest], late: int = 0) -> list[StretchAnswer]:
    """What a server makes of requests, of which all but the first come `late` steps later."""
    found: dict[int, StretchAnswer] = {}
    for number, each in enumerate(requests):
        if number == 1:
            for _ in range(late):
                server.step()
        server.admit(each, lambda answer, number=number: found.__setitem__(number, answer))  # type: ignore[misc]
    drive(server)
    return [found[number] for number in range(len(requests))]


def drive(server: PackServer) -> None:
    """Until there is nothing to do."""
    while server.step():
        pass


def at_home(asked: StretchRequest) -> dict[str, Any]:
    """Where the stretch ends without any server."""
    learner = Learner(new_head(asked.config), samples_of(asked.config), asked.config)
    stretch = Stretch(learner, Progression(), asked.milestone)
    take_up(stretch, unpacked(asked.state))
    learner.begin()
    Here().run(stretch)
    return unpacked(packed(stretch))


def tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Of head, optimizer and window, by place."""
    found = {f"head/{name}": value for name, value in state["head"].items()}
    for index, moments in state["optimizer"]["state"].items():
        found |= {f"optimizer/{index}/{name}": value for name, value in moments.items()}
    return found | {f"window/{name}": value for name, value in state["window"]["sums"].items()}


def same_bits(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Of all tensors of two states."""
    ours, theirs = tensors(first), tensors(second)
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


def difference(first: Tensor, second: Tensor) -> float:
    """Relative to the length of the second."""
    return float((first - second).norm() / second.norm().clamp(min=1e-12))


LOSSES: list[LossConfig] = [
    ReprojectionLoss(),
    ReprojectionLoss(kernel="barron", course="linear"),
    CoordinateLoss(),
    CoordinateLoss(kernel="geman_mcclure", measure="pixels"),
    LateralRadialLoss(),
    FadeLoss(over=0.2),
    SwitchingLoss(at=0.2),
    PerSampleSwitchLoss(),
]
MIXED = [trial(loss, seed=i, learning_rate=1e-3 * (i + 1)) for i, loss in enumerate(LOSSES)]
OTHERS = [request(config) for config in MIXED]
HEADS: list[HeadConfig] = [
    AceHead(width=24, blocks=0, homogeneous=False),
    GlaceHead(width=24, blocks=0, centres=3),
    AnchorHead(anchors=20, width=16),
]


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


def training(config: TrialConfig, directory: Path, slots: int | None) -> Training:
    """Of a trial, here or on a server of its own."""
    submit = None if slots is None else lambda asked: answers(new_server(slots), [asked, OTHERS[0]])[0]
    runner = None if submit is None else PackedRunner(submit, STAGES)
    begun = Training(new_head(config, fitted=False), samples_of(config), config, directory, runner=runner)
    begun.start()
    return begun


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


def plain(history: list[dict[str, float]]) -> str:
    """Without times, which no two runs share."""
    return json.dumps([{k: v for k, v in row.items() if not k.startswith("time/")} for row in history])


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


def constrained(asked: StretchRequest) -> StretchRequest:
    """Its head is to keep to depths."""
    update = {"constraints": (DepthConstraint(), RangeConstraint())}
    return replace(asked, config=asked.config.model_copy(update=update))


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


def replace_head(config: TrialConfig, head: HeadConfig) -> TrialConfig:
    """The trial with another head."""
    return config.model_copy(update={"head": head})


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
