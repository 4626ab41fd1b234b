"""`cadloc-sweep map`: a trained map leaves as ACE's head file, comes back, and localizes the photograph it knew."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from cadloc.artifacts import load_map, save_map
from cadloc.config import EncoderConfig, SmallEncoder, TrialConfig
from cadloc.contract import Json
from cadloc.encoders import build as build_encoder
from cadloc.encoders.ace import AceFeatures, save_ace
from cadloc.encoders.small import SmallFeatures
from cadloc.encoding import encode_image
from cadloc.geometry import cell_pixels, look_at, pinhole, translation_error_m, unproject
from cadloc.head_config import AceHead, AnchorHead, HeadConfig
from cadloc.heads import build
from cadloc.heads.ace import AcePerceptron
from cadloc.scene_config import SceneConfig
from cadloc_sweep.cli import run_command

WIDTH_PX, HEIGHT_PX = 192, 144
K = pinhole(WIDTH_PX, HEIGHT_PX, 60)
POSE = look_at([3.0, -9.0, 1.7], [0.0, 0.0, 3.0])
ORIGIN_M = np.array([691000.25, 5334000.5, 520.0])
SMALL_SHIPPED = SmallEncoder()


def photo() -> NDArray[np.uint8]:
    """Blobs of colour: no two cells look alike."""
    noise = np.random.default_rng(0).uniform(0, 255, (HEIGHT_PX // 6, WIDTH_PX // 6, 3)).astype(np.uint8)
    return np.asarray(cv2.resize(noise, (WIDTH_PX, HEIGHT_PX), interpolation=cv2.INTER_CUBIC), np.uint8)


def taught_head() -> AcePerceptron:
    """A head that knows the photo by heart: of a corrugated wall some 9 m away."""
    features = encode_image(build_encoder(SMALL_SHIPPED), photo())
    pixels = cell_pixels(*features.shape[:2]).reshape(-1, 2)
    points_cam = unproject(pixels, 9 + np.sin(pixels[:, 0] / 9) + np.cos(pixels[:, 1] / 7), K)
    points = torch.from_numpy((points_cam @ POSE[:3, :3].T + POSE[:3, 3]).astype(np.float32))
    head = build(AceHead(width=64), 128, seed=0)
    assert isinstance(head, AcePerceptron)
    head.centre.copy_(torch.from_numpy(POSE[:3, 3]))
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    cells = torch.from_numpy(features.reshape(-1, 128))
    for _ in range(150):
        optimizer.zero_grad()
        (head(cells).coordinates - points).norm(dim=1).mean().backward()
        optimizer.step()
    return head.eval()


def write_map(folder: Path, head: torch.nn.Module, config: HeadConfig, encoder: EncoderConfig = SMALL_SHIPPED) -> Path:
    trial = TrialConfig(scene=SceneConfig(name="gate", built_in=True), head=config, encoder=encoder)
    save_map(folder, head, trial, (WIDTH_PX, HEIGHT_PX), ORIGIN_M)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a map, as a trial leaves it, the photo and its intrinsics."""
    folder = tmp_path_factory.mktemp("trained")
    Image.fromarray(photo()).save(folder / "photo.png")
    np.savetxt(folder / "k.txt", K)
    return write_map(folder, taught_head(), AceHead(width=64))


def localized(map_: Path, trained: Path, capsys: pytest.CaptureFixture[str]) -> Mapping[str, Json]:
    """What `localize` prints of the photo against a map, but for the time it took."""
    capsys.readouterr()
    photo_and_camera = [str(trained / "photo.png"), "--intrinsics", str(trained / "k.txt")]
    assert run_command(["localize", *photo_and_camera, "--map", str(map_)]) == 0
    found = json.loads(capsys.readouterr().out)
    return {key: value for key, value in found.items() if key != "runtime_s"}


