"""Losses: what each may know, when each is in force, in which unit; schedules."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from cadloc.geometry import inverse, look_at, pinhole
from cadloc.loss_config import (
    CoordinateLoss,
    FadeLoss,
    LateralRadialLoss,
    LossConfig,
    PerSampleSwitchLoss,
    ReprojectionLoss,
    SwitchingLoss,
    UncertainCoordinateLoss,
)
from cadloc.losses import YARDSTICKS, phase_at
from cadloc.losses.coordinate import CoordinatePhase, coordinate_errors_m
from cadloc.losses.kernels import threshold_at
from cadloc.losses.phase import Prediction
from cadloc.losses.reprojection import ReprojectionPhase, reprojection_losses
from cadloc.samples import Batch, SceneScale
from cadloc.schedules import circle, one_cycle

TENSORS = ("features", "pixels", "scene_coordinates", "cam_from_cad", "intrinsics")
SCALE = SceneScale(diameter_m=12.0, metres_per_pixel=0.03, farthest_m=14.0)


def made_batch(count: int = 24) -> tuple[Batch, torch.Tensor]:
    """Samples of three cameras about the origin, and predictions that are right, wrong, behind, far and near."""
    generator = np.random.default_rng(3)
    cam_from_cad = inverse(np.stack([look_at([9 * np.cos(a), 9 * np.sin(a), 2], [0, 0, 1]) for a in (0.1, 2.0, 4.0)]))
    view = np.arange(count) % 3
    K = np.broadcast_to(pinhole(480, 360, 60), (count, 3, 3)) + 0.0
    K[:, 0, 2] += 7.5  # an off-centre principal point, unequal focal lengths
    K[:, 1, 1] *= 1.1
    points = generator.normal(0, 1.5, (count, 3))
    predicted = points + generator.normal(0, 0.3, (count, 3))
    back = -cam_from_cad[view][:, 2, :3]  # away from where the camera looks, in cad
    predicted[:4] += 40 * back[:4]  # behind
    predicted[4:8] -= 2000 * back[4:8]  # too far
    predicted[8:12] += generator.normal(0, 9, (4, 3))  # wide of the mark
    pixels = generator.uniform(0, 360, (count, 2))
    batch = Batch(
        torch.zeros(count, 1),
        *(torch.tensor(a, dtype=torch.float32) for a in (pixels, points, cam_from_cad[view], K)),
    )
    return batch, torch.tensor(predicted, dtype=torch.float32)


def test_reprojection_of_the_true_point_is_zero() -> None:
    """A point that projects onto its pixel costs nothing, wherever along the ray it lies."""
    batch, _ = made_batch()
    on_rays = batch.centres_cad + 7.0 * batch.directions_cad
    assert reprojection_losses(on_rays, batch, ReprojectionLoss(), 0.0).max() < 1e-2


def test_every_invalid_sample_is_pulled_somewhere() -> None:
    """Points behind the camera, on its plane and at its centre have a finite gradient that is not zero."""
    batch, predicted = made_batch()
    predicted[0] = batch.centres_cad[0]
    predicted.requires_grad_()
    ReprojectionPhase(ReprojectionLoss(), 0.5).loss(Prediction(predicted), batch).backward()
    assert predicted.grad is not None
    assert torch.isfinite(predicted.grad).all()
    assert (predicted.grad[:8].abs().sum(dim=1) > 0).all()


def test_soft_clamp_runs_down_a_circle_from_51_to_1_px_or_a_line() -> None:
    """With the published settings the clamp is 51 px at first, 1 px at last; half way above 43 px, or at 26 px."""
    ends = 50.0, 1.0
    clamps = [threshold_at(t, "circle", *ends) for t in np.linspace(0, 1, 11)]
    assert clamps[0] == pytest.approx(51)
    assert clamps[-1] == pytest.approx(1)
    assert clamps[5] > 43
    assert clamps == sorted(clamps, reverse=True)
    assert circle(0.6, 50, 1) == pytest.approx(41)
    assert [threshold_at(t, "linear", *ends) for t in (0.0, 0.5, 1.0)] == [51, 26, 1]


@pytest.mark.parametrize("count", [12, 13, 24, 512])
def test_coordinate_loss_of_known_samples_is_the_mean_distance_bit_for_bit(count: int) -> None:
    """By default, and as a yardstick, it is the mean of Euclidean distances, as numpy computes them too."""
    batch, predicted = made_batch(count)
    distances = np.linalg.norm(predicted.numpy() - batch.scene_coordinates.numpy(), axis=1)
    np.testing.assert_allclose(coordinate_errors_m(predicted, batch).numpy(), distances, rtol=1e-5)
    leaf = predicted.requires_grad_()
    expected = torch.linalg.vector_norm(leaf - batch.scene_coordinates, dim=1).mean()
    for phase in (phase_at(CoordinateLoss(), 0.3, SCALE), YARDSTICKS[0]):
        loss = phase.loss(Prediction(leaf), batch)
        assert torch.equal(loss, expected)
        assert torch.equal(*(torch.autograd.grad(mean, leaf, retain_graph=True)[0] for mean in (loss, expected)))


def test_what_is_unknown_does_not_count_in_metres() -> None:
    """Unknown samples leave the mean over the known ones; where none is known, the loss and its gradient are zero."""
    batch, predicted = made_batch()
    known = torch.arange(len(batch)) % 3 > 0
    holes = replace(batch, scene_coordinates=batch.scene_coordinates.where(known[:, None], torch.nan))
    expected = coordinate_errors_m(predicted, batch)[known].mean()
    assert CoordinatePhase().loss(Prediction(predicted), holes).item() == pytest.approx(expected.item(), rel=1e-6)
    nothing = replace(batch, scene_coordinates=torch.full_like(batch.scene_coordinates, torch.nan))
    predicted.requires_grad_()
    loss = CoordinatePhase().loss(Prediction(predicted), nothing)
    loss.backward()
    assert predicted.grad is not None
    assert loss.item() == predicted.grad.abs().max().item() == 0


@pytest.mark.parametrize(("kernel", "norm"), [("dyntanh", "l1"), ("barron", "l2"), ("l1_sqrt", "l2")])
def test_reprojection_does_not_look_at_scene_coordinates(kernel: Any, norm: Any) -> None:
    """Loss and gradient without a single known coordinate are, bit for bit, those with all of them."""
    batch, predicted = made_batch()
    blind = replace(batch, scene_coordinates=torch.full_like(batch.scene_coordinates, torch.nan))
    phase = phase_at(ReprojectionLoss(kernel=kernel, norm=norm), 0.4, SCALE)
    found = []
    for seen in (batch, blind):
        leaf = predicted.clone().requires_grad_()
        loss = phase.loss(Prediction(leaf), seen)
        loss.backward()
        assert leaf.grad is not None
        found.append(torch.cat([loss.detach()[None], leaf.grad.flatten()]))
    assert torch.equal(*found)


@pytest.mark.parametrize("config", [FadeLoss(), PerSampleSwitchLoss(), LateralRadialLoss()], ids=lambda c: c.name)
def test_no_known_sample_is_sent_to_the_target_on_its_ray(config: LossConfig) -> None:
    """Where the true point is known, a prediction behind the camera costs its distance to it, seen from the camera."""
    batch, predicted = made_batch()
    behind = replace(batch, **{key: getattr(batch, key)[:4] for key in TENSORS})
    depth_m = behind.in_camera(behind.scene_coordinates)[:, 2]
    distances = coordinate_errors_m(predicted[:4], behind)
    margin_m = 0.002 * depth_m if isinstance(config, FadeLoss) else distances
    expected = ((2 * distances - margin_m) * behind.focal_px / depth_m).mean()
    found = phase_at(config, 0.0, SCALE).loss(Prediction(predicted[:4]), behind)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("config", "progress", "unit", "evidence"),
    [
        (ReprojectionLoss(), 0.0, "px", "rays"),
        (CoordinateLoss(), 0.99, "m", "points"),
        (CoordinateLoss(measure="pixels"), 0.0, "px", "points"),
        (LateralRadialLoss(radial=0.0), 0.0, "px", "points"),
        (FadeLoss(over=0.4), 0.399, "px", "points"),
        (FadeLoss(over=0.4), 0.4, "px", "rays"),
        (SwitchingLoss(at=0.25), 0.249, "m", "points"),
        (SwitchingLoss(at=0.25), 0.25, "px", "rays"),
        (SwitchingLoss(coordinate=CoordinateLoss(measure="pixels")), 0.0, "px", "points"),
        (PerSampleSwitchLoss(), 1.0, "px", "points"),
        (UncertainCoordinateLoss(), 0.0, "nat", "points"),
    ],
)
def test_a_loss_says_its_unit_and_what_may_be_known(
    config: LossConfig, progress: float, unit: str, evidence: str
) -> None:
    """Points supervise while a loss looks at them, and no longer: a fade ends, a switch happens at `at`."""
    phase = phase_at(config, progress, SCALE)
    assert (phase.unit, phase.evidence) == (unit, evidence)


def test_schedule_of_the_clamp_resets_or_continues_at_the_switch() -> None:
    """`reset` runs each side's schedule from its start to its end, `continue` one over the run; both end at 1."""
    for schedule, expected in (("reset", [0.0, 0.5, 0.0, 0.5, 1.0]), ("continue", [0.0, 0.25, 0.5, 0.75, 1.0])):
        config = SwitchingLoss(at=0.5, schedule=schedule)
        courses = [getattr(phase_at(config, t, SCALE), "progress", None) for t in (0.0, 0.25, 0.5, 0.75, 1.0)]
        assert courses == expected


