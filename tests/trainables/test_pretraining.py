"""Pre-training: the loss against an obvious one, true correspondences, and runs that learn, resume and repeat."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cadloc.cad import model_from_meshes
from cadloc.contract import InputError
from cadloc.encoders.images import features_of
from cadloc.encoders.small import SmallFeatures
from cadloc.geometry import Array, cell_pixels, pinhole, project, rigid, transform_points
from cadloc.pretraining import Site, pretrain, train
from cadloc.pretraining_config import Contrastive, PoolConfig, PretrainingConfig
from cadloc.pretraining_contrast import at_cells, at_pixels, batch_loss, hardest, info_nce, same_point
from cadloc.pretraining_history import History, Row
from cadloc.pretraining_pairs import (
    Grid,
    PooledBuilding,
    WarpedView,
    draw_batch,
    match_cells,
    overlapping_pairs,
    plain_views,
)
from cadloc.pretraining_twins import weathered_building
from cadloc.pretraining_validation import ValidationSet
from cadloc.raycasting import RayCaster, pixel_rays
from cadloc.scenes import training_building

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
    method=Contrastive(pairs=2, pairs_per_building=1, matches=12),
    steps=8, width_px=64, height_px=64, warm_up=1, checkpoint_every=3, validation_pairs=2, validate_every=4,
    learning_rate=3e-3, precision="float32",
)  # fmt: skip
POOLED = TINY.model_copy(
    update={"pool": TINY.pool.model_copy(update={"views_per_target": 4, "appearances": 1}), "steps": 4}
)


@pytest.fixture(scope="module")
def walls() -> list[PooledBuilding]:
    """Two walls."""
    return [wall(0), wall(1)]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[tuple[int, int]]]:
    """Directory and card of a whole run, and what it told of its buildings."""
    directory, told = tmp_path_factory.mktemp("pretrained"), []
    card = pretrain(POOLED, directory, Site(on_building=lambda done, buildings: told.append((done, buildings))))
    return directory, card, told


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
    method = Contrastive(pairs=4, pairs_per_building=1, matches=12, hard_negatives=4)
    trained, _ = train(walls, TINY.model_copy(update={"steps": 25, "method": method}), tmp_path)
    pairs, owners = draw_batch(walls, (64, 64), 12, 4, 12, np.random.default_rng(99))
    before, after = (
        batch_loss(encoder.train(), pairs, owners, 0.07).item()
        for encoder in (SmallFeatures().initialised(TINY.seed), trained)
    )
    assert after < before - 0.1


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(walls: list[PooledBuilding], tmp_path: Path) -> None:
    """Killed after its checkpoint and started again, training gives the same weights and losses, bit for bit."""
    whole, history = train(walls, TINY, tmp_path / "whole_run")
    assert [row["step"] for row in history.rows] == list(range(1, 9))

    def listener(row: Row) -> None:
        if row["step"] == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(walls, TINY, tmp_path / "killed_run", site=Site(listener=listener))
    assert (tmp_path / "killed_run" / "checkpoint.pt").exists()
    resumed, resumed_history = train(walls, TINY, tmp_path / "killed_run")
    assert resumed_history == history == History.read(tmp_path / "killed_run" / "history.csv")
    states = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_a_view_matches_itself(walls: list[PooledBuilding]) -> None:
    """Precision counts matches within one cell: a view against itself scores 1, random features elsewhere do not."""
    encoder = SmallFeatures().initialised(0).eval()
    itself = replace(walls[0], pairs=np.array([[0, 0], [2, 2]]))
    assert ValidationSet.drawn([itself], [], 5, 0).precision(encoder) == {"same_appearance": 1.0}
    assert ValidationSet.drawn(walls, [], 3, 0).precision(encoder)["across_appearance"] < 0.9


def test_pretraining_renders_trains_and_leaves_an_encoder(
    pretrained: tuple[Path, dict[str, Any], list[tuple[int, int]]],
) -> None:
    """From nothing but a configuration to weights with a card; done again it changes nothing."""
    directory, card, told = pretrained
    assert told == [(1, 2), (2, 2)]
    assert SmallFeatures.from_file(directory / "small.safetensors")
    assert card["training"]["config"]["steps"] == 4
    assert set(card["validation"]) == {"same_appearance", "photo"}
    rows = History.read(directory / "history.csv").rows
    assert [row["step"] for row in rows if "precision/photo" in row] == [4]
    assert rows[-1]["precision/photo"] == card["validation"]["photo"]
    first = (directory / "small.safetensors").read_bytes()
    assert pretrain(POOLED, directory) == card
    assert (directory / "small.safetensors").read_bytes() == first


def test_a_directory_belongs_to_one_configuration(
    pretrained: tuple[Path, dict[str, Any], list[tuple[int, int]]], tmp_path: Path
) -> None:
    """A rival is told which keys differ; what is no checkpoint is named, with what to do, and not run."""
    rival = POOLED.model_copy(update={"seed": 1, "method": Contrastive(pairs=3, pairs_per_building=1, matches=12)})
    with pytest.raises(InputError, match=r"another configuration \(method\.pairs, seed\)"):
        pretrain(rival, pretrained[0])
    (tmp_path / "checkpoint.pt").write_bytes((pretrained[0] / "checkpoint.pt").read_bytes()[:2000])
    with pytest.raises(InputError, match=r"checkpoint\.pt.*remove it"):
        train([wall(0)], POOLED, tmp_path)


def test_photographs_stand_where_their_renders_do(
    pretrained: tuple[Path, dict[str, Any], list[tuple[int, int]]],
) -> None:
    """Of a held-out building, render and photograph have the same depth, and look different."""
    render, photograph = (
        PooledBuilding.open(pretrained[0] / "pool" / f"{name}_0001") for name in ("building", "photographs")
    )
    both = (render.depths_m > 0) & (photograph.depths_m > 0)
    assert both.sum() > 0.6 * (render.depths_m > 0).sum()
    near = np.isclose(render.depths_m[both], photograph.depths_m[both], rtol=0.01)
    assert near.mean() > 0.95
    assert np.abs(render.images.astype(int) - photograph.images)[both].mean() > 10


def test_a_rendered_building_is_posed_as_it_looks(
    pretrained: tuple[Path, dict[str, Any], list[tuple[int, int]]],
) -> None:
    """In every view the depth of a pixel is where a ray through it hits the building, by that view's camera alone."""
    building = PooledBuilding.open(pretrained[0] / "pool" / "building_0000")
    assert building.images.shape[1:] == (64, 96, 3)
    assert len(building.pairs)
    caster = RayCaster(model_from_meshes(training_building(POOLED.pool.building_seed(0), 0), "building"))

    def agreeing(view: int, camera: int) -> float:
        origins, directions = pixel_rays(building.cad_from_cam[camera], building.intrinsics[camera], 96, 64)
        distances = caster.hit(origins, directions).distance.reshape(64, 96)
        seen = building.depths_m[view] > 0
        return float(np.mean(np.isclose(building.depths_m[view][seen], distances[seen], rtol=0.01)))

    views = range(len(building.images))
    assert min(agreeing(view, view) for view in views) > 0.98
    assert max(agreeing(view, other) for view in views for other in views if other != view) < 0.5


