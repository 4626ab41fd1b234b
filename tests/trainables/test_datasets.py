"""Datasets: what is written is read back exactly, by us and by who only knows the layout; views show what they say."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import trimesh
from PIL import Image
from trimesh.visual import TextureVisuals
from trimesh.visual.material import PBRMaterial

from cadloc.cad import load_cad, model_from_meshes
from cadloc.contract import InputError
from cadloc.datasets import building
from cadloc.datasets.ace_layout import Dataset, View, depth_step_m, write_card, write_view
from cadloc.geometry import Similarity, cell_pixels, inverse, look_at, pinhole, project, rigid, transform_points
from cadloc.raycasting import RayCastingRenderer
from cadloc.rendering import Light
from cadloc.scene_config import CadConfig, QuerySetConfig, SceneConfig
from cadloc.scene_models import load_scene_model
from cadloc.viewpoints import Viewpoint
from cadloc.views_config import CountsConfig, ImageConfig, ViewpointsConfig, ViewsConfig

SCENE_FROM_OTHER = Similarity(0.8, look_at([0, 0, 0], [1.0, 2.0, 0.1], roll_deg=7)[:3, :3], np.array([3.0, -2.0, 1.0]))


def box_on_plaza(wide_m: float = 40.0) -> list[trimesh.Trimesh]:
    """A textured box of 16 × 10 × 8 m on a plaza."""
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    meshes = []
    for size, height in (((16, 10, 8), 4.0), ((wide_m, wide_m, 0.2), -0.1)):
        mesh = trimesh.creation.box(size)
        mesh.apply_translation([0, 0, height])
        mesh.unmerge_vertices()
        uv = mesh.vertices[:, :2] / 8 + mesh.vertices[:, 2:] / 8
        mesh.visual = TextureVisuals(uv=uv, material=PBRMaterial(baseColorTexture=image))
        meshes.append(mesh)
    return meshes


def save(meshes: list[trimesh.Trimesh], path: Path) -> str:
    trimesh.Scene(meshes).export(path)
    return str(path)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> SceneConfig:
    """The box, and the same box in another frame and scale as a query set that is registered to it."""
    folder = tmp_path_factory.mktemp("scene")
    moved = box_on_plaza()
    for mesh in moved:
        mesh.apply_transform(SCENE_FROM_OTHER.inverse().matrix)
    np.savetxt(folder / "registration.txt", SCENE_FROM_OTHER.matrix)
    other = CadConfig(path=save(moved, folder / "other.glb"), up="z")
    return SceneConfig(
        name="box",
        cad=CadConfig(path=save(box_on_plaza(), folder / "box.glb"), up="z"),
        query_sets={"other": QuerySetConfig(cad=other, registration=str(folder / "registration.txt"))},
    )


def stage_config(scene: SceneConfig, source: str = "synthetic", **views: object) -> dict[str, Any]:
    settings = {
        "image": ImageConfig(width_px=96, height_px=64),
        "counts": CountsConfig(mapping=17, validation=2, query=4),
        "backend": "raycasting",
        **views,
    }
    made = ViewsConfig(**settings)  # type: ignore[arg-type]
    return {"scene": scene.model_dump(mode="json"), "views": made.model_dump(mode="json"), "source": source}


def build(config: dict[str, Any], directory: Path, *, backwards: bool = False) -> Dataset:
    order = list(range(building.chunks(config, {})))[:: -1 if backwards else 1]
    made = [building.build_chunk(config, {}, directory, chunk) for chunk in order]
    building.finish(config, {}, directory)
    dataset = Dataset.open(directory)
    assert sum(made) == sum(len(dataset.views(split)) for split in dataset.splits)
    return dataset


@pytest.fixture(scope="module")
def synthetic(scene: SceneConfig, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return build(stage_config(scene), tmp_path_factory.mktemp("synthetic"))


def write_one(directory: Path, name: str = "a", split: str = "mapping", seed: int = 0) -> dict[str, Any]:
    """One view of random numbers, written below `directory`; returns what was written."""
    rng = np.random.default_rng(seed)
    written = {
        "image": np.full((48, 64, 3), rng.integers(0, 256, 3), np.uint8),
        "depth_m": np.where(rng.random((48, 64)) < 0.2, 0, rng.uniform(0.5, 60, (48, 64))),
        "cad_from_cam": rigid(look_at(rng.normal(size=3), rng.normal(size=3))[:3, :3], 100 * rng.normal(size=3)),
        "intrinsics": pinhole(64, 48, rng.uniform(40, 80)),
    }
    write_view(directory, split, name, **written, step_m=0.001)  # type: ignore[arg-type]
    return written


def test_reading_gives_back_what_was_written(tmp_path: Path) -> None:
    """Poses and intrinsics come back bit by bit, depth within half a step, images within JPEG's rounding."""
    written = {name: write_one(tmp_path, name, seed=seed) for seed, name in enumerate("abc")}
    write_card(tmp_path, {"depth_step_m": 0.001})
    for view in Dataset.open(tmp_path).views("mapping"):
        assert np.array_equal(view.cad_from_cam, written[view.name]["cad_from_cam"])
        assert np.array_equal(view.intrinsics, written[view.name]["intrinsics"])
        assert np.abs(view.read_depth_m() - written[view.name]["depth_m"]).max() <= 0.0005 + 1e-5
        assert np.abs(view.read_image().astype(int) - written[view.name]["image"]).max() <= 3