def test_units_match_at_the_switch() -> None:
    """For small lateral errors, pixels times metres per pixel are the metres that the coordinate loss sees."""
    batch, _ = made_batch()
    depth_m = batch.in_camera(batch.scene_coordinates)[:, 2:]
    pixels = torch.einsum("bij,bj->bi", batch.intrinsics[:, :2], batch.in_camera(batch.scene_coordinates) / depth_m)
    seen = replace(batch, pixels=pixels)
    right_cad = batch.cam_from_cad[:, 0, :3]  # the camera's x axis, in cad
    predicted = batch.scene_coordinates + 0.01 * right_cad
    metres_per_pixel = float((depth_m[:, 0] / batch.intrinsics[:, 0, 0]).median())
    phases = (phase_at(SwitchingLoss(at=0.5), t, SCALE) for t in (0.4, 0.5))
    metres, pixels_off = (float(phase.loss(Prediction(predicted), seen)) for phase in phases)
    assert pixels_off * metres_per_pixel == pytest.approx(metres, rel=0.25)


def test_one_cycle_rises_to_its_peak_at_30_percent_and_falls_to_almost_nothing() -> None:
    """It agrees with torch's OneCycleLR at every step."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    cycle = {"total_steps": 50, "pct_start": 0.3, "cycle_momentum": False}
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, **cycle)
    expected = []
    for _ in range(50):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    np.testing.assert_allclose([one_cycle(step, 50, 5e-3) for step in range(50)], expected, rtol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_one_cycle_survives_the_shortest_runs(steps: int) -> None:
    """Runs of a few steps have finite, positive rates, none above the peak."""
    rates = [one_cycle(step, steps, 1.0) for step in range(steps)]
    assert all(0 < rate <= 1.0 for rate in rates)
