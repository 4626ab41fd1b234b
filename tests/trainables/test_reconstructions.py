"""Reconstructions of others: every format says the same, and every defect is told, with its file and name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pycolmap
import pytest

from cadloc.contract import InputError
from cadloc.datasets.colmap import colmap_camera
from cadloc.datasets.exporting import export_ace, write_colmap
from cadloc.datasets.reading import detect_format, read_reconstruction
from cadloc.datasets.reconstruction import Camera, Photo, Reconstruction, SparsePoints
from cadloc.datasets.undistortion import intrinsics_of
from cadloc.geometry import look_at, project, transform_points
from cadloc.scene_config import PhotosConfig

WIDTH_PX, HEIGHT_PX = 64, 48


def made_reconstruction(
    images: Path, names: Sequence[str] = ("a.jpg", "b.jpg", "c.jpg", "d.jpg"), splits: Sequence[str | None] = (None,)
) -> Reconstruction:
    """Photos of noise around a cloud of 30 points, each seen by all but the last photo, written below `images`."""
    rng = np.random.default_rng(3)
    positions = rng.normal(size=(30, 3))
    camera = Camera("PINHOLE", WIDTH_PX, HEIGHT_PX, (61.25, 60.5, 31.0, 25.125))
    photos, seen_in = [], {}
    for index, name in enumerate(names):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(images / name), rng.integers(0, 256, (HEIGHT_PX, WIDTH_PX, 3), dtype=np.uint8))
        cam_from_rec = np.linalg.inv(look_at(rng.normal(size=3) - np.array([0, 8, 0]), rng.normal(size=3) / 4))
        photos.append(Photo(name, images / name, camera, cam_from_rec, splits[index % len(splits)]))  # type: ignore[arg-type]
        if index < len(names) - 1:
            pixels = project(transform_points(cam_from_rec, positions), intrinsics_of(camera))
            seen_in[name] = (pixels[::-1], np.arange(30)[::-1])
    lengths = np.full(30, len(names) - 1)
    points = SparsePoints(positions, lengths, rng.uniform(0.1, 2, 30), seen_in)
    return Reconstruction(images.parent, tuple(photos), points)


def as_colmap(made: Reconstruction, folder: Path) -> Path:
    write_colmap(folder / "sparse" / "0", made, text=False)
    return folder / "sparse" / "0"


def as_text(made: Reconstruction, folder: Path) -> Path:
    """A model in text files as COLMAP wrote them before rigs and frames."""
    write_colmap(folder, made, text=True)
    (folder / "rigs.txt").unlink()
    (folder / "frames.txt").unlink()
    return folder


def as_phototourism(made: Reconstruction, folder: Path) -> Path:
    write_colmap(folder / "dense" / "sparse", made, text=False)
    shutil.copytree(made.source / "images", folder / "dense" / "images")
    return folder


def as_ace(made: Reconstruction, folder: Path) -> Path:
    export_ace(folder, made, {photo.name: photo.split or "mapping" for photo in made.photos})
    return folder


def as_poses_json(made: Reconstruction, folder: Path) -> Path:
    frames = []
    for photo in made.photos:
        R, t = photo.cam_from_rec[:3, :3].tolist(), photo.cam_from_rec[:3, 3].tolist()
        sides = {"width": photo.camera.width_px, "height": photo.camera.height_px}
        frames.append({"name": photo.name, **sides, "K": intrinsics_of(photo.camera).tolist(), "R": R, "t": t})
        frames[-1] |= {"split": photo.split} if photo.split else {}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "poses.json").write_text(json.dumps({"frames": frames}))
    return folder / "poses.json"


def as_pose_list(made: Reconstruction, folder: Path) -> Path:
    """Lists in which no name has its suffix, and the quaternions' signs and lengths are anything."""
    poses, cameras = ["# name qw qx qy qz tx ty tz"], []
    for index, photo in enumerate(made.photos):
        name = photo.name.rsplit(".", 1)[0]
        x, y, z, w = pycolmap.Rotation3d(photo.cam_from_rec[:3, :3]).quat * (-1.5 if index % 2 else 1)
        numbers = (w, x, y, z, *photo.cam_from_rec[:3, 3])
        poses.append(" ".join([name, *(f"{number:.17g}" for number in numbers)]))
        camera = photo.camera
        words = (camera.model, camera.width_px, camera.height_px, *camera.params)
        cameras.append(" ".join([name, *map(str, words)]))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scene_poses.txt").write_text("\n".join(poses) + "\n")
    (folder / "queries_with_intrinsics.txt").write_text("\n".join(cameras) + "\n")
    (folder / "names.txt").write_text("\n".join(photo.name for photo in made.photos))
    return folder