def test_layout_is_ace_s(tmp_path: Path) -> None:
    """Who knows the ACE layout alone (camera-to-world text, K text, 16-bit millimetres) reads the same numbers."""
    written = write_one(tmp_path, "frame", "query")
    folder = tmp_path / "test"
    assert np.array_equal(np.loadtxt(folder / "poses" / "frame.txt"), written["cad_from_cam"])
    assert np.array_equal(np.loadtxt(folder / "calibration" / "frame.txt"), written["intrinsics"])
    depth = cv2.imread(str(folder / "depth" / "frame.png"), cv2.IMREAD_ANYDEPTH)
    assert depth.dtype == np.uint16
    assert np.abs(depth / 1000 - written["depth_m"]).max() <= 0.00051
    assert cv2.imread(str(folder / "rgb" / "frame.jpg"))[0, 0, ::-1].tolist() == pytest.approx(
        written["image"][0, 0].tolist(), abs=3
    )


def test_dataset_of_others(tmp_path: Path) -> None:
    """A dataset prepared by ACE's scripts is read: roles in file names, one focal length, no card, no validation."""
    written = write_one(tmp_path, "f")
    folder = tmp_path / "train"
    depth = cv2.imread(str(folder / "depth" / "f.png"), cv2.IMREAD_UNCHANGED)
    depth[0, 0] = 65535
    cv2.imwrite(str(folder / "depth" / "seq-01-f.depth.png"), depth)
    (folder / "depth" / "f.png").unlink()
    (folder / "rgb" / "f.jpg").rename(folder / "rgb" / "seq-01-f.color.jpg")
    (folder / "poses" / "f.txt").rename(folder / "poses" / "seq-01-f.pose.txt")
    (folder / "calibration" / "f.txt").unlink()
    (folder / "calibration" / "seq-01-f.calibration.txt").write_text("525.0")
    dataset = Dataset.open(tmp_path)
    (view,) = dataset.views("mapping")
    assert dataset.splits == ("mapping",)
    assert view.name == "seq-01-f"
    assert view.intrinsics.tolist() == [[525, 0, 32], [0, 525, 24], [0, 0, 1]]
    assert np.array_equal(view.cad_from_cam, written["cad_from_cam"])
    assert view.read_depth_m()[0, 0] == 0


def test_pairs_by_name_never_by_order(tmp_path: Path) -> None:
    """A stray file is a fault that is named; it does not shift the pairing of the others."""
    for name in "abc":
        write_one(tmp_path, name)
    (tmp_path / "train" / "poses" / "b.txt").unlink()
    with pytest.raises(InputError, match="poses: b: found no file of that name"):
        Dataset.open(tmp_path)


def test_lost_frames_are_left_out(tmp_path: Path) -> None:
    """Poses of infinities mark frames that were lost: the others are read."""
    write_one(tmp_path, "a")
    write_one(tmp_path, "b")
    np.savetxt(tmp_path / "train" / "poses" / "a.txt", np.full((4, 4), -np.inf))
    assert [view.name for view in Dataset.open(tmp_path).views("mapping")] == ["b"]


def spoil_pose(folder: Path) -> None:
    np.savetxt(folder / "train" / "poses" / "a.txt", 2 * np.eye(4))


def mirror_pose(folder: Path) -> None:
    np.savetxt(folder / "train" / "poses" / "a.txt", np.diag([1.0, 1, -1, 1]))


def spoil_text(folder: Path) -> None:
    (folder / "train" / "poses" / "a.txt").write_text("1 0 0 nothing")


def ragged_text(folder: Path) -> None:
    (folder / "train" / "poses" / "a.txt").write_text("1 0 0\n1 0")