def test_weathering_starts_from_the_materials_of_the_renders(monkeypatch: pytest.MonkeyPatch) -> None:
    """A photographed building draws its finishes from the same stream, at the same place, as the rendered one."""

    class Drawn(Exception):
        pass

    def finishes(rng: np.random.Generator, size_px: int) -> None:
        raise Drawn(rng.random(), size_px)

    monkeypatch.setattr("cadloc.scenes.training.random_finishes", finishes)
    monkeypatch.setattr("cadloc.pretraining_twins.random_finishes", finishes)
    with pytest.raises(Drawn) as rendered:
        training_building(7, 1)
    with pytest.raises(Drawn) as photographed:
        weathered_building(7, 1)
    assert rendered.value.args == photographed.value.args


def test_hard_negatives_are_the_likest_cells_that_see_another_point() -> None:
    """Of the other image's cells, those near in 3D and those of which nothing is known are never chosen."""
    generator = np.random.default_rng(4)
    rows, maps = torch.from_numpy(generator.normal(size=(6, 5))), torch.from_numpy(generator.normal(size=(2, 5, 2, 4)))
    points, seen = generator.normal(size=(6, 3)), generator.normal(size=(2, 8, 3))
    seen[0, 3] = points[1] + 0.1
    seen[1, 2] = math.nan
    usable = generator.random((2, 8)) < 0.8
    reach_m = generator.uniform(0.2, 0.6, 6)
    grids = [Grid(seen[pair], usable[pair]) for pair in range(2)]
    found = hardest(rows, maps, torch.from_numpy(points), torch.from_numpy(reach_m), grids, (3, 2.0))
    assert found is not None
    for i in range(6):
        cells = maps[i // 3].flatten(1).T.numpy()
        cosines = cells @ rows[i].numpy() / np.linalg.norm(cells, axis=1) / np.linalg.norm(rows[i])
        far = ~(np.linalg.norm(seen[i // 3] - points[i], axis=1) < 2 * reach_m[i])
        np.testing.assert_allclose(found[i], np.sort(cosines[far & usable[i // 3]])[::-1][:3], atol=1e-9)


def test_photographs_are_asked_about_with_their_own_renders(walls: list[PooledBuilding]) -> None:
    """Against photographs that equal the renders, and the same views of them, precision is 1; sets repeat."""
    itself = [replace(wall, pairs=np.array([[0, 0], [4, 4]]), appearance=np.zeros(5, int)) for wall in walls]
    drawn = ValidationSet.drawn(itself, itself, 3, 0)
    encoder = SmallFeatures().initialised(0).eval()
    assert drawn.precision(encoder) == {"same_appearance": 1.0, "photo": 1.0}
    assert [question.kind for question in drawn.questions].count("photo") == 3
    again = ValidationSet.drawn(itself, itself, 3, 0)
    assert all(np.array_equal(a.picture_a, b.picture_a) for a, b in zip(drawn.questions, again.questions, strict=True))


def test_who_draws_the_data_changes_nothing(walls: list[PooledBuilding], tmp_path: Path) -> None:
    """Processes that draw ahead give the losses that drawing in between gives."""
    config = TINY.model_copy(update={"steps": 3})
    _, here = train(walls, config, tmp_path / "here")
    _, ahead = train(walls, config, tmp_path / "ahead", site=Site(loaders=1))
    assert here.losses == ahead.losses


def test_bfloat16_is_float32_but_for_rounding(walls: list[PooledBuilding], tmp_path: Path) -> None:
    """Features come as float32 of bfloat16's digits, and a few steps' losses are those of float32 to a few per cent."""
    encoder, image = SmallFeatures().initialised(0).eval(), torch.from_numpy(walls[0].images[:1]).permute(0, 3, 1, 2)
    exact, short = (features_of(encoder, image, precision) for precision in ("float32", "bfloat16"))
    assert exact.dtype == short.dtype == torch.float32
    assert not torch.equal(exact, short)
    torch.testing.assert_close(short, exact, rtol=0, atol=0.05 * exact.abs().max().item())
    config = TINY.model_copy(update={"steps": 3, "learning_rate": 1e-4})
    losses = [
        train(walls, config.model_copy(update={"precision": precision}), tmp_path / precision)[1].losses
        for precision in ("float32", "bfloat16")
    ]
    assert losses[0] != losses[1]
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.03)