WRITERS: dict[str, Callable[[Reconstruction, Path], Path]] = {
    "colmap": as_colmap,
    "text": as_text,
    "phototourism": as_phototourism,
    "ace": as_ace,
    "poses_json": as_poses_json,
    "pose_list": as_pose_list,
}


@pytest.fixture
def made(tmp_path: Path) -> Reconstruction:
    return made_reconstruction(tmp_path / "images")


def photos_config(made: Reconstruction, reconstruction: Path) -> PhotosConfig:
    return PhotosConfig(images=str(made.source / "images"), reconstruction=str(reconstruction))


def refusal(config: PhotosConfig) -> str:
    """What reading says when it refuses."""
    with pytest.raises(InputError) as refused:
        read_reconstruction(config)
    return str(refused.value)


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_says_the_same(made: Reconstruction, tmp_path: Path, kind: str) -> None:
    """A format is recognised by its content; names, cameras, poses and image files come out the same of each."""
    place = WRITERS[kind](made, tmp_path / "source")
    assert detect_format(place) == ("colmap" if kind == "text" else kind)
    read = read_reconstruction(photos_config(made, place))
    assert [photo.name for photo in read.photos] == [photo.name for photo in made.photos]
    for ours, theirs in zip(made.photos, read.photos, strict=True):
        assert ours.camera == theirs.camera
        assert np.abs(ours.cam_from_rec - theirs.cam_from_rec).max() < 1e-9
        assert ours.image_path.read_bytes() == theirs.image_path.read_bytes()


def test_points_and_observations_belong_together(made: Reconstruction, tmp_path: Path) -> None:
    """What a photo is said to see lies, projected, at the pixels it is said to be seen at, whatever the numbering."""
    points = read_reconstruction(photos_config(made, as_colmap(made, tmp_path / "source"))).points
    assert points is not None
    assert set(points.seen_in) == {"a.jpg", "b.jpg", "c.jpg"}
    assert points.track_lengths.tolist() == [3] * 30
    for photo in made.photos[:-1]:
        pixels, rows = points.seen_in[photo.name]
        projected = project(transform_points(photo.cam_from_rec, points.positions[rows]), intrinsics_of(photo.camera))
        assert np.abs(projected - pixels).max() < 1e-6
    assert np.isfinite(points.errors_px).all()


def test_splits_that_a_source_states_are_kept(tmp_path: Path) -> None:
    """ACE's folders and the words of a poses file say who maps and who asks; the same names in both stay apart."""
    made = made_reconstruction(tmp_path / "images", splits=("mapping", "query", "validation"))
    for writer in (as_ace, as_poses_json):
        read = read_reconstruction(photos_config(made, writer(made, tmp_path / writer.__name__)))
        assert [photo.split for photo in read.photos] == [photo.split for photo in made.photos]
    shutil.copytree(tmp_path / "as_ace" / "train", tmp_path / "as_ace" / "test", dirs_exist_ok=True)
    names = [photo.name for photo in read_reconstruction(photos_config(made, tmp_path / "as_ace")).photos]
    assert names == ["b.jpg", "c.jpg", "test/a.jpg", "test/d.jpg", "train/a.jpg", "train/d.jpg"]


def test_poses_of_few_digits_become_rigid(made: Reconstruction, tmp_path: Path) -> None:
    """Rotations written with five digits are made orthonormal, and stay where they were within their rounding."""
    rounded = replace(
        made, photos=tuple(replace(photo, cam_from_rec=photo.cam_from_rec.round(5)) for photo in made.photos)
    )
    read = read_reconstruction(photos_config(made, as_poses_json(rounded, tmp_path)))
    for ours, theirs in zip(made.photos, read.photos, strict=True):
        rotation = theirs.cam_from_rec[:3, :3]
        assert np.abs(rotation @ rotation.T - np.eye(3)).max() < 1e-12
        assert np.abs(ours.cam_from_rec - theirs.cam_from_rec).max() < 2e-5


def edited_frames(made: Reconstruction, folder: Path, **changes: dict[str, object]) -> PhotosConfig:
    """The photos as a poses file, with other values in the frames of these names."""
    path = as_poses_json(made, folder)
    content = json.loads(path.read_text())
    for frame in content["frames"]:
        frame |= changes.get(frame["name"].split(".")[0], {})
    path.write_text(json.dumps(content))
    return photos_config(made, path)


