"""Virtual cameras: where they may stand, what they must see, and that splits share none."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh
from numpy.typing import NDArray

from cadloc.cad import CadModel, model_from_meshes
from cadloc.contract import InputError
from cadloc.geometry import cell_pixels, rotation_error_deg, unproject
from cadloc.viewpoints import Site, Viewpoint, fitting_distance_m, plan_viewpoints
from cadloc.views_config import CountsConfig, GroundConfig, ImageConfig, OrbitConfig, ViewpointsConfig, ViewsConfig

SIZE_M = np.array([16.0, 10.0, 8.0])


def scene(plaza_m: float = 60.0, *more: trimesh.Trimesh) -> CadModel:
    """A box of SIZE_M in the middle of a plaza, and what stands on it besides."""
    building = trimesh.creation.box(SIZE_M)
    building.apply_translation([0, 0, SIZE_M[2] / 2])
    plaza = trimesh.creation.box([plaza_m, plaza_m, 0.2])
    plaza.apply_translation([0, 0, -0.1])
    return model_from_meshes([building, plaza, *more], "box")


def settings(counts: tuple[int, int, int] = (24, 8, 12), seed: int = 0, **viewpoints: object) -> ViewsConfig:
    mapping, validation, query = counts
    return ViewsConfig(
        image=ImageConfig(width_px=160, height_px=120),
        counts=CountsConfig(mapping=mapping, validation=validation, query=query),
        viewpoints=ViewpointsConfig(**viewpoints),
        seed=seed,
    )


def everyone(views: ViewsConfig, model: CadModel | None = None) -> list[Viewpoint]:
    plan = plan_viewpoints(Site(model or scene()), views)
    return [viewpoint for split in plan.values() for viewpoint in split]


def poses(viewpoints: list[Viewpoint] | tuple[Viewpoint, ...]) -> NDArray[np.float64]:
    return np.stack([viewpoint.cad_from_cam for viewpoint in viewpoints])


def box_share(viewpoint: Viewpoint) -> float:
    """Share of cells whose ray passes through the box, by the slab method."""
    cells = cell_pixels(15, 20).reshape(-1, 2)
    rays = unproject(cells, np.ones(len(cells)), viewpoint.intrinsics) @ viewpoint.cad_from_cam[:3, :3].T
    low, high = np.array([-0.5, -0.5, 0.0]) * SIZE_M, np.array([0.5, 0.5, 1.0]) * SIZE_M
    at = (np.stack([low, high])[:, None] - viewpoint.cad_from_cam[:3, 3]) / rays
    return float((at.min(axis=0).max(axis=1) < np.maximum(at.max(axis=0).min(axis=1), 0)).mean())


def test_same_seed_same_plan() -> None:
    """The plan depends on settings and seed only: again the same cameras, another seed others."""
    first, again, other = (poses(everyone(settings(seed=seed))) for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.isclose(first[:, :3, 3], other[:, :3, 3]).all(axis=1).any()


def test_counts_and_names() -> None:
    """Every split has as many viewpoints as asked for, named by split and number."""
    plan = plan_viewpoints(Site(scene()), settings((5, 2, 3)))
    assert [viewpoint.name for viewpoint in plan["query"]] == ["query_000000", "query_000001", "query_000002"]
    assert {split: len(viewpoints) for split, viewpoints in plan.items()} == {"mapping": 5, "validation": 2, "query": 3}


def test_no_viewpoint_repeats_one_of_another_split() -> None:
    """Cameras of different splits are farther apart than the separation, in place or in direction."""
    plan = plan_viewpoints(Site(scene()), settings((60, 20, 20), min_separation_m=4.0, min_separation_deg=25.0))
    for one, other in (("mapping", "query"), ("mapping", "validation"), ("validation", "query")):
        a, b = poses(plan[one])[:, None], poses(plan[other])[None]
        apart_m = np.linalg.norm(a[..., :3, 3] - b[..., :3, 3], axis=-1)
        assert ((apart_m > 4.0) | (rotation_error_deg(a, b) > 25.0)).all()


def test_every_view_sees_enough_of_the_building() -> None:
    """The share of cells that see the box, counted by another method, is never below the setting."""
    shares = [box_share(viewpoint) for viewpoint in everyone(settings(min_hit_share=0.3))]
    assert min(shares) >= 0.3
    assert max(shares) > 0.4


def test_cameras_stand_free_and_above_ground() -> None:
    """No camera is inside or nearer to the box than the clearance, or under the ground."""
    eyes = poses(everyone(settings(clearance_m=2.0)))[:, :3, 3]
    outside = np.abs(eyes - [0, 0, SIZE_M[2] / 2]) - SIZE_M / 2
    # Clearance is probed along directions about 12 degrees apart: 2 % of slack.
    assert (np.linalg.norm(np.maximum(outside, 0), axis=1) > 0.98 * 2.0).all()
    assert (eyes[:, 2] > 0.5).all()


def test_share_of_ground_level_views() -> None:
    """The configured share of cameras is at eye height, the rest on the orbit's rings."""
    views = settings(ground_share=0.75, ground=GroundConfig(eye_height_m=1.6, eye_height_spread_m=0.0))
    eyes = poses(plan_viewpoints(Site(scene()), views)["mapping"])[:, :3, 3]
    at_eye_height = np.isclose(eyes[:, 2], 1.6, atol=1e-6)
    assert at_eye_height.sum() == 18


