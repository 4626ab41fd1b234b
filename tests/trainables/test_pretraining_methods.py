"""Pre-training by scene coordinates and by distillation, and steps that several workers share."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, distributed, nn

from cadloc.contract import InputError
from cadloc.encoders.ace import AceFeatures
from cadloc.encoders.distillation import (
    extracted,
    likeness_loss,
    load_extractor,
    on_grid,
    principal_components,
    relation_loss,
)
from cadloc.encoders.small import SmallFeatures
from cadloc.geometry import cell_pixels, pinhole, project, rigid, transform_points
from cadloc.pretraining import Site, make_objective, train
from cadloc.pretraining_config import Contrastive, Distillation, Method, PretrainingConfig, Regression
from cadloc.pretraining_objective import Material
from cadloc.pretraining_pairs import PooledBuilding, overlapping_pairs
from cadloc.pretraining_regression import SceneCoordinates, encoded
from cadloc.pretraining_workers import share_batch_norms
from cadloc.workers import ALONE, Workers

WIDTH, HEIGHT = 128, 96
TEACHER = "toy_extractors:gratings"


def wall(seed: int) -> PooledBuilding:
    """Three views of a textured wall z = 0, from 8 m in front of it and moved sideways."""
    generator = np.random.default_rng(seed)
    texture = np.zeros((400, 400, 3), np.float32)
    for n in (15, 40, 100):
        coarse = generator.uniform(0, 255 / 3, (n, n, 3)).astype(np.float32)
        texture += cv2.resize(coarse, (400, 400), interpolation=cv2.INTER_CUBIC)
    K, images, poses = pinhole(WIDTH, HEIGHT, 60), [], []
    for x in (0.0, 1.0, -1.0):
        points = (cell_pixels(HEIGHT, WIDTH, 1).reshape(-1, 2) - K[:2, 2]) / K[0, 0] * 8 + [x, 0]
        u, v = ((points + 8) * 400 / 16).astype(np.float32).reshape(HEIGHT, WIDTH, 2).transpose(2, 0, 1)
        images.append(np.clip(cv2.remap(texture, u, v, cv2.INTER_LINEAR), 0, 255).astype(np.uint8))
        poses.append(rigid(np.eye(3), [x, 0, -8]))
    depths_m = np.full((3, HEIGHT, WIDTH), 8, np.float16)
    building = PooledBuilding(
        np.stack(images), depths_m, np.stack(poses), np.stack([K] * 3), np.zeros(3, int), np.zeros((0, 2), int)
    )
    return replace(building, pairs=overlapping_pairs(building))


@pytest.fixture(scope="module")
def walls() -> list[PooledBuilding]:
    """Two walls."""
    return [wall(0), wall(1)]


def gratings(images: Tensor) -> Tensor:
    """Four channels on a grid of 16 px: brightness, and how it changes to the right, down, and in between."""
    gray = images.float().mean(1, keepdim=True)
    cells = torch.nn.functional.avg_pool2d(gray, 16)
    right, down = cells.roll(1, 3) - cells, cells.roll(1, 2) - cells
    return torch.cat([cells, right, down, right + down], 1)


@pytest.fixture
def toy_extractors(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of a user's own with a feature extractor."""
    module = ModuleType("toy_extractors")
    vars(module).update(gratings=gratings, constant=3)
    monkeypatch.setitem(sys.modules, "toy_extractors", module)
    return module


def config_of(method: Method, **others: Any) -> PretrainingConfig:
    """A run of few small images."""
    given: dict[str, Any] = {"steps": 6, "width_px": 64, "height_px": 64, "warm_up": 1, "checkpoint_every": 4}
    given["precision"] = "float32"
    return PretrainingConfig(method=method, **(given | others))


REGRESSION = Regression(images=4, images_per_building=2, cells=20, head_width=16, head_blocks=0, head_reset=3)
DISTILLATION = Distillation(teacher=TEACHER, images=4, cells=16, fitting_images=4, components=8)
CONTRASTIVE = Contrastive(pairs=4, pairs_per_building=2, matches=10, hard_negatives=2)


