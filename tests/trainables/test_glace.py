"""GLACE's head: ACE's when it is told nothing, many centres and their hull, noise that repeats, images told apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cadloc.config import TrialConfig
from cadloc.contract import InputError
from cadloc.geometry import Array, inverse, look_at, pinhole, project, transform_points
from cadloc.head_config import AceHead, GlaceHead, HeadConfig
from cadloc.heads import build
from cadloc.heads.anchors import area_uniform, place_anchors
from cadloc.heads.glace import GlacePerceptron
from cadloc.heads.head import Head
from cadloc.loss_config import CoordinateLoss, LossConfig, ReprojectionLoss
from cadloc.samples import Samples
from cadloc.scene_config import SceneConfig
from cadloc.training import Training
from cadloc.training_config import TrainingConfig

CHANNELS, TOLD = 24, 32
BARE = GlaceHead(width=32, centres=1, global_features=None)
APART = np.array([20.0, 0.0, 0.0])


def seen(xyz: Array, eyes: Array, features: Array, told: Array | None = None) -> Samples:
    """Samples of points (V, P, 3) with features (V, P, C), each row seen from its eye (V, 3) looking along +y."""
    views, per_view, _ = xyz.shape
    K = pinhole(480, 360, 65)
    cam_from_cad = inverse(np.stack([look_at(eye, eye + np.array([0, 10, 0.1])) for eye in eyes]))
    return Samples(
        torch.from_numpy(features.reshape(views * per_view, -1).astype(np.float16)),
        torch.from_numpy(project(transform_points(cam_from_cad, xyz), K).reshape(-1, 2).astype(np.float32)),
        torch.arange(views).repeat_interleave(per_view),
        torch.from_numpy(xyz.reshape(-1, 3).astype(np.float32)),
        torch.from_numpy(cam_from_cad.astype(np.float32)),
        torch.from_numpy(np.stack([K] * views).astype(np.float32)),
        None if told is None else torch.from_numpy(told.astype(np.float32)),
    )


def directions(count: int, seed: int = 0) -> Array:
    """Unit vectors (count, TOLD)."""
    vectors = np.random.default_rng(seed).normal(0, 1, (count, TOLD))
    unit: Array = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def wall(*, places: int = 1, views: int = 8, per_view: int = 60) -> Samples:
    """Cells of cameras before a wavy wall, every image with a global feature.

    There are `places` walls 20 m apart that look the same: cell for cell, images of all have the same features.
    """
    generator = np.random.default_rng(0)
    waves, phases = generator.normal(0, 0.5, (3, CHANNELS)), generator.uniform(0, 6, CHANNELS)
    x, z = generator.uniform(-4, 4, (views, per_view)), generator.uniform(0, 4, (views, per_view))
    xyz = np.stack([x, 0.5 * np.sin(2 * x), z], axis=-1)
    eyes = np.stack([np.linspace(-3, 3, views), generator.uniform(-11, -9, views), np.full(views, 1.6)], axis=1)
    features = np.cos(xyz @ waves + phases)
    shifts = np.arange(places)[:, None, None] * APART
    told = np.repeat(directions(places), views, axis=0)
    told = told + 0.05 * directions(places * views, seed=1)
    return seen(
        (xyz + shifts[:, None]).reshape(places * views, per_view, 3),
        (eyes + shifts).reshape(places * views, 3),
        np.concatenate([features] * places),
        told / np.linalg.norm(told, axis=1, keepdims=True),
    )


def glace(config: GlaceHead, told: int = TOLD, seed: int = 0) -> GlacePerceptron:
    """An untrained head."""
    head = build(config, CHANNELS, seed, global_dimensions=told)
    assert isinstance(head, GlacePerceptron)
    return head


def begin(head: HeadConfig, loss: LossConfig, directory: Path, samples: Samples, **training: object) -> Training:
    """A training as a trial starts it."""
    settings = {"iterations": 20, "batch_size": 128, "learning_rate": 3e-3, "validations": 2, **training}
    config = TrialConfig(
        scene=SceneConfig(name="gate", built_in=True),
        head=head,
        loss=loss,
        training=TrainingConfig.model_validate(settings),
    )
    told = 0 if samples.global_features is None else samples.global_features.shape[1]
    begun = Training(build(head, CHANNELS, 3, global_dimensions=told), samples, config, directory)
    begun.start()
    return begun


def nothing(_: Head) -> Mapping[str, float]:
    """A validation that measures nothing."""
    return {}


def same_bits(one: Head, other: Head) -> bool:
    """Of all that the second has."""
    state = one.state_dict()
    return all(torch.equal(state[name], value) for name, value in other.state_dict().items())


@pytest.mark.parametrize("homogeneous", [True, False])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_one_centre_and_no_global_feature_is_the_ace_head_bit_by_bit(
    precision: str, homogeneous: bool, tmp_path: Path
) -> None:
    """The same initial weights from the same seed, and the same weights, losses and outputs after twenty steps."""
    samples = replace(wall(), global_features=None)
    configs = AceHead(width=32, homogeneous=homogeneous), BARE.model_copy(update={"homogeneous": homogeneous})
    ace, bare = (
        begin(config, ReprojectionLoss(), tmp_path / config.name, samples, precision=precision) for config in configs
    )
    assert same_bits(bare.head, ace.head)
    losses = [[row["train/loss_px"] for row in run.run(nothing)] for run in (ace, bare)]
    assert losses[0] == losses[1]
    assert same_bits(bare.head, ace.head)
    batch = samples.batch(torch.arange(100))
    assert torch.equal(bare.head(batch.features).coordinates, ace.head(batch.features).coordinates)
    assert bare.head.state_dict().keys() == ace.head.state_dict().keys() | {"centres"}


def anything(cells: int) -> tuple[Tensor, Tensor]:
    """Random features (cells, CHANNELS) and global features (cells, TOLD)."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(cells, CHANNELS, generator=generator), torch.randn(cells, TOLD, generator=generator)


