"""`cadloc-sweep scene …` on a small building of our own: what is typed, printed and written, and the exit codes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from PIL import Image

from cadloc.cad import load_cad
from cadloc.datasets.exporting import export_ace, write_colmap
from cadloc.datasets.reading import read_reconstruction
from cadloc.geometry import inverse, look_at, pinhole
from cadloc.registration_check import PhotoCheck
from cadloc.rendering import Light, Renderer
from cadloc.scene_config import CadConfig, PhotosConfig
from cadloc_sweep.cli import run_command
from cadloc_sweep.scene_check import load_photos, summary, understated
from cadloc_sweep.scene_files import load_scene

WIDTH_PX, HEIGHT_PX = 240, 180
PLACES = ((-9.0, 1.6), (-3.0, 2.4), (4.0, 3.0))


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
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a user has it: a model in centimetres, photos, and poses in the model's coordinates, unscaled."""
    folder = tmp_path_factory.mktemp("place") / "town_hall"
    (folder / "images").mkdir(parents=True)
    mesh = building()
    mesh.apply_scale(100.0)
    mesh.export(folder / "hall.ply")
    model = load_cad(CadConfig(path=str(folder / "hall.ply"), up="z", units="cm"))
    K, frames = pinhole(WIDTH_PX, HEIGHT_PX, 60), []
    with Renderer() as renderer:
        for index, (x, z) in enumerate(PLACES):
            cad_from_cam = look_at([x, -17.0 - index, z], [0.5 * x + 1, 3.0, 6.0])
            light = Light((0.5, -0.6, 0.6), (0.9, 0.8, 0.6), (0.35, 0.4, 0.5))
            seen = renderer.render(model, cad_from_cam, K, WIDTH_PX, HEIGHT_PX, light, colour_samples=4)
            Image.fromarray(np.where(seen.mask[..., None], seen.image, 200)).save(folder / f"images/{index}.png")
            pose = inverse(cad_from_cam)
            frames.append({
                "name": f"{index}.png", "width": WIDTH_PX, "height": HEIGHT_PX, "K": K.tolist(),
                "R": pose[:3, :3].tolist(), "t": (100 * pose[:3, 3]).tolist(),
                "split": "query" if index == 1 else "mapping",
            })  # fmt: skip
    (folder / "poses.json").write_text(json.dumps({"frames": frames}))
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder to break, with a scene file beside it; the current directory is its parent."""
    for module in ("scene_check", "scene_show"):  # small photos are looked at as they are: enlarged ones take seconds
        monkeypatch.setattr(f"cadloc_sweep.{module}.SHORT_SIDE_PX", HEIGHT_PX)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made, tmp_path / "town_hall")
    (tmp_path / "hall.yaml").write_text(
        "name: hall\ncad: {path: town_hall/hall.ply, units: cm, up: z}\n"
        "photos: {images: town_hall/images, reconstruction: town_hall/poses.json}\n"
    )
    return tmp_path / "town_hall"


def with_poses(place: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    file = place / "poses.json"
    content = json.loads(file.read_text())
    change(content["frames"])
    file.write_text(json.dumps(content))


def inverted(frames: list[dict[str, Any]]) -> None:
    for frame in frames:
        R, t = np.array(frame["R"]), np.array(frame["t"])
        frame["R"], frame["t"] = R.T.tolist(), (-R.T @ t).tolist()


def larger(frames: list[dict[str, Any]]) -> None:
    for frame in frames:
        frame["t"] = (10 * np.array(frame["t"])).tolist()


def y_and_z_swapped(frames: list[dict[str, Any]]) -> None:
    for frame in frames:
        frame["R"] = (np.array(frame["R"]) @ [[1, 0, 0], [0, 0, -1], [0, 1, 0]]).tolist()


def shuffled(frames: list[dict[str, Any]]) -> None:
    names = [frame["name"] for frame in frames]
    for index, frame in enumerate(frames):
        frame["name"] = names[index - 1]


def without_a_number(frames: list[dict[str, Any]]) -> None:
    frames[1]["t"][1] = float("nan")


def test_init_check_show(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder becomes a scene file that says what was guessed; check finds it fine, show draws it."""
    assert run_command(["scene", "init", "town_hall", "--units", "cm", "--to", "scene.yaml"]) == 0
    text = Path("scene.yaml").read_text()
    assert "format: poses_json" in text
    assert 'up: "z"  # from the photos' in text
    capsys.readouterr()
    assert run_command(["scene", "check", "scene.yaml", "--to", "checked"]) == 0
    printed = capsys.readouterr().out
    assert "verdict    fine" in printed
    found = json.loads(Path("checked/check.json").read_text())
    assert found["median"]["photos"] == len(PLACES)
    assert found["median"]["offset_px"] < 1.0
    assert {path.name for path in Path("checked/overlays").iterdir()} == {f"{i}.jpg" for i in range(len(PLACES))}
    assert run_command(["scene", "show", "scene.yaml", "--to", "shown"]) == 0
    assert "heights    1.6 … 3.0 m" in capsys.readouterr().out
    for name in ("top_view.png", "pairs.png"):
        with Image.open(f"shown/{name}") as picture:
            assert picture.width > 400


