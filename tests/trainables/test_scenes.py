"""Built-in scenes and the training family: repeatable, well formed, and different wherever they have to be."""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Literal, get_args

import numpy as np
import pytest
import trimesh
from scipy.spatial import cKDTree

from cadloc.scene_config import BUILT_IN_SCENES
from cadloc.scenes import built_in_meshes, training_building
from cadloc.scenes.assembly import Site
from cadloc.scenes.decals import CELLS, SHELVES
from cadloc.scenes.openings import Arch, Opening, wall
from cadloc.scenes.solids import beam, box, lathe, planar_uv, plank, slab
from cadloc.scenes.textures import Finish, Wear, painted

SceneName = Literal["gate", "rotunda", "cathedral"]
NAMES: tuple[SceneName, ...] = get_args(SceneName)


@cache
def scene(name: SceneName, appearance: Literal["cad", "photo"]) -> list[trimesh.Trimesh]:
    return built_in_meshes(name, appearance)


@cache
def trained_on(seed: int, appearance: int) -> list[trimesh.Trimesh]:
    return training_building(seed, appearance)


def digest(meshes: list[trimesh.Trimesh]) -> str:
    seen = hashlib.sha256()
    for mesh in meshes:
        seen.update(str(mesh.metadata["name"]).encode())
        seen.update(mesh.vertices.tobytes() + mesh.visual.uv.tobytes())
        seen.update(mesh.visual.material.baseColorTexture.tobytes())
    return seen.hexdigest()


def triangles(meshes: list[trimesh.Trimesh]) -> np.ndarray:
    return np.concatenate([np.asarray(mesh.triangles) for mesh in meshes])


def triangle_areas(corners: np.ndarray) -> np.ndarray:
    return np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1) / 2


def samples(meshes: list[trimesh.Trimesh], count: int, seed: int) -> np.ndarray:
    """Points spread evenly over the surface that is above the ground and inside 60 x 60 m."""
    corners = triangles(meshes)
    middle = corners.mean(axis=1)
    corners = corners[(middle[:, 2] > 0.5) & (np.abs(middle[:, :2]) < 30.0).all(axis=1)]
    rng = np.random.default_rng(seed)
    chosen = corners[rng.choice(len(corners), count, p=(a := triangle_areas(corners)) / a.sum())]
    weights = rng.dirichlet(np.ones(3), count)
    points: np.ndarray = (chosen * weights[..., None]).sum(axis=1)
    return points


def test_every_built_in_scene_of_the_configuration_exists() -> None:
    """The names a configuration accepts are exactly the scenes that can be made."""
    assert set(BUILT_IN_SCENES) == {*NAMES, "campus"}


@pytest.mark.parametrize("appearance", ["cad", "photo"])
def test_a_scene_is_the_same_to_the_last_bit_each_time(appearance: Literal["cad", "photo"]) -> None:
    """Vertices, texture coordinates and textures of two builds are equal."""
    assert digest(built_in_meshes("gate", appearance)) == digest(scene("gate", appearance))


@pytest.mark.parametrize("name", NAMES)
def test_a_scene_is_what_the_renderer_expects(name: SceneName) -> None:
    """One mesh per material, flat-shaded, UV-mapped, opaque or cut out; the size of a building on a plaza at z = 0."""
    meshes = scene(name, "cad")
    corners = triangles(meshes)
    low, high = corners.reshape(-1, 3).min(axis=0), corners.reshape(-1, 3).max(axis=0)
    assert len({mesh.metadata["name"] for mesh in meshes}) == len(meshes) <= 12
    assert 5_000 < len(corners) < 45_000
    assert np.isfinite(corners).all()
    assert triangle_areas(corners).min() > 1e-9
    assert -0.05 < low[2] <= 0.0
    assert 20.0 < high[2] < 60.0
    for mesh in meshes:
        material = mesh.visual.material
        assert len(mesh.vertices) == 3 * len(mesh.faces) == len(mesh.visual.uv)
        assert max(material.baseColorTexture.size) <= 2048
        assert material.doubleSided
        assert material.baseColorTexture.mode == ("RGBA" if material.alphaMode == "MASK" else "RGB")