def skew_calibration(folder: Path) -> None:
    np.savetxt(folder / "train" / "calibration" / "a.txt", np.eye(3) + np.eye(3, k=1))


def negative_focal_length(folder: Path) -> None:
    (folder / "train" / "calibration" / "a.txt").write_text("-500")


def spoil_card(folder: Path) -> None:
    (folder / "dataset.json").write_text("{")


def future_card(folder: Path) -> None:
    (folder / "dataset.json").write_text(json.dumps({"schema_version": 99}))


def card_without_step(folder: Path) -> None:
    (folder / "dataset.json").write_text(json.dumps({"schema_version": 1}))


@pytest.mark.parametrize(
    ("spoil", "key"),
    [
        (spoil_pose, "poses"),
        (mirror_pose, "poses"),
        (spoil_text, "poses"),
        (ragged_text, "poses"),
        (skew_calibration, "calibration"),
        (negative_focal_length, "calibration"),
        (spoil_card, "dataset.json"),
        (future_card, "schema_version"),
        (card_without_step, "depth_step_m"),
    ],
)
def test_faulty_files(tmp_path: Path, spoil: Callable[[Path], None], key: str) -> None:
    """Every unusable file is an input error that names it."""
    write_one(tmp_path)
    spoil(tmp_path)
    with pytest.raises(InputError) as caught:
        Dataset.open(tmp_path)
    assert caught.value.faults[0].key == key
    assert str(tmp_path) in caught.value.faults[0].file


