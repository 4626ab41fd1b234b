"""Training: every loss learns, interruptions leave no trace, divergence is loud, maps come back as they were."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from cadloc.artifacts import load_map, save_map, write_poses
from cadloc.checkpoints import read_checkpoint
from cadloc.config import SmallEncoder, TrialConfig
from cadloc.contract import DivergenceError, InputError
from cadloc.encoders import build as build_encoder
from cadloc.encoders.small import SmallFeatures
from cadloc.geometry import inverse, look_at, pinhole, project, transform_points
from cadloc.head_config import AceHead, AnchorHead, GlaceHead, HeadConfig
from cadloc.heads import build
from cadloc.heads.head import Head
from cadloc.localization import Estimate
from cadloc.loss_config import CoordinateLoss, LossConfig, ReprojectionLoss, SwitchingLoss, predicts_deviation
from cadloc.losses import phase_at
from cadloc.metrics import PoseErrors
from cadloc.samples import Samples
from cadloc.scene_config import SceneConfig
from cadloc.shuffling import Shuffled
from cadloc.training import CHECKPOINT, HISTORY, Training, mean_loss
from cadloc.training_config import TrainingConfig

CHANNELS = 48
ANCHORS = AnchorHead(anchors=64, width=32)


def wall_samples(seed: int = 0, *, views: int = 16, per_view: int = 150) -> Samples:
    """Cells of cameras before a wavy wall of 8 × 4 m; features are smooth, random functions of the point."""
    generator = np.random.default_rng(seed)
    functions = np.random.default_rng(99)
    waves, phases = functions.normal(0, 0.8, (3, CHANNELS)), functions.uniform(0, 6, CHANNELS)
    K = pinhole(480, 360, 65)
    x, z = generator.uniform(-4, 4, (views, per_view)), generator.uniform(0, 4, (views, per_view))
    xyz = np.stack([x, 0.5 * np.sin(2 * x), z], axis=-1)
    eyes = np.stack([np.linspace(-5, 5, views), generator.uniform(-12, -9, views), np.full(views, 1.6)], axis=1)
    cam_from_cad = inverse(np.stack([look_at(eye, [0, 0, 2]) for eye in eyes]))
    features = np.cos(xyz @ waves + phases) + generator.normal(0, 0.05, (views, per_view, CHANNELS))
    return Samples(
        torch.from_numpy(features.reshape(-1, CHANNELS).astype(np.float16)),
        torch.from_numpy(project(transform_points(cam_from_cad, xyz), K).reshape(-1, 2).astype(np.float32)),
        torch.arange(views).repeat_interleave(per_view),
        torch.from_numpy(xyz.reshape(-1, 3).astype(np.float32)),
        torch.from_numpy(cam_from_cad.astype(np.float32)),
        torch.from_numpy(np.stack([K] * views).astype(np.float32)),
    )


def trial(loss: LossConfig, head: HeadConfig = ANCHORS, **training: float) -> TrialConfig:
    """A short trial on samples made in code: its scene is a name only."""
    settings = {"iterations": 120, "batch_size": 256, "learning_rate": 3e-3, "validations": 3, **training}
    return TrialConfig(
        scene=SceneConfig(name="gate", built_in=True),
        head=head,
        loss=loss,
        training=TrainingConfig.model_validate(settings),
    )


def begin(config: TrialConfig, directory: Path, samples: Samples) -> Training:
    """A training as a trial starts it: fitted, or resumed."""
    head = build(config.head, samples.dimensions, config.seed, deviation=predicts_deviation(config.loss))
    training = Training(head, samples, config, directory)
    training.start()
    return training


def median_error_m(head: Head) -> float:
    """On cells that were not trained on."""
    unseen = wall_samples(seed=1)
    return float((head.predict(unseen.features) - unseen.scene_coordinates).norm(dim=1).median())


def nothing(_: Head) -> Mapping[str, float]:
    """A validation that measures nothing."""
    return {}


@pytest.mark.parametrize("loss", [ReprojectionLoss(), CoordinateLoss(), SwitchingLoss(at=0.4)])
def test_the_anchor_head_learns_under_every_loss(loss: LossConfig, tmp_path: Path) -> None:
    """Training at least halves the coordinate error of the start, to under 20 cm on a wall 8 m wide."""
    training = begin(trial(loss), tmp_path, wall_samples())
    before_m = median_error_m(training.head)
    rows = list(training.run(nothing))
    assert [row["step"] for row in rows] == [40, 80, 120]
    assert median_error_m(training.head) < min(0.2, before_m / 2)


@pytest.mark.parametrize("head", [ANCHORS, AceHead(width=32)])
def test_bfloat16_learns_as_float32_does(head: HeadConfig, tmp_path: Path) -> None:
    """After the same steps in half precision the coordinate error is within a fifth of that in full."""
    errors_m = []
    for precision in ("float32", "bfloat16"):
        config = trial(SwitchingLoss(at=0.5), head)
        training_config = config.training.model_copy(update={"precision": precision})
        config = config.model_copy(update={"training": training_config})
        training = begin(config, tmp_path / precision, wall_samples())
        list(training.run(nothing))
        errors_m.append(median_error_m(training.head))
    assert errors_m[1] == pytest.approx(errors_m[0], rel=0.2)


@pytest.mark.parametrize("loss", [CoordinateLoss(), SwitchingLoss(at=0.4)])
def test_the_ace_head_learns_and_survives_the_switch(loss: LossConfig, tmp_path: Path) -> None:
    """The coordinate error falls below a metre, and the change of loss half way does not throw it back."""
    config = trial(loss, AceHead(width=64), iterations=300, validations=5)
    training = begin(config, tmp_path, wall_samples())
    errors_m = [row["error_m"] for row in training.run(lambda head: {"error_m": median_error_m(head)})]
    assert errors_m[-1] < 1.0
    assert errors_m[-1] < 1.2 * errors_m[1]


def test_the_ace_head_lowers_its_reprojection_error(tmp_path: Path) -> None:
    """From poses alone, the clamped error falls well below its start."""
    samples = wall_samples()
    config = trial(ReprojectionLoss(), AceHead(width=64), iterations=200)
    training = begin(config, tmp_path, samples)
    fixed = phase_at(config.loss, 0.0, samples.scale)
    before_px = mean_loss(training.head, samples, fixed)
    list(training.run(nothing))
    assert mean_loss(training.head, samples, fixed) < 0.6 * before_px


@pytest.mark.parametrize("head", [ANCHORS, AceHead(width=32)])
def test_an_interrupted_run_ends_in_the_same_bits(head: HeadConfig, tmp_path: Path) -> None:
    """Stopped after the first milestone and resumed in a new object, weights and history equal an unbroken run's."""
    samples, config = wall_samples(), trial(SwitchingLoss(at=0.5), head, iterations=60)
    unbroken = begin(config, tmp_path / "a", samples)
    list(unbroken.run(nothing))
    stopped = begin(config, tmp_path / "b", samples).run(nothing)
    next(stopped)
    stopped.close()  # type: ignore[attr-defined]
    resumed = begin(config, tmp_path / "b", samples)
    assert resumed.progression.step == 20
    assert [row["step"] for row in resumed.run(nothing)] == [40, 60]
    expected = unbroken.head.state_dict()
    assert all(torch.equal(expected[name], value) for name, value in resumed.head.state_dict().items())
    histories = [[_without_times(row) for row in run.progression.history] for run in (unbroken, resumed)]
    assert histories[0] == histories[1]
    assert ["train/loss_px" in row for row in histories[0]] == [False, True, True]


