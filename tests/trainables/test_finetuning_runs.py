"""Fine-tuning, whole: pairs are true pairs, every strategy runs, resumes and repeats, the stage leaves an encoder."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, overload

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from cadloc.config import DenseHog, SmallEncoder
from cadloc.contract import DivergenceError, InputError
from cadloc.datasets.ace_layout import Dataset, Split, write_card, write_view
from cadloc.encoders import Encoder, build
from cadloc.encoders.small import SmallFeatures
from cadloc.finetuning import stage
from cadloc.finetuning.adapters import CARD, WEIGHTS, load_tuned
from cadloc.finetuning.cells import CellBatch, Step, read_cells
from cadloc.finetuning.feature_losses import pair_loss
from cadloc.finetuning.head_learning import LearningHead, median_error_m
from cadloc.finetuning.material import Material, draw_step, drawn_ahead
from cadloc.finetuning.pairs import PairedView, SyntheticViews, draw_pairs, draw_replay, paired_views
from cadloc.finetuning.settings import CropSettings, FinetuningConfig, InfoNce, TuningHead
from cadloc.finetuning.tuning import CHECKPOINT, HISTORY, averaging, schedule, started, tune, update
from cadloc.geometry import Array, cell_pixels, look_at, pinhole, project, transform_points, unproject

WIDTH, HEIGHT, STEP_M = 128, 96, 0.001
K = pinhole(WIDTH, HEIGHT, 60)
COUNTS: dict[Split, int] = {"mapping": 4, "validation": 2}
PLAIN = CropSettings(
    width_px=64, height_px=64, develop_renders=False, photo_brightness=0, photo_contrast=0, rotation_deg=20
)
BIG = {"width_px": 64, "height_px": 64}
TINY: dict[str, Any] = {
    "steps": 2, "warm_up": 1, "images": 2, "matches": 8, "validate_every": 1, "validation_pairs": 2,
    "crops": {"width_px": 48, "height_px": 48}, "learning_rate": 1e-3,
}  # fmt: skip
HEAD: dict[str, Any] = {"name": "ace", "width": 16, "samples": 60, "prepared_steps": 3, "batch_size": 20}
STRATEGIES: tuple[dict[str, Any], ...] = (
    {"name": "features", "tolerance_cells": 1, "gradients": "pcgrad"},
    {"name": "scene_coordinates", "head": HEAD},
    {"name": "scene_coordinates", "head": {**HEAD, "name": "anchor", "anchors": 8}, "head_learns": True},
    {"name": "end_to_end", "chunk": 3, "head": HEAD, "loss": "reprojection", "gradients": "equalised"},
    {"name": "adversarial", "width": 8, "loss": {"name": "vicreg"}, "replay": 0},
    {"name": "randomisation", "parameters": "last_block"},
)


@lru_cache
def texture() -> NDArray[np.float32]:
    """A wall of 16 × 16 m with detail of several sizes."""
    generator = np.random.default_rng(0)
    wall = np.zeros((600, 600, 3), np.float32)
    for n in (15, 40, 100):
        coarse = generator.uniform(0, 255 / 3, (n, n, 3)).astype(np.float32)
        wall += cv2.resize(coarse, (600, 600), interpolation=cv2.INTER_CUBIC)
    return np.clip(wall, 0, 255)


def wall_view(cad_from_cam: Array) -> tuple[NDArray[np.uint8], Array]:
    """What a camera sees of the wall y = 0, and its depth."""
    pixels = cell_pixels(HEIGHT, WIDTH, 1).reshape(-1, 2)
    directions = unproject(pixels, np.ones(len(pixels)), K) @ cad_from_cam[:3, :3].T
    depth_m = -cad_from_cam[1, 3] / directions[:, 1]
    points = transform_points(cad_from_cam, unproject(pixels, depth_m, K))
    u, v = ((points[:, [0, 2]] + 8) * 600 / 16).astype(np.float32).reshape(HEIGHT, WIDTH, 2).transpose(2, 0, 1)
    return cv2.remap(texture(), u, v, cv2.INTER_LINEAR).astype(np.uint8), depth_m.reshape(HEIGHT, WIDTH)


def write_walls(directory: Path, counts: dict[Split, int], *, look: str = "render", names: str = "view") -> Path:
    """Views of the wall; as `photo`, in other colours, darker where the render is bright."""
    for offset, (split, count) in enumerate(counts.items()):
        for k in range(count):
            eye = [1.5 * np.sin(3 * offset + k), -5 - 0.5 * (k % 3), 0.5 * np.cos(k)]
            cad_from_cam = look_at(eye, [0.3 * (k % 2), 0, 0])
            image, depth_m = wall_view(cad_from_cam)
            if look == "photo":
                image = (255 - 0.8 * image[..., ::-1]).astype(np.uint8)
            write_view(
                directory, split, f"{names}_{split}_{k}", image=image, depth_m=depth_m,
                cad_from_cam=cad_from_cam, intrinsics=K, step_m=STEP_M,
            )  # fmt: skip
    write_card(directory, {"depth_step_m": STEP_M, "building_diameter_m": 12.0})
    return directory


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Four mapping and two validation pairs, and synthetic views; the queries of the photos are no images."""
    root = tmp_path_factory.mktemp("walls")
    photos = write_walls(root / "photos", {**COUNTS, "query": 1}, look="photo")
    (photos / "test" / "rgb" / "view_query_0.jpg").write_bytes(b"not to be read")
    renders = write_walls(root / "renders", COUNTS)
    synthetic = write_walls(root / "synthetic", {"mapping": 6}, names="synthetic")
    return {"photos": photos, "renders": renders, "synthetic": synthetic}