def test_people_stand_on_what_is_under_their_feet() -> None:
    """On a terrace a metre high the eyes are a metre higher than on the plaza."""
    terrace = trimesh.creation.box([8.0, 20.0, 1.0])
    terrace.apply_translation([16.0, 0, 0.5])
    views = settings((30, 2, 2), ground_share=1.0, ground=GroundConfig(eye_height_m=1.6, eye_height_spread_m=0.0))
    eyes = poses(plan_viewpoints(Site(scene(60.0, terrace), 0.0), views)["mapping"])[:, :3, 3]
    above = (np.abs(eyes[:, 0] - 16) < 4) & (np.abs(eyes[:, 1]) < 10)
    assert above.any()
    assert np.allclose(eyes[:, 2], np.where(above, 2.6, 1.6))


def test_orbit_rings() -> None:
    """Orbit cameras lie on the configured distances and elevations from the building's middle, and aim near it."""
    orbit = OrbitConfig(elevations_deg=(20.0,), distances=(0.8,), target_spread=0.0)
    views = settings(ground_share=0.0, orbit=orbit, fields_of_view_deg=(60.0,), min_hit_share=0.0)
    site = Site(scene())
    for viewpoint in plan_viewpoints(site, views)["mapping"]:
        offset = viewpoint.cad_from_cam[:3, 3] - site.middle
        distance_m = np.linalg.norm(offset)
        assert np.isclose(distance_m, 0.8 * fitting_distance_m(site.radius_m, viewpoint.intrinsics, views.image))
        assert np.isclose(np.rad2deg(np.arcsin(offset[2] / distance_m)), 20.0)
        assert np.allclose(viewpoint.cad_from_cam[:3, 2], -offset / distance_m)


def square_of_boxes() -> CadModel:
    """Four boxes of SIZE_M at the corners of a square, 60 m apart."""
    boxes = [trimesh.creation.box(SIZE_M) for _ in range(4)]
    for box, (x, y) in zip(boxes, [(-30, -30), (30, -30), (-30, 30), (30, 30)], strict=True):
        box.apply_translation([x, y, SIZE_M[2] / 2])
    return model_from_meshes(boxes, "boxes")


def test_people_among_many_buildings_stand_anywhere_between_and_a_little_outside_them() -> None:
    """Without a ring, places fill the buildings' rectangle and a tenth of its radius about it, each ninth."""
    site = Site(square_of_boxes())
    views = settings((90, 1, 1), ground_share=1.0, ground=GroundConfig(distances=None), min_hit_share=0.02)
    eyes = poses(plan_viewpoints(site, views)["mapping"])[:, :3, 3]
    low, high = site.box[0, :2] - 0.1 * site.radius_m, site.box[1, :2] + 0.1 * site.radius_m
    share = (eyes[:, :2] - low) / (high - low)
    assert share.min() >= 0.0
    assert share.max() <= 1.0
    assert eyes[:, 2].max() < 3.5
    counts = np.bincount((share * 3).astype(int) @ [1, 3], minlength=9)
    assert counts.min() >= 5


