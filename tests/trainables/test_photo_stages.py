"""Real photographs become views in the CAD's frame, and renders at their poses become their pairs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import trimesh
from PIL import Image
from trimesh.visual import TextureVisuals
from trimesh.visual.material import PBRMaterial

from cadloc import catalog
from cadloc.cad import load_cad
from cadloc.catalog import stage_builder, stages_of
from cadloc.config import TrialConfig
from cadloc.contract import InputError, StageSpec, content_digest
from cadloc.datasets.ace_layout import Dataset
from cadloc.datasets.colmap import colmap_camera
from cadloc.datasets.gt_poses import jittered
from cadloc.datasets.photos import view_names
from cadloc.datasets.posed_images import at_scale
from cadloc.datasets.reconstruction import Camera, Photo
from cadloc.datasets.undistortion import undistorted
from cadloc.geometry import Similarity, inverse, look_at, pinhole, project, rotation_error_deg, translation_error_m
from cadloc.raycasting import RayCastingRenderer
from cadloc.registration import own_axes
from cadloc.rendering import Light, depth_m
from cadloc.scene_config import CadConfig, PhotosConfig, QuerySetConfig, SceneConfig
from cadloc.views_config import GtPosesConfig, ViewsConfig

WIDTH, HEIGHT = 200, 150
REC_FROM_OWN = Similarity(0.3, np.linalg.qr(np.random.default_rng(4).normal(size=(3, 3)))[0], np.array([1.0, -2, 3]))


def proper(similarity: Similarity) -> Similarity:
    """The similarity with its rotation turned from a mirror into a rotation where need be."""
    rotation = similarity.rotation * np.sign(np.linalg.det(similarity.rotation))
    return Similarity(similarity.scale, rotation, similarity.translation)


def house(path: Path) -> None:
    """A textured box of 16 × 10 × 8 m in a file whose y axis points up."""
    speckles = np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    mesh = trimesh.creation.box((16, 8, 10))
    mesh.apply_translation([0, 4, 0])
    mesh.unmerge_vertices()
    uv = (mesh.vertices[:, :2] + mesh.vertices[:, 2:]) / 40
    mesh.visual = TextureVisuals(uv=uv, material=PBRMaterial(baseColorTexture=Image.fromarray(speckles)))
    trimesh.Scene([mesh]).export(path)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> SceneConfig:
    """Six "photos" of the house: renders, with poses in the frame and scale of a reconstruction of their own."""
    folder = tmp_path_factory.mktemp("scene")
    house(folder / "house.glb")
    (folder / "images").mkdir()
    cad = CadConfig(path=str(folder / "house.glb"), up="y", units="m")
    model = load_cad(cad)
    rec_from_own = proper(REC_FROM_OWN)
    np.savetxt(folder / "registration.txt", rec_from_own.matrix, fmt="%.17g")
    rec_from_cad = rec_from_own @ Similarity.from_matrix(inverse(own_axes(model)))
    frames = []
    for i, x in enumerate(np.linspace(-12, 12, 6)):
        pose, K = look_at([x, -22.0, 2.0], [0.0, 0.0, 4.0]), pinhole(WIDTH, HEIGHT, 60.0)
        image = RayCastingRenderer().render(model, pose, K, WIDTH, HEIGHT, Light()).image
        cv2.imwrite(str(folder / "images" / f"p{i}.png"), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        cam_from_rec = inverse(rec_from_cad.transform_pose(pose))
        split = "query" if i % 3 == 2 else "mapping"
        frames.append(
            {
                "name": f"p{i}.png",
                "width": WIDTH,
                "height": HEIGHT,
                "K": K.tolist(),
                "R": cam_from_rec[:3, :3].tolist(),
                "t": cam_from_rec[:3, 3].tolist(),
                "split": split,
            }
        )
    (folder / "poses.json").write_text(json.dumps({"frames": frames}))
    photos = PhotosConfig(
        images=str(folder / "images"),
        reconstruction=str(folder / "poses.json"),
        registration=str(folder / "registration.txt"),
    )
    return SceneConfig(name="house", cad=cad, photos=photos)


def trial(scene: SceneConfig, **gt_poses: Any) -> TrialConfig:
    """Small photos, ray cast."""
    settings = GtPosesConfig(**{"copies": 3, **gt_poses})
    views = ViewsConfig.model_validate(
        {"image": {"width_px": 160, "height_px": 120}, "backend": "raycasting", "gt_poses": settings.model_dump()}
    )
    return TrialConfig(scene=scene, views=views)


def built(spec: StageSpec, folder: Path, inputs: Mapping[str, Path] | None = None) -> Dataset:
    """The stage made below a folder, as an executor makes it."""
    builder = stage_builder(spec.kind)
    places = dict(inputs or {})
    folder.mkdir()
    for chunk in range(builder.chunks(spec.config, places)):
        builder.build_chunk(spec.config, places, folder, chunk)
    builder.finish(spec.config, places, folder)
    return Dataset.open(folder)


@pytest.fixture(scope="module")
def real(scene: SceneConfig, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The stage `photos`."""
    return built(stages_of(trial(scene))["views/real"], tmp_path_factory.mktemp("stages") / "real")


