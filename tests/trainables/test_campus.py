"""The campus: large, of twenty unlike buildings apart from each other, and every one of them is looked at."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from cadloc.cad import model_from_meshes
from cadloc.geometry import Array, cell_pixels, unproject
from cadloc.scene_config import SceneConfig, scene_viewpoints
from cadloc.scenes.assembly import DECALS, Placed, Skin, textured_meshes
from cadloc.scenes.campus import PALETTES, Building, Plan, campus_buildings, drawn_building, furnished
from cadloc.scenes.model import SceneModel
from cadloc.scenes.surroundings import Rectangle
from cadloc.scenes.weathering import photographed_parts
from cadloc.viewpoints import Site, Viewpoint, plan_viewpoints
from cadloc.views_config import CountsConfig, ImageConfig, ViewpointsConfig, ViewsConfig

IMAGE = ImageConfig(width_px=160, height_px=120)
TREETOPS_M = 10.0
FINERY = ("trim", "metal", "wood", "foliage", DECALS)


@pytest.fixture(scope="module")
def planned() -> tuple[Plan, tuple[Building, ...]]:
    """The campus' plan and buildings."""
    return campus_buildings()


@pytest.fixture(scope="module")
def buildings(planned: tuple[Plan, tuple[Building, ...]]) -> tuple[Building, ...]:
    """The campus' buildings."""
    return planned[1]


@pytest.fixture(scope="module")
def scene(planned: tuple[Plan, tuple[Building, ...]]) -> SceneModel:
    """The campus before it is painted."""
    return furnished(*planned)


def corners(parts: Sequence[Placed]) -> Array:
    return np.concatenate([s.triangles_m for part in parts for s in part.surfaces]).reshape(-1, 3)


def materials(parts: Sequence[Placed]) -> set[str]:
    return {s.material for part in parts for s in part.surfaces}


def inside(points: Array, plan: Rectangle) -> NDArray[np.bool_]:
    x, y = points[:, 0], points[:, 1]
    return np.asarray((x >= plan.west_m) & (x <= plan.east_m) & (y >= plan.south_m) & (y <= plan.north_m))


def test_twenty_buildings_stand_apart_on_more_than_300_m(scene: SceneModel) -> None:
    """Footprints, and even streets of 8 m between them, do not overlap; their ends are more than 300 m apart."""
    plans = scene.footprints
    assert len(plans) == 20
    assert max(p.east_m for p in plans) - min(p.west_m for p in plans) > 300.0
    for a, b in itertools.combinations(plans, 2):
        gap_x = max(a.west_m, b.west_m) - min(a.east_m, b.east_m)
        gap_y = max(a.south_m, b.south_m) - min(a.north_m, b.north_m)
        assert max(gap_x, gap_y) > 8.0


def test_what_rises_over_the_trees_is_a_building(scene: SceneModel) -> None:
    """Every corner higher than the trees lies in a footprint, and every footprint has some."""
    points = corners(scene.assembly.parts)
    assert points[:, 2].min() > -0.05
    high = points[points[:, 2] > TREETOPS_M]
    owners = np.stack([inside(high, plan) for plan in scene.footprints])
    assert (owners.sum(axis=0) == 1).all()
    assert owners.any(axis=1).all()


def test_a_building_and_the_grounds_are_the_same_each_time(
    scene: SceneModel, planned: tuple[Plan, tuple[Building, ...]]
) -> None:
    """A second build of a building, and of all that stands about them, has the same bits."""
    first, again = (drawn_building(1, 2, np.random.default_rng(0)).parts for _ in range(2))
    assert np.array_equal(corners(first), corners(again))
    assert np.array_equal(corners(scene.assembly.parts), corners(furnished(*planned).assembly.parts))


def test_the_buildings_are_unlike_each_other(buildings: tuple[Building, ...]) -> None:
    """No two buildings have the same number of triangles or the same size."""
    assert len({len(corners(building.parts)) for building in buildings}) == 20
    assert len({tuple(round(side, 1) for side in building.size_m) for building in buildings}) == 20


def test_buildings_share_few_materials(scene: SceneModel, buildings: tuple[Building, ...]) -> None:
    """There are as many roofs as palettes, each on several buildings; every material has a finish."""
    roofs = [next(m for m in materials(building.parts) if m.startswith("roof")) for building in buildings]
    assert len(set(roofs)) == len(PALETTES)
    assert min(roofs.count(each) for each in roofs) == 20 // len(PALETTES)
    assert materials(scene.assembly.parts) == {*scene.finishes, DECALS}


