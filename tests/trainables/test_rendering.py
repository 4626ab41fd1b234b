"""Rendered views: exact at pixel centres, right side up, the same from two independent renderers."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import cv2
import numpy as np
import pytest
import trimesh
from PIL import Image
from trimesh.visual import TextureVisuals
from trimesh.visual.material import PBRMaterial

from cadloc.cad import CadModel, load_cad, model_from_meshes
from cadloc.contract import MissingSystemLibrary
from cadloc.geometry import inverse, look_at, project, transform_points
from cadloc.opengl import check_graphics, device_order
from cadloc.raycasting import RayCaster, RayCastingRenderer
from cadloc.rendering import Light, Renderer, ViewRenderer, depth_m, process_renderer
from cadloc.scene_config import CadConfig

W, H = 320, 240
K = np.array([[262.5, 0, 158.7], [0, 265.1, 121.9], [0, 0, 1]])
POSES = [
    look_at([14, -18, 1.7], [0, 0, 3]),
    look_at([-20, 6, 4], [0, 0, 2], roll_deg=20),
    look_at([13, 12, 2], [8, 4, 2]),
    look_at([-3, 52, 12], [0, 0, 3]),
]
FLAT = Light(sun_colour=(0, 0, 0), ambient_colour=(1, 1, 1))


@pytest.fixture(scope="module")
def gl() -> Iterator[Renderer]:
    """One OpenGL renderer for the whole module."""
    with Renderer() as renderer:
        yield renderer


@pytest.fixture(scope="module", params=["gl", "raycasting"])
def renderer(request: pytest.FixtureRequest) -> ViewRenderer:
    """Each backend in turn."""
    return process_renderer(request.param)


def placed(mesh: trimesh.Trimesh, *centre: float) -> trimesh.Trimesh:
    mesh.apply_translation(centre)
    return mesh


@pytest.fixture(scope="module")
def village() -> CadModel:
    """A house, an inverted tower, a roof without underside, on a plaza that ends: CAD as it comes."""
    house = placed(trimesh.creation.box((12, 8, 6)), 0, 0, 3)
    tower = placed(trimesh.creation.cylinder(1, 5, sections=24), 9, 5, 2.5)
    tower.invert()
    roof = trimesh.Trimesh([[-6, -4, 6], [6, -4, 6], [6, 0, 9], [-6, 0, 9]], [[0, 1, 2], [0, 2, 3]], process=False)
    plaza = placed(trimesh.creation.box((80, 80, 0.2)), 0, 0, -0.1)
    return model_from_meshes([house, tower, roof, plaza], "village")


def wall(image: Image.Image, *, distance_m: float = 0.0) -> trimesh.Trimesh:
    """A 4 × 4 m wall in the plane y = distance, its image upright and readable from −y."""
    corners = [[-2, distance_m, -2], [2, distance_m, -2], [2, distance_m, 2], [-2, distance_m, 2]]
    mesh = trimesh.Trimesh(corners, [[0, 1, 2], [0, 2, 3]], process=False)
    uv = np.array([[0, 0], [1, 0], [1, 1], [0, 1.0]])
    mesh.visual = TextureVisuals(uv=uv, material=PBRMaterial(baseColorTexture=image))
    return mesh


def four_colours() -> Image.Image:
    """Red, green above blue, white."""
    colours = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8)
    return Image.fromarray(colours.repeat(32, axis=0).repeat(32, axis=1))


@pytest.mark.parametrize("pose", POSES)
def test_scene_coordinates_lie_on_the_surface(renderer, village, pose):
    """Every point is within a millimetre of the mesh, at 5 m and at 50 m, inverted and open parts too."""
    view = renderer.render(village, pose, K, W, H, Light())
    points = view.scene_coordinates[view.mask][::37].astype(np.float64)
    assert len(points) > 500
    assert trimesh.proximity.closest_point(village.mesh, points)[1].max() < 1e-3


@pytest.mark.parametrize("pose", POSES)
def test_scene_coordinates_reproject_to_pixel_centres(renderer, village, pose):
    """Projecting a point gives the centre of the pixel it was seen through, within 0.01 px."""
    view = renderer.render(village, pose, K, W, H, Light())
    v, u = np.nonzero(view.mask)
    points_cam = transform_points(inverse(pose), view.scene_coordinates[view.mask])
    assert np.abs(project(points_cam, K) - np.stack([u + 0.5, v + 0.5], axis=-1)).max() < 0.01


@pytest.mark.parametrize("pose", POSES)
def test_rasterized_depth_is_the_first_hit_of_a_ray(gl, village, pose):
    """OpenGL and ray casting see the same surface in all but a few silhouette pixels, to a millimetre."""
    rasterized = depth_m(gl.render(village, pose, K, W, H, Light()), pose)
    cast = RayCaster(village).first_hit_depth(pose, K, W, H)
    assert ((rasterized > 0) == (cast > 0)).mean() > 0.9995
    both = (rasterized > 0) & (cast > 0)
    assert np.quantile(np.abs(rasterized - cast)[both], 0.999) < 1e-3


@pytest.mark.parametrize("pose", POSES)
def test_silhouettes_are_where_projection_puts_them(renderer, pose):
    """A convex body covers exactly the pixels whose centres lie inside the hull of its projected corners."""
    body = placed(trimesh.creation.box((12, 8, 6)), 0, 0, 3)
    mask = renderer.render(model_from_meshes([body], "body"), pose, K, W, H, Light()).mask
    corners = project(transform_points(inverse(pose), body.vertices), K)
    hull = cv2.convexHull(corners.astype(np.float32))
    inside_px = np.array([[cv2.pointPolygonTest(hull, (u + 0.5, v + 0.5), True) for u in range(W)] for v in range(H)])
    certain = np.abs(inside_px) > 0.01
    assert (mask == (inside_px > 0))[certain].all()
    assert mask.any()


def test_background_is_masked(renderer, village):
    """Looking at the sky gives an empty mask, a black image and zero coordinates."""
    view = renderer.render(village, look_at([0, 0, 20], [0, 100, 60]), K, W, H, Light())
    assert not view.mask.any()
    assert not view.image.any()
    assert not view.scene_coordinates.any()


@pytest.mark.parametrize("shadows", [False, True])
@pytest.mark.parametrize("samples", [0, 4])
def test_both_renderers_make_the_same_image(gl, village, shadows, samples):
    """Two independent implementations differ by filtering at edges only."""
    light = Light(shadows=shadows)
    images = [
        renderer.render(village, POSES[0], K, W, H, light, colour_samples=samples).image.astype(int)
        for renderer in (gl, RayCastingRenderer())
    ]
    difference = np.abs(images[0] - images[1])
    assert difference.mean() < 1.0
    assert np.quantile(difference, 0.95) <= 2


def test_textures_are_upright(renderer):
    """An image on a wall is seen as it was drawn: red, green above blue, white."""
    model = model_from_meshes([wall(four_colours())], "wall")
    image = renderer.render(model, look_at([0, -8, 0], [0, 0, 0]), K, W, H, FLAT).image
    u, v = np.round(K[:2, 2]).astype(int)
    seen = [image[v + dv, u + du].tolist() for dv in (-30, 30) for du in (-30, 30)]
    assert seen == [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]


def test_transparent_texels_are_holes_in_colour_and_coordinates(renderer):
    """Through a texel with alpha below one half one sees the wall behind; beyond it only the sky."""
    cut_out = np.full((64, 64, 4), 255, np.uint8)
    cut_out[:, :32, 3] = 0
    front = wall(Image.fromarray(cut_out))
    behind = wall(Image.new("RGB", (8, 8), (255, 0, 0)), distance_m=3.0)
    pose = look_at([0, -8, 0], [0, 0, 0])
    view = renderer.render(model_from_meshes([front, behind], "lattice"), pose, K, W, H, FLAT)
    u, v = np.round(K[:2, 2]).astype(int)
    left, right = (v, u - 30), (v, u + 30)
    assert np.allclose(depth_m(view, pose)[[v, v], [u - 30, u + 30]], [11, 8], atol=1e-3)
    assert view.image[left].tolist() == [255, 0, 0]
    assert view.image[right].tolist() == [255, 255, 255]
    alone = renderer.render(model_from_meshes([front], "lattice alone"), pose, K, W, H, FLAT)
    assert not alone.mask[left]
    assert alone.mask[right]


def test_both_sides_of_a_face_are_lit_alike(renderer):
    """Light falls on the side that is looked at, whichever way the face was drawn."""
    light = Light(sun_direction=(0, -1, 0))
    pose = look_at([0, -8, 0], [0, 0, 0])
    one, other = wall(Image.new("RGB", (4, 4), "white")), wall(Image.new("RGB", (4, 4), "white"))
    other.invert()
    images = [renderer.render(model_from_meshes([mesh], "wall"), pose, K, W, H, light).image for mesh in (one, other)]
    assert np.array_equal(*images)
    assert images[0].max() == 255


def test_shadows_darken_what_the_sun_does_not_reach(renderer):
    """Ground under a roof loses the sun with shadows on; open ground keeps it."""
    ground = trimesh.creation.box((40, 40, 0.2))
    roof = placed(trimesh.creation.box((6, 6, 0.2)), 0, 0, 5)
    model = model_from_meshes([ground, roof], "shelter")
    pose = look_at([12, -12, 6], [0, 0, 0])
    lights = [Light(sun_direction=(0, 0, 1), shadows=shadows) for shadows in (False, True)]
    plain, shaded = (renderer.render(model, pose, K, W, H, light).image.astype(int).sum(-1) for light in lights)
    spots = np.array([[0, 0, 0.1], [8, -6, 0.1]])
    u, v = project(transform_points(inverse(pose), spots), K).astype(int).T
    assert shaded[v, u][0] < 0.7 * plain[v, u][0]
    assert shaded[v, u][1] == plain[v, u][1]


def test_colour_samples_smooth_edges_and_leave_coordinates(renderer, village):
    """Multisampling blends colours across a silhouette; points and mask stay bit-equal."""
    plain, smooth = (renderer.render(village, POSES[0], K, W, H, FLAT, colour_samples=s) for s in (0, 4))
    assert np.array_equal(plain.scene_coordinates, smooth.scene_coordinates)
    assert np.array_equal(plain.mask, smooth.mask)
    assert len(np.unique(smooth.image)) > len(np.unique(plain.image))


def test_far_models_render_as_precisely_as_near_ones(gl, village):
    """A model half a kilometre from its frame's origin loses nothing to float32 but the stored result's spacing."""
    offset = np.array([400.0, -300.0, 50.0])
    far_mesh = village.mesh.copy()
    far_mesh.apply_translation(offset)
    far = model_from_meshes([far_mesh], "far")
    assert not far.origin_m.any()
    moved = POSES[0].copy()
    moved[:3, 3] += offset
    a, b = gl.render(village, POSES[0], K, W, H, FLAT), gl.render(far, moved, K, W, H, FLAT)
    both = a.mask & b.mask
    assert (a.mask == b.mask).mean() > 0.9999
    error = np.abs(b.scene_coordinates - offset - a.scene_coordinates)[both]
    assert np.quantile(error, 0.999) < 2e-4


def test_thin_relief_at_a_distance_does_not_flicker(gl):
    """A poster 1 mm in front of a wall hides it at 60 m: depth is fine enough there."""
    back = trimesh.creation.box((10, 0.1, 10))
    poster = placed(trimesh.creation.box((4, 0.002, 4)), 0, -0.05, 0)
    model = model_from_meshes([back, poster], "poster")
    eye = np.array([20.0, -60, 3])
    view = gl.render(model, look_at(eye, [0, 0, 0]), np.diag([4, 4, 1.0]) @ K, W * 4, H * 4, FLAT)
    points = view.scene_coordinates[view.mask]
    on_poster = (np.abs(points[:, [0, 2]]) < 1.9).all(axis=1)
    assert on_poster.sum() > 500
    assert np.allclose(points[on_poster, 1], -0.051, atol=3e-4)


def test_sizes_models_and_renderers_may_alternate(gl, village):
    """Results depend neither on what was rendered before nor on other renderers in the process."""
    first = gl.render(village, POSES[0], K, W, H, Light())
    for index in range(6):
        body = placed(trimesh.creation.box((2 + index, 4, 4)), 0, 0, 2)
        gl.render(model_from_meshes([body], "body"), POSES[1], K, 64 + 8 * index, 64, Light(shadows=True))
    with Renderer() as other:
        second = other.render(village, POSES[0], K, W, H, Light())
    third = gl.render(village, POSES[0], K, W, H, Light())
    for again in (second, third):
        assert np.array_equal(first.image, again.image)
        assert np.array_equal(first.scene_coordinates, again.scene_coordinates)


@pytest.mark.parametrize("shadows", [False, True])
def test_shaders_that_leave_out_what_a_surface_does_not_need_change_no_bit(village, monkeypatch, shadows):
    """Looking for holes and normals that are not there costs time and gives the same image and points."""
    light, views = Light(shadows=shadows), []
    for variant in (lambda *_: frozenset(), lambda *_: frozenset({"OPAQUE_FROM 0.5", "NORMALS"})):
        monkeypatch.setattr("cadloc.rasterization.defines_of", variant)
        with Renderer() as renderer:
            views.append(renderer.render(village, POSES[0], K, W, H, light))
    assert np.array_equal(views[0].image, views[1].image)
    assert np.array_equal(views[0].scene_coordinates, views[1].scene_coordinates)


def test_where_nothing_stands_in_the_sun_shadows_change_no_bit(gl):
    """A lone wall looks the same under a sun that casts shadows and under one that does not."""
    model = model_from_meshes([wall(four_colours())], "wall")
    seen = [
        gl.render(model, look_at([1, -8, 1], [0, 0, 0]), K, W, H, Light((0.2, -1.0, 0.3), shadows=shadows)).image
        for shadows in (False, True)
    ]
    assert seen[0].any()
    assert np.array_equal(*seen)


def test_a_renderer_keeps_no_model_that_nobody_else_has(gl):
    """What was drawn goes when its owner lets go of it, and what takes its place in memory is drawn anew."""
    pose, gone = look_at([14, -18, 4], [0, 0, 3]), []
    for size in (2, 6, 3, 5):
        body = model_from_meshes([trimesh.creation.box((size, size, size))], "body")
        seen = gl.render(body, pose, K, W, H, FLAT).mask
        with Renderer() as fresh:
            assert np.array_equal(seen, fresh.render(body, pose, K, W, H, FLAT).mask)
        gone.append(weakref.ref(body))
        del body
    assert all(model() is None for model in gone)


def test_every_second_pixel_has_the_depth_of_the_whole(gl, village):
    """Depths of a thinned view are those of the view, thinned."""
    view = gl.render(village, POSES[0], K, W, H, Light())
    whole = depth_m(view, POSES[0])
    assert np.array_equal(depth_m(view.every_second(), POSES[0]), whole[1::2, 1::2])


@pytest.mark.parametrize(
    ("visible", "process", "first"),
    [("1", 7, 0), ("0,1", 7, 2), ("", 4, 0), ("", 5, 2), (None, 5, 2), ("GPU-5c1f", 4, 0), ("9", 5, 2)],
)
def test_a_worker_draws_on_the_gpu_it_is_given(visible, process, first):
    """Of GPUs 1 and 0 of CUDA's the visible one comes first; without one that is known, processes take turns."""
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    order = device_order([1, None, 0, None], environment, process)
    assert order[0] == first
    assert sorted(order) == [0, 1, 2, 3]
    assert device_order([None, None], environment, process) == [0, 1]


