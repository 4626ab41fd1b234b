"""The distance field: against exact distances, between its nodes, outside it, and on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from cadloc import distance_field
from cadloc.constraints.surface import FieldLookup
from cadloc.distance_field import DistanceField, measured_field
from cadloc.geometry import Array
from cadloc.scene_config import CadConfig, SceneConfig

TURN = trimesh.transformations.euler_matrix(0.3, 0.5, 0.7)


def house() -> trimesh.Trimesh:
    """A box of 4 × 3 × 5 m and a slab beside it, askew to all axes."""
    box = trimesh.creation.box((4, 3, 5))
    slab = trimesh.creation.box((6, 5, 0.5)).apply_translation((7, 0, -2))
    both: trimesh.Trimesh = trimesh.util.concatenate([box, slab])
    both.apply_transform(TURN)
    return both


@pytest.fixture(scope="module")
def field() -> DistanceField:
    return measured_field(house(), 32)


def exact_m(points: Array) -> Array:
    return np.asarray(trimesh.proximity.closest_point(house(), points)[1])


def looked_up_m(field: DistanceField, points: Array) -> Array:
    return FieldLookup(field).distances_m(torch.tensor(points, dtype=torch.float32)).numpy()


def test_ways_are_the_shortest_near_the_surface_and_hardly_longer_afar(field: DistanceField) -> None:
    """Their lengths agree with trimesh's closest points: near the surface but at some edges, elsewhere within 3 %."""
    chosen = np.random.default_rng(0).permutation(field.nodes[..., 0].size)[:6000]
    lengths_m = np.linalg.norm(field.offsets_m.reshape(-1, 3)[chosen].astype(np.float64), axis=1)
    true_m = exact_m(field.nodes.reshape(-1, 3)[chosen])
    near = true_m < field.spacing_m
    assert near.sum() > 200
    assert np.quantile(np.abs(lengths_m - true_m)[near], 0.99) < 1e-3
    assert (lengths_m > true_m - 5e-3).all()
    assert (lengths_m < 1.03 * true_m + 0.1 * field.spacing_m).all()


def test_ways_lead_to_the_surface(field: DistanceField) -> None:
    """Where a node's way ends there is surface, however far from it the node."""
    ends = field.nodes + field.offsets_m
    assert exact_m(ends.reshape(-1, 3)[::40]).max() < 5e-3


def test_flat_surface_between_nodes_has_distance_zero(field: DistanceField) -> None:
    """On faces, off their edges, interpolated ways tell a hundredth of a cell; interpolated lengths would not."""
    generator = np.random.default_rng(1)
    on_top = np.column_stack([generator.uniform(-1, 1, 200), generator.uniform(-0.6, 0.6, 200), np.full(200, 2.5)])
    points = trimesh.transform_points(on_top, TURN)
    assert looked_up_m(field, points).max() < 0.01 * field.spacing_m
    lifted = trimesh.transform_points(on_top + np.array([0, 0, 0.3 * field.spacing_m]), TURN)
    np.testing.assert_allclose(looked_up_m(field, lifted), 0.3 * field.spacing_m, rtol=0.03)


def test_any_point_has_its_distance_to_a_part_of_a_cell(field: DistanceField) -> None:
    """At edges, between walls and in the open the distance is never off by more than 0.6 cells, mostly by far less."""
    extent_m = field.spacing_m * (np.array(field.offsets_m.shape[2::-1]) - 1)
    points = field.origin_m + np.random.default_rng(2).uniform(0, 1, (2000, 3)) * extent_m
    off_m = looked_up_m(field, points) - exact_m(points)
    assert np.abs(off_m).max() < 0.6 * field.spacing_m
    assert np.median(np.abs(off_m)) < 0.05 * field.spacing_m


def test_outside_the_grid_distance_goes_on_and_falls_inwards(field: DistanceField) -> None:
    """It is continuous across the border, at least the true one, and a step down its gradient leads to the model."""
    lookup, direction = FieldLookup(field), np.array([0.6, -0.7, 0.4])
    border = field.origin_m + np.array([0.0, 1.0, 1.0])
    jump = looked_up_m(field, np.stack([border - 1e-4, border + 1e-4]))
    assert abs(jump[0] - jump[1]) < 1e-3
    far = torch.tensor(np.outer([20.0, 300.0], direction), dtype=torch.float32, requires_grad=True)
    lookup.distances_m(far).sum().backward()
    assert far.grad is not None
    outside = far.detach().double().numpy()
    assert (looked_up_m(field, outside) >= exact_m(outside) - 1e-2).all()
    assert (exact_m(outside - far.grad.numpy()) < exact_m(outside)).all()


def test_stage_measures_the_scenes_own_model_the_same_each_time(tmp_path: Path) -> None:
    """Two runs leave the same bytes, which open as the field of the model."""
    house().export(tmp_path / "house.ply")
    scene = SceneConfig(name="house", cad=CadConfig(path=str(tmp_path / "house.ply"), up="z", units="m"))
    config = {"scene": scene.model_dump(mode="json"), "resolution": 20}
    written = []
    for name in ("once", "again"):
        (tmp_path / name).mkdir()
        assert distance_field.chunks(config, {}) == 1
        nodes = distance_field.build_chunk(config, {}, tmp_path / name, 0)
        distance_field.finish(config, {}, tmp_path / name)
        written.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert written[0] == written[1]
    opened = DistanceField.open(tmp_path / "once")
    assert opened.offsets_m.shape[0] * opened.offsets_m.shape[1] * opened.offsets_m.shape[2] == nodes
    longest_m = float(np.ptp(house().bounds, axis=0).max())
    assert opened.spacing_m == pytest.approx(longest_m / 20, rel=1e-4)
    np.testing.assert_allclose(opened.offsets_m, measured_field(house(), 20).offsets_m, atol=2e-3)