@pytest.mark.parametrize("method", [REGRESSION, DISTILLATION], ids=lambda method: method.name)
def test_every_method_resumes_bit_for_bit(
    method: Method, walls: list[PooledBuilding], tmp_path: Path, toy_extractors: ModuleType
) -> None:
    """Ended after its checkpoint and started again, a run gives the weights and losses of an uninterrupted one."""
    whole, history = train(walls, config_of(method), tmp_path / "whole")

    class Killed(Exception):
        pass

    def listener(row: dict[str, float]) -> None:
        if row["step"] == 5:
            raise Killed

    with pytest.raises(Killed):
        train(walls, config_of(method), tmp_path / "killed", site=Site(listener=listener))
    resumed, again = train(walls, config_of(method), tmp_path / "killed")
    assert again == history
    states = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def objective_of(method: Method, walls: list[PooledBuilding], workers: Workers = ALONE) -> Any:
    """The method at work on the walls, prepared for the small encoder."""
    objective = make_objective(Material(walls, config_of(method), workers))
    objective.prepare(SmallFeatures.dimensions, "cpu")
    return objective


def no_update(loss: Tensor, parameters: Any) -> None:
    """In the place of an optimizer's step."""


def test_drawn_cells_see_the_points_they_say(walls: list[PooledBuilding]) -> None:
    """A cell's point lies on the wall and projects to the cell's middle in the drawn picture's camera."""
    drawn = objective_of(REGRESSION, walls).draw(2)
    assert [taken.owner for taken in drawn.taken] in ([0, 0, 1, 1], [1, 1, 0, 0])
    assert drawn.owners == [0, 1]
    for taken in drawn.taken:
        assert np.abs(taken.points_cad[:, 2]).max() < 1e-6
        seen = project(transform_points(taken.cam_from_cad, taken.points_cad), taken.intrinsics)
        np.testing.assert_allclose(seen, cell_pixels(8, 8).reshape(-1, 2)[taken.cells], atol=1e-6)


@pytest.mark.parametrize("loss", ["coordinate", "reprojection"])
def test_heads_learn_where_cells_lie(loss: Any, walls: list[PooledBuilding]) -> None:
    """On one step's data either loss brings the heads' points nearer to the truth; each building has its own head."""
    objective = objective_of(REGRESSION.model_copy(update={"loss": loss, "head_updates": 1}), walls)
    judge = objective_of(REGRESSION.model_copy(update={"loss": "coordinate", "head_updates": 1}), walls)
    encoder = SmallFeatures().initialised(0).train()
    drawn = objective.draw(0)
    parameters = [*encoder.parameters(), *objective.active(drawn)]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3)
    errors_m = []
    for _ in range(12 if loss == "coordinate" else 30):
        optimizer.zero_grad()
        torch.autograd.backward(objective.loss(encoder, drawn, no_update))
        optimizer.step()
        judge.load_state_dict(objective.state_dict())
        errors_m.append(judge.loss(encoder, drawn, no_update).item())
    assert errors_m[-1] < 0.85 * errors_m[0]
    assert all(parameter.grad is not None for parameter in parameters)


def test_updates_in_between_move_heads_only(walls: list[PooledBuilding]) -> None:
    """All updates but the last see detached features: their losses reach the heads and nothing of the encoder."""
    objective = objective_of(REGRESSION, walls)
    encoder = SmallFeatures().initialised(0).train()
    told: list[int] = []

    def update(loss: Tensor, parameters: list[nn.Parameter]) -> None:
        torch.autograd.backward(loss)
        told.append(sum(parameter.grad is not None for parameter in parameters))
        assert all(parameter.grad is None for parameter in encoder.parameters())

    objective.loss(encoder, objective.draw(0), update)
    assert told == [len(list(objective.heads.parameters()))] * 3


def test_heads_start_anew_at_their_time(walls: list[PooledBuilding]) -> None:
    """At its time a head's weights are others and Adam has forgotten them; before, and of other heads, neither."""
    objective = objective_of(REGRESSION.model_copy(update={"head_reset": 4}), walls)
    assert isinstance(objective, SceneCoordinates)
    optimizer = torch.optim.AdamW(objective.parameters())
    for parameter in objective.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    changed = []
    for step in range(1, 5):
        before = [next(iter(head.parameters())).clone() for head in objective.heads]
        objective.begin(step, optimizer)
        now = [next(iter(head.parameters())) for head in objective.heads]
        changed.append([not torch.equal(a, b) for a, b in zip(before, now, strict=True)])
        assert [parameter in optimizer.state for parameter in now] == [
            not any(earlier[head] for earlier in changed) for head in range(2)
        ]
    assert changed == [[False, False], [False, True], [False, False], [True, False]]