def test_missing_things(tmp_path: Path) -> None:
    """No directory, no split, an absent split, an unreadable image, no depth: each is an input error."""
    with pytest.raises(InputError, match="no such directory"):
        Dataset.open(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no split"):
        Dataset.open(tmp_path)
    write_one(tmp_path)
    (tmp_path / "train" / "depth" / "a.png").unlink()
    dataset = Dataset.open(tmp_path)
    with pytest.raises(InputError, match="split: found 'query'"):
        dataset.views("query")
    with pytest.raises(InputError, match="no depth for a"):
        dataset.views("mapping")[0].read_depth_m()
    (tmp_path / "train" / "rgb" / "a.jpg").write_bytes(b"no image")
    with pytest.raises(InputError, match="unreadable image"):
        dataset.views("mapping")[0].read_image()


def test_changed_files_are_noticed(tmp_path: Path) -> None:
    """The card's digests tell a dataset whose files changed since."""
    write_one(tmp_path)
    write_card(tmp_path, {"depth_step_m": 0.001})
    dataset = Dataset.open(tmp_path)
    dataset.verify()
    write_one(tmp_path, seed=1)
    with pytest.raises(InputError, match="changed"):
        dataset.verify()


def test_depth_step() -> None:
    """Depth is stored in millimetres where 16 bits reach, else in the next round step; beyond 655 km not at all."""
    assert [depth_step_m(far) for far in (10, 65.535, 66, 300)] == [0.001, 0.001, 0.002, 0.005]
    with pytest.raises(ValueError, match="does not fit"):
        depth_step_m(700_000)


def test_depth_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    """Depth beyond the last step, or negative, is an error of the caller and not wrapped around."""
    for bad in (70.0, -1.0, np.nan):
        with pytest.raises(ValueError, match="finite and within"):
            write_view(
                tmp_path, "query", "a", image=np.zeros((8, 8, 3), np.uint8), depth_m=np.full((8, 8), bad),
                cad_from_cam=np.eye(4), intrinsics=np.eye(3), step_m=0.001,
            )  # fmt: skip


def test_views_show_the_model(synthetic: Dataset) -> None:
    """Stored depth, unprojected at cell centres, lies on the model's surface within half its step along the ray."""
    surface = trimesh.util.concatenate(box_on_plaza())
    for view in synthetic.views("query"):
        points = view.scene_coordinates(cell_pixels(8, 12) - 0.5).reshape(-1, 3)
        seen = points[np.isfinite(points).all(axis=1)]
        assert len(seen) > 20
        slant = np.linalg.norm(transform_points(inverse(view.cad_from_cam), seen), axis=1).max()
        step_m = synthetic.card["depth_step_m"]
        distance_m = trimesh.proximity.closest_point(surface, seen)[1]
        assert distance_m.max() <= step_m * slant / 5


def test_scene_coordinates_project_back(synthetic: Dataset) -> None:
    """A scene coordinate projects to the pixel it was looked up at; outside the image there is none."""
    view = synthetic.views("mapping")[0]
    pixels = np.random.default_rng(0).uniform([0, 0], [96, 64], (50, 2))
    points = view.scene_coordinates(pixels)
    back = project(transform_points(inverse(view.cad_from_cam), points), view.intrinsics)
    known = np.isfinite(points).all(axis=1)
    assert known.any()
    assert np.allclose(back[known], pixels[known])
    assert np.isnan(view.scene_coordinates([[-1.0, 5.0], [96.5, 5.0], [5.0, 64.0]])).all()


def test_depth_images_of_another_size(synthetic: Dataset, tmp_path: Path) -> None:
    """Where depth images are smaller than photos, a pixel's depth is that of the depth pixel it lies in."""
    view = synthetic.views("mapping")[0]
    half = cv2.imread(str(view.depth_path), cv2.IMREAD_UNCHANGED)[1::2, 1::2]
    cv2.imwrite(str(tmp_path / "half.png"), half)
    small = View(
        view.name, view.cad_from_cam, view.intrinsics, view.image_path, tmp_path / "half.png", view.depth_step_m
    )
    odd = np.stack(np.meshgrid(np.arange(1, 96, 2), np.arange(1, 64, 2)), axis=-1) + 0.5
    assert np.array_equal(small.scene_coordinates(odd), view.scene_coordinates(odd), equal_nan=True)


def test_chunks_in_any_order(scene: SceneConfig, synthetic: Dataset, tmp_path: Path) -> None:
    """Pieces built in another order, after forgetting everything cached, are the same bytes."""
    building._cached_job.cache_clear()
    building._cached_plan.cache_clear()
    again = build(stage_config(scene), tmp_path, backwards=True)
    assert building.chunks(stage_config(scene), {}) == 2
    assert again.card == synthetic.card


def test_card(scene: SceneConfig, synthetic: Dataset) -> None:
    """The card says what was made, and from what, without places on this machine."""
    card = synthetic.card
    assert {split: entry["views"] for split, entry in card["splits"].items()} == {
        "mapping": 17, "validation": 2, "query": 4
    }  # fmt: skip
    assert card["domain"] == "synthetic"
    assert card["image_size_px"] == [96, 64]
    assert card["provenance"]["config"]["scene"]["cad"]["path"].startswith("sha256:")
    synthetic.verify()


def test_query_set_of_another_model(scene: SceneConfig, synthetic: Dataset, tmp_path: Path) -> None:
    """The same box, modelled in another frame and scale, gives after registration the same query views."""
    other = build(stage_config(scene, "other"), tmp_path)
    assert other.splits == ("query",)
    assert other.card["dropped"] == {"query": 0}
    for view, same in zip(other.views("query"), synthetic.views("query"), strict=True):
        assert view.name == same.name
        assert np.array_equal(view.cad_from_cam, same.cad_from_cam)
        difference_m = np.abs(view.read_depth_m() - same.read_depth_m())
        assert np.quantile(difference_m, 0.97) <= 2 * synthetic.card["depth_step_m"]
        assert np.abs(view.read_image().astype(float) - same.read_image()).mean() < 4


def test_up_axes_do_not_matter_to_registration(scene: SceneConfig, tmp_path: Path) -> None:
    """Registration is between the files' own axes, so it holds whichever axis of either points up."""
    lying = box_on_plaza()
    turn = np.array([[0.0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])  # own z-up to own y-up
    for mesh in lying:
        mesh.apply_transform(turn @ SCENE_FROM_OTHER.inverse().matrix)
    np.savetxt(tmp_path / "m.txt", SCENE_FROM_OTHER.matrix @ turn.T)
    query_set = QuerySetConfig(
        cad=CadConfig(path=save(lying, tmp_path / "lying.glb"), up="y"), registration=str(tmp_path / "m.txt")
    )
    registered = load_scene_model(scene.model_copy(update={"query_sets": {"lying": query_set}}), "lying")
    assert scene.cad is not None
    assert np.allclose(registered.bounds, load_cad(scene.cad).bounds, atol=1e-5)


def test_loading_twice_gives_the_same_model(tmp_path: Path) -> None:
    """One mesh of many primitives, nodes without names: every process sees the same faces in the same order."""
    boxes = [trimesh.creation.box([1, 1, 1 + index]) for index in range(8)]
    files = trimesh.Scene(boxes).export(file_type="gltf")
    tree = json.loads(files["model.gltf"])
    primitives = [primitive for mesh in tree["meshes"] for primitive in mesh["primitives"]]
    tree |= {"meshes": [{"name": "m", "primitives": primitives}], "nodes": [{"name": "n", "mesh": 0}], "scene": 0}
    tree["scenes"] = [{"nodes": [0]}]
    for name, content in {**files, "model.gltf": json.dumps(tree).encode()}.items():
        (tmp_path / name).write_bytes(content)
    config = CadConfig(path=str(tmp_path / "model.gltf"), up="z")
    first, again = load_cad(config).mesh, load_cad(config).mesh
    assert len(first.faces) > 12
    assert np.array_equal(first.vertices, again.vertices)
    assert np.array_equal(first.faces, again.faces)


def test_query_set_elsewhere(scene: SceneConfig, tmp_path: Path) -> None:
    """A model registered to another place is an input error, not an empty test set."""
    far = np.eye(4)
    far[0, 3] = 1000.0
    np.savetxt(tmp_path / "far.txt", far)
    elsewhere = QuerySetConfig(cad=scene.cad, registration=str(tmp_path / "far.txt"))
    config = stage_config(scene.model_copy(update={"query_sets": {"elsewhere": elsewhere}}), "elsewhere")
    assert building.build_chunk(config, {}, tmp_path / "out", 0) == 0
    with pytest.raises(InputError, match=r"query_sets\.elsewhere: found none of the 4"):
        building.finish(config, {}, tmp_path / "out")


@pytest.mark.parametrize("text", ["1 0 0\n0 1 0\n0 0 1", "words", "-1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1", None])
def test_faulty_registration(scene: SceneConfig, tmp_path: Path, text: str | None) -> None:
    """A registration that is missing, no matrix or a mirror is an input error that names the query set."""
    if text is not None:
        (tmp_path / "m.txt").write_text(text)
    query_set = QuerySetConfig(cad=scene.cad, registration=str(tmp_path / "m.txt"))
    with pytest.raises(InputError, match=r"m\.txt: query_sets\.bad\.registration"):
        load_scene_model(scene.model_copy(update={"query_sets": {"bad": query_set}}), "bad")


def test_photographs(scene: SceneConfig, tmp_path: Path) -> None:
    """Simulated photographs keep pose and depth of the plan, but have no depth where somebody stands."""
    ground = ViewpointsConfig(ground_share=1.0)
    planned = building._job(stage_config(scene, viewpoints=ground))
    job = replace(planned, source="photo", plan=tuple(item for item in planned.plan if item[0] == "query"))
    assert all(building.make_view(job, split, viewpoint, tmp_path) for split, viewpoint in job.plan)
    write_card(tmp_path, {"depth_step_m": job.step_m})
    hidden = 0
    for view, (_, viewpoint) in zip(Dataset.open(tmp_path).views("query"), job.plan, strict=True):
        depth_m = view.read_depth_m()
        assert (view.name, view.cad_from_cam.tolist()) == (viewpoint.name, viewpoint.cad_from_cam.tolist())
        unhidden_m = job.site.caster.first_hit_depth(viewpoint.cad_from_cam, viewpoint.intrinsics, 96, 64)
        known = depth_m > 0
        assert np.isclose(depth_m[known], unhidden_m[known], atol=job.step_m).mean() > 0.99
        hidden += int(((unhidden_m > 0) & ~known).sum())
    assert hidden > 0


def test_smooth_render_is_exact_and_smooth() -> None:
    """Depth is that of the pixel centres; coverage is the share of the pixel, within the weights' reach."""
    model = model_from_meshes(box_on_plaza()[:1], "box")
    viewpoint = Viewpoint("a", look_at([20.0, -25.0, 6.0], [0.0, 0.0, 4.0], roll_deg=10), pinhole(96, 64, 60.0))
    renderer = RayCastingRenderer()
    render = building.smooth_render(renderer, model, viewpoint.cad_from_cam, viewpoint.intrinsics, (96, 64), Light())
    plain = renderer.render(model, viewpoint.cad_from_cam, viewpoint.intrinsics, 96, 64, Light())
    assert np.array_equal(render.depth_m > 0, plain.mask)
    seen = plain.scene_coordinates[plain.mask]
    pixels = project(transform_points(inverse(viewpoint.cad_from_cam), seen), viewpoint.intrinsics)
    assert np.abs(pixels % 1 - 0.5).max() < 1e-3
    plain_depth_m = transform_points(inverse(viewpoint.cad_from_cam), seen)[:, 2]
    assert np.allclose(plain_depth_m, render.depth_m[plain.mask], atol=1e-4)
    assert np.isclose(render.coverage.sum(), plain.mask.sum(), rtol=0.01)
    assert ((render.coverage > 0.05) & (render.coverage < 0.95)).any()
