"""Pre-training with what cannot be learned from: said with key and action, on all workers, never a traceback."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, distributed

from cadloc.contract import Fault, InputError
from cadloc.geometry import pinhole, rigid
from cadloc.pretraining import pretrain, train
from cadloc.pretraining_config import Contrastive, Distillation, Method, PoolConfig, PretrainingConfig, Regression
from cadloc.pretraining_objective import Drawn, Objective, Trainee, Update, drawn_steps
from cadloc.pretraining_pairs import PooledBuilding, draw_batch
from cadloc.workers import Workers

CONFIG = PretrainingConfig(
    pool=PoolConfig(buildings=2, held_out=1, targets=1, views_per_target=1, width_px=96, height_px=64),
    method=Contrastive(pairs=2, pairs_per_building=1, matches=8),
    steps=2, width_px=64, height_px=64, warm_up=1, precision="float32",
)  # fmt: skip
REGRESSION = Regression(images=2, cells=8, head_width=16, head_blocks=0)


def wall() -> PooledBuilding:
    """Two views, from one place, of a wall 8 m away that is all noise."""
    images = np.random.default_rng(0).integers(0, 256, (2, 96, 128, 3)).astype(np.uint8)
    cameras, K = np.stack([rigid(np.eye(3), [0, 0, -8])] * 2), np.stack([pinhole(128, 96, 60)] * 2)
    depths_m = np.full((2, 96, 128), 8, np.float16)
    return PooledBuilding(images, depths_m, cameras, K, np.zeros(2, int), np.array([[0, 1], [1, 0]]))


WITHOUT_PAIRS = replace(wall(), pairs=np.zeros((0, 2), int))
WITHOUT_VIEWS = PooledBuilding(*(getattr(WITHOUT_PAIRS, field.name)[:0] for field in fields(PooledBuilding)))


@pytest.mark.parametrize(
    ("method", "key"),
    [(Contrastive(matches=65), "matches"), (REGRESSION.model_copy(update={"cells": 65}), "cells"),
     (Distillation(teacher="any", cells=65), "cells")],
)  # fmt: skip
def test_a_crop_has_the_cells_that_are_asked_for(method: Method, key: str) -> None:
    """64 x 64 pixels are 64 cells: one more is refused, with the keys of both."""
    given = {"width_px": 64, "height_px": 64}
    with pytest.raises(ValidationError, match=rf"method\.{key} of at most 64.*width_px = 64 and height_px = 64"):
        PretrainingConfig(method=method, **given)
    assert PretrainingConfig(method=method.model_copy(update={key: 64}), **given)


def test_matches_that_no_crops_share_are_a_fault_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing ends after a bounded number of buildings, and names the key."""
    monkeypatch.setattr("cadloc.pretraining_pairs.MOST_FRUITLESS", 3)
    with pytest.raises(InputError) as error:
        draw_batch([wall()], (64, 64), 1, 1, 65, np.random.default_rng(0))
    assert error.value.faults[0].key == "method.matches"


@pytest.mark.parametrize(
    ("method", "useless"), [(CONFIG.method, WITHOUT_PAIRS), (CONFIG.method, WITHOUT_VIEWS), (REGRESSION, WITHOUT_VIEWS)]
)
def test_buildings_that_show_nothing_are_left_out(method: Method, useless: PooledBuilding, tmp_path: Path) -> None:
    """With them a run is the one without them; with nothing else there is none, and the pool is at fault."""
    config = CONFIG.model_copy(update={"method": method})
    _, history = train([useless, wall(), useless], config, tmp_path / "with")
    _, alone = train([wall()], config, tmp_path / "without")
    assert history == alone
    with pytest.raises(InputError) as error:
        train([useless], config, tmp_path / "none")
    assert error.value.faults[0].key == "pool.views_per_target"


def test_a_pool_without_a_view_is_a_fault_of_the_pool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Buildings of which no camera sees enough are rendered, photographed and stored all the same, then refused."""
    monkeypatch.setattr("cadloc.pretraining_data._MIN_SEEN_SHARE", 1.1)
    with pytest.raises(InputError, match=r"pool\.views_per_target"):
        pretrain(CONFIG, tmp_path)
    for name in ("building_0000", "photographs_0001"):
        assert PooledBuilding.open(tmp_path / "pool" / name).images.shape == (0, 64, 96, 3)


@pytest.mark.parametrize("name", ["images", "pairs"])
@pytest.mark.parametrize("left", [None, 0, 60, 130])
def test_a_building_cut_off_is_named(name: str, left: int | None, tmp_path: Path) -> None:
    """Where a file of the pool is missing, or ends early, the folder to remove is told."""
    wall().save(tmp_path)
    place = tmp_path / f"{name}.npy"
    if left is None:
        place.unlink()
    else:
        place.write_bytes(place.read_bytes()[:left])
    with pytest.raises(InputError, match="remove this folder") as error:
        PooledBuilding.open(tmp_path)
    assert error.value.faults[0].file == str(tmp_path)


class Refusing(Objective):
    """Draws the number of the step, until one that it refuses."""

    def __init__(self, refused: int | None) -> None:
        super().__init__()
        self.refused = refused

    def draw(self, step: int) -> Drawn:
        if step == self.refused:
            raise InputError(Fault("configuration", "method.cells", str(step), "less"))
        return step

    def loss(self, encoder: Trainee, drawn: Drawn, update: Update) -> Tensor:
        raise NotImplementedError


@pytest.mark.parametrize("loaders", [0, 2])
def test_an_error_of_whoever_draws_arrives_as_it_is(loaders: int) -> None:
    """It has its faults, from a process that draws ahead as from this one."""

    with pytest.raises(InputError) as error:
        list(drawn_steps(Refusing(4), 1, 7, loaders))
    assert error.value.faults == (Fault("configuration", "method.cells", "4", "less"),)
    assert list(drawn_steps(Refusing(None), 1, 4, loaders)) == [(1, 1), (2, 2), (3, 3)]


def work(rank: int, meeting: str, answers: Any) -> None:
    """One of two processes, of which the second cannot draw step 2; tells how far it came, and why no farther."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    steps, faults = [], ()
    try:
        for step, _ in drawn_steps(Refusing(2 if rank else None), 0, 4, 0, Workers.joined()):
            steps.append(step)
    except InputError as error:
        faults = error.faults
    answers.put((steps, faults))
    distributed.destroy_process_group()


def answers_of(processes: Sequence[Any], answers: Any) -> list[Any]:
    """What the processes told."""
    for process in processes:
        process.start()
    told = [answers.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(timeout=30)
    return told


def test_all_workers_end_with_the_error_of_one(tmp_path: Path) -> None:
    """Where one worker cannot draw, the others do not wait for it: they raise what it raises, at the same step."""
    context = multiprocessing.get_context("fork")
    answers, meeting = context.Queue(), str(tmp_path / "meeting")
    processes = [context.Process(target=work, args=(rank, meeting, answers), daemon=True) for rank in range(2)]
    assert answers_of(processes, answers) == [([0, 1], (Fault("configuration", "method.cells", "2", "less"),))] * 2
