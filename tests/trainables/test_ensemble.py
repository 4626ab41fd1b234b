"""Ensembles: cameras split into places, members that train on their own alone, and the member that fits wins."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from cadloc.artifacts import load_map, save_map
from cadloc.config import TrialConfig
from cadloc.contract import InputError
from cadloc.evaluation import evaluate
from cadloc.geometry import Array, cell_pixels, inverse, look_at, pinhole
from cadloc.head_config import AceHead, AnchorHead, EnsembleHead, HeadConfig, MemberHead
from cadloc.heads import build
from cadloc.heads.ace import AcePerceptron
from cadloc.heads.anchor import AnchorClassifier
from cadloc.heads.ensemble import Ensemble, split
from cadloc.heads.head import Head
from cadloc.loss_config import CoordinateLoss
from cadloc.queries import Queries
from cadloc.samples import Samples
from cadloc.scene_config import SceneConfig
from cadloc.shuffling import Shuffled
from cadloc.training import Training
from cadloc.training_config import LocalizationConfig, TrainingConfig

CHANNELS = 24
SIZE_PX = (160, 120)
SMALL = AceHead(width=24, blocks=0)
APART = np.array([200.0, 0.0, 0.0])


def blobs(*sizes: int, spread_m: float = 1.0) -> Array:
    """Camera centres (V, 3) about places 100 m apart, so many at each."""
    generator = np.random.default_rng(0)
    return np.concatenate([generator.normal([100 * k, 0, 2], spread_m, (size, 3)) for k, size in enumerate(sizes)])


def points_seen(cad_from_cam: Array, K: Array, pixels: Array) -> Array:
    """Where on the ground z = 0 a camera sees its pixels (N, 2)."""
    rays = (np.column_stack([pixels, np.ones(len(pixels))]) @ np.linalg.inv(K).T) @ cad_from_cam[:3, :3].T
    points: Array = cad_from_cam[:3, 3] - rays * (cad_from_cam[2, 3] / rays[:, 2:])
    return points


def features_of(points: Array) -> Array:
    """(N, CHANNELS), smooth random functions of a point of the ground.

    Both places have the same features, but arranged otherwise: what is a line here is a curve there.
    """
    generator = np.random.default_rng(99)
    waves, phases = generator.normal(0, 0.3, (2, CHANNELS)), generator.uniform(0, 6, CHANNELS)
    far = points[:, :1] > APART[0] / 2
    x, y = (points[:, :2] - APART[:2] * far).T
    there = np.stack([x * np.abs(x) / 4, y + 2 * np.sin(x)], axis=1)
    return np.cos(np.where(far, there, points[:, :2]) @ waves + phases)


def flights(views: int, seed: int) -> tuple[Array, Array]:
    """Poses `cad_from_cam` (2 · views, 4, 4) of cameras above two places, and their intrinsics."""
    generator = np.random.default_rng(seed)
    eyes = generator.uniform([-3, -3, 8], [3, 3, 11], (views, 3))
    targets = generator.uniform([-1, -1, 0], [1, 1, 0], (views, 3))
    poses = [look_at(eye + at, to + at) for at in (0 * APART, APART) for eye, to in zip(eyes, targets, strict=True)]
    return np.stack(poses), pinhole(*SIZE_PX, 60)


def two_places(views: int = 6) -> Samples:
    """Samples of every cell that cameras above the two places see."""
    poses, K = flights(views, seed=0)
    pixels = cell_pixels(SIZE_PX[1] // 8, SIZE_PX[0] // 8).reshape(-1, 2)
    points = np.concatenate([points_seen(pose, K, pixels) for pose in poses])
    return Samples(
        torch.from_numpy(features_of(points).astype(np.float16)),
        torch.from_numpy(np.tile(pixels, (len(poses), 1)).astype(np.float32)),
        torch.arange(len(poses)).repeat_interleave(len(pixels)),
        torch.from_numpy(points.astype(np.float32)),
        torch.from_numpy(inverse(poses).astype(np.float32)),
        torch.from_numpy(np.stack([K] * len(poses)).astype(np.float32)),
    )


def queries_of_both(views: int = 4) -> Queries:
    """Images of the two places from elsewhere."""
    poses, K = flights(views, seed=1)
    pixels = cell_pixels(SIZE_PX[1] // 8, SIZE_PX[0] // 8).reshape(-1, 2)
    points = np.concatenate([points_seen(pose, K, pixels) for pose in poses])
    return Queries(
        tuple(f"{k}" for k in range(len(poses))),
        features_of(points).astype(np.float16),
        points.astype(np.float32),
        inverse(poses),
        np.stack([K] * len(poses)),
        np.array([SIZE_PX] * len(poses)),
    )


def begin(head: HeadConfig, directory: Path, samples: Samples, **training: object) -> Training:
    """A training as a trial starts it."""
    settings = {"iterations": 20, "batch_size": 128, "learning_rate": 5e-3, "validations": 2, **training}
    config = TrialConfig(
        scene=SceneConfig(name="gate", built_in=True),
        head=head,
        loss=CoordinateLoss(),
        training=TrainingConfig.model_validate(settings),
    )
    begun = Training(build(head, CHANNELS, 0), samples, config, directory)
    begun.start()
    return begun


def ensemble(members: int = 2, member: MemberHead = SMALL) -> Ensemble:
    """Untrained, fitted to the two places."""
    head = build(EnsembleHead(members=members, member=member), CHANNELS, 0)
    assert isinstance(head, Ensemble)
    head.fit(two_places(), seed=0)
    return head


def nothing(_: Head) -> Mapping[str, float]:
    """A validation that measures nothing."""
    return {}


@pytest.mark.parametrize("sizes", [(20, 20), (30, 20, 20), (16, 16, 16, 16), (9, 1)])
def test_cameras_are_split_into_the_places_where_they_stand(sizes: tuple[int, ...]) -> None:
    """Clusters far apart are found where the largest holds more than one of them; the same on every call."""
    centres = blobs(*sizes)
    places = split(centres, len(sizes), seed=0)
    ends = np.cumsum(sizes)
    expected = [centres[end - size : end].mean(axis=0) for size, end in zip(sizes, ends, strict=True)]
    np.testing.assert_allclose(places[np.argsort(places[:, 0])], expected)
    np.testing.assert_array_equal(split(centres, len(sizes), seed=0), places)


def test_the_largest_cluster_is_halved_each_time() -> None:
    """Of 64 cameras in a row, four clusters hold about sixteen each; of 64 with one far off, it is left alone."""
    row = np.arange(64.0)[:, None] * [1, 0, 0]
    nearest = np.abs(row[:, :1] - split(row, 4, seed=0)[:, 0]).argmin(axis=1)
    assert np.bincount(nearest).max() <= 20
    far = np.concatenate([row, [[1e4, 0, 0]]])
    places = split(far, 3, seed=0)
    assert sorted(places[:, 0].round()) == [16, 48, 10_000]


def test_a_place_is_split_only_where_cameras_stand_apart() -> None:
    """The largest cluster may be one spot, seen again under augmentation: then the next one is halved; where all are
    spots, the fault says how many there are."""
    spot = np.tile([50.0, 0, 2], (40, 1)) + np.random.default_rng(0).normal(0, 1e-6, (40, 3))
    others = np.array([[0.0, 0, 2], [1.0, 0, 2]])
    places = split(np.concatenate([spot, others]), 3, seed=0)
    np.testing.assert_allclose(places[np.argsort(places[:, 0])], [*others, spot.mean(axis=0)], atol=1e-5)
    with pytest.raises(InputError, match=r"head\.members: found 4; allowed: at most 3"):
        split(np.concatenate([spot, others]), 4, seed=0)


def test_every_sample_belongs_to_the_member_of_its_camera() -> None:
    """Parts share out all samples, one member's are those of one place; each is fitted to its own cameras."""
    samples, head = two_places(), ensemble()
    parts = head.parts(samples)
    assert torch.equal(torch.cat(list(parts)).sort().values, torch.arange(len(samples)))
    right = [samples.scene_coordinates[part, 0] > APART[0] / 2 for part in parts]
    assert sorted(float(side.float().mean()) for side in right) == [0, 1]
    for member, part in zip(head.members, parts, strict=True):
        assert isinstance(member, AcePerceptron)
        centres = samples.subset(part).batch(torch.arange(len(part))).centres_cad
        torch.testing.assert_close(member.centre, centres.mean(dim=0), atol=1e-3, rtol=0)