@pytest.mark.parametrize("name", NAMES)
def test_most_of_the_photographed_geometry_is_that_of_the_model(name: SceneName) -> None:
    """At least four fifths of the photographed surface lie within 5 cm of the model, but not all of it."""
    model, photo = samples(scene(name, "cad"), 200_000, 0), samples(scene(name, "photo"), 2_000, 1)
    distance_m, _ = cKDTree(model).query(photo)
    # Samples of the model are 0.1-0.2 m apart, so the nearest one is off sideways: judge against the model itself.
    sampling_m, _ = cKDTree(model).query(samples(scene(name, "cad"), 2_000, 2))
    allowance_m = float(np.quantile(sampling_m, 0.95)) + 0.05
    assert (distance_m < allowance_m).mean() > 0.8
    assert (distance_m > allowance_m + 0.1).any()


@pytest.mark.parametrize("name", NAMES)
def test_a_photographed_scene_looks_different(name: SceneName) -> None:
    """Every texture of the photographs differs from the model's, yet shows the same wall."""
    for before, after in zip(scene(name, "cad"), scene(name, "photo"), strict=True):
        old, new = (np.asarray(m.visual.material.baseColorTexture, dtype=float)[::4, ::4, 0] for m in (before, after))
        assert np.abs(old - new).mean() > 3.0
        if before.metadata["name"] in ("wall", "trim", "roof"):
            assert np.corrcoef(old.ravel(), new.ravel())[0, 1] > 0.4


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("flip_x", "flip_y"), [(-1, 1), (1, -1), (-1, -1)])
def test_no_scene_maps_onto_itself(name: SceneName, flip_x: int, flip_y: int) -> None:
    """Mirroring a scene, or turning it by 180 degrees, moves much of its surface away from any surface."""
    points = samples(scene(name, "cad"), 60_000, 0)
    distance_m, _ = cKDTree(points).query(samples(scene(name, "cad"), 2_000, 1) * [flip_x, flip_y, 1])
    assert (distance_m > 0.6).mean() > 0.1


def test_the_textures_do_not_repeat() -> None:
    """A wall's texture is not nearly equal to any shifted copy of itself, be the shift a course, a bay or a storey."""
    finish = Finish("ashlar", (200.0, 185.0, 160.0), size_px=512)
    image = painted(finish, np.random.default_rng(0), Wear(), np.random.default_rng(1)).mean(axis=2)
    spectrum = np.fft.rfft2(image - image.mean())
    likeness = np.fft.irfft2(np.abs(spectrum) ** 2) / (np.abs(image - image.mean()) ** 2).sum()
    near = np.minimum(np.arange(512), 512 - np.arange(512))
    away = (near[:, None] > 24) | (near[None, :] > 24)
    assert likeness[away].max() < 0.5


@pytest.mark.parametrize("pattern", ["ashlar", "rubble", "plaster", "tiles", "boards", "panes", "grass", "leaves"])
def test_wear_changes_a_texture_and_its_seed_alone_decides_how(pattern: str) -> None:
    """The same generators paint the same image; other weather paints another."""
    finish = Finish(pattern, (150.0, 140.0, 120.0), size_px=128)  # type: ignore[arg-type]
    first, again, other = (
        painted(finish, np.random.default_rng(0), Wear(), np.random.default_rng(k)) for k in (1, 1, 2)
    )
    assert first.shape == (128, 128, 4 if pattern == "leaves" else 3)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_training_buildings_differ_in_geometry_by_seed_and_in_looks_by_appearance() -> None:
    """The seed alone decides vertices; the appearance changes every texture and no vertex."""
    same, repainted, other = trained_on(0, 0), trained_on(0, 1), trained_on(1, 0)
    assert digest(same) == digest(training_building(0, 0))
    assert np.array_equal(triangles(same), triangles(repainted))
    assert triangles(same).shape != triangles(other).shape
    for before, after in zip(same, repainted, strict=True):
        old, new = (m.visual.material.baseColorTexture.tobytes() for m in (before, after))
        assert old != new


