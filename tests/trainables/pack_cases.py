"""Small trials to be packed, and what became of them in a pack and at home."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cadloc.config import TrialConfig
from cadloc.constraint_config import DepthConstraint, RangeConstraint
from cadloc.geometry import inverse, look_at, pinhole, project, transform_points
from cadloc.head_config import AceHead, AnchorHead, GlaceHead, HeadConfig
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
    predicts_deviation,
)
from cadloc.losses import phase_at
from cadloc.packing.remote import PackedRunner
from cadloc.packing.requests import StretchAnswer, StretchRequest, packed, take_up, unpacked
from cadloc.packing.server import PackServer
from cadloc.samples import Samples
from cadloc.scene_config import SceneConfig
from cadloc.stretch import Here, Progression, Stretch
from cadloc.training import Training
from cadloc.training_config import TrainingConfig

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


def training(config: TrialConfig, directory: Path, slots: int | None) -> Training:
    """Of a trial, here or on a server of its own."""
    submit = None if slots is None else lambda asked: answers(new_server(slots), [asked, OTHERS[0]])[0]
    runner = None if submit is None else PackedRunner(submit, STAGES)
    begun = Training(new_head(config, fitted=False), samples_of(config), config, directory, runner=runner)
    begun.start()
    return begun


def plain(history: list[dict[str, float]]) -> str:
    """Without times, which no two runs share."""
    return json.dumps([{k: v for k, v in row.items() if not k.startswith("time/")} for row in history])


def constrained(asked: StretchRequest) -> StretchRequest:
    """Its head is to keep to depths."""
    update = {"constraints": (DepthConstraint(), RangeConstraint())}
    return replace(asked, config=asked.config.model_copy(update=update))


def replace_head(config: TrialConfig, head: HeadConfig) -> TrialConfig:
    """The trial with another head."""
    return config.model_copy(update={"head": head})
