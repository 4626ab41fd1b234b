"""Losses: the fast versions against slow, obvious ones; what each may know; schedules."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cadloc.config import CoordinateLoss, ReprojectionLoss, SwitchingLoss
from cadloc.geometry import inverse, look_at, pinhole
from cadloc.losses import phase_at
from cadloc.losses.coordinate import CoordinatePhase, coordinate_errors_m
from cadloc.losses.reprojection import ReprojectionPhase, reprojection_losses, soft_clamp_px
from cadloc.samples import Batch
from cadloc.schedules import circle, one_cycle


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


def slow_reprojection(batch: Batch, predicted: torch.Tensor, config: ReprojectionLoss, clamp_px: float) -> list[float]:
    """One sample after the other, in float64, with if and else."""
    losses = []
    for i in range(len(batch)):
        pose, K = batch.cam_from_cad[i].double().numpy(), batch.intrinsics[i].double().numpy()
        pixel = batch.pixels[i].double().numpy()
        point = pose[:3, :3] @ predicted[i].double().numpy() + pose[:3, 3]
        depth = point[2]
        projected = (K @ (point / max(depth, config.depth_min_m)))[:2]
        error = abs(projected - pixel).sum()
        if depth < config.depth_min_m or depth > config.depth_max_m or error > config.hard_clamp_px:
            target = config.depth_target_m * np.linalg.inv(K) @ [*pixel, 1.0]
            losses.append(abs(point - target).sum())
        else:
            losses.append(clamp_px * np.tanh(error / clamp_px))
    return losses


@pytest.mark.parametrize("clamp_px", [51.0, 1.0])
def test_reprojection_equals_a_slow_reference_on_valid_and_invalid_samples(clamp_px: float) -> None:
    """Choosing by weights gives what choosing by if and else gives, for points behind, too far and far off too."""
    batch, predicted = made_batch()
    config = ReprojectionLoss()
    fast = reprojection_losses(predicted, batch, config, clamp_px).numpy()
    slow = slow_reprojection(batch, predicted, config, clamp_px)
    assert len({bool(value > 52) for value in slow}) == 2  # both branches are exercised
    np.testing.assert_allclose(fast, slow, rtol=2e-4)


def test_reprojection_of_the_true_point_is_zero() -> None:
    """A point that projects onto its pixel costs nothing, wherever along the ray it lies."""
    batch, _ = made_batch()
    on_rays = batch.centres_cad + 7.0 * batch.directions_cad
    assert reprojection_losses(on_rays, batch, ReprojectionLoss(), 51.0).max() < 1e-2


def test_every_invalid_sample_still_has_a_finite_gradient() -> None:
    """Points behind the camera, on its plane and at its centre are pulled somewhere, never to NaN."""
    batch, predicted = made_batch()
    predicted[0] = batch.centres_cad[0]
    predicted.requires_grad_()
    ReprojectionPhase(ReprojectionLoss(), 0.5).loss(predicted, batch).backward()
    assert predicted.grad is not None
    assert torch.isfinite(predicted.grad).all()
    assert (predicted.grad[:8].abs().sum(dim=1) > 0).all()


def test_soft_clamp_runs_down_a_circle_from_51_to_1_px() -> None:
    """With the published settings the clamp is 51 px at first, 1 px at last, and still above 43 px half way."""
    config = ReprojectionLoss()
    clamps = [soft_clamp_px(config, t) for t in np.linspace(0, 1, 11)]
    assert clamps[0] == pytest.approx(51)
    assert clamps[-1] == pytest.approx(1)
    assert clamps[5] > 43
    assert clamps == sorted(clamps, reverse=True)
    assert circle(0.6, 50, 1) == pytest.approx(41)


def test_coordinate_loss_is_the_mean_distance() -> None:
    """It equals the mean of Euclidean distances computed by numpy."""
    batch, predicted = made_batch()
    distances = np.linalg.norm(predicted.numpy() - batch.scene_coordinates.numpy(), axis=1)
    np.testing.assert_allclose(coordinate_errors_m(predicted, batch).numpy(), distances, rtol=1e-5)
    assert CoordinatePhase().loss(predicted, batch).item() == pytest.approx(distances.mean(), rel=1e-5)


def test_switching_is_coordinate_then_reprojection() -> None:
    """Up to `at` the true points supervise, from then on rays do."""
    config = SwitchingLoss(at=0.25)
    assert phase_at(config, 0.249).evidence == "points"
    assert phase_at(config, 0.25).evidence == "rays"
    assert phase_at(CoordinateLoss(), 0.99).evidence == "points"
    assert phase_at(ReprojectionLoss(), 0.0).evidence == "rays"


def test_schedule_of_the_clamp_resets_or_continues_at_the_switch() -> None:
    """`reset` starts the clamp's schedule at the switch, `continue` where the run has come to; both end at 1."""
    reset, going_on = SwitchingLoss(at=0.5), SwitchingLoss(at=0.5, schedule="continue")
    at_switch = [phase_at(config, 0.5) for config in (reset, going_on)]
    assert [getattr(phase, "progress", None) for phase in at_switch] == [0.0, 0.5]
    at_end = [phase_at(config, 1.0) for config in (reset, going_on)]
    assert [getattr(phase, "progress", None) for phase in at_end] == [1.0, 1.0]


def test_units_match_at_the_switch() -> None:
    """For small lateral errors, pixels times metres per pixel are the metres that the coordinate loss sees."""
    batch, _ = made_batch()
    depth_m = batch.in_camera(batch.scene_coordinates)[:, 2:]
    pixels = torch.einsum("bij,bj->bi", batch.intrinsics[:, :2], batch.in_camera(batch.scene_coordinates) / depth_m)
    seen = Batch(batch.features, pixels, batch.scene_coordinates, batch.cam_from_cad, batch.intrinsics)
    right_cad = batch.cam_from_cad[:, 0, :3]  # the camera's x axis, in cad
    predicted = batch.scene_coordinates + 0.01 * right_cad
    metres_per_pixel = float((depth_m[:, 0] / batch.intrinsics[:, 0, 0]).median())
    phases = (phase_at(SwitchingLoss(at=0.5), t) for t in (0.4, 0.5))
    metres, matched = (float(p.loss(predicted, seen)) * p.metres_per_unit(metres_per_pixel) for p in phases)
    assert matched == pytest.approx(metres, rel=0.25)


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
