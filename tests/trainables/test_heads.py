"""Heads: read-outs as published, what each kind of evidence may read, and starts that are right before training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from cadloc.contract import InputError
from cadloc.geometry import inverse, look_at, pinhole, project, transform_points
from cadloc.head_config import AceHead, AnchorHead
from cadloc.heads import build
from cadloc.heads.ace import AcePerceptron
from cadloc.heads.anchor import AnchorClassifier
from cadloc.heads.anchors import log_likelihood_of_points, log_likelihood_of_rays, place_anchors, spacing_m
from cadloc.heads.perceptron import dehomogenised
from cadloc.heads.prototypes import discriminant
from cadloc.loss_config import ReprojectionLoss
from cadloc.losses.reprojection import ReprojectionPhase
from cadloc.samples import Samples

CHANNELS = 48


def box_samples(seed: int = 0, *, shift_m: float = 0.0, views: int = 24, per_view: int = 150) -> Samples:
    """Cells of cameras around an 8 m box that see its walls; features are smooth, random functions of the point."""
    generator = np.random.default_rng(seed)
    functions = np.random.default_rng(99)
    waves, phases = functions.normal(0, 0.8, (3, CHANNELS)), functions.uniform(0, 6, CHANNELS)
    K = pinhole(480, 360, 60)
    poses, pixels, points = [], [], []
    for angle in np.linspace(0, 2 * np.pi, views, endpoint=False):
        cad_from_cam = look_at([15 * np.cos(angle), 15 * np.sin(angle), generator.uniform(1, 6)], [0, 0, 2])
        wall = generator.uniform(-4, 4, (20 * per_view, 3))
        side = generator.integers(0, 2, len(wall))
        wall[np.arange(len(wall)), side] = 4 * np.sign(cad_from_cam[side, 3])  # the two walls that face the camera
        outside = np.abs(cad_from_cam[side, 3]) > 4
        seen = project(transform_points(inverse(cad_from_cam), wall), K)
        inside = outside & (seen > 0).all(axis=1) & (seen < (480, 360)).all(axis=1)
        kept = np.flatnonzero(inside)[:per_view]
        assert len(kept) == per_view
        poses.append(inverse(cad_from_cam))
        pixels.append(seen[kept])
        points.append(wall[kept])
    xyz = np.concatenate(points)
    features = np.cos(xyz @ waves + phases) + generator.normal(0, 0.1, (len(xyz), CHANNELS))
    offset = np.array([shift_m, -shift_m, 0])
    cam_from_cad = np.stack(poses)
    cam_from_cad[:, :3, 3] -= cam_from_cad[:, :3, :3] @ offset
    return Samples(
        torch.from_numpy(features.astype(np.float16)),
        torch.from_numpy(np.concatenate(pixels).astype(np.float32)),
        torch.arange(views).repeat_interleave(per_view),
        torch.from_numpy((xyz + offset).astype(np.float32)),
        torch.from_numpy(cam_from_cad.astype(np.float32)),
        torch.from_numpy(np.stack([K] * views).astype(np.float32)),
    )


def fitted_anchor_head(samples: Samples, anchors: int = 96) -> AnchorClassifier:
    """An anchor head started from rays, not trained."""
    head = build(AnchorHead(anchors=anchors, width=32), samples.dimensions, seed=0)
    assert isinstance(head, AnchorClassifier)
    head.fit(samples, seed=0)
    return head


def test_homogeneous_read_out_has_the_published_range() -> None:
    """w = 0 leaves xyz as it is; w to one side magnifies up to 4 times, to the other shrinks down to a hundredth."""
    xyz = torch.tensor([1.0, -2.0, 3.0])
    raw = torch.stack([torch.cat([xyz, torch.tensor([w])]) for w in (0.0, -1e3, 1e6)])
    expected = torch.stack([xyz, 4 * xyz, 0.01 * xyz])
    torch.testing.assert_close(dehomogenised(raw), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("blocks", "parameters"), [(1, 2_103_300), (0, 1_315_332)])
def test_ace_head_has_the_published_number_of_parameters(blocks: int, parameters: int) -> None:
    """512 channels, width 512: every residual triple has 787,968 parameters."""
    head = build(AceHead(blocks=blocks), 512, seed=0)
    assert sum(parameter.numel() for parameter in head.parameters()) == parameters


def test_ace_head_sits_at_the_mean_camera_centre() -> None:
    """After fitting, an output of zero is the mean of the mapping views' camera centres."""
    samples = box_samples(shift_m=30)
    head = build(AceHead(width=16), CHANNELS, seed=0)
    assert isinstance(head, AcePerceptron)
    head.fit(samples, seed=0)
    cad_from_cam = inverse(samples.cam_from_cad.numpy())
    np.testing.assert_allclose(head.centre.numpy(), cad_from_cam[:, :3, 3].mean(axis=0), atol=1e-4)


@pytest.mark.parametrize("config", [AceHead(width=32), AnchorHead(anchors=20, width=32)])
def test_the_seed_alone_decides_the_initial_weights(config: AceHead | AnchorHead) -> None:
    """Same seed, same weights; another seed, others; the process's own random state is left alone."""
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first, second, other = (build(config, CHANNELS, seed).state_dict() for seed in (4, 4, 5))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("config", [AceHead(width=32), AnchorHead(anchors=20, width=32)])
def test_rays_as_evidence_never_read_scene_coordinates(config: AceHead | AnchorHead) -> None:
    """With scene coordinates replaced by NaN, a reprojection step has the same gradients, bit by bit."""
    samples = box_samples()
    head = build(config, CHANNELS, seed=0)
    head.fit(samples, seed=0)
    blind = replace(samples, scene_coordinates=torch.full_like(samples.scene_coordinates, torch.nan))
    phase = ReprojectionPhase(ReprojectionLoss(), 0.5)
    gradients = []
    for some in (samples, blind):
        batch = some.batch(torch.arange(64))
        output = head.training_output(batch, phase.evidence)
        head.zero_grad()
        (phase.loss(output.prediction, batch) + output.own_loss).backward()
        gradients.append([p.grad.clone() for p in head.parameters() if p.grad is not None])
    assert gradients[0]
    assert all(torch.equal(seen, unseen) for seen, unseen in zip(*gradients, strict=True))


