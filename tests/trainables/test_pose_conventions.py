"""Usual mistakes in poses and registrations: each is named, and what is right is left in peace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import trimesh
from PIL import Image, ImageOps

from cadloc.cad import CadModel, model_from_meshes
from cadloc.datasets.posed_images import PosedImage
from cadloc.datasets.reconstruction import Camera, Photo, Reconstruction, SparsePoints
from cadloc.geometry import Array, Similarity, inverse, look_at, pinhole, project, transform_points
from cadloc.pair_agreement import agreement
from cadloc.pose_conventions import diagnose
from cadloc.registration_check import held_up, reprojection_medians_px, up_axis_of_cameras
from cadloc.rendering import Light, Renderer
from cadloc.scene_config import CadConfig

WIDTH_PX, HEIGHT_PX = 152, 114
OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])
ROLLED = np.array([[0.0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
REC_FROM_CAD = Similarity(
    0.3, np.array([[0.0, -1.0, 0.0], [0.8, 0.0, -0.6], [0.6, 0.0, 0.8]]), np.array([0.4, 1.7, 6.0])
)


def building() -> trimesh.Trimesh:
    """A wall of 24 × 12 m with blocks of random places, depths and colours before it; no symmetry."""
    rng = np.random.default_rng(3)
    parts = [trimesh.creation.box([24.0, 1.0, 12.0])]
    for _ in range(90):
        block = trimesh.creation.box(rng.uniform([0.5, 0.3, 0.5], [3.0, 2.5, 3.0]))
        block.apply_translation([rng.uniform(-12, 12), -0.8, rng.uniform(-6, 6)])
        parts.append(block)
    for part in parts:
        part.visual.face_colors = [*rng.integers(30, 250, 3), 255]
    whole = trimesh.util.concatenate(parts)
    whole.apply_translation([2.0, 3.0, 6.0])
    return whole


@pytest.fixture(scope="module")
def model() -> CadModel:
    return model_from_meshes([building()], "building")


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer()


@pytest.fixture(scope="module")
def photos(model: CadModel, renderer: Renderer) -> tuple[PosedImage, ...]:
    """Two photos of the building from the front, in another light and exposure, posed in a frame of their own."""
    K = pinhole(WIDTH_PX, HEIGHT_PX, 60)
    made = []
    for index, x in enumerate((-9.0, -3.0)):
        cad_from_cam = look_at([x, -16.0 - index, 2.0 + 0.9 * index], [0.5 * x + 1, 3.0, 6.0])
        light = Light((0.5, -0.6, 0.6), (0.9, 0.8, 0.6), (0.35, 0.4, 0.5))
        seen = renderer.render(model, cad_from_cam, K, WIDTH_PX, HEIGHT_PX, light, colour_samples=4)
        scenery = cv2.GaussianBlur(np.random.default_rng(index).normal(170, 60, seen.image.shape), (0, 0), 4)
        image = np.where(seen.mask[..., None], seen.image, scenery.clip(0, 255)).astype(np.uint8)
        pose = inverse(REC_FROM_CAD.transform_pose(cad_from_cam))
        made.append(PosedImage(f"{index}.jpg", image, K, pose))
    return tuple(made)


def posed(photos: Sequence[PosedImage], change: Callable[[Array], Array]) -> list[PosedImage]:
    return [replace(photo, cam_from_rec=change(photo.cam_from_rec)) for photo in photos]


def scaled(pose: Array, factor: float) -> Array:
    """The pose in a reconstruction of another unit."""
    return pose @ np.diag([1, 1, 1, 1.0]) + np.pad((factor - 1) * pose[:3, 3:], ((0, 1), (3, 0)))


POSES: dict[str, Callable[[Array], Array]] = {
    "poses look camera-to-world": inverse,
    "poses look like OpenGL's": lambda pose: np.asarray(OPENGL @ pose),
    "poses look camera-to-world and like OpenGL's": lambda pose: inverse(OPENGL @ pose),
    "the reconstruction's scale looks wrong by a factor: × 10 fits": lambda pose: scaled(pose, 10),
}

REGISTRATIONS: dict[str, Callable[[Similarity], Array]] = {
    "the registration looks inverted": lambda similarity: similarity.inverse().matrix,
    "the CAD's scale looks wrong by a factor: × 0.3048 (feet) fits": lambda right: (
        right.matrix @ np.diag([1 / 0.3048, 1 / 0.3048, 1 / 0.3048, 1])
    ),
    "the CAD's axes look swapped": lambda right: (
        right.matrix @ np.array([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    ),
    "the CAD's axes look turned": lambda right: right.matrix @ np.diag([-1.0, -1.0, 1.0, 1.0]),
}


def test_what_fits_is_fine(model: CadModel, photos: tuple[PosedImage, ...], renderer: Renderer) -> None:
    """Right poses and a right registration are found to be fine."""
    found = diagnose(photos, model, REC_FROM_CAD, renderer)
    assert (found.verdict, found.fault) == ("fine", "")


@pytest.mark.parametrize("fault", POSES)
def test_a_mistake_in_the_poses_is_named(
    fault: str, model: CadModel, photos: tuple[PosedImage, ...], renderer: Renderer
) -> None:
    """Poses in another convention or unit are recognised by the renders that fit once it is undone."""
    found = diagnose(posed(photos, POSES[fault]), model, REC_FROM_CAD, renderer)
    assert found.verdict == "fault"
    assert found.fault.startswith(fault)
    assert found.best.matches > 2 * found.given.matches


@pytest.mark.parametrize("fault", REGISTRATIONS)
def test_a_mistake_in_the_registration_is_named(
    fault: str, model: CadModel, photos: tuple[PosedImage, ...], renderer: Renderer
) -> None:
    """A registration the wrong way round, in another unit or for other axes is recognised the same way."""
    wrong = Similarity.from_matrix(REGISTRATIONS[fault](REC_FROM_CAD))
    found = diagnose(photos, model, wrong, renderer)
    assert found.verdict == "fault"
    assert found.fault.startswith(fault)


def test_a_mirrored_model_is_named(model: CadModel, photos: tuple[PosedImage, ...], renderer: Renderer) -> None:
    """No rotation makes a mirrored CAD fit; a mirror does, and is named."""
    mesh = building()
    mesh.apply_transform(np.diag([-1.0, 1.0, 1.0, 1.0]))
    found = diagnose(photos, model_from_meshes([mesh], "mirrored"), REC_FROM_CAD, renderer)
    assert found.verdict == "fault"
    assert found.fault.startswith("the CAD's axes look mirrored: (-x, y, z)")


def test_shuffled_names_are_named(model: CadModel, photos: tuple[PosedImage, ...], renderer: Renderer) -> None:
    """Photos that fit each other's poses better than their own have their names shuffled."""
    shuffled = [replace(photo, cam_from_rec=photos[1 - index].cam_from_rec) for index, photo in enumerate(photos)]
    found = diagnose(shuffled, model, REC_FROM_CAD, renderer)
    assert found.verdict == "fault"
    assert found.fault.startswith("names look shuffled")