def tetrahedron(head: GlacePerceptron) -> Tensor:
    """Sets a head of four centres to say large, random shares and no offsets; returns its corners (4, 3) in `cad`."""
    assert head.shares is not None
    with torch.no_grad():
        head.centre.copy_(torch.tensor([100.0, -50.0, 3.0]))
        head.centres.copy_(torch.tensor([[0.0, 0.0, 0.0], [9.0, 0.0, 0.0], [0.0, 7.0, 0.0], [0.0, 0.0, 5.0]]))
        head.shares.weight.normal_(0, 5, generator=torch.Generator().manual_seed(0))
        head.read_out.weight.zero_()
        head.read_out.bias.zero_()
    return head.centres + head.centre


@torch.no_grad()
def test_bases_lie_in_the_hull_of_the_centres() -> None:
    """Without offsets, every cell is put at a weighted mean of the four corners, and not all at the same."""
    head = glace(GlaceHead(width=32, centres=4))
    corners = tetrahedron(head)
    points = head(*anything(200)).coordinates
    weights = torch.linalg.solve(
        torch.cat([corners.T, torch.ones(1, 4)]).double(), torch.cat([points.T, torch.ones(1, 200)]).double()
    )
    assert float(weights.min()) > -1e-4
    assert int((weights.amax(dim=1) > 0.5).sum()) >= 2


@torch.no_grad()
def test_the_order_of_the_centres_means_nothing() -> None:
    """Permuted together with the rows that score them, centres give the same coordinates."""
    head, other = glace(GlaceHead(width=32, centres=4)), glace(GlaceHead(width=32, centres=4))
    tetrahedron(head)
    other.load_state_dict(head.state_dict())
    order = torch.tensor([2, 0, 3, 1])
    assert head.shares is not None
    assert other.shares is not None
    other.centres.copy_(head.centres[order])
    other.shares.weight.copy_(head.shares.weight[order])
    other.shares.bias.copy_(head.shares.bias[order])
    cells = anything(50)
    torch.testing.assert_close(other(*cells).coordinates, head(*cells).coordinates, rtol=0, atol=1e-4)