@pytest.mark.parametrize("shift_m", [0.0, 8192.0])
def test_cameras_far_from_the_origin_go_to_the_nearest_place(shift_m: float) -> None:
    """With places 2 m apart in kilometres of coordinates, none is sent elsewhere by rounding."""
    head = build(EnsembleHead(members=40, member=SMALL), CHANNELS, 0)
    assert isinstance(head, Ensemble)
    places = torch.arange(40.0)[:, None] * torch.tensor([2.0, 0.0, 0.0]) + shift_m
    head.places.copy_(places)
    poses = torch.eye(4).repeat(80, 1, 1)
    poses[:, :3, 3] = -(places.repeat(2, 1) + torch.tensor([0.5, 0.0, 0.0]))  # of cameras half a metre beside
    zeros = torch.zeros(80, 3)
    samples = Samples(torch.zeros(80, CHANNELS), zeros[:, :2], torch.arange(80), zeros, poses, poses[:, :3, :3])
    assert [part.tolist() for part in head.parts(samples)] == [[m, m + 40] for m in range(40)]


def test_members_take_turns_on_batches_of_their_own() -> None:
    """Step s draws from part s modulo M only; all of a part is drawn before any of it comes again."""
    samples, parts = two_places(), [torch.arange(0, 700), torch.arange(700, 1700)]
    samples.features[:, 0] = torch.arange(len(samples)) % 2048
    batches = Shuffled(samples, 100, seed=2, parts=parts)
    drawn = [batches.batch(step) for step in range(14)]
    assert [batch.part for batch in drawn] == [0, 1] * 7
    first, second = (torch.cat([batch.features[:, 0] for batch in drawn[m::2]]) for m in (0, 1))
    assert torch.equal(first.sort().values, torch.arange(700.0))
    assert len(torch.unique(second)) == 700
    assert float(second.min()) >= 700
    assert torch.equal(Shuffled(samples, 100, seed=2, parts=parts).batch(31).pixels, batches.batch(31).pixels)
    with pytest.raises(InputError, match=r"training\.batch_size: found 701; allowed: at most the 700 .* smallest"):
        Shuffled(samples, 701, seed=2, parts=parts)