def test_a_fault_without_a_name_is_unclear(model: CadModel, photos: tuple[PosedImage, ...], renderer: Renderer) -> None:
    """A registration that is off by half a building is no usual mistake, and none is made up."""
    off = REC_FROM_CAD @ Similarity(1.0, np.eye(3), np.array([5.0, 0.0, 4.0]))
    found = diagnose(photos, model, off, renderer)
    assert found.verdict == "unclear"


def test_agreement_tells_the_same_place_from_another(photos: tuple[PosedImage, ...]) -> None:
    """A picture agrees with itself under another gamma, and not with its mirror image."""
    image, everywhere = photos[0].image, np.ones((HEIGHT_PX, WIDTH_PX), bool)
    darker = (255 * (image / 255.0) ** 1.6).astype(np.uint8)
    assert agreement(image, darker, everywhere) > 0.9
    assert abs(agreement(image, image[:, ::-1], everywhere)) < 0.2
    assert agreement(image, darker, ~everywhere) == 0


@pytest.mark.parametrize("up", ["x", "y", "z", "-x", "-y", "-z"])
def test_cameras_say_which_axis_is_up(up: str) -> None:
    """Cameras held upright tell the file's axis that is up, whatever the scene says; those that look down do not,
    all ways round one place or over a field with one heading, nor do pictures held sideways before a facade."""
    standing = np.stack([look_at([12 * np.cos(a), 12 * np.sin(a), 1.7], [0, 0, 4]) for a in (0.1, 0.9, 2.0)])
    assert up_axis_of_cameras(standing, CadConfig(path="m.glb", up=up)) == up
    assert up_axis_of_cameras(standing, CadConfig(path="m.glb", up="z")) == "z"
    tipped = np.array([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]]) @ standing
    assert up_axis_of_cameras(tipped, CadConfig(path="m.glb", up="z")) == "-y"
    flying = np.stack([look_at([0, 0, 40], [0.01 * np.cos(a), 0.01 * np.sin(a), 0]) for a in (0, 2.1, 4.2)])
    assert up_axis_of_cameras(flying, CadConfig(path="m.glb", up=up)) is None
    field = np.stack([look_at([x, y, 40], [x, y + 1e-3, 0]) for x in (0, 9, 18) for y in (0, 8, 16)])
    assert up_axis_of_cameras(field, CadConfig(path="m.glb", up=up)) is None
    sideways = np.stack([look_at([x, -16, 1.7], [0.5 * x, 3, 6]) for x in range(-8, 9, 2)]) @ ROLLED
    assert up_axis_of_cameras(sideways, CadConfig(path="m.glb", up=up)) is None


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_photos_are_held_as_their_file_says(orientation: int, tmp_path: Path) -> None:
    """A photo stored lying down counts as held upright once it is turned as its EXIF says."""
    stored_from_shown = {1: 0, 3: 2, 6: 1, 8: 3}[orientation]
    shown = np.zeros((6, 4, 3), np.uint8)
    shown[:2] = 255  # the sky
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.rot90(shown, stored_from_shown)).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as stored:
        np.testing.assert_array_equal(np.asarray(ImageOps.exif_transpose(stored)), shown)
        bright = np.argwhere(np.asarray(stored)[..., 0])[:, ::-1].mean(axis=0) - (np.array(stored.size) - 1) / 2
    up_cam = held_up(Photo("a.png", tmp_path / "a.png", Camera("SIMPLE_PINHOLE", 4, 6, (5.0, 2.0, 3.0)), np.eye(4)))
    np.testing.assert_allclose(up_cam, [*bright / np.linalg.norm(bright), 0])
    turned = np.eye(4)
    turned[:3, :3] = np.stack([np.cross(up_cam, [0, 0, 1.0]), -up_cam, [0, 0, 1]])
    standing = np.stack([look_at([x, -16, 1.7], [0.5 * x, 3, 6]) for x in range(-8, 9, 2)]) @ turned
    assert up_axis_of_cameras(standing, CadConfig(path="m.glb", up="y"), np.tile(up_cam, (9, 1))) == "y"


