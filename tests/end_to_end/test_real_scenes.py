"""Real photographs against real models: the four scenes fit, and broken copies of them are seen through."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
import pytest

from cadloc_sweep.cli import run_command

pytestmark = [pytest.mark.shared_data, pytest.mark.timeout(600)]

SCENES = Path(__file__).resolve().parents[2] / "search_spaces" / "scenes"


def checked(scene: Path, to: Path, *settings: str) -> dict[str, Any]:
    """`scene check` of a few photos; what it wrote."""
    options = [item for setting in settings for item in ("--set", setting)]
    assert run_command(["scene", "check", str(scene), "--to", str(to), "--photos", "6", *options]) == 0
    return dict(json.loads((to / "check.json").read_text()))


@pytest.mark.parametrize(
    ("name", "most_px"), [("fountain", 0.8), ("herzjesu", 1.0), ("sceaux", 1.2), ("reichstag", 20.0)]
)
def test_the_scenes_as_they_are_fit(name: str, most_px: float, shared_data: Path, tmp_path: Path) -> None:
    """Every scene passes; meshes made from the photos fit to a pixel, the CAD by hand as its registration is."""
    found = checked(SCENES / f"{name}.yaml", tmp_path, f"data_root={shared_data}")
    assert found["median"]["offset_px"] < most_px
    assert found["median"]["photos"] >= 5
    assert len(list((tmp_path / "overlays").iterdir())) == 6


def test_a_model_without_colours_fits_too(shared_data: Path, tmp_path: Path) -> None:
    """A raw, coarse mesh (3000 faces, grey) of the portal is still found to fit its photos."""
    (tmp_path / "scene.yaml").write_text(
        f"name: raw\ncad: {{path: {shared_data}/herzjesu/lod/lod3k_raw.ply, units: m, up: -z}}\n"
        f"photos: {{images: {shared_data}/herzjesu/images, reconstruction: {shared_data}/herzjesu/poses.json}}\n"
    )
    assert run_command(["scene", "check", str(tmp_path / "scene.yaml"), "--photos", "6"]) == 0


def copied(name: str, shared_data: Path, tmp_path: Path) -> Path:
    """A scene whose poses.json may be broken; images and model stay where they are."""
    source = shared_data / name
    shutil.copy(source / "poses.json", tmp_path)
    (tmp_path / "images").symlink_to(source / "images")
    cad = {"fountain": "mesh_textured.glb", "reichstag": "reichstag_b.glb"}[name]
    up = {"fountain": "-z", "reichstag": "z"}[name]
    registration = source / "sfm_from_cad.txt"
    stated = f", registration: {registration}" if registration.is_file() else ""
    (tmp_path / "scene.yaml").write_text(
        f"name: copy\ncad: {{path: {source / cad}, units: m, up: {up}}}\n"
        f"photos: {{images: images, reconstruction: poses.json{stated}}}\n"
    )
    return tmp_path


def inverted(frames: list[dict[str, Any]]) -> None:
    for frame in frames:
        R, t = np.array(frame["R"]), np.array(frame["t"])
        frame["R"], frame["t"] = R.T.tolist(), (-R.T @ t).tolist()


def larger(frames: list[dict[str, Any]]) -> None:
    for frame in frames:
        frame["t"] = (10 * np.array(frame["t"])).tolist()


def swapped(frames: list[dict[str, Any]]) -> None:
    for frame in frames:
        frame["R"] = (np.array(frame["R"]) @ [[1, 0, 0], [0, 0, -1], [0, 1, 0]]).tolist()


def shuffled(frames: list[dict[str, Any]]) -> None:
    """Poses and cameras move on by half of the photos: every size still is its file's."""
    poses = [(frame["R"], frame["t"]) for frame in frames]
    for index, frame in enumerate(frames):
        frame["R"], frame["t"] = poses[index - len(poses) // 2]


def nan_pose(frames: list[dict[str, Any]]) -> None:
    frames[1]["t"][0] = float("nan")


def missing(frames: list[dict[str, Any]]) -> None:
    frames[1]["name"] = "nowhere.jpg"


@pytest.mark.parametrize(
    ("scene", "change", "named"),
    [
        ("fountain", inverted, "poses look camera-to-world"),
        ("fountain", larger, "× 10 fits"),
        ("fountain", swapped, "axes look swapped"),
        ("fountain", shuffled, "names look shuffled"),
        ("fountain", nan_pose, "not finite"),
        ("fountain", missing, "nowhere.jpg"),
        ("reichstag", inverted, "poses look camera-to-world"),
        ("reichstag", larger, "× 10 fits"),
        ("reichstag", missing, "nowhere.jpg"),
    ],
)
def test_a_broken_copy_is_seen_through(
    scene: str,
    change: Callable[[list[dict[str, Any]]], None],
    named: str,
    shared_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The mistake is named, with exit code 2."""
    copy = copied(scene, shared_data, tmp_path)
    content = json.loads((copy / "poses.json").read_text())
    change(content["frames"])
    (copy / "poses.json").write_text(json.dumps(content))
    assert run_command(["scene", "check", str(copy / "scene.yaml"), "--photos", "2"]) == 2
    assert named in capsys.readouterr().err


def colmap_scene(shared_data: Path, folder: Path) -> Path:
    """The fountain with a COLMAP model that may be broken; returns the model's folder."""
    source = shared_data / "fountain"
    shutil.copytree(source / "sparse", folder / "sparse")
    (folder / "scene.yaml").write_text(
        f"name: copy\ncad: {{path: {source}/mesh_textured.glb, units: m, up: -z}}\n"
        f"photos: {{images: {source}/images, reconstruction: sparse}}\n"
    )
    return folder / "sparse"


def test_a_truncated_model_is_seen_through(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half of an images.bin is a fault that names the file, with exit code 2."""
    file = colmap_scene(shared_data, tmp_path) / "images.bin"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert run_command(["scene", "check", str(tmp_path / "scene.yaml")]) == 2
    assert "images.bin" in capsys.readouterr().err


def test_points_tell_inverted_poses_without_the_model(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A COLMAP model with camera-to-world poses disagrees with its own points: named to a fraction of a pixel."""
    place = colmap_scene(shared_data, tmp_path)
    model = pycolmap.Reconstruction(place)
    for image in model.images.values():
        image.frame.rig_from_world = image.cam_from_world().inverse()
    model.write(place)
    assert run_command(["scene", "check", str(tmp_path / "scene.yaml")]) == 2
    assert "poses look camera-to-world: read so, its points project" in capsys.readouterr().err