def test_props_stand_outside_the_buildings(scene: SceneModel, buildings: tuple[Building, ...]) -> None:
    """The middle of every lamp, tree, bench is in no footprint."""
    own = sum(len(building.parts) for building in buildings)
    props = [corners([part]) for part in scene.assembly.parts[own:] if part.loose]
    middles = np.array([(prop.min(axis=0) + prop.max(axis=0)) / 2 for prop in props])
    assert len(middles) > 150
    assert not any(inside(middles, footprint).any() for footprint in scene.footprints)


def test_the_photographed_campus_is_a_little_other_than_the_model(scene: SceneModel) -> None:
    """Fixed parts are displaced by centimetres, some loose ones are gone, scaffolds and some props are new."""
    before, after = scene.assembly.parts, photographed_parts(scene)
    fixed = [part for part in before if not part.loose]
    later = [part for part in after if not part.loose][: len(fixed)]
    shifts_m = np.array([np.abs(corners([a])[0] - corners([b])[0]).max() for a, b in zip(fixed, later, strict=True)])
    assert 0.002 < np.median(shifts_m) < 0.03
    assert shifts_m.max() < 0.08
    kept, loose = (sum(part.loose for part in parts) for parts in (after, before))
    assert 0.7 * loose < kept < loose + scene.additions


def seen(site: Site, viewpoint: Viewpoint, footprints: tuple[Rectangle, ...]) -> Array:
    """Share of the view's cells that each building fills."""
    cells = cell_pixels(IMAGE.height_px // 8, IMAGE.width_px // 8).reshape(-1, 2)
    rays = unproject(cells, np.ones(len(cells)), viewpoint.intrinsics) @ viewpoint.cad_from_cam[:3, :3].T
    hits = site.caster.hit(viewpoint.cad_from_cam[:3, 3], rays)
    shown = hits.points[hits.mask & site.building[hits.triangle]]
    return np.array([inside(shown, footprint).sum() for footprint in footprints]) / len(cells)


def test_people_in_the_streets_see_every_building(scene: SceneModel) -> None:
    """With the campus' own viewpoints mapping views show all buildings, and each view shows some building."""
    blank = defaultdict[str, Skin](lambda: Skin(Image.new("RGB", (1, 1)), 1.0))
    # Mouldings and plants are three quarters of the triangles and hide little: without them it is quicker.
    meshes = [m for m in textured_meshes(scene.assembly.parts, blank) if not m.metadata["name"].startswith(FINERY)]
    site = Site(model_from_meshes(meshes, "campus"))
    viewpoints = scene_viewpoints(ViewpointsConfig(), SceneConfig(name="campus", built_in=True))
    counts = CountsConfig(mapping=80, validation=1, query=1)
    plan = plan_viewpoints(site, ViewsConfig(image=IMAGE, counts=counts, viewpoints=viewpoints))
    shares = np.stack([seen(site, viewpoint, scene.footprints) for viewpoint in plan["mapping"]])
    assert (shares > 0.01).any(axis=0).all()
    eyes = np.stack([viewpoint.cad_from_cam[:3, 3] for split in plan.values() for viewpoint in split])
    walking = eyes[eyes[:, 2] < 4.0]
    assert 0.7 < len(walking) / len(eyes) < 0.9
    assert np.ptp(walking[:, 0]) > 300.0


def test_a_scene_s_own_viewpoints_win_over_the_campus_and_the_campus_over_a_space() -> None:
    """Keys are laid over each other: the space's, the built-in scene's, those written beside the scene's name."""
    spaces = ViewpointsConfig(ground_share=0.1, roll_deg=7.0)
    plain = scene_viewpoints(spaces, SceneConfig(name="campus", built_in=True))
    own = scene_viewpoints(spaces, SceneConfig(name="campus", built_in=True, viewpoints={"ground_share": 0.5}))
    assert (plain.ground_share, own.ground_share) == (0.8, 0.5)
    assert plain.ground.distances is own.ground.distances is None
    assert plain.roll_deg == 7.0
    assert scene_viewpoints(spaces, SceneConfig(name="gate", built_in=True)) == spaces
