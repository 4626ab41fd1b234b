"""Pre-training: the loss against an obvious one, true correspondences, and runs that learn, resume and repeat."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import overload

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cadloc.contract import InputError
from cadloc.encoders.small import SmallFeatures
from cadloc.geometry import Array, cell_pixels, inverse, pinhole, project, rigid, transform_points
from cadloc.pretraining import (
    PretrainingConfig,
    at_cells,
    at_pixels,
    batch_loss,
    info_nce,
    matching_precision,
    pretrain,
    same_point,
    train,
)
from cadloc.pretraining_data import PoolConfig, render_building
from cadloc.pretraining_pairs import (
    PooledBuilding,
    WarpedView,
    draw_batch,
    match_cells,
    overlapping_pairs,
    plain_views,
)

WIDTH, HEIGHT = 128, 96
DISTANCE_M = 8.0


def wall(seed: int) -> PooledBuilding:
    """Five views of a textured wall z = 0 from 8 m in front of it, moved sideways, nearer and farther."""
    generator = np.random.default_rng(seed)
    texture = np.zeros((600, 600, 3), np.float32)
    for n in (15, 40, 100):
        coarse = generator.uniform(0, 255 / 3, (n, n, 3)).astype(np.float32)
        texture += cv2.resize(coarse, (600, 600), interpolation=cv2.INTER_CUBIC)
    K = pinhole(WIDTH, HEIGHT, 60)
    images, depths_m, poses = [], [], []
    for x, y, distance_m in ((0, 0, 8), (1, 0.5, 8), (-1, 0.3, 7), (0.4, -1, 9), (1.2, 0.8, 10)):
        pixels = cell_pixels(HEIGHT, WIDTH, 1).reshape(-1, 2)
        points = (pixels - K[:2, 2]) / K[0, 0] * distance_m + [x, y]
        u, v = ((points + 8) * 600 / 16).astype(np.float32).reshape(HEIGHT, WIDTH, 2).transpose(2, 0, 1)
        images.append(np.clip(cv2.remap(texture, u, v, cv2.INTER_LINEAR), 0, 255).astype(np.uint8))
        depths_m.append(np.full((HEIGHT, WIDTH), distance_m, np.float16))
        poses.append(rigid(np.eye(3), [x, y, -distance_m]))
    building = PooledBuilding(
        np.stack(images), np.stack(depths_m), np.stack(poses), np.stack([K] * 5), np.array([0, 0, 1, 1, 0]),
        np.zeros((0, 2), int),
    )  # fmt: skip
    return replace(building, pairs=overlapping_pairs(building))


TINY = PretrainingConfig(
    pool=PoolConfig(buildings=2, held_out=1, targets=1, views_per_target=2, width_px=96, height_px=64),
    steps=8, pairs=2, pairs_per_building=1, matches=12, width_px=64, height_px=64, warm_up=1, checkpoint_every=3,
    validation_pairs=2, learning_rate=3e-3,
)  # fmt: skip


@pytest.fixture(scope="module")
def walls() -> list[PooledBuilding]:
    """Two walls."""
    return [wall(0), wall(1)]


def test_info_nce_is_its_definition() -> None:
    """The loss equals the sum written out in loops, ignored columns left out of the denominator."""
    generator = np.random.default_rng(0)
    rows, columns = generator.normal(size=(4, 5)), generator.normal(size=(7, 5))
    ignored = generator.random((4, 7)) < 0.3
    ignored[np.arange(4), np.arange(4)] = False
    total = 0.0
    for i in range(4):
        cosines = [rows[i] @ c / np.linalg.norm(rows[i]) / np.linalg.norm(c) for c in columns]
        denominator = sum(math.exp(cosines[j] / 0.2) for j in range(7) if not ignored[i, j])
        total -= math.log(math.exp(cosines[i] / 0.2) / denominator) / 4
    loss = info_nce(torch.from_numpy(rows), torch.from_numpy(columns), torch.from_numpy(ignored), 0.2)
    assert loss.item() == pytest.approx(total, abs=1e-9)


def test_only_near_points_of_one_building_are_the_same() -> None:
    """Same means within reach and of one building; the sky (NaN) is the same as nothing."""
    points = torch.tensor([[0.0, 0, 0], [5.0, 0, 0]], dtype=torch.float64)
    others = torch.tensor([[0.4, 0, 0], [math.nan] * 3, [5.4, 0, 0], [0.2, 0, 0]], dtype=torch.float64)
    reach_m = torch.tensor([0.5, 0.3], dtype=torch.float64)
    one = same_point(points, reach_m, others, torch.tensor([7, 7]))
    assert one.tolist() == [[True, False, False, True], [False, False, False, False]]
    two = same_point(points, reach_m, others, torch.tensor([7, 8]))
    assert two.tolist() == [[True, False, False, False], [False, False, False, False]]


def test_features_at_cell_centres_are_the_cells_own() -> None:
    """Reading a map at the pixels its cells look at, by interpolation, gives the cells' features."""
    maps = torch.randn(2, 6, 5, 7, generator=torch.Generator().manual_seed(0))
    cells = [np.array([0, 13, 34]), np.array([6, 20, 8])]
    pixels = cell_pixels(5, 7).reshape(-1, 2)
    torch.testing.assert_close(at_pixels(maps, [pixels[index] for index in cells]), at_cells(maps, cells))
    assert torch.equal(at_cells(maps, cells)[4], maps[1, :, 2, 6])