@pytest.fixture(scope="module")
def pairs(scene: SceneConfig, real: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The stage `gt_poses`."""
    spec = stages_of(trial(scene))["views/gt_poses"]
    return built(spec, tmp_path_factory.mktemp("stages") / "gt_poses", {"photos": real.directory})


def test_photos_stand_where_they_were_taken(real: Dataset) -> None:
    """Pose, intrinsics and depth in the CAD's frame are those of the cameras, whatever the reconstruction's frame."""
    views = [view for split in real.splits for view in real.views(split)]
    assert sorted(view.name for view in views) == [f"p{i}" for i in range(6)]
    for view in views:
        x = np.linspace(-12, 12, 6)[int(view.name[1])]
        true = look_at([x, -22.0, 2.0], [0.0, 0.0, 4.0])
        assert translation_error_m(view.cad_from_cam, true) < 1e-9
        assert rotation_error_deg(view.cad_from_cam, true) < 1e-9
        np.testing.assert_allclose(view.intrinsics, pinhole(160, 120, 60.0), rtol=1e-12)
        assert view.image_size_px == (160, 120)


def test_depths_of_photos_are_the_models(scene: SceneConfig, real: Dataset) -> None:
    """At every pixel the stored depth is that of the CAD model at the true pose, to a step of the file."""
    assert scene.cad is not None
    model = load_cad(scene.cad)
    for view in real.views("query"):
        render = RayCastingRenderer().render(model, view.cad_from_cam, view.intrinsics, 160, 120, Light())
        np.testing.assert_allclose(view.read_depth_m(), depth_m(render, view.cad_from_cam), atol=view.depth_step_m)


def test_splits_are_the_sources_and_validation_is_taken_from_mapping(real: Dataset) -> None:
    """Queries stay what the source calls queries; a share of the mapping photos decides."""
    names = {split: {view.name for view in real.views(split)} for split in real.splits}
    assert names["query"] == {"p2", "p5"}
    assert names["validation"]
    assert names["mapping"]
    assert names["mapping"] | names["validation"] == {"p0", "p1", "p3", "p4"}


def test_renders_at_photo_poses_are_pairs(real: Dataset, pairs: Dataset) -> None:
    """Each photo has a render of its name, size, pose and intrinsics, with the same depth."""
    for split in real.splits:
        renders = {view.name: view for view in pairs.views(split)}
        for photo in real.views(split):
            render = renders[photo.name]
            assert render.image_size_px == photo.image_size_px
            np.testing.assert_array_equal(render.cad_from_cam, photo.cad_from_cam)
            np.testing.assert_array_equal(render.intrinsics, photo.intrinsics)
            both = (render.read_depth_m() > 0) & (photo.read_depth_m() > 0)
            assert both.mean() > 0.2
            difference = render.read_depth_m() - photo.read_depth_m()
            assert abs(difference[both]).max() <= render.depth_step_m + photo.depth_step_m


def test_only_mapping_photos_have_jittered_copies(real: Dataset, pairs: Dataset) -> None:
    """Copies go by the photo's name and a number, and stand elsewhere; queries and validation have none."""
    mapping = {view.name: view for view in pairs.views("mapping")}
    for photo in real.views("mapping"):
        for copy in (1, 2):
            jitter_m = translation_error_m(mapping[f"{photo.name}_j{copy:02d}"].cad_from_cam, photo.cad_from_cam)
            assert 0.05 < jitter_m < 10
    for split in ("validation", "query"):
        assert len(pairs.views(split)) == len(real.views(split))  # type: ignore[arg-type]


def test_offsets_of_pairs_are_kept_and_limit_them(scene: SceneConfig, real: Dataset, tmp_path: Path) -> None:
    """A render of the very photo is displaced by under a pixel; a limit below every offset leaves nothing: an error."""
    spec = stages_of(trial(scene, copies=1, max_offset_px=1.0))["views/gt_poses"]
    offsets = built(spec, tmp_path / "kept", {"photos": real.directory}).card["pair_offsets"]
    assert set(offsets) == {f"p{i}" for i in range(6)}
    assert all(offset["median_px"] < 1.0 and offset["matches"] > 10 for offset in offsets.values())
    spec = stages_of(trial(scene, copies=1, max_offset_px=1e-9))["views/gt_poses"]
    with pytest.raises(InputError, match="max_offset_px"):
        built(spec, tmp_path / "refused", {"photos": real.directory})


def test_jitter_has_the_spread_it_is_asked_for() -> None:
    """Standard deviations along each axis: a share of the depth, and degrees."""
    rng = np.random.default_rng(0)
    settings = GtPosesConfig(jitter_translation_pct=5, jitter_rotation_deg=3)
    poses = np.stack([jittered(np.eye(4), 20.0, settings, rng) for _ in range(4000)])
    np.testing.assert_allclose(poses[:, :3, 3].std(axis=0), 1.0, rtol=0.05)
    angles = rotation_error_deg(poses, np.eye(4))
    np.testing.assert_allclose(np.sqrt((angles**2).mean() / 3), 3.0, rtol=0.05)


def test_a_depth_range_leaves_the_rest_unknown(scene: SceneConfig, tmp_path: Path) -> None:
    """What is nearer or farther than the scene's range has no depth."""
    near = scene.model_copy(update={"depth_range_m": (0.0, 20.0)})
    dataset = built(stages_of(trial(near))["views/real"], tmp_path / "near")
    depths_m = np.concatenate([view.read_depth_m().ravel() for view in dataset.views("query")])
    assert depths_m.max() <= 20.0
    assert 0 < (depths_m > 0).mean() < 0.5


def test_distorted_portraits_come_undistorted_and_to_scale(scene: SceneConfig, tmp_path: Path) -> None:
    """What a distorted camera saw at a pixel is where the stored intrinsics project it, each side by its own factor."""
    camera = Camera("SIMPLE_RADIAL", 331, 503, (400.0, 160.0, 260.0, 0.12))
    points_cam = np.array([[x, y, 4.0] for x in (-0.9, 0.0, 0.8) for y in (-1.5, 0.1, 1.7)])
    seen_px = np.asarray(colmap_camera(camera).img_from_cam(points_cam))
    v, u = np.mgrid[:503, :331] + 0.5
    distance_px = np.hypot(u[..., None] - seen_px[:, 0], v[..., None] - seen_px[:, 1])
    blobs = np.repeat((255 * np.exp(-(distance_px**2) / 32)).max(axis=2)[..., None], 3, axis=2).astype(np.uint8)
    image, intrinsics = at_scale(*undistorted(blobs, camera), 200)
    assert min(image.shape[:2]) == 200
    for pixel in project(points_cam, intrinsics):
        column, row = (pixel - 8).astype(int)
        patch = image[row : row + 16, column : column + 16, 0].astype(float)
        rows, columns = np.mgrid[:16, :16] + 0.5
        centre = np.array([(patch * columns).sum(), (patch * rows).sum()]) / patch.sum() + (column, row)
        np.testing.assert_allclose(centre, pixel, atol=0.1)


def test_photos_that_differ_in_suffix_only_are_an_input_error() -> None:
    """Views go by name without suffix, folders joined: two of one name are told, not overwritten."""
    camera = Camera("PINHOLE", 8, 8, (8.0, 8.0, 4.0, 4.0))
    photos = tuple(Photo(name, Path(name), camera, np.eye(4)) for name in ("a/b.jpg", "a/b.png", "c.jpg"))
    with pytest.raises(InputError, match="same name"):
        view_names(photos, "poses.json")
    assert view_names(photos[1:], "poses.json") == {"a/b.png": "a__b", "c.jpg": "c"}


def test_linked_folders_are_content_and_hidden_ones_are_not(tmp_path: Path) -> None:
    """The digest of a folder sees through links, also to itself, and leaves out what begins with a dot."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.jpg").write_text("one")
    images = tmp_path / "images"
    (images / ".thumbs").mkdir(parents=True)
    (images / "day").symlink_to(tmp_path / "elsewhere")
    (images / "again").symlink_to(images)
    before = content_digest(images)
    (images / ".thumbs" / "a.jpg").write_text("small")
    assert content_digest(images) == before
    (tmp_path / "elsewhere" / "a.jpg").write_text("another")
    assert content_digest(images) != before


def test_cameras_beside_a_list_of_poses_are_part_of_it(scene: SceneConfig, tmp_path: Path) -> None:
    """A pose list is named by one file; the file of its cameras beside it decides what the photos are, too."""
    for name in ("poses.txt", "cameras.txt"):
        (tmp_path / name).write_text("one")
    (tmp_path / "images").mkdir()
    photos = PhotosConfig(images=str(tmp_path / "images"), reconstruction=str(tmp_path / "poses.txt"))
    config = trial(scene.model_copy(update={"photos": photos}))
    before = stages_of(config)["views/real"].key
    (tmp_path / "cameras.txt").write_text("another")
    assert stages_of(config)["views/real"].key != before


def test_another_query_set_leaves_the_pairs_alone(scene: SceneConfig) -> None:
    """Renders at photo poses depend on the scene's own CAD, not on other models of the place."""
    assert scene.cad is not None
    wider = scene.model_copy(update={"query_sets": {"other": QuerySetConfig(cad=scene.cad)}})
    before, after = stages_of(trial(scene)), stages_of(trial(wider))
    assert all(before[role].key == after[role].key for role in before)


def test_a_photo_called_like_a_jittered_copy_is_an_input_error(
    scene: SceneConfig, real: Dataset, tmp_path: Path
) -> None:
    """Nothing is overwritten: the clash is told."""
    taken = next(view.name for view in real.views("mapping"))
    for role, suffix in {"rgb": ".jpg", "poses": ".txt", "calibration": ".txt", "depth": ".png"}.items():
        for place in (real.directory / "train" / role).iterdir():
            copy = tmp_path / "photos" / "train" / role / place.name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(place, copy)
            shutil.copy(place, copy.with_name(f"{place.stem}_j01{suffix}"))
    shutil.copy(real.directory / "dataset.json", tmp_path / "photos")
    spec = stages_of(trial(scene))["views/gt_poses"]
    with pytest.raises(InputError, match=f"{taken}_j01"):
        built(spec, tmp_path / "made", {"photos": tmp_path / "photos"})


def test_scenes_with_photos_are_tested_on_them(scene: SceneConfig) -> None:
    """Photos and renders at their poses are test sets where photos are, and the stages of one follow from the other."""
    config = trial(scene)
    assert catalog.test_sets(config) == ("synthetic", "gt_poses", "real")
    stages = stages_of(config)
    assert stages["views/gt_poses"].inputs["photos"].key == stages["views/real"].key
    assert catalog.test_sets(TrialConfig(scene=SceneConfig(name="gate", built_in=True))) == ("synthetic", "photo")


def test_a_changed_photo_changes_its_stages_and_no_others(scene: SceneConfig, tmp_path: Path) -> None:
    """The identity of a scene's photos is their content; renders of the CAD alone do not depend on it."""
    before = {role: spec.key for role, spec in stages_of(trial(scene)).items()}
    assert scene.photos is not None
    image = Path(scene.photos.images) / "p0.png"
    content = image.read_bytes()
    try:
        image.write_bytes(content + b"\0")
        after = {role: spec.key for role, spec in stages_of(trial(scene)).items()}
    finally:
        image.write_bytes(content)
    changed = {role for role in before if before[role] != after[role]}
    assert changed == {role for role in before if role.endswith(("real", "gt_poses"))}