def config_of(**changes: Any) -> FinetuningConfig:
    adapter: TypeAdapter[Any] = TypeAdapter(FinetuningConfig)
    config: FinetuningConfig = adapter.validate_python({**TINY, **changes})
    return config


def material_of(inputs: dict[str, Path], split: Split = "mapping") -> Material:
    return stage.read_material(inputs, split, config_of(name="features"))


@lru_cache
def encoder() -> SmallFeatures:
    """The shipped one: features of noise would not tell anything."""
    found = build(SmallEncoder())
    assert isinstance(found, SmallFeatures)
    return found


def equal_states(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    states = a.state_dict(), b.state_dict()
    return all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def colours(images: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Of images (M, 3, H, W) at pixels (M, n, 2): (M, 3, n)."""
    grid = 2 * pixels / torch.tensor([images.shape[3], images.shape[2]]) - 1
    return torch.nn.functional.grid_sample(images.float(), grid[:, None], align_corners=False)[:, :, 0]


def assert_reprojected(cells: CellBatch) -> None:
    """Points land on their pixels under the crop's own pose and intrinsics, and lie on the wall."""
    points, poses = cells.points_cad.double().numpy(), cells.cam_from_cad.double().numpy()
    pixels = project(transform_points(poses, points), cells.intrinsics.double().numpy())
    np.testing.assert_allclose(pixels, cells.pixels.numpy(), atol=5e-3)
    assert np.abs(points[..., 1]).max() < 0.01


# --- pairs ------------------------------------------------------------------------------------------------


def test_photo_and_render_crops_see_the_same_points(inputs: dict[str, Path]) -> None:
    """The same points in both, at other places of the two pictures: the place must not tell the pair."""
    photos, renders = draw_pairs(material_of(inputs).pairs, PLAIN, 3, 10, np.random.default_rng(0))
    assert photos.images.shape == (3, 3, 64, 64)
    assert torch.equal(photos.points_cad, renders.points_cad)
    assert torch.all(photos.pixels % 8 == 4)
    assert_reprojected(photos)
    assert_reprojected(renders)
    offsets = renders.pixels - photos.pixels
    assert (offsets.mean(dim=1).norm(dim=1) > 2).any()
    assert offsets.std(dim=1).max() > 0.5


def test_pictures_of_a_pair_show_the_same(inputs: dict[str, Path]) -> None:
    """A photo's colours, undone, are its render's at the paired pixels; developing changes the render only."""
    material = material_of(inputs)
    photos, renders = draw_pairs(material.pairs, PLAIN, 2, 10, np.random.default_rng(1))
    undone = (255 - photos.images.float().flip(1)) / 0.8
    there, here = (colours(images, cells.pixels) for images, cells in ((undone, photos), (renders.images, renders)))
    assert (there - here).abs().mean() < 15
    assert (there - here.roll(1, dims=2)).abs().mean() > 25
    developed = PLAIN.model_copy(update={"develop_renders": True})
    again, other = draw_pairs(material.pairs[:1], developed, 1, 10, np.random.default_rng(1))
    plain = draw_pairs(material.pairs[:1], PLAIN, 1, 10, np.random.default_rng(1))
    assert torch.equal(again.images, plain[0].images)
    assert not torch.equal(other.images, plain[1].images)


def test_points_that_another_model_puts_elsewhere_are_no_pairs(inputs: dict[str, Path], tmp_path: Path) -> None:
    """Where the photographed model lies a tenth farther away than the render's, nothing is paired."""
    photos = Path(shutil.copytree(inputs["photos"], tmp_path / "photos"))
    for path in (photos / "train" / "depth").iterdir():
        depth = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(path), (depth * 1.1).astype(depth.dtype))
    material = stage.read_material({**inputs, "photos": photos}, "mapping", config_of(name="features"))
    with pytest.raises(InputError, match=r"finetuning\.matches"):
        draw_pairs(material.pairs, PLAIN, 1, 10, np.random.default_rng(0))


def test_replay_pairs_see_the_same_points(inputs: dict[str, Path]) -> None:
    """In both synthetic crops the shared points land on the stored pixels; mostly, they are of two views."""
    synthetic = material_of(inputs).synthetic
    first, second = draw_replay(synthetic, PLAIN, 6, 10, np.random.default_rng(2))
    assert torch.equal(first.points_cad, second.points_cad)
    assert_reprojected(first)
    assert_reprojected(second)
    centres = [-(c.cam_from_cad[:, :3, :3].mT @ c.cam_from_cad[:, :3, 3:])[..., 0] for c in (first, second)]
    assert ((centres[0] - centres[1]).norm(dim=1) > 0.1).float().mean() > 0.5


def test_a_lonely_view_is_its_own_partner(inputs: dict[str, Path]) -> None:
    """With one synthetic view replay pairs two crops of it."""
    lonely = SyntheticViews(material_of(inputs).synthetic.views[:1])
    first, second = draw_replay(lonely, PLAIN, 1, 10, np.random.default_rng(0))
    assert torch.equal(first.points_cad, second.points_cad)
    assert not torch.equal(first.images, second.images)


def test_draws_depend_on_the_generator_only(inputs: dict[str, Path]) -> None:
    """The same stream gives the same crops, one thread or several; steps come in order."""
    material, config = material_of(inputs), config_of(name="features")
    strategy = started(encoder(), config).strategy

    def draw(step: int) -> Step:
        return draw_step(material, config, strategy, np.random.default_rng([7, step]))

    for a, b in zip(drawn_ahead(draw, range(5), 1), drawn_ahead(draw, range(5), 3), strict=True):
        assert torch.equal(a.images, b.images)
        assert all(torch.equal(x, y) for x, y in zip(a.pixels, b.pixels, strict=True))


def test_what_is_no_pair_is_told_for_all_names_at_once(inputs: dict[str, Path], tmp_path: Path) -> None:
    """Renders at other poses or of other sizes are faults, one per pair; no common name at all is one."""
    photos = Dataset.open(inputs["photos"])
    moved = write_walls(tmp_path / "moved", {"mapping": 4})
    for k in (1, 2):
        path = moved / "train" / "poses" / f"view_mapping_{k}.txt"
        np.savetxt(path, look_at([0, -4, 0.2 * k], [0, 0, 0]), fmt="%.17g")
    with pytest.raises(InputError, match="another pose") as caught:
        paired_views(photos, Dataset.open(moved), "mapping")
    assert [fault.key for fault in caught.value.faults] == ["view_mapping_1", "view_mapping_2"]
    others = write_walls(tmp_path / "others", {"mapping": 1}, names="other")
    with pytest.raises(InputError, match="no mapping photo"):
        paired_views(photos, Dataset.open(others), "mapping")


def test_crops_too_small_for_the_matches_are_an_input_error(inputs: dict[str, Path]) -> None:
    """More matches than a crop has cells end in a fault that names the key, not in an endless draw."""
    with pytest.raises(InputError, match=r"finetuning\.matches"):
        draw_pairs(material_of(inputs).pairs, PLAIN, 1, 65, np.random.default_rng(0))


# --- settings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "features", "adapter_channels": 8},
        {"name": "features", "loss": {"name": "info_nce", "margin": 1}},
        {"name": "randomisation", "anchor_on": "photos"},
        {"name": "randomisation", "replay": 0},
        {"name": "scene_coordinates", "head": {"samples": 100, "anchors": 512, "batch_size": 10}},
        {"name": "none"},
    ],
)
def test_settings_that_would_do_nothing_are_refused(wrong: dict[str, Any]) -> None:
    """What a strategy does not read, or cannot have, is a validation error."""
    with pytest.raises(ValidationError):
        config_of(**wrong)