def test_matches_are_one_point_seen_twice(walls: list[PooledBuilding]) -> None:
    """A match's point projects to the cell in one view and to the stored pixel in the other, warped or not."""
    building, generator = walls[0], np.random.default_rng(3)
    pair = draw_batch([building], (64, 64), 1, 1, 12, generator)[0][0]
    assert len(pair.match.cells_a) == 12
    assert np.abs(pair.match.points_cad[:, 2]).max() < 1e-6
    a, b = plain_views(building)[:2]
    turned = WarpedView(building, 1, replace(b.warp, rotation_deg=20.0))
    match = match_cells(a, turned)
    assert len(match.cells_a) > 20
    in_a = project(transform_points(a.warped_from_cad, match.points_cad), a.warp.intrinsics)
    in_b = project(transform_points(turned.warped_from_cad, match.points_cad), turned.warp.intrinsics)
    np.testing.assert_allclose(in_a, cell_pixels(HEIGHT // 8, WIDTH // 8).reshape(-1, 2)[match.cells_a], atol=1e-9)
    np.testing.assert_allclose(in_b, match.pixels_b, atol=1e-9)


def colours_at(image: NDArray[np.uint8], pixels: Array) -> NDArray[np.float32]:
    """Interpolated colours (N, 3) at pixels (N, 2)."""
    u, v = pixels.astype(np.float32).T - np.float32(0.5)
    return np.asarray(cv2.remap(image.astype(np.float32), u, v, cv2.INTER_LINEAR)[:, 0], np.float32)


def test_matched_pixels_show_the_same_colour(walls: list[PooledBuilding]) -> None:
    """Before photometric changes, the two images agree at matched places: geometry and pictures are one."""
    a, b = plain_views(walls[0])[:2]
    turned = WarpedView(walls[0], 1, replace(b.warp, rotation_deg=-25.0))
    match = match_cells(a, turned)
    pixels_a = cell_pixels(HEIGHT // 8, WIDTH // 8).reshape(-1, 2)[match.cells_a]
    colours = [colours_at(view.image()[0], pixels) for view, pixels in ((a, pixels_a), (turned, match.pixels_b))]
    assert np.abs(colours[0] - colours[1]).mean() < 4


def test_views_that_share_nothing_are_no_pair(walls: list[PooledBuilding]) -> None:
    """A view of another stretch of the wall, and one from far behind it, form no pair with the others."""
    building = walls[0]
    moved = building.cad_from_cam.copy()
    moved[3, 0, 3] += 100
    pairs = overlapping_pairs(replace(building, cad_from_cam=moved))
    assert 3 not in pairs
    assert {(0, 1), (1, 0), (0, 2), (2, 4)} <= {(int(i), int(j)) for i, j in pairs}


def test_training_lowers_the_loss(walls: list[PooledBuilding], tmp_path: Path) -> None:
    """On two walls a few steps suffice for the loss of pictures never drawn in training to fall."""
    config = TINY.model_copy(update={"steps": 40, "pairs": 4})
    trained, _ = train(walls, config, tmp_path)
    pairs, owners = draw_batch(walls, (64, 64), 16, 4, 12, np.random.default_rng(99))
    before, after = (
        batch_loss(encoder.train(), pairs, owners, 0.07).item()
        for encoder in (SmallFeatures().initialised(TINY.seed), trained)
    )
    assert after < before - 0.1


class Interrupted(Sequence[PooledBuilding]):
    """Buildings that stop whoever uses them after a number of draws, as a killed process would."""

    def __init__(self, buildings: Sequence[PooledBuilding], draws: int) -> None:
        self.buildings, self.left = buildings, draws

    def __len__(self) -> int:
        return len(self.buildings)

    @overload
    def __getitem__(self, index: int) -> PooledBuilding: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[PooledBuilding]: ...
    def __getitem__(self, index: int | slice) -> PooledBuilding | Sequence[PooledBuilding]:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.buildings[index]


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(walls: list[PooledBuilding], tmp_path: Path) -> None:
    """Killed after its checkpoint and started again, training gives the same weights and losses, bit for bit."""
    whole, history = train(walls, TINY, tmp_path / "whole_run")
    with pytest.raises(KeyboardInterrupt):
        train(Interrupted(walls, 10), TINY, tmp_path / "killed_run")
    assert (tmp_path / "killed_run" / "checkpoint.pt").exists()
    resumed, resumed_history = train(walls, TINY, tmp_path / "killed_run")
    assert resumed_history == history
    states = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_a_view_matches_itself(walls: list[PooledBuilding]) -> None:
    """Precision counts matches within one cell: a view against itself scores 1, random features elsewhere do not."""
    encoder = SmallFeatures().initialised(0).eval()
    itself = replace(walls[0], pairs=np.array([[0, 0], [2, 2]]))
    assert matching_precision(encoder, [itself], 5, 0) == {"same_appearance": 1.0}
    assert matching_precision(encoder, walls, 3, 0)["across_appearance"] < 0.9


def test_pretraining_renders_trains_and_leaves_an_encoder(tmp_path: Path) -> None:
    """From nothing but a configuration to weights with a card; done again it changes nothing, a rival is refused."""
    card = pretrain(TINY, tmp_path)
    assert SmallFeatures.from_file(tmp_path / "small.safetensors")
    assert card["training"]["config"]["steps"] == 8
    first = (tmp_path / "small.safetensors").read_bytes()
    assert pretrain(TINY, tmp_path) == card
    assert (tmp_path / "small.safetensors").read_bytes() == first
    with pytest.raises(InputError, match="another configuration"):
        pretrain(TINY.model_copy(update={"seed": 1}), tmp_path)


def test_a_rendered_building_is_posed_as_it_looks(tmp_path: Path) -> None:
    """In the pool, points seen in one view project into the others at the depth those views have there."""
    config = TINY.pool.model_copy(update={"views_per_target": 3})
    render_building(config, 0, tmp_path / "building")
    building = PooledBuilding.open(tmp_path / "building")
    assert building.images.shape[1:] == (64, 96, 3)
    assert building.depths_m[building.depths_m > 0].min() > 1
    for i, j in building.pairs:
        match = match_cells(plain_views(building)[i], plain_views(building)[j])
        assert len(match.cells_a) > 0.12 * 96
        distance_m = np.linalg.norm(match.points_cad - inverse(inverse(building.cad_from_cam[j]))[:3, 3], axis=1)
        assert distance_m.min() > 1