def patched_floor() -> Samples:
    """3,000 points all over a floor of 8 × 8 m, 9,000 more on a patch of half a metre, from twelve cameras."""
    generator = np.random.default_rng(0)
    floor = generator.uniform(-4, 4, (12, 250, 3))
    patch = generator.uniform(0, 0.5, (12, 750, 3))
    xyz = np.concatenate([floor, patch], axis=1) * [1, 1, 0]
    eyes = generator.uniform([-6, -26, -6], [6, -14, 6], (12, 3))
    return seen(xyz, eyes, np.zeros((12, 1000, CHANNELS)))


def test_centres_of_the_surface_are_spread_by_area_not_by_samples() -> None:
    """A patch that is looked at closely has three quarters of the samples, but no more centres than its area."""
    samples = patched_floor()
    head = glace(GlaceHead(width=32, centres=32, centres_of="surface"))
    head.fit(samples, seed=0)
    centres = (head.centres + head.centre).numpy()
    by_samples = place_anchors(samples.scene_coordinates.numpy(), 32, seed=0)
    on_patch, on_patch_by_samples = (
        int(((place[:, :2] > 0) & (place[:, :2] < 0.5)).all(axis=1).sum()) for place in (centres, by_samples)
    )
    assert on_patch <= 1
    assert on_patch_by_samples > 10
    counts = np.histogram2d(centres[:, 0], centres[:, 1], bins=2, range=[[-4, 4]] * 2)[0]
    assert counts.min() >= 5  # 8 each


@pytest.mark.parametrize("spacing_m", [1e-6, 1.0, 1e3])
def test_thinning_keeps_what_is_there_at_any_scale(spacing_m: float) -> None:
    """All points of a sparse grid stay, in order; of a point repeated, one; of none, none."""
    grid = np.stack(np.meshgrid(*[np.arange(4.0)] * 3), axis=-1).reshape(-1, 3) * spacing_m
    np.testing.assert_array_equal(area_uniform(grid, 100), grid)
    assert len(area_uniform(np.repeat(grid, 5, axis=0), 100)) == len(grid)
    assert len(area_uniform(np.repeat(grid[:1], 5, axis=0), 1)) == 1
    assert len(area_uniform(grid[:0], 1)) == 0


def test_centres_of_the_cameras_are_near_those_that_see_something() -> None:
    """With as many centres as cameras, each is one; a camera without samples has none."""
    samples = wall(views=8)
    blind = replace(samples, cam_from_cad=torch.cat([samples.cam_from_cad, torch.eye(4)[None]]))
    head = glace(GlaceHead(width=32, centres=8))
    head.fit(blind, seed=0)
    cameras = -torch.einsum("vji,vj->vi", samples.cam_from_cad[:, :3, :3], samples.cam_from_cad[:, :3, 3])
    assert float(torch.cdist(head.centres + head.centre, cameras).amin(dim=0).max()) < 1e-3


@pytest.mark.parametrize("centres_of", ["cameras", "surface"])
def test_more_centres_than_points_is_an_input_error(centres_of: str) -> None:
    """The fault names the key and what there is."""
    head = glace(GlaceHead.model_validate({"width": 32, "centres": 2000, "centres_of": centres_of}))
    with pytest.raises(InputError, match=r"head\.centres: found 2000; allowed: at most the \d+ points"):
        head.fit(wall(), seed=0)


def told_to(head: GlacePerceptron, samples: Samples, seed: int, *, training: bool = True) -> Tensor:
    """The global features (B, TOLD) that the network itself is given for one and the same batch."""
    given: list[Tensor] = []
    watch = head.trunk.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0][:, :TOLD]))
    batch = samples.batch(torch.arange(256), seed)
    if training:
        head.training_output(batch, "rays")
    else:
        head.output_for(batch)
    watch.remove()
    return given[0]