def test_settings_are_light() -> None:
    """Reading them loads neither torch nor NumPy: a laptop plans sweeps with them."""
    code = "import sys, cadloc.finetuning.settings; print(sorted({'torch', 'numpy', 'cv2'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_schedules_warm_up_and_come_down() -> None:
    """The rate rises to its peak and falls to nothing; the average is young at first and at most what is set."""
    config = config_of(name="features", steps=1000, warm_up=100)
    rates = [schedule(config, step) for step in range(1000)]
    assert rates[0] == pytest.approx(0.01)
    assert 90 < int(np.argmax(rates)) < 110
    assert rates[-1] < 1e-4
    assert averaging(config, 0) == 0.1
    assert averaging(config, 100_000) == config.ema


# --- tuning -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: str(strategy["name"]))
def test_every_strategy_runs_resumes_and_reports(
    strategy: dict[str, Any], inputs: dict[str, Path], tmp_path: Path
) -> None:
    """Training and validation losses by objective, cosines, agreement and forgetting; resumed, the same bits."""
    config, material, validation = config_of(**strategy), material_of(inputs), material_of(inputs, "validation")
    whole = tune(encoder(), material, validation, config, tmp_path / "whole")
    assert [row["step"] for row in whole.history] == [0, 1, 2]
    last = whole.history[-1]
    objectives = {name.removeprefix("train/") for name in last if name.startswith("train/")} - {"gradient_norm"}
    assert "anchor" in objectives
    assert objectives | {"agreement", "precision", "kept", "synthetic_precision"} <= {
        name.removeprefix("validation/") for name in last
    }
    assert len([name for name in last if name.startswith("cosine/")]) == len(objectives) * (len(objectives) - 1) // 2
    assert all(np.isfinite(list(row.values())).all() for row in whole.history)
    assert whole.history[0]["validation/kept"] == pytest.approx(1, abs=1e-5)
    assert last["validation/kept"] < 1 - 1e-6

    cut = Cut(validation.pairs, validations=2)
    with pytest.raises(KeyboardInterrupt):
        tune(encoder(), material, replace(validation, pairs=cut), config, tmp_path / "killed")
    resumed = tune(encoder(), material, validation, config, tmp_path / "killed")
    assert equal_states(resumed.encoder, whole.encoder)
    assert resumed.history == whole.history