def test_process_renderer_is_kept():
    """A process has one renderer of each kind, however often it is asked for."""
    assert process_renderer("gl") is process_renderer("gl")
    assert process_renderer("gl") is not process_renderer("raycasting")


def test_absent_libraries_are_named(monkeypatch):
    """Where no platform can be had, the error says what to install or to set instead."""
    check_graphics()
    monkeypatch.setenv("PYOPENGL_PLATFORM", "glx")
    with pytest.raises(MissingSystemLibrary, match="egl or osmesa"):
        check_graphics()
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    monkeypatch.setenv("PYOPENGL_PLATFORM", "egl")
    with pytest.raises(MissingSystemLibrary, match="apt-get install -y --no-install-recommends libegl1 libgl1"):
        check_graphics()


def test_rays_meet_the_surface_or_nothing(village):
    """Hits lie on their triangle's plane at the stated distance; rays to the sky hit nothing."""
    directions = np.array([[0, 0, -2.0], [0, 0, 1.0], [0, -1.0, 0]])
    hits = RayCaster(village).hit([0.3, 20.0, 30.0], directions)
    assert hits.mask.tolist() == [True, False, False]
    assert np.isclose(hits.distance[0], 15.0)
    assert np.allclose(hits.points[0], [0.3, 20, 0])
    assert hits.distance[1] == np.inf
    assert np.isnan(hits.points[1]).all()