@pytest.mark.parametrize("steps", [1, 2])
def test_a_step_changes_one_member_alone(steps: int, tmp_path: Path) -> None:
    """Neither gradients nor weight decay nor moments touch the others: not one bit."""
    head = EnsembleHead(members=3, member=SMALL)
    untouched, trained = (begin(head, tmp_path / name, two_places(), iterations=steps) for name in ("a", "b"))
    list(trained.run(nothing))
    before, after = untouched.head.state_dict(), trained.head.state_dict()
    changed = {name.split(".")[1] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {str(m) for m in range(steps)}


def test_validation_asks_the_member_of_the_camera() -> None:
    """`output_for` is what the member nearest to each camera says; without a camera there is no one answer."""
    samples, head = two_places(), ensemble()
    output = head.output_for(samples.batch(torch.arange(len(samples)))).coordinates
    for member, part in zip(head.members, head.parts(samples), strict=True):
        assert isinstance(member, AcePerceptron)
        torch.testing.assert_close(output[part], member.predict(samples.features[part]), rtol=0, atol=1e-4)
    with pytest.raises(TypeError, match="guesses"):
        head(samples.features.float())


def test_errors_are_measured_in_the_lengths_of_each_member() -> None:
    """A metre is worth what it is worth to the anchors of the member whose batch it is."""
    head = ensemble(member=AnchorHead(anchors=12, width=16))
    for part, member in enumerate(head.members):
        assert isinstance(member, AnchorClassifier)
        assert float(member.length_m) not in (0.0, 1.0)
        assert head.objective_per_unit("m", 0.01, part) == 1 / member.length_m
        assert head.objective_per_unit("px", 0.01, part) == 0.01 / member.length_m


def test_no_two_seeds_share_a_member() -> None:
    """Repeats of a trial start from weights of their own: members of one seed differ, and from those of the next."""
    heads = [build(EnsembleHead(members=3, member=SMALL), CHANNELS, seed) for seed in (0, 1)]
    weights = [head.state_dict()[f"members.{m}.read_out.weight"] for head in heads for m in range(3)]
    assert len(torch.unique(torch.stack(weights), dim=0)) == 6
    again = build(EnsembleHead(members=3, member=SMALL), CHANNELS, 1).state_dict()
    assert torch.equal(again["members.2.read_out.weight"], weights[5])


@pytest.mark.parametrize("member", [SMALL, AnchorHead(anchors=12, width=16)])
def test_an_interrupted_ensemble_ends_in_the_same_bits(member: MemberHead, tmp_path: Path) -> None:
    """Also where members have done different numbers of steps, and one none at all."""
    head, samples = EnsembleHead(members=3, member=member), two_places()
    unbroken = begin(head, tmp_path / "a", samples, iterations=5, validations=3)
    list(unbroken.run(nothing))
    interrupted = begin(head, tmp_path / "b", samples, iterations=5, validations=3).run(nothing)
    next(interrupted)
    interrupted.close()  # type: ignore[attr-defined]
    resumed = begin(head, tmp_path / "b", samples, iterations=5, validations=3)
    assert resumed.progression.step == 1
    list(resumed.run(nothing))
    expected = unbroken.head.state_dict()
    assert all(torch.equal(expected[name], value) for name, value in resumed.head.state_dict().items())


def test_an_ensemble_localizes_where_one_head_is_torn_between_two_places(tmp_path: Path) -> None:
    """A feature that is seen in two places: a single head cannot say which one, its members know one each, and the
    pose with most inliers tells them apart."""
    samples, queries = two_places(), queries_of_both()
    member = AceHead(width=32)
    errors_m = []
    for name, head, steps in (("single", member, 200), ("several", EnsembleHead(members=2, member=member), 400)):
        run = begin(head, tmp_path / name, samples, iterations=steps, validations=1)
        list(run.run(nothing))
        found = evaluate(run.head.eval(), queries, LocalizationConfig(), diameter_m=200.0, seed=0)
        errors_m.append(found.errors.translation_m)
    assert np.median(errors_m[0]) > 10
    assert errors_m[1].max() < 0.5


def test_the_map_of_an_ensemble_read_back_guesses_the_same_bits(tmp_path: Path) -> None:
    """Every member comes back in its turn, and the places where they stand."""
    head = ensemble(members=3)
    config = TrialConfig(
        scene=SceneConfig(name="gate", built_in=True),
        head=EnsembleHead(members=3, member=SMALL),
        loss=CoordinateLoss(),
    )
    save_map(tmp_path, head, config, SIZE_PX, np.zeros(3))
    features = two_places().features[:100]
    back = load_map(tmp_path).head
    guesses = [[guess.coordinates for guess in each.guesses(features)] for each in (head, back)]
    assert len(guesses[0]) == 3
    assert all(torch.equal(one, other) for one, other in zip(*guesses, strict=True))
    assert torch.equal(back.state_dict()["places"], head.places)