def test_all_defects_are_told_at_once(made: Reconstruction, tmp_path: Path) -> None:
    """A pose that is not finite, a mirrored one, a name out of the folder, a size that is another: each by name."""
    nan, mirror = [[float("nan")] * 3] * 3, [[1, 0, 0], [0, 1, 0], [0, 0, -1]]
    changes: dict[str, dict[str, object]] = {
        "a": {"R": nan},
        "b": {"R": mirror},
        "c": {"name": "../c.jpg"},
        "d": {"width": 65},
    }
    told = refusal(edited_frames(made, tmp_path, **changes))
    assert len(told.splitlines()) == 4
    for name, word in (("a.jpg", "finite"), ("b.jpg", "mirrors"), ("../c.jpg", "out of"), ("d.jpg", "64×48")):
        assert any(name in line and word in line for line in told.splitlines()), (name, told)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"t": [1, 2]}, "t"),
        ({"K": None}, "K"),
        ({"K": [[60, 1, 32], [0, 60, 24], [0, 0, 1]]}, "pinhole"),
        ({"K": [[-60, 0, 32], [0, 60, 24], [0, 0, 1]]}, "focal"),
        ({"R": [[2, 0, 0], [0, 2, 0], [0, 0, 2]]}, "rotation"),
        ({"split": "train"}, "validation"),
        ({"name": "b.jpg"}, "2 times"),
        ({"name": 7}, "name"),
        ({"name": "/etc/hostname"}, "out of"),
    ],
)
def test_a_frame_s_defect_is_told(made: Reconstruction, tmp_path: Path, changes: dict[str, object], word: str) -> None:
    """Whatever is wrong with one frame of a poses file is one line that names file and defect."""
    told = refusal(edited_frames(made, tmp_path, a=changes))
    assert len(told.splitlines()) == 1
    assert "poses.json" in told
    assert word in told


def test_missing_photos_are_listed(made: Reconstruction, tmp_path: Path) -> None:
    """Each photo without a file is named; without any the folder is to blame, and an unreadable file is told apart."""
    config = photos_config(made, as_colmap(made, tmp_path / "source"))
    (tmp_path / "images" / "b.jpg").unlink()
    (tmp_path / "images" / "d.jpg").write_bytes(b"no image")
    told = refusal(config).splitlines()
    assert len(told) == 2
    assert "b.jpg" in told[0]
    assert "d.jpg" in told[1]
    (tmp_path / "empty").mkdir()
    told = refusal(config.model_copy(update={"images": str(tmp_path / "empty")})).splitlines()
    assert len(told) == 1
    assert "none of the 4 photos" in told[0]