def half_known(samples: Samples) -> Samples:
    """The samples, the scene coordinates of two thirds of them lost, as of background."""
    lost = torch.arange(len(samples)) % 3 > 0
    return replace(samples, scene_coordinates=samples.scene_coordinates.masked_fill(lost[:, None], torch.nan))


@pytest.mark.parametrize("loss", [loss() for loss in get_args(get_args(LossConfig)[0])], ids=lambda loss: loss.name)
@pytest.mark.parametrize(
    "head",
    [
        AceHead(width=16, blocks=0),
        GlaceHead(width=16, blocks=0, centres=3, centres_of="surface", global_features=None),
        AnchorHead(anchors=20, width=16),
        AnchorHead(anchors=20, width=16, anchors_of="surface", evidence="points"),
    ],
    ids=["ace", "glace", "anchor", "points"],
)
def test_training_on_cells_without_a_point_stays_finite(head: HeadConfig, loss: LossConfig, tmp_path: Path) -> None:
    """Under every loss, every kind of head; anchors and centres are placed where points are known."""
    samples = half_known(wall_samples(views=6, per_view=90))
    training = begin(trial(loss, head, iterations=3, batch_size=128), tmp_path, samples)
    rows = list(training.run(nothing))
    assert all(bool(torch.isfinite(value).all()) for value in training.head.state_dict().values())
    assert all(np.isfinite(list(row.values())).all() for row in rows)
    state = training.head.state_dict()
    placed = state.get("anchors", state.get("centres"))
    if placed is not None:
        known = samples.scene_coordinates[samples.known]
        distances_m = torch.cdist(placed + state["centre"], known).amin(dim=1)
        assert float(distances_m.max()) < 1