def test_diffusion_turns_global_features_on_the_sphere_anew_in_every_step() -> None:
    """Unit vectors, as far from the image's as the noise makes them, another for every cell; the same for a step done
    again, others in the next; none in use."""
    samples = wall()
    head = glace(GlaceHead(width=32, centres=4, diffusion=0.1))
    plain = told_to(head, samples, 5, training=False)
    assert samples.global_features is not None
    assert torch.equal(plain, samples.global_features[samples.view[:256]])
    diffused = told_to(head, samples, 5)
    torch.testing.assert_close(diffused.norm(dim=1), torch.ones(256))
    cosine = float((diffused * plain).sum(dim=1).mean())
    assert cosine == pytest.approx(1 / math.sqrt(1 + 0.1**2 * TOLD), abs=0.02)
    assert len(torch.unique(diffused, dim=0)) == 256
    assert torch.equal(told_to(head, samples, 5), diffused)
    assert not torch.equal(told_to(head, samples, 6), diffused)
    still = glace(GlaceHead(width=32, centres=4, diffusion=0))
    assert torch.equal(told_to(still, samples, 5), plain)


def test_interrupted_diffusion_ends_in_the_same_bits(tmp_path: Path) -> None:
    """Noise is a function of seed and step: stopped half way and resumed, weights equal an unbroken run's."""
    head, samples = GlaceHead(width=32, centres=4), wall()
    unbroken = begin(head, CoordinateLoss(), tmp_path / "a", samples)
    list(unbroken.run(nothing))
    interrupted = begin(head, CoordinateLoss(), tmp_path / "b", samples).run(nothing)
    next(interrupted)
    interrupted.close()  # type: ignore[attr-defined]
    resumed = begin(head, CoordinateLoss(), tmp_path / "b", samples)
    assert resumed.progression.step == 10
    list(resumed.run(nothing))
    assert same_bits(resumed.head, unbroken.head)


def test_images_that_look_the_same_are_told_apart_by_their_global_features(tmp_path: Path) -> None:
    """Of two walls 20 m apart with the same features, each cell is put on the wall of its image; a head that is not
    told can only be 10 m off on average, whatever it learns."""
    samples = wall(places=2)
    batch = samples.batch(torch.arange(len(samples)))
    errors_m = {}
    for name, known in (("told", samples), ("not told", replace(samples, global_features=None))):
        head = GlaceHead(width=48, centres=2)
        run = begin(head, CoordinateLoss(), tmp_path / name, known, iterations=200, validations=1)
        list(run.run(nothing))
        told = batch.global_features if name == "told" else None
        coordinates = run.head.eval()(batch.features, told).coordinates.detach()
        errors_m[name] = (coordinates - batch.scene_coordinates).norm(dim=1)
    assert float(errors_m["told"].median()) < 1.0
    assert float((errors_m["told"] < 5).float().mean()) > 0.99
    assert float(errors_m["not told"].mean()) > 9.99


@torch.no_grad()
def test_an_image_is_read_with_each_global_feature_in_turn() -> None:
    """One guess per candidate, each what the head says when it is told that one."""
    samples = wall()
    head = glace(GlaceHead(width=32, centres=4)).eval()
    head.fit(samples, seed=0)
    assert samples.global_features is not None
    candidates = samples.global_features[[0, 5, 2]]
    guesses = list(head.guesses(samples.features, candidates))
    assert len(guesses) == 3
    for guess, candidate in zip(guesses, candidates, strict=True):
        expected = head(samples.features.float(), candidate.expand(len(samples), -1)).coordinates
        torch.testing.assert_close(guess.coordinates, expected, rtol=0, atol=1e-5)
        assert guess.confidence is None


@pytest.mark.parametrize(("blocks", "ratio", "megabytes"), [(1, 1.0, 9.46), (2, 1.0, 13.0), (3, 2.0, 27.3)])
def test_maps_have_the_published_sizes(blocks: int, ratio: float, megabytes: float) -> None:
    """768 channels, of which 256 are global, in half precision: 9, 13 and 27 MB (GLACE, section 4)."""
    config = GlaceHead(blocks=blocks, ratio=ratio, centres=1 if blocks < 3 else 50)
    head = build(config, 512, seed=0, global_dimensions=256)
    assert 2 * sum(parameter.numel() for parameter in head.parameters()) / 1e6 == pytest.approx(megabytes, rel=0.01)
