"""Constraints: free for what is true, and for everything else a finite way back."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor

from cadloc import distance_field
from cadloc.cad import CadModel, model_from_meshes
from cadloc.constraint_config import (
    ConstraintConfig,
    DepthConstraint,
    FreeSpaceConstraint,
    RangeConstraint,
    SurfaceConstraint,
)
from cadloc.constraints import Constraints, build
from cadloc.constraints.constraint import LINEAR_PX, softened
from cadloc.constraints.free_space import BLOCK_PX, coarse_depth_m
from cadloc.datasets.ace_layout import write_card, write_view
from cadloc.distance_field import measured_field
from cadloc.geometry import Array, cell_pixels, inverse, look_at, pinhole, rotation_about_z, transform_points, unproject
from cadloc.raycasting import RayCaster
from cadloc.samples import Batch, Samples

WIDTH, HEIGHT = 160, 120
K = pinhole(WIDTH, HEIGHT, 65)
CONFIGS: tuple[ConstraintConfig, ...] = (
    DepthConstraint(),
    RangeConstraint(),
    FreeSpaceConstraint(),
    SurfaceConstraint(resolution=64),
)
each_constraint = pytest.mark.parametrize("config", CONFIGS, ids=[config.name for config in CONFIGS])


@cache
def plaza() -> CadModel:
    """Two towers on a plaza of 24 m, one of them turned."""
    ground = trimesh.creation.box((24, 24, 1)).apply_translation((0, 0, -0.5))
    tower = trimesh.creation.box((3, 3, 6)).apply_translation((2, 1, 3))
    turned = trimesh.creation.box((2, 4, 4)).apply_transform(rotation_about_z(30)).apply_translation((-4, -1, 2))
    return model_from_meshes([ground, tower, turned], "plaza")


def cameras() -> Array:
    """`cad_from_cam` of eight views from all sides."""
    eyes = [[11 * np.cos(a), 11 * np.sin(a), 2 + k % 3] for k, a in enumerate(np.arange(8) * np.pi / 4)]
    return np.stack([look_at(eye, [0, 0, 1.5]) for eye in eyes])


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The plaza's mapping views, and its distance field."""
    views, field = tmp_path_factory.mktemp("views"), tmp_path_factory.mktemp("field")
    caster, image = RayCaster(plaza()), np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for k, cad_from_cam in enumerate(cameras()):
        depth_m = caster.first_hit_depth(cad_from_cam, K, WIDTH, HEIGHT)
        write_view(
            views, "mapping", f"v{k}", image=image, depth_m=depth_m,
            cad_from_cam=cad_from_cam, intrinsics=K, step_m=0.001,
        )  # fmt: skip
    write_card(views, {"depth_step_m": 0.001})
    measured = measured_field(plaza().mesh, 64)
    np.save(field / distance_field.OFFSETS, measured.offsets_m)
    card = f'{{"origin_m": {measured.origin_m.tolist()}, "spacing_m": {measured.spacing_m}}}'
    (field / distance_field.CARD).write_text(card)
    return {"views/synthetic": views, "distance_field": field}


