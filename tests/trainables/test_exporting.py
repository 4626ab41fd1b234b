"""Exports: what other tools read is what we had, to 1e-9 and byte by byte, and nobody's folder is written over."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pycolmap
import pytest
import trimesh

from cadloc.contract import InputError
from cadloc.datasets.ace_layout import Dataset, Split
from cadloc.datasets.exporting import export_ace, export_colmap, export_photos, write_colmap
from cadloc.datasets.reading import read_reconstruction
from cadloc.datasets.reconstruction import Camera, Photo, Reconstruction, SparsePoints
from cadloc.datasets.splitting import assign_splits
from cadloc.datasets.undistortion import intrinsics_of, undistorted
from cadloc.geometry import Similarity, inverse, look_at, project, transform_points
from cadloc.scene_config import CadConfig, PhotosConfig, SceneConfig, SplitsConfig
from cadloc_sweep.scene_export import EXPORT_FORMATS, export_scene

LENSES = {
    "PINHOLE": (61.25, 60.5, 31.0, 25.125),
    "SIMPLE_RADIAL": (60.0, 32.5, 24.25, -0.1),
    "OPENCV": (61.25, 60.5, 31.0, 25.125, -0.12, 0.03, 0.001, -0.002),
    "OPENCV_FISHEYE": (61.25, 60.5, 31.0, 25.125, -0.02, 0.01, -0.003, 0.001),
}
SPLITS: dict[str, Split] = {"db/a.jpg": "mapping", "db/b.png": "validation", "c.jpg": "mapping", "q.jpg": "query"}


def made_reconstruction(folder: Path, lenses: tuple[str, ...] = tuple(LENSES)) -> Reconstruction:
    """Four photos of noise in `folder/images`, each of its own lens, far from the origin, and 20 points they see."""
    rng = np.random.default_rng(5)
    origin = np.array([4000.0, -250.0, 30.0])
    positions = origin + rng.normal(size=(20, 3))
    photos, seen_in = [], {}
    for index, name in enumerate(sorted(SPLITS)):
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
        model = lenses[index % len(lenses)]
        cam_from_rec = inverse(look_at(origin + rng.normal(size=3) + np.array([0, 9, 0]), origin))
        photos.append(Photo(name, path, Camera(model, 64, 48, LENSES[model]), cam_from_rec))
        rows = rng.permutation(20)[: 12 + index]
        seen_in[name] = (rng.uniform(0, 48, (len(rows), 2)), rows)
    lengths = np.bincount(np.concatenate([rows for _, rows in seen_in.values()]), minlength=20)
    errors = np.where(np.arange(20) == 7, np.nan, rng.uniform(0.1, 2, 20))
    return Reconstruction(folder, tuple(photos), SparsePoints(positions, lengths, errors, seen_in))


@pytest.fixture
def made(tmp_path: Path) -> Reconstruction:
    return made_reconstruction(tmp_path)


@pytest.fixture
def pinholes(tmp_path: Path) -> Reconstruction:
    return made_reconstruction(tmp_path, ("PINHOLE",))


def read(images: Path, reconstruction: Path) -> Reconstruction:
    return read_reconstruction(PhotosConfig(images=str(images), reconstruction=str(reconstruction)))


def assert_same_photos(ours: Reconstruction, theirs: Reconstruction) -> None:
    assert [photo.name for photo in ours.photos] == [photo.name for photo in theirs.photos]
    for our, their in zip(ours.photos, theirs.photos, strict=True):
        assert our.camera == their.camera
        assert np.abs(our.cam_from_rec - their.cam_from_rec).max() < 1e-9
        assert our.image_path.read_bytes() == their.image_path.read_bytes()


def assert_same_points(ours: SparsePoints | None, theirs: SparsePoints | None) -> None:
    assert ours is not None
    assert theirs is not None
    assert np.abs(ours.positions - theirs.positions).max() < 1e-9
    assert np.array_equal(ours.track_lengths, theirs.track_lengths)
    assert np.allclose(ours.errors_px, theirs.errors_px, rtol=0, atol=1e-9, equal_nan=True)
    assert set(ours.seen_in) == set(theirs.seen_in)
    for name, (pixels, rows) in ours.seen_in.items():
        assert np.abs(pixels - theirs.seen_in[name][0]).max() < 1e-9
        assert np.array_equal(rows, theirs.seen_in[name][1])


def test_colmap_round_trip_is_exact(made: Reconstruction, tmp_path: Path) -> None:
    """Binary, read, text, read: cameras of every model, poses, points and observations are still the same."""
    write_colmap(tmp_path / "binary", made, text=False)
    from_binary = read(tmp_path / "images", tmp_path / "binary")
    write_colmap(tmp_path / "text", from_binary, text=True)
    from_text = read(tmp_path / "images", tmp_path / "text")
    assert {path.suffix for path in (tmp_path / "text").iterdir()} == {".txt"}
    for theirs in (from_binary, from_text):
        assert_same_photos(made, theirs)
        assert_same_points(made.points, theirs.points)


def test_colmap_itself_sees_the_same(made: Reconstruction, tmp_path: Path) -> None:
    """pycolmap projects the points of an exported model where our poses and lenses say, and finds it consistent."""
    write_colmap(tmp_path / "binary", made, text=False)
    model = pycolmap.Reconstruction(str(tmp_path / "binary"))
    assert model.is_valid()
    assert made.points is not None
    photo = next(photo for photo in made.photos if photo.camera.model == "PINHOLE")
    image = model.find_image_with_name(photo.name)
    seen = [image.project_point(position) for position in made.points.positions]
    expected = project(transform_points(photo.cam_from_rec, made.points.positions), intrinsics_of(photo.camera))
    assert np.abs(np.array(seen) - expected).max() < 1e-6


@pytest.mark.parametrize("text", [False, True])
def test_exported_photos_keep_files_and_splits(made: Reconstruction, tmp_path: Path, text: bool) -> None:
    """A whole export is read from its own folder alone, images byte by byte, and its lists give the splits back."""
    export_photos(tmp_path / "out", made, SPLITS, text=text)
    shutil.rmtree(tmp_path / "images")
    again = read(tmp_path / "out" / "images", tmp_path / "out")
    lists = {split: str(tmp_path / "out" / f"{split}.txt") for split in ("mapping", "validation", "query")}
    assert assign_splits(again, SplitsConfig(**lists)) == SPLITS
    made_again = made_reconstruction(tmp_path)
    assert_same_photos(made_again, again)
    assert_same_points(made_again.points, again.points)


def test_ace_round_trip_is_exact(pinholes: Reconstruction, tmp_path: Path) -> None:
    """The ACE layout has the inverse poses, the same intrinsics, the files byte by byte, in their splits' folders."""
    export_ace(tmp_path / "ace", pinholes, SPLITS)
    again = read(tmp_path / "ace", tmp_path / "ace")
    assert {photo.name: photo.split for photo in again.photos} == {
        name.replace("/", "__"): split for name, split in SPLITS.items()
    }
    for photo in pinholes.photos:
        theirs = again.photo(photo.name.replace("/", "__"))
        assert np.abs(theirs.cam_from_rec - photo.cam_from_rec).max() < 1e-9
        assert theirs.camera == photo.camera
        assert theirs.image_path.read_bytes() == photo.image_path.read_bytes()
    export_ace(tmp_path / "second", again, {photo.name: photo.split or "mapping" for photo in again.photos})
    first, second = (
        {path.relative_to(top): path for path in top.rglob("*.*")} for top in (tmp_path / "ace", tmp_path / "second")
    )
    assert set(first) == set(second)
    assert all(first[name].read_bytes() == second[name].read_bytes() for name in first if name.parts[1] != "poses")