def test_people_among_many_buildings_keep_to_the_sector() -> None:
    """Without a ring, too, cameras stand in the sector of azimuths only."""
    views = settings(
        ground_share=1.0, ground=GroundConfig(distances=None), min_hit_share=0.02, azimuth_deg=(150.0, 260.0)
    )
    site = Site(square_of_boxes())
    eyes = poses([each for split in plan_viewpoints(site, views).values() for each in split])[:, :3, 3] - site.middle
    assert ((np.rad2deg(np.arctan2(eyes[:, 1], eyes[:, 0])) - 150.0) % 360.0 <= 110.0).all()


def test_sphere_of_the_fitting_distance_touches_the_image_border() -> None:
    """From the fitting distance, the sphere's outline is the largest circle in the image."""
    views = settings()
    intrinsics = np.array([[100.0, 0, 80], [0, 100, 60], [0, 0, 1]])
    distance_m = fitting_distance_m(5.0, intrinsics, views.image)
    outline_px = 100 * np.tan(np.arcsin(5.0 / distance_m))
    assert np.isclose(outline_px, 60)


def test_azimuth_sector() -> None:
    """Cameras keep to the sector, seen from the building's middle."""
    eyes = poses(everyone(settings(azimuth_deg=(30.0, 100.0))))[:, :3, 3]
    azimuth_deg = np.rad2deg(np.arctan2(eyes[:, 1], eyes[:, 0]))
    assert azimuth_deg.min() >= 29.999
    assert azimuth_deg.max() <= 100.001


@pytest.mark.parametrize("plaza_m", [40.0, 400.0])
def test_plaza_does_not_move_the_cameras(plaza_m: float) -> None:
    """The building is the box, however wide the ground about it is."""
    site = Site(scene(plaza_m))
    assert np.allclose(site.box, [[-8, -5, 0], [8, 5, 8]])
    assert np.isclose(site.radius_m, np.linalg.norm(SIZE_M) / 2)


def test_lamp_post_does_not_move_the_cameras() -> None:
    """A thin post far out on the plaza belongs to no building."""
    post = trimesh.creation.box([0.1, 0.1, 4.0])
    post.apply_translation([28.0, 28.0, 2.0])
    assert np.allclose(Site(scene(60.0, post)).box, [[-8, -5, 0], [8, 5, 8]])


def test_queries_do_not_depend_on_the_number_of_mapping_views() -> None:
    """More mapping or query views leave the queries drawn so far as they are."""
    small, large = (plan_viewpoints(Site(scene()), settings(counts))["query"] for counts in ((4, 2, 6), (30, 9, 10)))
    assert np.array_equal(poses(small), poses(large)[:6])


@pytest.mark.parametrize(
    ("impossible", "reason"),
    [
        ({"orbit": OrbitConfig(distances=(2.0,)), "ground_share": 0.0}, "see too little of the building"),
        ({"clearance_m": 100.0, "ground_share": 0.0}, "have a surface within the clearance"),
        ({"min_separation_m": 1e4, "min_separation_deg": 180.0}, "repeat a viewpoint of another split"),
        ({"orbit": OrbitConfig(elevations_deg=(-30.0,), distances=(1.0,)), "ground_share": 0.0}, "below its ground"),
        ({"orbit": OrbitConfig(distances=(0.01,)), "ground_share": 0.0}, "stand inside or under or on top"),
    ],
)
def test_impossible_settings(impossible: dict[str, object], reason: str) -> None:
    """Settings that leave no room are an input error that says which condition turned down how many."""
    with pytest.raises(InputError, match=rf"\d+ [^,]*{reason}") as caught:
        plan_viewpoints(Site(scene()), settings(**impossible))
    assert caught.value.faults[0].key == "views.viewpoints"


def test_model_of_ground_only() -> None:
    """A plaza without a building is an input error: there is nothing to look at."""
    plaza = trimesh.creation.box([40.0, 40.0, 0.2])
    with pytest.raises(InputError, match="ground_z_m"):
        Site(model_from_meshes([plaza], "plaza"))
