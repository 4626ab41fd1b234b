"""Prefixes: runs that begin alike are found, are taken once, and end in the bits that they end in alone."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cadloc.catalog import stages_of
from cadloc.config import TrialConfig
from cadloc.contract import StageSpec
from cadloc.courses import FALLING, Course, acting
from cadloc.geometry import inverse, look_at, pinhole, project, transform_points
from cadloc.head_config import AceHead, AnchorHead, HeadConfig
from cadloc.heads import build
from cadloc.heads.head import Head
from cadloc.loss_config import (
    CoordinateLoss,
    FadeLoss,
    LateralRadialLoss,
    LossConfig,
    PerSampleSwitchLoss,
    ReprojectionLoss,
    SwitchingLoss,
    UncertainCoordinateLoss,
)
from cadloc.losses import phase_at
from cadloc.losses.phase import Prediction
from cadloc.prefixes import Prefix, shared_prefixes, shared_trunks
from cadloc.samples import Samples
from cadloc.scene_config import SceneConfig
from cadloc.training import Training
from cadloc.training_config import EarlyStop, Plateau, TrainingConfig

ANCHORS = AnchorHead(anchors=32, width=16)


def wall_samples(views: int = 8, per_view: int = 60) -> Samples:
    """Cells of cameras before a flat wall of 8 × 4 m, whose features are smooth functions of the point."""
    generator = np.random.default_rng(0)
    K = pinhole(480, 360, 65)
    xyz = np.stack([generator.uniform(-4, 4, (views, per_view)), np.zeros((views, per_view)),
                    generator.uniform(0, 4, (views, per_view))], axis=-1)  # fmt: skip
    cam_from_cad = inverse(np.stack([look_at([x, -11, 1.6], [0, 0, 2]) for x in np.linspace(-5, 5, views)]))
    features = np.cos(xyz @ generator.normal(0, 0.8, (3, 24))).reshape(-1, 24)
    return Samples(
        torch.from_numpy(features.astype(np.float16)),
        torch.from_numpy(project(transform_points(cam_from_cad, xyz), K).reshape(-1, 2).astype(np.float32)),
        torch.arange(views).repeat_interleave(per_view),
        torch.from_numpy(xyz.reshape(-1, 3).astype(np.float32)),
        torch.from_numpy(cam_from_cad.astype(np.float32)),
        torch.from_numpy(np.stack([K] * views).astype(np.float32)),
    )


def trial(loss: LossConfig, head: HeadConfig = ANCHORS, **training: float) -> TrialConfig:
    """A short trial: its scene is a name only."""
    settings = {"batch_size": 64, "learning_rate": 3e-3, "validations": 3, **training}
    return TrialConfig(
        scene=SceneConfig(name="gate", built_in=True),
        head=head,
        loss=loss,
        training=TrainingConfig.model_validate(settings),
    )


def begun(config: TrialConfig, directory: Path, samples: Samples) -> Training:
    """A training that is still to be started."""
    return Training(build(config.head, samples.dimensions, config.seed), samples, config, directory)


def nothing(_: Head) -> Mapping[str, float]:
    """A validation that measures nothing."""
    return {}


SAMPLES = wall_samples(views=4, per_view=8)
TANH, KEPT = CoordinateLoss(kernel="dyntanh"), ReprojectionLoss(kernel="tanh")
LOSSES: tuple[LossConfig, ...] = (
    ReprojectionLoss(),
    ReprojectionLoss(soft_clamp_min_px=9.0),
    KEPT,
    KEPT.model_copy(update={"soft_clamp_min_px": 9.0, "course": "linear"}),
    CoordinateLoss(),
    CoordinateLoss(largest_pct=50.0, course="linear"),
    TANH,
    CoordinateLoss(measure="pixels", kernel="l1_log", smallest_px=7.0),
    CoordinateLoss(measure="pixels", kernel="l1_log"),
    LateralRadialLoss(),
    LateralRadialLoss(kernel="none", soft_clamp_px=3.0),
    LateralRadialLoss(kernel="none"),
    FadeLoss(over=0.4),
    FadeLoss(over=0.5),
    FadeLoss(over=0.4, reprojection=KEPT),
    SwitchingLoss(at=0.4),
    SwitchingLoss(at=0.6, reprojection=KEPT),
    SwitchingLoss(at=0.6, schedule="continue"),
    SwitchingLoss(at=0.4, coordinate=TANH),
    SwitchingLoss(at=0.6, coordinate=TANH, schedule="continue"),
    PerSampleSwitchLoss(),
    PerSampleSwitchLoss(
        reprojection=ReprojectionLoss(kernel="l1_sqrt", norm="l2", soft_clamp_px=100.0, course="linear")
    ),
    UncertainCoordinateLoss(),
)


def loss_of(config: LossConfig, progress: float) -> tuple[str, str, float]:
    """Unit, evidence and value of the loss in force, for predictions a little, and some far, off."""
    batch = SAMPLES.batch(torch.arange(len(SAMPLES)))
    off_m = torch.randn(batch.targets.shape, generator=torch.Generator().manual_seed(0)) ** 3
    deviation_m = torch.linspace(0.1, 2.0, len(SAMPLES))
    phase = phase_at(config, progress, SAMPLES.scale)
    return phase.unit, phase.evidence, float(phase.loss(Prediction(batch.targets + off_m, deviation_m), batch))


@given(st.sampled_from(LOSSES), st.floats(0, 1))
def test_a_composed_loss_is_what_acts_of_it(config: LossConfig, progress: float) -> None:
    """At every progress a loss has the same phase as the one that is said to act, at its own progress."""
    assert phase_at(config, progress, SAMPLES.scale) == phase_at(*acting(config, progress), SAMPLES.scale)


def test_moments_that_compare_equal_have_the_same_loss() -> None:
    """Of all pairs of losses, wherever a step is said to be the same, both have one value, to the last bit; and of
    those that differ in what they read, none is said to begin as the other does."""
    training, agreed, begin_alike = TrainingConfig(iterations=10), set(), set()
    for one, other in combinations(LOSSES, 2):
        for step in range(10):
            if Course(one, training).at(step) == Course(other, training).at(step):
                assert loss_of(one, step / 10) == loss_of(other, step / 10)
                (begin_alike if step == 0 else agreed).add((LOSSES.index(one), LOSSES.index(other)))
    assert {(2, 3), (4, 5), (7, 8), (10, 11), (4, 15), (15, 16), (6, 19), (20, 21)} <= begin_alike
    assert (12, 13) in agreed
    assert not begin_alike & {(12, 13), (0, 1), (0, 2), (4, 6), (12, 14), (15, 18), (0, 15)}


@pytest.mark.parametrize("kernel", sorted(FALLING))
def test_falling_kernels_follow_their_progress(kernel: str) -> None:
    """Under the kernels of which that is said, and under no other, the loss of the same errors changes over a run."""
    falling = ReprojectionLoss.model_validate({"kernel": kernel})
    assert loss_of(falling, 0.1) != loss_of(falling, 0.9)
    for other in ("tanh", "l1", "l1_sqrt", "l1_log"):
        kept = ReprojectionLoss.model_validate({"kernel": other})
        assert loss_of(kept, 0.1) == loss_of(kept, 0.9)


def plain(prefixes: list[Prefix]) -> list[tuple[tuple[int, ...], int, int]]:
    """Runs, first step and end of each."""
    return [(prefix.runs, prefix.start, prefix.until) for prefix in prefixes]


def test_switching_points_leave_one_trunk_one_after_the_other() -> None:
    """Runs that switch at five points share four segments, the run that never switches all of them; reprojection
    shares nothing. The trunk is trained under plain distances, whoever shares it."""
    training = TrainingConfig(iterations=300)
    losses = [*(SwitchingLoss(at=at) for at in (1 / 3, 1 / 2, 2 / 3, 0.8, 0.9)), CoordinateLoss(), ReprojectionLoss()]
    prefixes = list(shared_prefixes(tuple((loss, training) for loss in losses)))
    assert plain(prefixes) == [
        ((0, 1, 2, 3, 4, 5), 0, 100),
        ((1, 2, 3, 4, 5), 100, 150),
        ((2, 3, 4, 5), 150, 200),
        ((3, 4, 5), 200, 240),
        ((4, 5), 240, 270),
    ]
    assert {prefix.loss for prefix in prefixes} == {CoordinateLoss()}
    assert [prefix.parent for prefix in prefixes] == [None, *prefixes[:-1]]


def test_what_is_too_short_or_paced_otherwise_is_not_shared() -> None:
    """Fewer than twenty steps, a cycle of the learning rate that ends elsewhere, or another milestone part two runs;
    those that hold the learning rate go together until the first of them cools down."""
    early, late = SwitchingLoss(at=0.1), SwitchingLoss(at=0.5)
    assert not shared_prefixes(((early, TrainingConfig(iterations=150)), (late, TrainingConfig(iterations=150))))
    for other in ({"iterations": 250}, {"validations": 5}, {"learning_rate": 1e-3}):
        changed = TrainingConfig.model_validate({"iterations": 200, "validations": 40, **other})
        assert not shared_prefixes(
            ((late, TrainingConfig(iterations=200, validations=40)), (CoordinateLoss(), changed))
        )
    held = [
        TrainingConfig(iterations=count, validations=count // 50, schedule=Plateau(warm_up=0.0)) for count in (200, 400)
    ]
    found = shared_prefixes(tuple((CoordinateLoss(), training) for training in held))
    assert plain(list(found)) == [((0, 1), 0, 160)]


def trunk_keys(*configs: object, device: str = "cpu") -> dict[int, str]:
    """Keys of the trunks of trials, by number."""
    read = [(config, stages_of(config)) for config in configs]  # type: ignore[arg-type]
    return {number: spec.key for number, spec in shared_trunks(read, device).items()}  # type: ignore[arg-type]


def test_a_trunk_is_named_by_what_it_trains() -> None:
    """Siblings that switch elsewhere lead to the same trunk, another seed, head or device to another one; runs that
    may stop early have none."""
    early, middle, late = (trial(SwitchingLoss(at=at), iterations=300) for at in (0.2, 0.5, 0.8))
    shared = trunk_keys(early, middle)
    assert shared[0] == shared[1] == trunk_keys(early, late)[0]
    others = [
        [config.model_copy(update=change) for config in (early, middle)]
        for change in ({"seed": 1}, {"head": AceHead()})
    ]
    keys = {shared[0], *(trunk_keys(*pair)[0] for pair in others), trunk_keys(early, middle, device="cuda")[0]}
    assert len(keys) == 4
    assert trunk_keys(early, middle.model_copy(update={"seed": 1})) == {}
    stopping = Plateau(early_stop=EarlyStop(window=10))
    training = early.training.model_copy(update={"schedule": stopping})
    assert trunk_keys(*(config.model_copy(update={"training": training}) for config in (early, middle))) == {}


def test_a_trunk_reads_what_training_and_validation_read() -> None:
    """Of a trial's stages, its test's are no part of a trunk; a trunk that goes on from another reads that."""
    configs = [trial(SwitchingLoss(at=at), iterations=300) for at in (0.2, 0.5, 0.8)]
    trunks = shared_trunks([(config, stages_of(config)) for config in configs], "cpu")
    parent: StageSpec = trunks[0]
    assert set(parent.inputs) == {"views/synthetic", "buffer/synthetic", "queries/validation/synthetic"}
    assert (trunks[1].inputs["trunk"].key, trunks[1].key) == (parent.key, trunks[2].key)


def bits(training: Training) -> tuple[Mapping[str, torch.Tensor], list[dict[str, float]]]:
    """Weights and history, the latter without times."""
    rows = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in training.progression.history]
    return training.head.state_dict(), rows


@pytest.mark.parametrize("head", [ANCHORS, AceHead(width=16)])
def test_a_run_from_a_chain_of_trunks_ends_in_the_same_bits(head: HeadConfig, tmp_path: Path) -> None:
    """Forked between two milestones, between two checks, at one of either, from a trunk that was itself interrupted
    and went on from another, weights and history are those of the run that took every step itself."""
    samples, config = wall_samples(), trial(SwitchingLoss(at=0.75), head, iterations=70, validations=2)
    alone = begun(config, tmp_path / "alone", samples)
    alone.start()
    list(alone.run(nothing))
    weights, rows = bits(alone)
    trunk_config, parent = config.model_copy(update={"loss": CoordinateLoss()}), None
    for until in (13, 35, 50):
        for attempt in ("killed", "resumed"):
            training = begun(trunk_config, tmp_path / str(until), samples)
            training.start(parent)
            steps = training.run(nothing, until)
            if attempt == "killed":
                next(steps, None)
            else:
                list(steps)
                training.store()
        parent = tmp_path / str(until)
        forked = begun(config, tmp_path / f"from {until}", samples)
        before = forked.start(parent)
        assert [row["step"] for row in before] == [35] * (until >= 35)
        assert [row["step"] for row in (*before, *forked.run(nothing))] == [35, 70]
        assert bits(forked)[1] == rows
        assert all(torch.equal(weights[name], value) for name, value in forked.head.state_dict().items())


def test_a_trunk_that_cannot_be_read_is_done_without(tmp_path: Path) -> None:
    """A trial whose trunk left nothing, or a damaged file, trains from the first step."""
    samples, config = wall_samples(), trial(CoordinateLoss(), iterations=20, validations=1)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "checkpoint.pt").write_bytes(b"half a file")
    for place in ("empty", "damaged"):
        training = begun(config, tmp_path / f"from {place}", samples)
        assert training.start(tmp_path / place) == ()
        assert training.progression.step == 0