def test_hard_labels_make_fishers_discriminant() -> None:
    """Prototypes are class means and the whitened covariance within classes is the identity; most cells are right."""
    samples = box_samples()
    labels = torch.arange(len(samples)) // 600
    one_hot = torch.nn.functional.one_hot(labels, 6).float()
    order = iter(one_hot.split(2048))
    fitted = discriminant(samples, torch.arange(len(samples)), 6, CHANNELS, lambda _: 1e3 * next(order))
    whitened = (samples.features.float() - fitted.mean) @ fitted.whitening.T
    means = torch.stack([whitened[labels == k].mean(dim=0) for k in range(6)])
    torch.testing.assert_close(fitted.prototypes, means, atol=1e-2, rtol=0)
    within = torch.cov((whitened - means[labels]).T)
    torch.testing.assert_close(within, torch.eye(CHANNELS), atol=0.05, rtol=0)  # shrunk
    nearest = torch.cdist(whitened, means).argmin(dim=1)
    assert torch.equal(fitted.scores(samples.features.float()).argmax(dim=1), nearest)


def test_log_likelihoods_equal_slow_references() -> None:
    """Distances of anchors to points and to rays agree with numpy in float64, one pair at a time."""
    samples = box_samples()
    batch = samples.batch(torch.arange(0, 3600, 300))
    anchors = torch.from_numpy(np.random.default_rng(0).uniform(-6, 6, (15, 3)).astype(np.float32))
    origin, deviation_m = torch.tensor([1.0, 2.0, 0.5]), torch.tensor(0.8)
    points = log_likelihood_of_points(anchors, batch.scene_coordinates - origin, deviation_m)
    rays = log_likelihood_of_rays(anchors, batch, origin, deviation_m)
    for b in range(len(batch)):
        pose = inverse(batch.cam_from_cad[b].double().numpy())
        ray = pose[:3, :3] @ np.linalg.inv(batch.intrinsics[b].double().numpy()) @ [*batch.pixels[b].tolist(), 1.0]
        ray /= np.linalg.norm(ray)
        for k in range(len(anchors)):
            anchor = (anchors[k] + origin).double().numpy()
            to_point = np.linalg.norm(anchor - batch.scene_coordinates[b].double().numpy())
            to_ray = np.linalg.norm(np.cross(anchor - pose[:3, 3], ray))
            assert points[b, k] == pytest.approx(-(to_point**2) / 1.28, abs=1e-3)
            assert rays[b, k] == pytest.approx(-(to_ray**2) / 1.28, abs=1e-2)


def test_anchors_behind_the_camera_explain_nothing() -> None:
    """Mirrored at the camera centre, a point on the ray is excluded."""
    batch = box_samples().batch(torch.tensor([0]))
    ahead = batch.centres_cad + 5 * batch.directions_cad
    behind = batch.centres_cad - 5 * batch.directions_cad
    scores = log_likelihood_of_rays(torch.cat([ahead, behind]), batch, torch.zeros(3), torch.tensor(0.5))
    assert scores[0, 0] == pytest.approx(0, abs=1e-3)
    assert scores[0, 1] < -1e3


def test_anchors_cover_the_points_evenly() -> None:
    """Every point is within two spacings of an anchor, for a seeded choice that repeats exactly."""
    points = box_samples().scene_coordinates.numpy()
    anchors = place_anchors(points, 100, seed=3)
    distances = np.linalg.norm(points[:, None] - anchors[None], axis=-1).min(axis=1)
    assert np.quantile(distances, 0.99) < 2 * spacing_m(anchors)
    assert np.array_equal(anchors, place_anchors(points, 100, seed=3))


def test_more_anchors_than_samples_is_an_input_error() -> None:
    """The fault names the key and the largest number possible."""
    with pytest.raises(InputError, match=r"head\.anchors: found 51; allowed: at most the 50"):
        place_anchors(np.zeros((50, 3), np.float32), 51, seed=0)


def test_rays_alone_start_the_classifier_near_the_truth() -> None:
    """Before any training, most unseen cells are put within two anchor spacings of where they are."""
    head = fitted_anchor_head(box_samples())
    unseen = box_samples(seed=1)
    error_m = (head.predict(unseen.features) - unseen.scene_coordinates).norm(dim=1)
    assert float((error_m < 2 * head.length_m).float().mean()) > 0.7


def test_prediction_does_not_depend_on_what_else_is_predicted() -> None:
    """A cell alone and among others gets the same coordinate, whatever the float type of the features."""
    samples = box_samples()
    head = fitted_anchor_head(samples)
    together = head.predict(samples.features)
    torch.testing.assert_close(head.predict(samples.features[17:18].double()), together[17:18], atol=1e-4, rtol=0)


def test_the_whole_scene_may_lie_elsewhere() -> None:
    """Moved by 200 m, the scene's map predicts coordinates moved by 200 m, to millimetres."""
    here, there = fitted_anchor_head(box_samples()), fitted_anchor_head(box_samples(shift_m=200.0))
    features = box_samples(seed=1).features
    moved = there.predict(features) - torch.tensor([200.0, -200.0, 0.0])
    distances = (moved - here.predict(features)).norm(dim=1)
    assert float(distances.median()) < 0.005