def test_ace_gets_undistorted_images(made: Reconstruction, tmp_path: Path) -> None:
    """A lens's photo becomes what `undistorted` makes of it, pixel by pixel, with the intrinsics of that."""
    export_ace(tmp_path / "ace", made, SPLITS)
    views = {view.name: view for split in ("mapping", "query") for view in Dataset.open(tmp_path / "ace").views(split)}  # type: ignore[arg-type]
    for photo in made.photos:
        name = photo.name.replace("/", "__").rsplit(".", 1)[0]
        if name in views and photo.camera.model != "PINHOLE":
            original = cv2.imread(str(photo.image_path), cv2.IMREAD_COLOR_RGB)
            image, K = undistorted(original, photo.camera)
            assert np.array_equal(views[name].read_image(), image)
            assert np.array_equal(views[name].intrinsics, K)


def test_datasets_become_colmap_models(pinholes: Reconstruction, tmp_path: Path) -> None:
    """A dataset of ours as a COLMAP model: the same poses, intrinsics, bytes; the lists hold its splits."""
    export_ace(tmp_path / "ace", pinholes, SPLITS)
    dataset = Dataset.open(tmp_path / "ace")
    for text in (False, True):
        out = tmp_path / f"out{text}"
        export_colmap(out, dataset, text=text)
        again = read(out / "images", out)
        for split in dataset.splits:
            assert [f"{view.name}{view.image_path.suffix}" for view in dataset.views(split)] == (
                out / f"{split}.txt"
            ).read_text().split()
            for view in dataset.views(split):
                photo = again.photo(f"{view.name}{view.image_path.suffix}")
                assert np.abs(inverse(photo.cam_from_rec) - view.cad_from_cam).max() < 1e-9
                assert np.array_equal(intrinsics_of(photo.camera), view.intrinsics)
                assert photo.image_path.read_bytes() == view.image_path.read_bytes()