@pytest.mark.parametrize("seed", range(6))
def test_any_training_building_is_sound(seed: int) -> None:
    """Whatever the seed: finite geometry, no degenerate triangle, small textures, nothing below ground."""
    meshes = trained_on(seed, 0)
    corners = triangles(meshes)
    assert np.isfinite(corners).all()
    assert triangle_areas(corners).min() > 1e-9
    assert corners[..., 2].min() > -0.05
    assert 8.0 < corners[..., 2].max() < 60.0
    assert all(max(mesh.visual.material.baseColorTexture.size) <= 1024 for mesh in meshes)


@pytest.mark.parametrize("arch", get_args(Arch))
def test_a_wall_and_its_hole_have_the_areas_of_the_plan(arch: Arch) -> None:
    """The face of a wall with an opening has the wall's area less the opening's."""
    hole = Opening(0.4, 1.0, 1.2, 2.6, arch)
    (face,) = wall("wall", 6.0, 0.0, 5.0, [hole])
    x, z = hole.outline_xz.T
    hole_area = 0.5 * float(np.sum(x * np.roll(z, -1) - z * np.roll(x, -1)))
    assert triangle_areas(face.triangles_m).sum() == pytest.approx(30.0 - hole_area, rel=1e-9)
    assert z.max() == pytest.approx(hole.z_m + hole.height_m, abs=2e-3)


@pytest.mark.parametrize(
    "solid",
    [
        box((1, 2, 3)),
        plank(0, 0, 2, 1, -1, 0, back=True),
        beam((0, 0, 0), (1, 2, 3), 0.2),
        lathe([(0, 0), (1, 0), (1, 2), (0, 2)], 12)[0],
    ],
)
def test_closed_solids_are_closed_and_face_outwards(solid: np.ndarray) -> None:
    """Their signed volume is that of the shape: faces run counter-clockwise seen from outside."""
    volume = float(np.einsum("ij,ij->i", solid[:, 0], np.cross(solid[:, 1], solid[:, 2])).sum() / 6)
    closed = trimesh.Trimesh(solid.reshape(-1, 3), np.arange(3 * len(solid)).reshape(-1, 3), process=True)
    assert volume > 0.0
    assert volume == pytest.approx(abs(closed.volume), rel=1e-9)


def test_texture_places_keep_lengths() -> None:
    """On a slanted plane two points are as far apart in the texture as in space."""
    corners = slab([(0, 0), (3, 0), (2, 2)], -0.5, 0.5)
    uv = planar_uv(corners)
    for k in range(3):
        in_space = np.linalg.norm(corners[:, k] - corners[:, k - 1], axis=1)
        assert np.linalg.norm(uv[:, k] - uv[:, k - 1], axis=1) == pytest.approx(in_space)


def test_bending_a_wall_keeps_lengths_along_it() -> None:
    """Points at the wall's face go onto the circle, as far along it as they were along the wall."""
    x = np.linspace(-10.0, 10.0, 7)
    placed = Site((1.0, 2.0, 0.5), 30.0, 8.0).place(np.column_stack([x, 0 * x, 0 * x + 3.0])) - [1.0, 2.0, 0.5]
    assert np.hypot(placed[:, 0], placed[:, 1]) == pytest.approx(np.full(7, 8.0))
    angles = np.unwrap(np.arctan2(placed[:, 1], placed[:, 0]))
    assert np.diff(angles) * 8.0 == pytest.approx(np.diff(x))
    assert placed[:, 2] == pytest.approx(np.full(7, 3.0))


def test_no_two_pictures_share_a_place_in_the_atlas() -> None:
    """Every cell of the atlas belongs to one picture at most, and every picture fits."""
    taken = np.zeros((CELLS, CELLS), dtype=int)
    for shelf in SHELVES.values():
        for index in range(shelf.count):
            row, column = shelf.corner(index)
            assert row + shelf.rows <= CELLS
            assert column + shelf.columns <= CELLS
            taken[row : row + shelf.rows, column : column + shelf.columns] += 1
    assert taken.max() == 1