@pytest.mark.parametrize("options", [[], ["--float32"]])
def test_an_exported_map_comes_back_and_localizes_the_photo(
    options: list[str], trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Halved, the pose moves by millimetres, in float32 not by a bit; going out again, the map is the same bytes."""
    head, back = tmp_path / "head.pt", tmp_path / "back"
    assert run_command(["map", "export", str(trained), "--to", str(head), *options]) == 0
    assert "ACE's own program cannot use it: its width is 64" in capsys.readouterr().err
    assert run_command(["map", "import", str(head), "--encoder", "shipped", "--to", str(back)]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert f"--map {back}" in printed.out
    before, after = localized(trained, trained, capsys), localized(back, trained, capsys)
    assert after["origin_m"] == ORIGIN_M.tolist()
    moved_m = translation_error_m(np.array(after["cad_from_cam"]), np.array(before["cad_from_cam"]))
    assert translation_error_m(np.array(before["cad_from_cam"]), POSE) < 0.3
    assert moved_m < 0.02
    if options:
        assert after == before
    assert run_command(["map", "export", str(back), "--to", str(tmp_path / "again.pt"), *options]) == 0
    for suffix in (".pt", ".json"):
        assert (tmp_path / "again").with_suffix(suffix).read_bytes() == head.with_suffix(suffix).read_bytes()


def test_a_map_on_aces_encoder_needs_no_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From two files of ACE's alone, and what the options say, becomes a map that answers; what is doubtful is said."""
    save_ace(AceFeatures().initialised(0), tmp_path / "encoder.pt", {})
    files = {"encoder": str(tmp_path / "encoder.pt"), "head": str(tmp_path / "head.pt"), "map": str(tmp_path / "map")}
    encoder = {"name": "ace", "weights": files["encoder"]}
    config = TrialConfig.model_validate({"scene": {"name": "gate", "built_in": True}, "encoder": encoder}).encoder
    mine = write_map(tmp_path / "mine", build(AceHead(blocks=0), 512, seed=0), AceHead(blocks=0), config)
    assert run_command(["map", "export", str(mine), "--to", files["head"]]) == 0
    card = json.loads((tmp_path / "head.json").read_text())
    assert (card["encoder"]["name"], card["not_for_ace"], card["image_short_side_px"]) == ("ace", [], HEIGHT_PX)
    (tmp_path / "head.json").unlink()
    capsys.readouterr()
    options = ["--short-side", "64", "--origin", "1.5", "2.25", "-3"]
    arguments = ["map", "import", files["head"], "--encoder", files["encoder"], "--to", files["map"], *options]
    assert run_command(arguments) == 0
    assert "no card beside it" in capsys.readouterr().err
    back = load_map(tmp_path / "map")
    assert (min(back.image_size_px), back.origin_m.tolist(), back.scene) == (64, [1.5, 2.25, -3.0], "head")
    features = torch.randn(100, 512, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(back.head.predict(features), load_map(mine).head.predict(features), rtol=0, atol=0.01)


def test_another_head_is_refused_with_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A map of anchors is no file of ACE's: exit code 2, what it is, why not, and nothing written."""
    config = AnchorHead(anchors=8, width=16)
    place = write_map(tmp_path / "anchors", build(config, 128, seed=0), config)
    assert run_command(["map", "export", str(place), "--to", str(tmp_path / "head.pt")]) == 2
    told = capsys.readouterr().err
    assert "found the head anchor; allowed: the head ace" in told
    assert "one centre" in told
    assert [path.name for path in tmp_path.iterdir()] == ["anchors"]


def test_all_that_is_wrong_with_an_import_is_told_at_once(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """File, card, encoder, options and folder: one run, five faults, no traceback, nothing written."""
    torch.save({"mean": torch.zeros(2), "fc9.weight": torch.zeros(1)}, tmp_path / "head.pt")
    (tmp_path / "head.json").write_text('{"format": "ACE head", "scene": 3}')
    full = tmp_path / "full"
    full.mkdir()
    (full / "map.json").write_text("{}")
    given = ["--encoder", str(tmp_path / "absent.pt"), "--to", str(full), "--origin", "nan", "0", "0"]
    assert run_command(["map", "import", str(tmp_path / "head.pt"), *given]) == 2
    told = capsys.readouterr().err
    for part in ("mean of shape (2,)", "unknown name fc9", "head.json: card", "absent.pt", "--origin", "--to: folder"):
        assert part in told
    assert "Traceback" not in told
    assert (full / "map.json").read_text() == "{}"


def test_a_head_is_not_given_to_another_encoder_than_its_own(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its card knows the weights it was trained on: others of the same shape are refused."""
    assert run_command(["map", "export", str(trained), "--to", str(tmp_path / "head.pt")]) == 0
    SmallFeatures().initialised(0).save(tmp_path / "other.safetensors", {})
    given = ["--encoder", str(tmp_path / "other.safetensors"), "--to", str(tmp_path / "back")]
    capsys.readouterr()
    assert run_command(["map", "import", str(tmp_path / "head.pt"), *given]) == 2
    assert "other weights than those the head was trained on" in capsys.readouterr().err
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["export", "nowhere", "--to", "head.pt"], "map.json"),
        (["export", "{trained}", "--to", "head.json"], "ends in .pt"),
        (["export", "{trained}", "--to", "there.pt"], "there.pt is there"),
        (["export", "{trained}", "--to", "there.pt/new.pt"], "--to: place"),
        (["import", "nothing.pt", "--encoder", "shipped", "--to", "new"], "no such file"),
        (["import", "there.pt", "--encoder", "shipped", "--to", "new"], "there.pt: map"),
        (["import", "there.pt", "--encoder", "shipped", "--to", "new", "--short-side", "0"], "--short-side"),
    ],
)
def test_bad_arguments_are_exit_code_2_and_a_message(
    arguments: list[str],
    told: str,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The message names what is wrong; no traceback, nothing written or changed."""
    monkeypatch.chdir(tmp_path)
    Path("there.pt").write_text("not a map")
    assert run_command(["map", *(argument.format(trained=trained) for argument in arguments)]) == 2
    printed = capsys.readouterr().err
    assert told in printed
    assert "Traceback" not in printed
    assert [path.name for path in tmp_path.iterdir()] == ["there.pt"]