@pytest.mark.parametrize(
    ("reading", "change"),
    [
        ("as given", lambda pose: pose),
        *zip(("camera-to-world", "OpenGL's (camera y up, z back)"), list(POSES.values())[:2], strict=True),
    ],
)
def test_the_reconstructions_own_points_tell_the_convention(reading: str, change: Callable[[Array], Array]) -> None:
    """Points project onto what photos saw of them under one reading of the poses only, and it is the right one."""
    rng = np.random.default_rng(0)
    positions = rng.normal(0, 2, (60, 3))
    camera = Camera("SIMPLE_PINHOLE", 640, 480, (500.0, 320.0, 240.0))
    K = np.array([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]])
    right = {f"{i}.jpg": inverse(look_at([14 * np.cos(i), 14 * np.sin(i), 2], [0, 0, 0.3])) for i in range(4)}
    seen = {name: (project(transform_points(pose, positions), K), np.arange(60)) for name, pose in right.items()}
    photos = tuple(Photo(name, None, camera, change(pose)) for name, pose in right.items())  # type: ignore[arg-type]
    points = SparsePoints(positions, np.full(60, 4), np.full(60, 0.5), seen)
    errors = reprojection_medians_px(Reconstruction(None, photos, points))  # type: ignore[arg-type]
    assert errors[reading] < 1e-6
    assert min(value for name, value in errors.items() if name != reading) > 20
    assert reprojection_medians_px(Reconstruction(None, photos)) == {}  # type: ignore[arg-type]