class Cut(Sequence[PairedView]):
    """Validation pairs that stop whoever measures on them after a number of times, as a killed process would."""

    def __init__(self, pairs: Sequence[PairedView], validations: int) -> None:
        self.pairs, self.left = pairs, validations

    def __len__(self) -> int:
        return len(self.pairs)

    @overload
    def __getitem__(self, index: int) -> PairedView: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[PairedView]: ...
    def __getitem__(self, index: int | slice) -> PairedView | Sequence[PairedView]:
        self.left -= isinstance(index, slice)
        if self.left < 0:
            raise KeyboardInterrupt
        return self.pairs[index]


def test_tuning_features_brings_photos_to_renders(inputs: dict[str, Path], tmp_path: Path) -> None:
    """On validation pairs never trained on, the pairs' loss falls and photo and render agree better than before."""
    config = config_of(name="features", steps=8, validate_every=8, matches=16, learning_rate=3e-3, ema=0.5, crops=BIG)
    tuned = tune(encoder(), material_of(inputs), material_of(inputs, "validation"), config, tmp_path)
    before, after = tuned.history[0], tuned.history[-1]
    assert after["validation/pairs"] < before["validation/pairs"] - 0.1
    assert after["validation/agreement"] > before["validation/agreement"] + 0.05


def test_the_anchor_keeps_a_map_usable(inputs: dict[str, Path], tmp_path: Path) -> None:
    """A head taught under the original encoder reads the same cells of renders under an anchored one nearly as well;
    tuned for pairs alone, the encoder leaves it several times the error."""
    material = material_of(inputs)
    settings = TuningHead(name="ace", width=64, samples=480, prepared_steps=120, batch_size=160, learning_rate=5e-3)
    head, taught = LearningHead(settings, encoder().dimensions, 0), list[CellBatch]()

    def under(encoder: Encoder, cells: CellBatch) -> Tensor:
        return read_cells(encoder.encode(cells.images), list(cells.pixels))

    def featured() -> tuple[CellBatch, Tensor]:
        taught.append(draw_pairs(material.pairs, PLAIN, 4, 30, np.random.default_rng(len(taught)))[1])
        return taught[-1], under(encoder(), taught[-1])

    def error_m(encoder: Encoder) -> float:
        return median_error_m(head, taught[0].with_features(under(encoder, taught[0])))

    head.prepare(featured)
    errors_m = {}
    for anchor in (0.0, 30.0):
        config = config_of(
            name="features", loss={"name": "mse"}, steps=16, validate_every=16, matches=30, replay=0, ema=0,
            anchor=anchor, crops={**BIG, "develop_renders": False},
        )  # fmt: skip
        errors_m[anchor] = error_m(tune(encoder(), material, material, config, tmp_path / str(anchor)).encoder)
    assert errors_m[30.0] < 1.3 * error_m(encoder())
    assert errors_m[0.0] > 2 * error_m(encoder())