def test_init_replaces_nothing_unasked(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A scene file that is there stays as it is, unless --force is given."""
    Path("mine.yaml").write_text("mine")
    assert run_command(["scene", "init", "town_hall", "--units", "cm", "--to", "mine.yaml"]) == 2
    assert "--force" in capsys.readouterr().err
    assert Path("mine.yaml").read_text() == "mine"
    assert run_command(["scene", "init", "town_hall", "--units", "cm", "--to", "mine.yaml", "--force"]) == 0
    assert Path("mine.yaml").read_text().startswith("# hall.ply")


@pytest.mark.parametrize("units", ["-", "e", "1.2.3", "nan", "-1"])
def test_init_refuses_what_is_no_unit(units: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A unit that is neither a word nor a positive number is a fault of --units."""
    assert run_command(["scene", "init", "town_hall", f"--units={units}", "--to", "scene.yaml"]) == 2
    assert "--units" in capsys.readouterr().err


def test_init_quotes_names_of_digits(place: Path) -> None:
    """A folder called by a year gives a scene whose name is those digits, not a number."""
    place.rename("2024")
    assert run_command(["scene", "init", "2024", "--units", "cm", "--up", "z", "--to", "2024.yaml"]) == 0
    assert load_scene("2024.yaml").name == "2024"


def test_init_takes_the_first_of_several_models(place: Path) -> None:
    """Of the models 0 and 1 the first is named, with a comment that there are two, and it is read."""
    made = read_reconstruction(PhotosConfig(images="town_hall/images", reconstruction="town_hall/poses.json"))
    for name in ("0", "1"):
        write_colmap(place / "sparse" / name, made, text=False)
    assert run_command(["scene", "init", "town_hall", "--units", "cm", "--to", "scene.yaml"]) == 0
    assert '"town_hall/sparse/0"  # one of 2 models: 0, 1' in Path("scene.yaml").read_text()
    assert run_command(["scene", "show", "scene.yaml"]) == 0


def test_nothing_lies_among_the_poses(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Poses beside the model or the scene file are named by their file, or refused where a folder holds them."""
    made = read_reconstruction(PhotosConfig(images="town_hall/images", reconstruction="town_hall/poses.json"))
    (place / "poses.json").unlink()
    poses = [" ".join(map(str, (photo.name, 1, 0, 0, 0, *photo.cam_from_rec[:3, 3]))) for photo in made.photos]
    cameras = [f"{photo.name} PINHOLE {WIDTH_PX} {HEIGHT_PX} 200 200 120 90" for photo in made.photos]
    (place / "poses.txt").write_text("\n".join(poses))
    (place / "cameras.txt").write_text("\n".join(cameras))
    command = ["scene", "init", "town_hall", "--units", "cm", "--up", "z", "--to"]
    assert run_command([*command, "town_hall/scene.yaml"]) == 0
    assert 'reconstruction: "poses.txt"' in (place / "scene.yaml").read_text()
    (place / "poses.txt").unlink()
    export_ace(place / "ace", made, {photo.name: "mapping" for photo in made.photos})
    stated = ["--reconstruction", "town_hall/ace"]
    assert run_command([*command, "ace.yaml", *stated]) == 0
    assert run_command([*command, "town_hall/ace/scene.yaml", *stated]) == 2
    assert "a folder of its own" in capsys.readouterr().err
    (place / "ace" / "train").rename(place / "train")
    assert run_command([*command, "other.yaml"]) == 2
    assert "poses (ace) among other files" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("offsets_px", "is_bound"),
    [((1, 2, 3, 2, 1), False), ((1, 2, 3, 2, np.nan), False), ((1, 2, 3, np.nan, np.nan), True), ((12,) * 5, True)],
)
def test_a_residual_of_survivors_is_a_lower_bound(offsets_px: tuple[float, ...], is_bound: bool) -> None:
    """With over a fifth of the photos unmatched, or a median near the search's reach, the residual is `at least`."""
    picture, mask = np.zeros((480, 640, 3), np.uint8), np.ones((480, 640), bool)
    checks = [
        PhotoCheck("a", "mapping", picture, picture, mask, offset, offset / 100, 20, 9.0, 1.6, 0.0)
        for offset in map(float, offsets_px)
    ]
    assert understated(checks) == is_bound
    residual = next(line for line in summary(checks, metric=True) if line.startswith("residual"))
    assert ("at least" in residual) == is_bound


def test_init_lists_all_that_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An empty folder lacks a model, photos and poses: three faults at once."""
    assert run_command(["scene", "init", str(tmp_path), "--to", str(tmp_path / "scene.yaml")]) == 2
    printed = capsys.readouterr().err
    assert [word for word in ("--cad", "--photos", "--reconstruction") if word not in printed] == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (inverted, "poses look camera-to-world"),
        (larger, "× 10 fits"),
        (y_and_z_swapped, "axes look swapped"),
        (shuffled, "names look shuffled"),
        (without_a_number, "1.png"),
    ],
)
def test_check_names_the_fault(
    change: Callable[[list[dict[str, Any]]], None], named: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Poses broken in a usual way end with exit code 2 and the mistake's name, not with a traceback."""
    with_poses(place, change)
    assert run_command(["scene", "check", "hall.yaml", "--photos", "1"]) == 2
    assert named in capsys.readouterr().err


def test_check_lists_missing_photos(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every photo without a file is listed."""
    for name in ("0.png", "2.png"):
        (place / "images" / name).unlink()
    assert run_command(["scene", "check", "hall.yaml"]) == 2
    printed = capsys.readouterr().err
    assert "0.png" in printed
    assert "2.png" in printed
    assert "1.png" not in printed


def test_check_tells_the_wrong_up_axis(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Photos fit whatever is called up; that cameras are held another way up is a warning that names the axis."""
    text = Path("hall.yaml").read_text()
    Path("hall.yaml").write_text(text.replace("up: z", "up: y"))
    assert run_command(["scene", "check", "hall.yaml", "--photos", "1"]) == 0
    assert 'write `up: "z"`' in capsys.readouterr().out


def test_poses_are_read_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scene's reconstruction is read a single time: large ones take a while."""
    monkeypatch.delattr("cadloc.datasets.photos.read_reconstruction")
    _, reconstruction, posed = load_photos(load_scene("hall.yaml"))
    assert [photo.photo for photo in posed] == list(reconstruction.photos)


def test_check_needs_photos(capsys: pytest.CaptureFixture[str]) -> None:
    """A scene without photos cannot be checked against them."""
    assert run_command(["scene", "check", "gate"]) == 2
    assert "a scene without photos" in capsys.readouterr().err


def test_a_dataset_is_exported_by_its_folder(place: Path) -> None:
    """Views in the ACE layout come out as a COLMAP model with the same poses; the layout they have is refused."""
    photos = PhotosConfig(images="town_hall/images", reconstruction="town_hall/poses.json")
    made = read_reconstruction(photos)
    export_ace(place / "ace", made, {photo.name: "mapping" for photo in made.photos})
    assert run_command(["scene", "export", "town_hall/ace", "--to", "out", "--format", "ace"]) == 2
    assert run_command(["scene", "export", "town_hall/ace", "--to", "out"]) == 0
    back = read_reconstruction(PhotosConfig(images="out/images", reconstruction="out/sparse/0"))
    assert [Path(photo.name).stem for photo in back.photos] == [Path(photo.name).stem for photo in made.photos]
    for one, other in zip(back.photos, made.photos, strict=True):
        np.testing.assert_allclose(one.cam_from_rec, other.cam_from_rec, atol=1e-9)