def test_pieces_give_the_gradients_of_one_pass() -> None:
    """Encoding in pieces changes neither features nor gradients, and counts no image twice in batch statistics."""
    images = torch.randint(0, 256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    gradients = []
    for at_once in (4, 1):
        encoder = SmallFeatures().initialised(0).eval()  # in training, statistics would be those of a piece
        torch.autograd.backward((encoded(encoder, images, at_once) ** 3).sum())
        gradients.append([parameter.grad for parameter in encoder.parameters()])
    for one, pieces in zip(*gradients, strict=True):
        torch.testing.assert_close(one, pieces, rtol=1e-5, atol=1e-5 * one.abs().max().item())
    plain, checkpointed = (SmallFeatures().initialised(0).train() for _ in range(2))
    torch.cat([plain(piece) for piece in torch.split(images, 2)])
    torch.autograd.backward(encoded(checkpointed, images, 2).sum())
    torch.testing.assert_close(plain.centring.running_mean, checkpointed.centring.running_mean)
    assert all(norm.momentum == 0.1 for norm in checkpointed.modules() if isinstance(norm, nn.BatchNorm2d))


def test_components_are_the_directions_of_variance() -> None:
    """They are orthonormal, ordered, and carry the data's variance; what lies in their span comes back whole."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(2, 5, generator=generator)
    maps = torch.einsum("bkhw,kc->bchw", torch.randn(3, 2, 4, 6, generator=generator), mixing) + 7
    found = principal_components([maps[:2], maps[2:]], 4, "toy")
    torch.testing.assert_close(found.basis @ found.basis.T, torch.eye(4))
    components = found.of(maps)
    spread = components.square().mean((0, 2, 3))
    assert spread[0] >= spread[1] > 1e3 * spread[2].abs()
    back = torch.einsum("bkhw,kc->bchw", components, found.basis) + found.mean[:, None, None]
    torch.testing.assert_close(back, maps, rtol=1e-4, atol=1e-4)
    assert len(principal_components([maps], 9, "toy").basis) == 5


def test_losses_of_likeness_vanish_for_the_like() -> None:
    """Scaled features are alike; turned ones have the same relations; hidden cells do not count."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 6, 3, 3, generator=generator)
    visible = torch.ones(2, 3, 3, dtype=torch.bool)
    visible[0, 0, 0] = False
    assert likeness_loss(3 * maps, maps, visible).item() == pytest.approx(0, abs=1e-6)
    spoilt = maps.clone()
    spoilt[0, :, 0, 0] *= -1
    assert likeness_loss(spoilt, maps, visible).item() == pytest.approx(0, abs=1e-6)
    assert likeness_loss(spoilt, maps, ~visible).item() == pytest.approx(2 / 2, abs=1e-6)
    cells = maps.flatten(2).transpose(1, 2)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=generator))[0]
    assert relation_loss(cells @ turn, cells).item() == pytest.approx(0, abs=1e-6)
    assert relation_loss(cells.flip(1), cells).item() > 0.01


def test_features_of_another_grid_keep_their_places() -> None:
    """A map that rises to the right, brought to a finer grid, rises from the same to the same."""
    ramp = (torch.arange(4) + 0.5).expand(1, 1, 3, 4) / 4
    fine = on_grid(ramp, 6, 8)
    torch.testing.assert_close(fine[0, 0, 2, 1:-1], (torch.arange(8) + 0.5)[1:-1] / 8)


def test_distillation_teaches_what_the_teacher_sees(walls: list[PooledBuilding], toy_extractors: ModuleType) -> None:
    """On one step's data the read-out features come to resemble the teacher's, and every part of it learns."""
    objective = objective_of(DISTILLATION, walls)
    encoder = SmallFeatures().initialised(0).train()
    drawn = objective.draw(0)
    parameters = [*encoder.parameters(), *objective.active(drawn)]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        value = objective.loss(encoder, drawn, no_update)
        torch.autograd.backward(value)
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < 0.7 * losses[0]
    assert all(parameter.grad is not None for parameter in parameters)


@pytest.mark.parametrize(
    "name", ["absent_module:f", "toy_extractors:absent", "toy_extractors:constant", "nowhere", ":"]
)
def test_an_absent_teacher_is_a_fault(name: str, toy_extractors: ModuleType) -> None:
    """A module, function or entry point that is not there, or cannot be called, is named under `method.teacher`."""
    with pytest.raises(InputError) as error:
        load_extractor(name)
    assert error.value.faults[0].key == "method.teacher"
    assert name in error.value.faults[0].found