def test_folders_with_something_in_them_are_left_alone(pinholes: Reconstruction, tmp_path: Path) -> None:
    """An export never writes into a folder that holds something, nor over a file; an empty folder will do."""
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("mine")
    for place in (taken, taken / "mine.txt", taken / "mine.txt" / "below"):
        for write in (
            lambda to: write_colmap(to, pinholes, text=False),
            lambda to: export_photos(to, pinholes, SPLITS, text=False),
            lambda to: export_ace(to, pinholes, SPLITS),
        ):
            with pytest.raises(InputError, match=r"a new or empty folder|a folder that can be written"):
                write(place)
    assert [path.read_text() for path in taken.iterdir()] == ["mine"]
    (tmp_path / "empty").mkdir()
    export_ace(tmp_path / "empty", pinholes, SPLITS)
    assert (tmp_path / "empty" / "train").is_dir()


def test_a_failed_export_leaves_nothing(made: Reconstruction, tmp_path: Path) -> None:
    """When a photo cannot be read half way, neither the folder nor a part of it is left behind."""
    before = {path.name for path in tmp_path.iterdir()}
    broken = replace(made, photos=(*made.photos[:-1], replace(made.photos[-1], image_path=tmp_path / "gone.jpg")))
    with pytest.raises(InputError, match="gone"):
        export_ace(tmp_path / "ace", broken, SPLITS)
    assert {path.name for path in tmp_path.iterdir()} == before


def test_names_that_become_one_are_told(pinholes: Reconstruction, tmp_path: Path) -> None:
    """`db/a.jpg` and `db__a.png` would be one view in the ACE layout: refused, both named."""
    twin = replace(pinholes.photos[1], name="db__a.png")
    both = replace(pinholes, photos=(*pinholes.photos, twin))
    with pytest.raises(InputError, match=r"db__a.png: found the same name as db/a.jpg"):
        export_ace(tmp_path / "ace", both, {**SPLITS, "db__a.png": "mapping"})


@pytest.fixture
def scene(pinholes: Reconstruction, tmp_path: Path) -> tuple[SceneConfig, Similarity]:
    """A box in metres whose photos lie in a frame of another scale; and `rec_from_cad`, the box's file being z up."""
    write_colmap(tmp_path / "sparse", pinholes, text=False)
    trimesh.creation.box((4, 3, 5)).export(tmp_path / "box.ply")
    rec_from_cad = Similarity(0.4, look_at([0, 0, 0], [1.0, 2.0, 0.1], roll_deg=7)[:3, :3], np.array([4e3, -250.0, 30]))
    np.savetxt(tmp_path / "rec_from_cad.txt", rec_from_cad.matrix, fmt="%.17g")
    photos = PhotosConfig(
        images=str(tmp_path / "images"),
        reconstruction=str(tmp_path / "sparse"),
        registration=str(tmp_path / "rec_from_cad.txt"),
    )
    cad = CadConfig(path=str(tmp_path / "box.ply"), up="z", units="m")
    return SceneConfig(name="box", cad=cad, photos=photos), rec_from_cad


@pytest.mark.parametrize("format", EXPORT_FORMATS)
def test_scenes_are_exported_in_the_cad_s_frame(
    scene: tuple[SceneConfig, Similarity], pinholes: Reconstruction, tmp_path: Path, format: str
) -> None:
    """Points of the box project to the same pixels by exported poses as by the registration and the old poses."""
    config, rec_from_cad = scene
    lines = export_scene(config, tmp_path / "out", format)
    images = tmp_path / "out" / ("" if format == "ace" else "images")
    again = read(images, tmp_path / "out")
    corners = np.array([[-2, 1.5, -2.5], [2, -1.5, 2.5], [0.5, 0.25, 0]])
    for photo in pinholes.photos:
        theirs = again.photo(photo.name.replace("/", "__") if format == "ace" else photo.name)
        K = intrinsics_of(photo.camera)
        expected = project(transform_points(photo.cam_from_rec, rec_from_cad.transform_points(corners)), K)
        assert np.abs(project(transform_points(theirs.cam_from_rec, corners), K) - expected).max() < 1e-6
        assert theirs.image_path.read_bytes() == photo.image_path.read_bytes()
    if format != "ace":
        assert again.points is not None
        assert pinholes.points is not None
        in_rec = rec_from_cad.transform_points(again.points.positions)
        assert np.abs(in_rec - pinholes.points.positions).max() < 1e-6
    assert "mapping" in lines[0]
    assert "metres" in lines[1]


def test_what_cannot_be_exported_is_told(scene: tuple[SceneConfig, Similarity], tmp_path: Path) -> None:
    """An unknown format and a scene without photos are refused together, and nothing is written."""
    bare = scene[0].model_copy(update={"photos": None})
    with pytest.raises(InputError) as refused:
        export_scene(bare, tmp_path / "out", "nvm")
    assert len(refused.value.faults) == 2
    assert not (tmp_path / "out").exists()


def test_exporting_is_imported_without_heavy_modules() -> None:
    """The command line knows of exports without loading OpenCV, pycolmap or the mesh readers."""
    heavy = "{'cv2', 'pycolmap', 'trimesh', 'torch', 'numpy'}"
    code = f"import sys, cadloc_sweep.scene_export; sys.exit(len({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