@pytest.mark.parametrize(("which", "moved"), [("last_block", ("blocks.3", "projection")), ("adapters", ("adapter",))])
def test_only_the_chosen_parameters_move(
    which: str, moved: tuple[str, ...], inputs: dict[str, Path], tmp_path: Path
) -> None:
    """All others, and the running statistics of normalisation layers, stay as they were bit for bit."""
    config = config_of(name="features", parameters=which, steps=2)
    tuned = tune(encoder(), material_of(inputs), material_of(inputs, "validation"), config, tmp_path)
    state, start = tuned.encoder.state_dict(), started(encoder(), config).encoder.state_dict()
    changed = {name for name, value in state.items() if not torch.equal(value, start[name])}
    assert changed
    assert all(any(part in name for part in moved) for name in changed)
    assert not any("running" in name or "num_batches" in name for name in changed)


@pytest.mark.parametrize("learns", [False, True])
def test_a_frozen_head_stays_and_a_learning_one_moves(learns: bool, inputs: dict[str, Path]) -> None:
    """The head's weights change in an update exactly if it learns; the encoder's do in both cases."""
    config, material = config_of(name="scene_coordinates", head=HEAD, head_learns=learns), material_of(inputs)
    tuning = started(encoder(), config)
    before = copy.deepcopy(tuning.strategy), copy.deepcopy(tuning.encoder)
    drawn = draw_step(material, config, tuning.strategy, np.random.default_rng(0))
    row = update(tuning, drawn, material.diameter_m, separate=False)
    assert {"train/photos", "train/renders", "train/synthetic", "train/replay"} <= set(row)
    assert equal_states(tuning.strategy, before[0]) != learns
    assert not equal_states(tuning.encoder, before[1])