@cache
def samples() -> Samples:
    """Cells of every view that see the plaza, with what they see."""
    caster, pixels = RayCaster(plaza()), cell_pixels(HEIGHT // 8, WIDTH // 8).reshape(-1, 2)
    points, views = [], np.repeat(np.arange(8), len(pixels))
    for cad_from_cam in cameras():
        ends = transform_points(cad_from_cam, unproject(pixels, np.ones(len(pixels)), K))
        points.append(caster.hit(cad_from_cam[:3, 3], ends - cad_from_cam[:3, 3]).points)
    seen = np.concatenate(points)
    hit = np.isfinite(seen).all(axis=1)
    pixels, views = np.tile(pixels, (8, 1))[hit], views[hit]
    as_tensor = (
        torch.tensor(array, dtype=torch.float32) for array in (seen[hit], inverse(cameras()), np.stack([K] * 8))
    )
    features, globals_ = torch.zeros(len(views), 1), torch.zeros(8, 0)
    return Samples(features, torch.tensor(pixels).float(), torch.tensor(views), *as_tensor, globals_)


def batch(seed: int = 0) -> Batch:
    return samples().batch(torch.arange(len(samples())), seed)


def built(config: ConstraintConfig, stages: dict[str, Path]) -> Constraints:
    constraints = build((config,), stages, samples())
    assert constraints is not None
    return constraints


def penalties(constraints: Constraints, coordinates: Tensor, batch: Batch) -> Tensor:
    (constraint,) = constraints.by_name.values()
    return constraint.penalties_px(coordinates, batch)


def descent(constraints: Constraints, coordinates: Tensor, batch: Batch) -> Tensor:
    """The negative gradient (B, 3) of the samples' costs."""
    coordinates = coordinates.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(softened(penalties(constraints, coordinates, batch)).sum(), coordinates)
    return -gradient


def along_the_ray(batch: Batch, ratio: float) -> Tensor:
    """The true points moved along their rays to `ratio` times their depth."""
    centres = batch.centres_cad
    return centres + ratio * (batch.scene_coordinates - centres)


@each_constraint
def test_true_points_cost_nothing(config: ConstraintConfig, stages: dict[str, Path]) -> None:
    """What is on the visible surface satisfies every constraint exactly, whatever other views are drawn."""
    constraints = built(config, stages)
    for seed in range(5):
        assert float(constraints(batch(seed).scene_coordinates, batch(seed))) == 0


@each_constraint
def test_points_far_off_cost_a_bounded_sum_and_know_the_way_back(
    config: ConstraintConfig, stages: dict[str, Path]
) -> None:
    """Predictions a kilometre off cost hundreds of pixels at most; those that cost anything have a gradient, finite."""
    directions = torch.nn.functional.normalize(
        torch.randn(len(samples()), 3, generator=torch.Generator().manual_seed(1))
    )
    constraints, far = built(config, stages), batch().scene_coordinates + 1000 * directions
    costs = softened(penalties(constraints, far, batch()))
    way_back = descent(constraints, far, batch())
    assert float(costs.max()) < 12 * LINEAR_PX
    assert way_back.isfinite().all()
    assert torch.equal(way_back.norm(dim=1) > 0, costs > 0)


@each_constraint
def test_unknown_coordinates_do_no_harm(config: ConstraintConfig, stages: dict[str, Path]) -> None:
    """Samples without a true coordinate leave cost and gradients finite, and constrain depth in no way."""
    coordinates = along_the_ray(batch(), 0.4)
    unknown = batch().scene_coordinates.clone()
    unknown[::2] = torch.nan
    constraints, some = built(config, stages), replace(batch(), scene_coordinates=unknown, complete=False)
    assert penalties(constraints, coordinates, some).isfinite().all()
    way_back = descent(constraints, coordinates, some)
    assert way_back.isfinite().all()
    blind = isinstance(config, DepthConstraint | RangeConstraint)  # 0.4 of the depth is within range
    assert bool((way_back[::2] == 0).all()) == blind


@each_constraint
def test_degenerate_predictions_have_finite_gradients(config: ConstraintConfig, stages: dict[str, Path]) -> None:
    """At the camera's centre, on its image plane and at the truth itself nothing is NaN."""
    centres, truth = batch().centres_cad, batch().scene_coordinates
    sideways = centres + batch().cam_from_cad[:, 0, :3]
    for coordinates in (centres, sideways, truth):
        assert penalties(built(config, stages), coordinates, batch()).isfinite().all()
        assert descent(built(config, stages), coordinates, batch()).isfinite().all()


@pytest.mark.parametrize("config", CONFIGS[:2], ids=["depth", "range"])
def test_points_behind_the_camera_are_pulled_forward(config: ConstraintConfig, stages: dict[str, Path]) -> None:
    """Whether just behind it or 300 m, a step down the gradient increases the depth."""
    forward = batch().cam_from_cad[:, 2, :3]
    for behind_m in (0.01, 3.0, 300.0):
        coordinates = batch().centres_cad - behind_m * forward
        towards = descent(built(config, stages), coordinates, batch())
        assert ((towards * forward).sum(dim=1) > 1e-3).all()


def test_depth_is_free_within_its_tolerance_and_counts_in_pixels_beyond(stages: dict[str, Path]) -> None:
    """A factor exp(± 0.9 tolerance) costs nothing, exp(± 1.5 tolerance) focal length times half the tolerance."""
    depth = built(DepthConstraint(tolerance=0.04), stages)
    for sign in (1, -1):
        assert penalties(depth, along_the_ray(batch(), np.exp(sign * 0.036)), batch()).max() == 0
        beyond = penalties(depth, along_the_ray(batch(), np.exp(sign * 0.06)), batch())
        np.testing.assert_allclose(beyond, 0.02 * K[0, 0], rtol=1e-3)


def test_range_counts_metres_before_and_beyond_it_as_pixels_at_the_true_depth(stages: dict[str, Path]) -> None:
    """A metre too far costs focal length by true depth; so does a metre too near."""
    range_, farthest_m = built(RangeConstraint(nearest_m=2.0), stages), 1.2 * samples().scale.farthest_m
    for depth_m in (1.0, farthest_m + 1):
        coordinates = (
            along_the_ray(batch(), 1.0) + (depth_m - batch().depth_m)[:, None] * batch().cam_from_cad[:, 2, :3]
        )
        expected = K[0, 0] / batch().depth_m
        np.testing.assert_allclose(penalties(range_, coordinates, batch()), expected, rtol=1e-3)


def test_floating_points_are_pushed_onto_what_the_other_view_sees(stages: dict[str, Path]) -> None:
    """Half-way to the surface many points float in some view; a step down the gradient by the penalty lands there."""
    free_space, coordinates = built(FreeSpaceConstraint(), stages), along_the_ray(batch(), 0.5)
    found = penalties(free_space, coordinates, batch())
    coordinates.requires_grad_()
    (gradient,) = torch.autograd.grad(penalties(free_space, coordinates, batch()).sum(), coordinates)
    floating = found > 0
    assert floating.float().mean() > 0.2
    assert (gradient[~floating] == 0).all()
    step = found / (gradient**2).sum(dim=1).clamp(min=1e-12)
    landed = penalties(free_space, coordinates.detach() - step[:, None] * gradient, batch())
    assert (landed <= found).all()
    # Rounding moves some of those at a block's border into the next block.
    assert (landed[floating] < 0.01 * found[floating]).float().mean() > 0.95


def test_hidden_points_cost_nothing_in_free_space(stages: dict[str, Path]) -> None:
    """Within a tower, and under the plaza, a point is behind what every view sees."""
    generator = torch.Generator().manual_seed(3)
    spread = torch.rand(len(samples()), 3, generator=generator) - 0.5
    in_tower = torch.tensor([2.0, 1.0, 3.0]) + spread * torch.tensor([2.5, 2.5, 5.0])
    below = torch.tensor([0.0, 0.0, -2.0]) + spread * torch.tensor([20.0, 20.0, 2.0])
    for seed in range(3):
        for coordinates in (in_tower, below):
            assert penalties(built(FreeSpaceConstraint(), stages), coordinates, batch(seed)).max() == 0


def test_points_before_the_sky_and_beside_the_image_are_free(stages: dict[str, Path]) -> None:
    """High above the towers no view sees anything behind a point, or sees the point."""
    high = batch().scene_coordinates * torch.tensor([1.0, 1.0, 0.0]) + torch.tensor([0.0, 0.0, 12.0])
    assert penalties(built(FreeSpaceConstraint(), stages), high, batch()).max() == 0


def test_views_are_drawn_by_the_seed_of_the_step(stages: dict[str, Path]) -> None:
    """Free space costs the same for the same seed, sample by sample, and is seen from other views for another."""
    free_space, coordinates = built(FreeSpaceConstraint(), stages), along_the_ray(batch(), 0.5)
    first, again, other = (penalties(free_space, coordinates, batch(seed)) for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_surface_pulls_points_to_the_nearest_wall(stages: dict[str, Path]) -> None:
    """Points 1.5 m before a tower's wall or above the plaza come to lie on it by repeated steps down the gradient."""
    surface, starts = (
        built(SurfaceConstraint(resolution=64), stages),
        torch.tensor([[5.0, 1, 3], [2, -2, 4], [9, 7, 1.5]]),
    )
    coordinates, few = starts.clone(), samples().batch(torch.arange(3))
    for _ in range(40):
        coordinates += 0.05 * torch.nn.functional.normalize(descent(surface, coordinates, few))
    expected = torch.tensor([[3.5, 1, 3], [2, -0.5, 4], [9, 7, 0]])
    np.testing.assert_allclose(coordinates, expected, atol=0.3)
    assert penalties(surface, coordinates, few).max() == 0


def test_costs_are_linear_then_logarithmic_without_a_kink() -> None:
    """Up to 50 px a penalty costs itself; beyond, costs go on rising at the same slope, ever more slowly."""
    values = torch.tensor([0.0, 3.0, 49.99, 50.01, 5e2, 5e6], requires_grad=True)
    costs = softened(values)
    (slopes,) = torch.autograd.grad(costs.sum(), values)
    np.testing.assert_allclose(costs.detach()[:3], values.detach()[:3])
    np.testing.assert_allclose(costs.detach()[4:], [50 * (1 + np.log(10)), 50 * (1 + np.log(1e5))], rtol=1e-5)
    np.testing.assert_allclose(slopes, 1 / (values.detach() / 50).clamp(min=1), rtol=1e-5)


def test_the_sum_weighs_each_mean(stages: dict[str, Path]) -> None:
    """All constraints at once cost the weighted sum of their means, each as it costs alone; none is None."""
    configs = [config.model_copy(update={"weight": 0.1 * (i + 1)}) for i, config in enumerate(CONFIGS)]
    constraints, coordinates = build(configs, stages, samples()), along_the_ray(batch(), 0.4)
    assert constraints is not None
    means = constraints.named(coordinates, batch())
    assert list(means) == ["depth", "range", "free_space", "surface"]
    alone = {config.name: float(built(config, stages)(coordinates, batch())) for config in configs}
    assert float(constraints(coordinates, batch())) == pytest.approx(sum(alone.values()))
    assert alone["surface"] == pytest.approx(0.4 * float(means["surface"]))
    assert build((), stages, samples()) is None


def test_coarse_depths_are_the_smallest_of_their_neighbourhood() -> None:
    """Each block has the least known depth of its nine blocks, as a slow loop finds it, at image borders, too."""
    depth_m = np.random.default_rng(5).uniform(1, 9, (22, 31)).astype(np.float32)
    depth_m[:, 12:] *= np.random.default_rng(6).random((22, 19)) < 0.02  # mostly background
    coarse = coarse_depth_m(depth_m)
    assert coarse.shape == (6, 8)
    for (row, column), found in np.ndenumerate(coarse):
        rows = slice(max(0, (row - 1) * BLOCK_PX), (row + 2) * BLOCK_PX)
        columns = slice(max(0, (column - 1) * BLOCK_PX), (column + 2) * BLOCK_PX)
        about = depth_m[rows, columns]
        assert found == min(about[about > 0], default=np.inf)
    assert np.isinf(coarse).any()


def test_only_so_many_views_are_held_as_asked_for(stages: dict[str, Path]) -> None:
    """Of eight views three are held, evenly chosen."""
    free_space = built(FreeSpaceConstraint(views=3), stages).by_name["free_space"]
    held = free_space.z_buffers.cam_from_cad  # type: ignore[attr-defined]
    np.testing.assert_allclose(held, inverse(cameras()[[0, 2, 5]]), atol=1e-6)