def test_free_space_is_outside_and_not_too_close(village):
    """A camera may stand on the plaza, not inside the house, not against its wall."""
    points = [[0, -15, 1.7], [0, 0, 3], [0, -4.2, 1.7], [15, 15, 1.7]]
    caster = RayCaster(village)
    assert caster.is_free(points).tolist() == [True, False, False, True]
    assert np.allclose(caster.clearance_m(points), [1.7, 3, 0.2, 1.7], rtol=0.03)
    assert caster.sky_share([[0, -30, 1.7]])[0] > 0.9


@pytest.mark.shared_data
@pytest.mark.parametrize("place", ["brandenburg/brandenburg_gate_b.glb", "pantheon/pantheon_b.glb"])
def test_real_models_render_alike_both_ways(shared_data, gl, place):
    """On somebody's CAD, with its cut-out textures, OpenGL and ray casting agree in colour and coordinates."""
    model = load_cad(CadConfig(path=str(shared_data / place), up="z"))
    pose = look_at(model.centre + model.diameter_m * np.array([0.5, -0.5, 0.1]), model.centre)
    views = [renderer.render(model, pose, K, W, H, Light()) for renderer in (gl, RayCastingRenderer())]
    assert (views[0].mask == views[1].mask).mean() > 0.999
    both = views[0].mask & views[1].mask
    error = np.linalg.norm(views[0].scene_coordinates - views[1].scene_coordinates, axis=-1)[both]
    assert np.quantile(error, 0.99) < 1e-3
    assert np.abs(views[0].image.astype(int) - views[1].image)[both].mean() < 4