def _without_times(row: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in row.items() if not name.startswith("time/")}


def test_a_checkpoint_of_another_trial_is_refused(tmp_path: Path) -> None:
    """Changing the learning rate and resuming in the same directory is an input error that names the file."""
    samples = wall_samples()
    list(begin(trial(CoordinateLoss(), iterations=6), tmp_path, samples).run(nothing))
    with pytest.raises(InputError, match=CHECKPOINT):
        begin(trial(CoordinateLoss(), iterations=6, learning_rate=1e-3), tmp_path, samples)


@pytest.mark.parametrize("damage", ["empty", "cut", "tail", "bytes", "garbage", "code"])
def test_a_damaged_checkpoint_is_kept_aside_and_training_begins_anew(damage: str, tmp_path: Path) -> None:
    """Whatever happened to it, down to one byte of a tensor: as if it were not there, and not written over."""
    samples, config = wall_samples(), trial(CoordinateLoss(), iterations=6)
    list(begin(config, tmp_path, samples).run(nothing))
    path = tmp_path / CHECKPOINT
    whole = path.read_bytes()
    match damage:
        case "empty":
            path.write_bytes(b"")
        case "cut":
            path.write_bytes(whole[: len(whole) // 2])
        case "tail":
            path.write_bytes(whole[-2000:])
        case "bytes":
            middle = len(whole) // 2
            path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
        case "garbage":
            path.write_text("no checkpoint")
        case "code":
            torch.save({"fingerprint": Path("a")}, path)  # an object made by a call
    damaged = path.read_bytes()
    assert begin(config, tmp_path, samples).progression.step == 0
    assert not path.exists()
    assert (tmp_path / f"{CHECKPOINT}.damaged").read_bytes() == damaged


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ("pathlib.Path.read_bytes", PermissionError("permission denied")),
        ("torch.load", RuntimeError("DefaultCPUAllocator: can't allocate memory")),
    ],
)
def test_a_checkpoint_that_cannot_be_read_now_is_left_alone(
    place: str, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No permission and no memory are no damage: the error is raised, and the file is read once that has passed."""
    path = tmp_path / CHECKPOINT
    torch.save({"step": 3}, path)

    def refuse(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(place, refuse)
        with pytest.raises(type(error)):
            read_checkpoint(path)
    assert read_checkpoint(path) == {"step": 3}


def test_divergence_is_an_error_that_leaves_the_history(tmp_path: Path) -> None:
    """When features turn into NaN half way, training it stops with DivergenceError; the history is on disk."""
    samples = wall_samples()

    def poison(_: Head) -> Mapping[str, float]:
        samples.features.fill_(torch.nan)
        return {}

    training = begin(trial(CoordinateLoss()), tmp_path, samples)
    with pytest.raises(DivergenceError, match="learning_rate"):
        list(training.run(poison))
    header, *rows = (tmp_path / HISTORY).read_text().splitlines()
    assert len(rows) == 2
    assert "nan" in rows[1]
    assert "train/loss_m" in header


def test_an_exploding_learning_rate_is_divergence(tmp_path: Path) -> None:
    """Steps of absurd length end in DivergenceError, not in a useless map."""
    config = trial(CoordinateLoss(), AceHead(width=32), learning_rate=1e4, iterations=200)
    with pytest.raises(DivergenceError):
        list(begin(config, tmp_path, wall_samples()).run(nothing))


def test_a_pass_shows_every_sample_at_most_once_and_steps_stand_alone() -> None:
    """Within a pass no sample repeats; batch number s is the same whether or not the ones before were drawn."""
    samples = wall_samples()
    samples.features[:, 0] = torch.arange(len(samples)) % 2048
    batches = Shuffled(samples, 500, seed=3)
    places = torch.cat([batches.batch(step).scene_coordinates for step in range(4)])
    assert len(torch.unique(places, dim=0)) == 2000
    assert torch.equal(Shuffled(samples, 500, seed=3).batch(9).pixels, batches.batch(9).pixels)
    assert not torch.equal(batches.batch(0).pixels, batches.batch(4).pixels)


def test_a_batch_larger_than_the_buffer_is_an_input_error() -> None:
    """The fault names the key and the buffer's size."""
    with pytest.raises(InputError, match=r"training\.batch_size: found 5000; allowed: at most the 2400"):
        Shuffled(wall_samples(), 5000, seed=0)


@pytest.mark.parametrize("head", [ANCHORS, AceHead(width=32)])
def test_a_map_read_back_predicts_the_same_bits(head: HeadConfig, tmp_path: Path) -> None:
    """Nothing is rounded on the way to disk, far from the origin neither."""
    samples, config = wall_samples(), trial(CoordinateLoss(), head)
    trained = begin(config, tmp_path / "run", samples).head
    trained.centre.add_(torch.tensor([812.345, -77.7, 3.3]))  # type: ignore[operator]
    save_map(tmp_path, trained, config, (480, 360), np.array([5e5, 5e6, 0.0]))
    back = load_map(tmp_path)
    assert torch.equal(back.head.predict(samples.features), trained.predict(samples.features))
    assert back.encoder.dimensions == build_encoder(config.encoder).dimensions
    assert back.image_size_px == (480, 360)
    np.testing.assert_array_equal(back.origin_m, [5e5, 5e6, 0.0])


def test_a_map_is_not_read_with_other_weights_than_its_own(tmp_path: Path) -> None:
    """Features of an encoder trained anew are noise to the head: the map is refused, not believed."""
    place = tmp_path / "mine.safetensors"
    SmallFeatures().initialised(0).save(place, {})
    config = trial(CoordinateLoss()).model_copy(update={"encoder": SmallEncoder(weights=str(place))})
    save_map(tmp_path, build(config.head, CHANNELS, 0), config, (480, 360), np.zeros(3))
    load_map(tmp_path)
    SmallFeatures().initialised(1).save(place, {})
    with pytest.raises(InputError, match="no longer those the map was made with"):
        load_map(tmp_path)


def test_what_is_no_map_is_an_input_error(tmp_path: Path) -> None:
    """A missing card, a card that is no JSON and cut weights are told with the file's name, not as a traceback."""
    with pytest.raises(InputError, match=r"map\.json"):
        load_map(tmp_path)
    (tmp_path / "map.json").write_text("{")
    with pytest.raises(InputError, match=r"map\.json"):
        load_map(tmp_path)
    config = trial(CoordinateLoss())
    save_map(tmp_path, build(config.head, CHANNELS, 0), config, (480, 360), np.zeros(3))
    weights = tmp_path / "map.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"map\.json"):
        load_map(tmp_path)


def test_poses_are_written_world_to_camera_with_their_errors(tmp_path: Path) -> None:
    """Quaternion and translation give back `cam_from_cad`; a failed query has empty pose fields and infinite errors."""
    from scipy.spatial.transform import Rotation

    pose = look_at([9, 4, 1.7], [0, 0, 2], roll_deg=170)
    estimates = [Estimate(pose, 10, 0.5, 0.25, 0.01), Estimate(None, 0, 0.0, 0.0, 0.01)]
    errors = PoseErrors.of(estimates, np.stack([inverse(pose)] * 2))
    write_poses(tmp_path / "poses.csv", ["a", "b"], estimates, errors)
    header, first, second = ((tmp_path / "poses.csv").read_text()).splitlines()
    row = dict(zip(header.split(","), first.split(","), strict=True))
    w, x, y, z, *translation = (float(row[key]) for key in ("qw", "qx", "qy", "qz", "tx_m", "ty_m", "tz_m"))
    np.testing.assert_allclose(Rotation.from_quat([x, y, z, w]).as_matrix(), inverse(pose)[:3, :3], atol=1e-7)
    np.testing.assert_allclose(translation, inverse(pose)[:3, 3], atol=1e-7)
    assert w >= 0
    assert float(row["translation_error_m"]) < 1e-9
    assert second.split(",")[1:9] == [""] * 7 + ["inf"]