def test_an_installed_extractor_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry point of the group is loaded by its name; a wrong name is answered with the right ones."""

    class Entry:
        name = "toy"

        def load(self) -> Callable[[Tensor], Tensor]:
            return gratings

    monkeypatch.setattr("cadloc.encoders.distillation.entry_points", lambda group: [Entry()])
    assert load_extractor("toy") is gratings
    with pytest.raises(InputError, match=r"cadloc\.feature_extractors: toy"):
        load_extractor("toys")


@pytest.mark.parametrize(
    "answer",
    [
        None,
        torch.zeros(2, 4, 4),
        torch.zeros(1, 4, 2, 2),
        torch.zeros(2, 4, 2, 2).int(),
        torch.full((2, 1, 1, 1), np.nan),
    ],
    ids=["nothing", "three-axes", "one-image", "integers", "nan"],
)
def test_an_answer_of_another_shape_is_a_fault(answer: Any) -> None:
    """What is no finite float map per image is an InputError that says what it was."""
    with pytest.raises(InputError, match=r"finite float features \(2, C, h, w\)"):
        extracted(lambda images: answer, "toy", torch.zeros(2, 3, 16, 16, dtype=torch.uint8))


def test_a_teacher_that_tells_nothing_apart_is_a_fault() -> None:
    """Constant features have no components, and a changing number of channels no mean."""
    with pytest.raises(InputError, match="same features everywhere"):
        principal_components([torch.ones(1, 3, 2, 2)], 2, "toy")
    with pytest.raises(InputError, match="4 channels after 3"):
        principal_components([torch.rand(1, 3, 2, 2), torch.rand(1, 4, 2, 2)], 2, "toy")


def step_of(method: Method, walls: list[PooledBuilding], workers: Workers) -> dict[str, Any]:
    """Loss, gradients and running statistics of a first step, as NumPy arrays."""
    objective = objective_of(method, walls, workers)
    encoder = SmallFeatures().initialised(0).train()
    share_batch_norms(encoder, workers)
    drawn = objective.draw(0)
    loss = objective.loss(encoder, drawn, no_update)
    torch.autograd.backward(loss)
    parameters = [*encoder.parameters(), *objective.active(drawn)]
    workers.average_gradients(parameters)
    gradients = [np.zeros(p.shape) if p.grad is None else p.grad.numpy() for p in parameters]
    statistics = [value.numpy() for name, value in encoder.state_dict().items() if "running" in name]
    return {"loss": workers.mean(loss.detach()).item(), "gradients": gradients, "statistics": statistics}


METHODS = (CONTRASTIVE, REGRESSION.model_copy(update={"head_updates": 1}), DISTILLATION)


def work(rank: int, walls: list[PooledBuilding], meeting: str, answers: Any) -> None:
    """One of two processes; the first one tells what a step came to, for every method."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    told = [step_of(method, walls, Workers.joined()) for method in METHODS]
    if rank == 0:
        answers.put(told)
    distributed.barrier()
    distributed.destroy_process_group()


def test_two_workers_take_the_step_of_one(
    walls: list[PooledBuilding], tmp_path: Path, toy_extractors: ModuleType
) -> None:
    """Half the batch each: the same loss, gradients and running statistics to 1e-5, for every method."""
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    both = [
        context.Process(target=work, args=(rank, walls, str(tmp_path / "meeting"), answers), daemon=True)
        for rank in range(2)
    ]
    for process in both:
        process.start()
    told = answers.get(timeout=60)
    for process in both:
        process.join(timeout=30)
    for method, shared in zip(METHODS, told, strict=True):
        alone = step_of(method, walls, ALONE)
        assert shared["loss"] == pytest.approx(alone["loss"], rel=1e-5)
        scale = max(np.abs(gradient).max() for gradient in alone["gradients"])
        assert scale > 0
        for key in ("gradients", "statistics"):
            for one, two in zip(alone[key], shared[key], strict=True):
                np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-5 * max(1.0, scale), err_msg=method.name)


@pytest.mark.parametrize("method", [CONTRASTIVE, REGRESSION, DISTILLATION], ids=lambda method: method.name)
def test_a_batch_that_cannot_be_shared_is_a_fault(
    method: Method, walls: list[PooledBuilding], toy_extractors: ModuleType
) -> None:
    """Three workers cannot halve four images, or two groups of pairs."""
    with pytest.raises(InputError, match="multiple of the 3 workers"):
        objective_of(method, walls, Workers(0, 3))
    if isinstance(method, Contrastive):
        with pytest.raises(InputError, match="whole groups"):
            objective_of(method.model_copy(update={"pairs": 3}), walls, Workers(0, 2))


def test_the_other_architecture_trains_too(walls: list[PooledBuilding], tmp_path: Path) -> None:
    """ACE's encoder takes a step of the same recipe."""
    method = Contrastive(pairs=1, pairs_per_building=1, matches=8)
    encoder, history = train(walls[:1], config_of(method, steps=1, architecture="ace"), tmp_path)
    assert isinstance(encoder, AceFeatures)
    assert len(history) == 1