def test_a_cut_binary_model_is_refused(made: Reconstruction, tmp_path: Path) -> None:
    """Wherever a binary file is cut, or goes on after its end, the refusal names it: nothing hangs, nothing passes."""
    folder = as_colmap(made, tmp_path / "source")
    config = photos_config(made, folder)
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        cuts = {0, 5, 8, 9, 17, len(whole) // 2, len(whole) - 9, len(whole) - 1}
        for damaged in [whole[:cut] for cut in cuts] + [whole + b"\0\0\0"]:
            path.write_bytes(damaged)
            assert f"{path}: reconstruction: found" in refusal(config), len(damaged)
        path.write_bytes(b"\xff" * len(whole))
        assert str(path) in refusal(config)
        path.write_bytes(whole)
    read_reconstruction(config)


def test_a_cut_text_model_is_refused(made: Reconstruction, tmp_path: Path) -> None:
    """A text model that lost its end is refused, between lines as well as within one."""
    folder = as_text(made, tmp_path / "source")
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for cut in (whole.rindex(b" "), whole.rindex(b"\n", 0, len(whole) - 2) + 1):
            path.write_bytes(whole[:cut])
            assert str(path) in refusal(photos_config(made, folder))
        path.write_bytes(whole)
    read_reconstruction(photos_config(made, folder))


def test_phototourism_scenes_bring_their_own_photos(made: Reconstruction, tmp_path: Path) -> None:
    """Where `images` is the scene's folder the photos are its own `dense/images`, also for one without `dense`."""
    scene = as_phototourism(made, tmp_path / "scene")
    for folder in (scene, scene / "dense"):
        config = PhotosConfig(images=str(folder), reconstruction=str(folder), format="phototourism")
        read = read_reconstruction(config)
        assert [photo.image_path for photo in read.photos] == sorted((scene / "dense" / "images").iterdir())
    assert "no Phototourism scene" in refusal(config.model_copy(update={"reconstruction": str(scene / "dense/sparse")}))


def test_photos_of_a_rig_have_their_own_poses(made: Reconstruction, tmp_path: Path) -> None:
    """Two cameras on a rig: each photo's pose is its sensor's, the rig's and the frame's together."""
    model, sensor_from_rig = pycolmap.Reconstruction(), pycolmap.Rigid3d(made.photos[2].cam_from_rec[:3])
    rig, frame = pycolmap.Rig(rig_id=1), pycolmap.Frame(frame_id=1, rig_id=1)
    for number in (1, 2):
        model.add_camera(colmap_camera(made.photos[0].camera, number))
        sensor = pycolmap.sensor_t(pycolmap.SensorType.CAMERA, number)
        _ = rig.add_ref_sensor(sensor) if number == 1 else rig.add_sensor(sensor, sensor_from_rig)
        frame.add_data_id(pycolmap.data_t(sensor, number))
    model.add_rig(rig)
    frame.rig_from_world = pycolmap.Rigid3d(made.photos[0].cam_from_rec[:3])
    model.add_frame(frame)
    for number, name in ((1, "a.jpg"), (2, "b.jpg")):
        image = pycolmap.Image(name=name, camera_id=number, image_id=number)
        image.frame_id = 1
        model.add_image(image)
    (tmp_path / "rig").mkdir()
    model.write_binary(str(tmp_path / "rig"))
    first, second = read_reconstruction(photos_config(made, tmp_path / "rig")).photos
    assert np.abs(first.cam_from_rec - made.photos[0].cam_from_rec).max() < 1e-9
    assert np.abs(second.cam_from_rec - made.photos[2].cam_from_rec @ made.photos[0].cam_from_rec).max() < 1e-9


def test_a_camera_of_impossible_size_is_refused(made: Reconstruction, tmp_path: Path) -> None:
    """A damaged camera that claims an image of billions of pixels is told at once, not walked along."""
    camera = Camera("OPENCV", 2**40, 48, (60.0, 60.0, 32.0, 24.0, -0.1, 0.0, 0.0, 0.0))
    huge = replace(made, photos=tuple(replace(photo, camera=camera) for photo in made.photos), points=None)
    assert "sides of 1 to" in refusal(photos_config(made, as_colmap(huge, tmp_path / "source")))


def test_a_colmap_model_of_parts_is_refused(made: Reconstruction, tmp_path: Path) -> None:
    """Files missing, files of another model, a camera COLMAP does not have: told, with the file or folder."""
    folder = as_colmap(made, tmp_path / "source")
    other = as_colmap(made_reconstruction(tmp_path / "other" / "images", ("x.jpg", "y.jpg")), tmp_path / "other")
    whole = (folder / "frames.bin").read_bytes()
    shutil.copy(other / "frames.bin", folder / "frames.bin")
    assert "do not belong together" in refusal(photos_config(made, folder))
    (folder / "frames.bin").write_bytes(whole)
    cameras = bytearray((folder / "cameras.bin").read_bytes())
    cameras[12] = 99
    (folder / "cameras.bin").write_bytes(bytes(cameras))
    assert "camera model of unknown number 99" in refusal(photos_config(made, folder))
    (folder / "cameras.bin").unlink()
    assert "cameras.bin" in refusal(photos_config(made, folder))


def test_one_of_several_models_must_be_named(made: Reconstruction, tmp_path: Path) -> None:
    """A folder with the models 0 and 1 is refused rather than guessed at, whatever it is called; named, either is
    read, and they need not be the same."""
    folder = as_colmap(made, tmp_path / "source")
    shutil.copytree(folder, folder.parent / "1")
    assert "2 separate models" in refusal(photos_config(made, tmp_path / "source"))
    two = made_reconstruction(tmp_path / "images", ("a.jpg", "b.jpg"))
    shutil.rmtree(folder.parent / "1")
    write_colmap(folder.parent / "1", two, text=False)
    for name, count in (("0", 4), ("1", 2)):
        assert len(read_reconstruction(photos_config(made, folder.parent / name)).photos) == count
    folder.parent.rename(tmp_path / "models")
    assert "2 separate models" in refusal(photos_config(made, tmp_path / "models"))


@pytest.mark.parametrize("header", [True, False])
def test_a_text_model_may_lack_its_last_line_end(made: Reconstruction, tmp_path: Path, header: bool) -> None:
    """Where headers count the records, a last line without end passes if it is whole; without headers it does not."""
    folder = as_text(replace(made, photos=made.photos[:3]), tmp_path / "source")
    for path in folder.iterdir():
        kept = [line for line in path.read_text().splitlines() if header or not line.startswith("#")]
        path.write_text("\n".join(kept))
    config = photos_config(made, folder)
    if header:
        assert len(read_reconstruction(config).photos) == 3
        cameras = (folder / "cameras.txt").read_text()
        (folder / "cameras.txt").write_text(cameras.rsplit(" ", 1)[0])
    assert "its last line has no end" in refusal(config)


def test_a_list_of_cameras_may_be_called_as_colmap_s(made: Reconstruction, tmp_path: Path) -> None:
    """A folder of lists is one of lists, also when one of them has the name of a COLMAP file."""
    folder = as_pose_list(made, tmp_path / "lists")
    (folder / "queries_with_intrinsics.txt").rename(folder / "cameras.txt")
    assert detect_format(folder) == "pose_list"
    assert len(read_reconstruction(photos_config(made, folder)).photos) == 4


def test_pose_lists_tell_their_line(made: Reconstruction, tmp_path: Path) -> None:
    """A line too short, a word for a number, a pose without camera, a model nobody has: file, line and name."""
    folder = as_pose_list(made, tmp_path / "lists")
    poses, cameras = folder / "scene_poses.txt", folder / "queries_with_intrinsics.txt"
    lines = poses.read_text().splitlines()
    lines[2], lines[3] = "b 1 0 0 0 0 0", lines[3].replace("c ", "c nan", 1).replace("nan", "nan ", 1).rsplit(" ", 1)[0]
    poses.write_text("\n".join([*lines, "e 1 0 0 0 0 0 0"]))
    cameras.write_text(cameras.read_text().replace("d PINHOLE", "d PINHOL", 1))
    told = refusal(photos_config(made, folder))
    for words in ("scene_poses.txt:3: b", "scene_poses.txt:6: e", "txt:4: d: found the camera model 'PINHOL'"):
        assert words in told
    assert "c.jpg: found a pose that is not finite" in told


@pytest.mark.parametrize("content", ["", "{", '{"frames": 3}', '{"frames": []}', "[]", '{"frames": [3]}', '{"a": NaN}'])
def test_no_poses_is_no_reconstruction(made: Reconstruction, tmp_path: Path, content: str) -> None:
    """A poses file that is empty, cut or something else is refused in one line."""
    (tmp_path / "poses.json").write_text(content)
    assert len(refusal(photos_config(made, tmp_path / "poses.json")).splitlines()) == 1


def test_what_is_no_reconstruction_is_refused(made: Reconstruction, tmp_path: Path) -> None:
    """Nothing there, an empty folder, a folder of photos, a picture: the formats that are known are told."""
    (tmp_path / "empty").mkdir()
    for name in ("nothing", "empty", "images", "images/a.jpg"):
        assert detect_format(tmp_path / name) is None
        assert "poses_json" in refusal(photos_config(made, tmp_path / name))


def test_lenses_that_turn_back_are_refused(made: Reconstruction, tmp_path: Path) -> None:
    """A polynomial that folds the image's corners back, a panorama, an unfit number of parameters: no such lens."""
    lenses = {
        "SIMPLE_RADIAL": ((30.0, 32.0, 24.0, -0.6), "turns back"),
        "EQUIRECTANGULAR": ((64.0, 48.0), "image plane"),
    }
    for model, (params, word) in lenses.items():
        camera = Camera(model, WIDTH_PX, HEIGHT_PX, params)
        bent = replace(made, photos=tuple(replace(photo, camera=camera) for photo in made.photos), points=None)
        told = refusal(photos_config(made, as_colmap(bent, tmp_path / model)))
        assert len(told.splitlines()) == 1
        assert word in told
    with pytest.raises(ValueError, match="no COLMAP camera"):
        colmap_camera(Camera("OPENCV", WIDTH_PX, HEIGHT_PX, (1.0,)))


@pytest.mark.shared_data
@pytest.mark.parametrize("scene", ["fountain", "sceaux"])
def test_real_models_agree_with_their_pose_files(shared_data: Path, scene: str) -> None:
    """A COLMAP model and a poses file of the same photos are the same cameras and poses, and the points project."""
    folder = shared_data / scene
    by_file, by_model = (
        read_reconstruction(PhotosConfig(images=str(folder / "images"), reconstruction=str(folder / name)))
        for name in ("poses.json", "sparse")
    )
    for ours, theirs in zip(by_file.photos, by_model.photos, strict=True):
        assert (ours.name, ours.camera) == (theirs.name, theirs.camera)
        assert np.abs(ours.cam_from_rec - theirs.cam_from_rec).max() < 1e-9
    points = by_model.points
    assert points is not None
    for name, (pixels, rows) in points.seen_in.items():
        photo = by_model.photo(name)
        projected = project(transform_points(photo.cam_from_rec, points.positions[rows]), intrinsics_of(photo.camera))
        assert np.median(np.linalg.norm(projected - pixels, axis=1)) < 0.5
