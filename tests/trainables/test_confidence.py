"""How sure a head is: deviations that tell cells that can be known from those that cannot, in every kind of head."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from cadloc.artifacts import load_map, save_map
from cadloc.config import TrialConfig
from cadloc.geometry import inverse, look_at, pinhole, project, transform_points
from cadloc.head_config import AceHead, AnchorHead, EnsembleHead, GlaceHead, HeadConfig
from cadloc.heads import build
from cadloc.heads.anchor import AnchorClassifier
from cadloc.heads.head import Head
from cadloc.heads.perceptron import SMALLEST_DEVIATION_M, DeviationReadOut
from cadloc.loss_config import LossConfig, ReprojectionLoss, UncertainCoordinateLoss, predicts_deviation
from cadloc.samples import Samples
from cadloc.scene_config import SceneConfig
from cadloc.training import Training
from cadloc.training_config import TrainingConfig

CHANNELS = 24
ACE = AceHead(width=32, blocks=0)
GLACE = GlaceHead(width=32, blocks=0, centres=3, global_features=None)
ANCHORS = AnchorHead(anchors=48, width=32)
ENSEMBLE = EnsembleHead(members=2, member=ACE)


def half_noise(seed: int = 0, views: int = 10, per_view: int = 100) -> Samples:
    """Cells of cameras before a wavy wall; features of even cells are functions of the point, of odd cells noise.

    The last channel says which is which, as texture does.
    """
    generator, functions = np.random.default_rng(seed), np.random.default_rng(99)
    waves, phases = functions.normal(0, 0.6, (3, CHANNELS)), functions.uniform(0, 6, CHANNELS)
    x, z = generator.uniform(-4, 4, (views, per_view)), generator.uniform(0, 4, (views, per_view))
    xyz = np.stack([x, 0.5 * np.sin(2 * x), z], axis=-1)
    features = np.cos(xyz @ waves + phases)
    features[:, 1::2] = generator.normal(0, 0.7, features[:, 1::2].shape)
    features[..., -1] = np.arange(per_view) % 2
    K = pinhole(480, 360, 65)
    cam_from_cad = inverse(np.stack([look_at([eye, -10, 1.6], [0, 0, 2]) for eye in np.linspace(-5, 5, views)]))
    return Samples(
        torch.from_numpy(features.reshape(-1, CHANNELS).astype(np.float16)),
        torch.from_numpy(project(transform_points(cam_from_cad, xyz), K).reshape(-1, 2).astype(np.float32)),
        torch.arange(views).repeat_interleave(per_view),
        torch.from_numpy(xyz.reshape(-1, 3).astype(np.float32)),
        torch.from_numpy(cam_from_cad.astype(np.float32)),
        torch.from_numpy(np.stack([K] * views).astype(np.float32)),
    )


def trial(head: HeadConfig, loss: LossConfig | None = None, iterations: int = 150) -> TrialConfig:
    """A short trial on samples made in code."""
    settings = {"iterations": iterations, "batch_size": 200, "learning_rate": 3e-3, "validations": 1}
    return TrialConfig(
        scene=SceneConfig(name="gate", built_in=True),
        head=head,
        loss=loss or UncertainCoordinateLoss(),
        training=TrainingConfig.model_validate({**settings, "checkpoint": False}),
    )


def trained(config: TrialConfig, folder: Path) -> Head:
    """A head taught as a trial teaches it."""
    head = build(config.head, CHANNELS, 0, deviation=predicts_deviation(config.loss))
    training = Training(head, half_noise(), config, folder)
    training.start()
    list(training.run(nothing))
    return head.eval()


def nothing(_: Head) -> Mapping[str, float]:
    """A validation that measures nothing."""
    return {}


@pytest.mark.parametrize(
    ("head", "iterations"), [(ACE, 300), (GLACE, 200), (ANCHORS, 80)], ids=["ace", "glace", "anchor"]
)
def test_the_predicted_deviation_follows_the_true_error(head: HeadConfig, iterations: int, tmp_path: Path) -> None:
    """Where half of the features are noise, cells that were never seen are told apart: deviations rank as errors do,
    are as large as they are, and the surer half of the cells is that which can be known."""
    trained_head = trained(trial(head, iterations=iterations), tmp_path)
    unseen = half_noise(seed=1)
    output = trained_head(unseen.features.float())
    assert output.deviation_m is not None
    assert output.confidence is not None
    errors_m = (output.coordinates - unseen.scene_coordinates).norm(dim=1).detach()
    assert spearmanr(output.deviation_m.detach(), errors_m).statistic > 0.6
    surest = output.confidence.argsort(descending=True)[: len(unseen) // 2]
    assert float((surest % 2 == 0).float().mean()) > 0.85
    of_noise_m = errors_m[1::2].square().mean().sqrt() / 3**0.5
    assert float(output.deviation_m[1::2].detach().square().mean().sqrt() / of_noise_m) == pytest.approx(1, abs=0.35)


def test_deviations_keep_to_their_range() -> None:
    """From a centimetre to the median depth; they begin at what is right for a head that far off."""
    samples, read_out = half_noise(), DeviationReadOut(8)
    read_out.fit(samples)
    batch = samples.batch(torch.arange(len(samples)))
    largest_m = float(batch.depth_m.median())
    with torch.no_grad():
        assert float(read_out(torch.zeros(1, 8))) == pytest.approx(largest_m / 3**0.5, rel=0.01)
        read_out.layer.weight.fill_(1.0)
        ends = read_out(torch.tensor([[-100.0] * 8, [100.0] * 8]))
    assert ends.tolist() == pytest.approx([SMALLEST_DEVIATION_M, largest_m], rel=0.01)


@pytest.mark.parametrize("head", [ACE, GLACE, ANCHORS, ENSEMBLE], ids=lambda head: head.name)
def test_a_map_that_says_how_sure_it_is_comes_back_in_the_same_bits(head: HeadConfig, tmp_path: Path) -> None:
    """Coordinates and confidences of every guess, from a file that knows it holds them."""
    config = trial(head, iterations=4)
    made = trained(config, tmp_path / "run")
    save_map(tmp_path, made, config, (480, 360), np.zeros(3))
    features = half_noise().features[:50]
    for before, after in zip(made.guesses(features), load_map(tmp_path).head.guesses(features), strict=True):
        assert before.confidence is not None
        assert after.confidence is not None
        assert torch.equal(before.coordinates, after.coordinates)
        assert torch.equal(before.confidence, after.confidence)


def test_anchors_are_sure_of_a_cell_as_far_as_one_of_them_is_likely() -> None:
    """Without a deviation, a guess's confidence is the logarithm of the best anchor's probability; of an ACE head there
    is none."""
    head = build(ANCHORS, CHANNELS, 0)
    samples = half_noise()
    head.fit(samples, seed=0)
    output = head(samples.features.float())
    assert output.logits is not None
    guess = next(head.guesses(samples.features))
    assert guess.confidence is not None
    likeliest = torch.softmax(output.logits, dim=1).amax(dim=1)
    torch.testing.assert_close(guess.confidence.exp(), likeliest.detach())
    assert next(build(ACE, CHANNELS, 0).guesses(samples.features)).confidence is None


@torch.no_grad()
def test_an_anchor_head_is_as_unsure_as_its_choice() -> None:
    """Between two anchors 6 m apart, evenly likely, it is off by 6 or 0 m: a variance of 18 m² over three axes, beside
    that about the right one; between neighbours, or sure of one, hardly any."""
    head = build(AnchorHead(anchors=3, width=16), CHANNELS, 0, deviation=True)
    assert isinstance(head, AnchorClassifier)
    head.anchors.copy_(torch.tensor([[0.0, 0.0, 0.0], [6.0, 0.0, 0.0], [0.1, 0.0, 0.0]]))
    head.scores.weight.zero_()
    assert head.deviation is not None
    alone_m = float(head.deviation(torch.zeros(1, CHANNELS)))
    for bias, variance in (([0.0, 0.0, -99.0], 18 / 3), ([9.0, -90.0, 9.0], 0.01 / 2 / 3), ([99.0, 0.0, 0.0], 0.0)):
        head.scores.bias.copy_(torch.tensor(bias))
        found_m = head(torch.zeros(1, CHANNELS)).deviation_m
        assert found_m is not None
        assert float(found_m) ** 2 == pytest.approx(alone_m**2 + variance, rel=1e-4)


def test_deviations_do_not_change_what_else_a_head_begins_with() -> None:
    """The same seed gives the same coordinates with and without them, and all cells are equally unsure at first."""
    features = half_noise().features.float()
    for head in (ACE, GLACE):
        plain, sure = (build(head, CHANNELS, 5, deviation=deviation) for deviation in (False, True))
        assert torch.equal(plain(features).coordinates, sure(features).coordinates)
        assert plain(features).deviation_m is None
        assert len(torch.unique(sure(features).deviation_m)) == 1


def test_reprojection_heads_are_asked_for_no_deviation() -> None:
    """What no loss would ever teach is not part of the map."""
    assert not predicts_deviation(ReprojectionLoss())
    assert not any("deviation" in name for name in build(ACE, CHANNELS, 0).state_dict())