def test_one_update_is_one_step_of_adamw_on_the_clipped_gradient(inputs: dict[str, Path]) -> None:
    """Against PyTorch's own: backward through the whole batch, clip, step; no second step, no scaled gradient."""
    changes = {"steps": 5, "warm_up": 4, "clip": 0.01, "anchor": 0, "replay": 0, "precision": "float32"}
    config = config_of(name="features", parameters="last_block", **changes)
    material, tuning = material_of(inputs), started(encoder(), config)
    reference = started(encoder(), config)
    drawn = draw_step(material, config, tuning.strategy, np.random.default_rng(0))
    row = update(tuning, drawn, material.diameter_m, separate=False)

    rows = drawn.by_role(read_cells(reference.encoder(drawn.images), drawn.pixels))
    points_cad = drawn.cells["photos"].points_cad.flatten(0, 1)
    loss = pair_loss(InfoNce(), rows["photos"], rows["renders"], points_cad, material.diameter_m)
    torch.autograd.backward(loss)
    parameters = list(reference.parameters.values())
    norm = torch.nn.utils.clip_grad_norm_(parameters, 0.01)
    torch.optim.AdamW(parameters, lr=1e-3 / 4, weight_decay=0.01).step()
    assert row["train/gradient_norm"] == pytest.approx(float(norm), rel=1e-4)
    assert float(norm) > 0.01
    for mine, theirs in zip(tuning.parameters.values(), parameters, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=2e-6)


def test_divergence_is_an_error(inputs: dict[str, Path], tmp_path: Path) -> None:
    """A learning rate beyond reason ends in DivergenceError that names the setting, not in a useless encoder."""
    config = config_of(name="features", learning_rate=1e30, loss={"name": "mse"}, steps=8)
    with pytest.raises(DivergenceError, match="learning_rate"):
        tune(encoder(), material_of(inputs), material_of(inputs, "validation"), config, tmp_path)


def test_a_checkpoint_of_another_run_is_refused(inputs: dict[str, Path], tmp_path: Path) -> None:
    """Another learning rate in the same directory is an input error that names the file."""
    material = material_of(inputs)
    tune(encoder(), material, material, config_of(name="randomisation"), tmp_path)
    with pytest.raises(InputError, match=CHECKPOINT):
        tune(encoder(), material, material, config_of(name="randomisation", steps=3), tmp_path)


# --- stage ------------------------------------------------------------------------------------------------


def stage_config(**changes: Any) -> dict[str, Any]:
    finetuning = config_of(**{"name": "features", "parameters": "adapters", "adapter_channels": 4, **changes})
    return {"encoder": SmallEncoder().model_dump(mode="json"), "finetuning": finetuning.model_dump(mode="json")}


def test_the_stage_leaves_an_encoder_and_what_became_of_it(inputs: dict[str, Path], tmp_path: Path) -> None:
    """One chunk: weights with adapters, a card with metrics before and after, a history, no checkpoint; made twice,
    byte for byte the same. A query picture that is no image does not disturb: none is read."""
    for name in ("a", "b"):
        assert stage.chunks(stage_config(), inputs) == 1
        assert stage.build_chunk(stage_config(), inputs, tmp_path / name, 0) == 2
        stage.finish(stage_config(), inputs, tmp_path / name)
    files = {WEIGHTS, CARD, HISTORY}
    assert {path.name for path in (tmp_path / "a").iterdir()} == files
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)
    card = json.loads((tmp_path / "a" / CARD).read_text())
    assert card["pairs"] == {"mapping": 4, "validation": 2}
    assert card["before"]["validation/kept"] == pytest.approx(1, abs=1e-5)
    assert card["after"]["validation/agreement"] != card["before"]["validation/agreement"]
    assert card["parameters_tuned"] == 4 * (2 * 4 * 128 + 4 + 128)
    picture = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    tuned = load_tuned(tmp_path / "a").encode(picture)
    assert not torch.equal(tuned, encoder().encode(picture))
    assert tuned.shape == (1, 128, 8, 8)


def test_inputs_that_cannot_be_used_are_input_errors(inputs: dict[str, Path], tmp_path: Path) -> None:
    """Photos without a validation split, a scene of unknown diameter, an encoder without weights."""
    lacking = write_walls(tmp_path / "lacking", {"mapping": 4}, look="photo")
    with pytest.raises(InputError, match="validation"):
        stage.build_chunk(stage_config(), {**inputs, "photos": lacking}, tmp_path / "out", 0)
    write_card(lacking, {"depth_step_m": STEP_M})
    with pytest.raises(InputError, match="building_diameter_m"):
        stage.build_chunk(stage_config(), {**inputs, "synthetic": lacking}, tmp_path / "out", 0)
    config = {**stage_config(), "encoder": DenseHog().model_dump(mode="json")}
    with pytest.raises(InputError, match="no weights"):
        stage.build_chunk(config, inputs, tmp_path / "out", 0)
