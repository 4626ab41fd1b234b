"""Laws of the losses: limits, derivatives, and gradients that stay finite wherever a prediction may be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

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
from cadloc.losses import phase_at
from cadloc.losses.coordinate import coordinate_errors_m, normalised_errors_px, pixels_per_metre
from cadloc.losses.kernels import Clamp, general_loss, robust
from cadloc.losses.lateral_radial import lateral_radial_errors_px
from cadloc.losses.phase import Prediction
from cadloc.losses.reprojection import project, reprojection_losses
from cadloc.samples import Batch, SceneScale

SCALE = SceneScale(diameter_m=12.0, metres_per_pixel=0.03, farthest_m=14.0)
KERNELS: tuple[Any, ...] = ("dyntanh", "tanh", "l1", "l1_sqrt", "l1_log", "geman_mcclure", "barron")
PLAIN = ReprojectionLoss(norm="l2")


def seen_points(count: int = 12, dtype: torch.dtype = torch.float64) -> Batch:
    """Samples of three cameras whose pixels are where their true points appear."""
    generator = np.random.default_rng(11)
    cam_from_cad = inverse(np.stack([look_at([9 * np.cos(a), 9 * np.sin(a), 2], [0, 0, 1]) for a in (0.1, 2.0, 4.0)]))
    poses = cam_from_cad[np.arange(count) % 3]
    K = pinhole(480, 360, 60) * [[1], [1.1], [1]]
    points = generator.normal(0, 1.5, (count, 3))
    in_cam = np.einsum("bij,bj->bi", poses[:, :3, :3], points) + poses[:, :3, 3]
    pixels = (in_cam @ K.T)[:, :2] / in_cam[:, 2:]
    cameras = poses, np.broadcast_to(K, (count, 3, 3)).copy()
    return Batch(torch.zeros(count, 1), *(torch.tensor(a, dtype=dtype) for a in (pixels, points, *cameras)))


def repeated(batch: Batch, times: int) -> Batch:
    """The samples over and over."""
    tensors = (batch.features, batch.pixels, batch.scene_coordinates, batch.cam_from_cad, batch.intrinsics)
    return Batch(*(tensor.repeat(times, *(1,) * (tensor.ndim - 1)) for tensor in tensors))


def directions(batch: Batch) -> Tensor:
    drawn = torch.randn(len(batch), 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return torch.nn.functional.normalize(drawn, dim=1)


def loss_of(config: LossConfig, progress: float, coordinates: Tensor, batch: Batch) -> Tensor:
    deviation_m = torch.full_like(coordinates[:, 0], 0.3)
    return phase_at(config, progress, SCALE).loss(Prediction(coordinates, deviation_m), batch)


def test_without_radial_part_the_loss_is_reprojection_to_first_order() -> None:
    """A step of a tenth leaves a hundredth of the difference between lateral and reprojection error."""
    batch = seen_points()
    rest = []
    for step_m in (1e-2, 1e-3):
        moved = batch.targets + step_m * directions(batch)
        errors = lateral_radial_errors_px(moved, batch, 0.0)
        rest.append((errors - project(moved, batch, PLAIN).errors_px).abs())
        assert (errors > 50 * rest[-1]).sum() >= 9  # but for steps along the ray
    assert (rest[1] < 0.012 * rest[0]).all()
    assert (rest[0] > 1e-9).any()


def test_with_all_of_the_radial_part_the_loss_is_the_depth_normalised_distance() -> None:
    """At radial = 1, however far off, it is focal length times distance by depth, as finite differences see it too."""
    batch = seen_points()
    for step_m in (1e-3, 5.0):
        moved = batch.targets + step_m * directions(batch)
        found = lateral_radial_errors_px(moved, batch, 1.0)
        torch.testing.assert_close(found, normalised_errors_px(moved, batch), rtol=1e-9, atol=0)
        further = lateral_radial_errors_px(moved + 1e-4 * directions(batch), batch, 1.0)
        torch.testing.assert_close((further - found) / 1e-4, pixels_per_metre(batch), rtol=1e-6, atol=0)


def test_along_the_ray_only_the_radial_part_costs() -> None:
    """A point pushed along its ray costs `radial` times its depth-normalised distance."""
    batch = seen_points()
    pushed = batch.targets + 0.7 * batch.directions_cad
    errors = lateral_radial_errors_px(pushed, batch, 0.2)
    torch.testing.assert_close(errors, 0.2 * normalised_errors_px(pushed, batch))


@pytest.mark.parametrize("progress", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kernels_gradient_is_that_of_finite_differences(kernel: Any, progress: float) -> None:
    """Up to the threshold, beyond it, and with a threshold for each sample."""
    errors = torch.tensor([1e-3, 0.4, 3.0, 9.0, 31.0, 400.0], dtype=torch.float64)
    for largest in (10.0, torch.linspace(5, 20, 6, dtype=torch.float64)):
        clamp = Clamp(kernel, "circle", largest, 0.5)
        leaf = errors.clone().requires_grad_()
        (slope,) = torch.autograd.grad(robust(leaf, clamp, progress).sum(), leaf)
        step = 1e-5 * errors.clamp(min=1.0)
        rise = robust(errors + step, clamp, progress) - robust(errors - step, clamp, progress)
        torch.testing.assert_close(slope, rise / (2 * step), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("limit", [2.0, 0.0, -2.0])
def test_the_general_loss_is_smooth_in_its_shape(limit: float) -> None:
    """Values and slopes beside the shapes 2, 0 and −2 are those at them: no gap where the formula changes."""
    ratios = torch.tensor([1e-4, 0.1, 1.0, 30.0], dtype=torch.float64)
    r = ratios.numpy()
    expected = {2.0: r**2 / 2, 0.0: np.log1p(r**2 / 2), -2.0: 2 * r**2 / (r**2 + 4)}[limit]
    for offset in (-1e-5, -1e-7, -1e-16, 0.0, 1e-16, 1e-7, 1e-5):
        leaf = ratios.clone().requires_grad_()
        values = general_loss(leaf, limit + offset)
        (slopes,) = torch.autograd.grad(values.sum(), leaf)
        np.testing.assert_allclose(values.detach().numpy(), expected, rtol=2e-4)
        np.testing.assert_allclose(slopes.numpy(), r * (r**2 / max(2 - limit, 1e-5) + 1) ** (limit / 2 - 1), rtol=2e-4)


CONFIGS: list[LossConfig] = [
    *(ReprojectionLoss(kernel=kernel, norm=norm) for kernel in KERNELS for norm in ("l1", "l2")),
    CoordinateLoss(),
    *(CoordinateLoss(kernel=kernel, measure=measure) for kernel in KERNELS for measure in ("metres", "pixels")),
    *(LateralRadialLoss(kernel=kernel) for kernel in (*KERNELS, "none")),
    *(LateralRadialLoss(radial=radial) for radial in (0.0, 1.0)),
    FadeLoss(),
    FadeLoss(margin_pct=0.0, reprojection=ReprojectionLoss(norm="l2")),
    SwitchingLoss(coordinate=CoordinateLoss(kernel="barron")),
    PerSampleSwitchLoss(),
    PerSampleSwitchLoss(reprojection=ReprojectionLoss()),
    UncertainCoordinateLoss(),
    UncertainCoordinateLoss(weighting=1.0),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: "-".join(map(str, config.model_dump().values()))[:40])
def test_gradients_are_finite_wherever_the_prediction_is(config: LossConfig) -> None:
    """On the true point, at the camera's centre, on its plane, behind it, 1e6 m off: for known and unknown points."""
    batch = seen_points(dtype=torch.float32)
    forward, sideways = batch.cam_from_cad[:, 2, :3], batch.cam_from_cad[:, 0, :3]
    places = [
        batch.targets,
        batch.centres_cad,
        batch.centres_cad + 2 * sideways,
        batch.targets - 30 * forward,
        batch.targets + 1e6 * sideways,
        batch.targets + 1e6 * (sideways - forward),
    ]
    everywhere = repeated(batch, len(places))
    half = (torch.arange(len(batch)) % 2 > 0).repeat(len(places))[:, None]
    for known in (half, torch.zeros_like(half)):
        seen = replace(everywhere, scene_coordinates=everywhere.scene_coordinates.where(known, torch.nan))
        for progress in (0.0, 0.5, 1.0):
            leaf = torch.cat(places).requires_grad_()
            loss = loss_of(config, progress, leaf, seen)
            (gradient,) = torch.autograd.grad(loss, leaf)
            assert torch.isfinite(loss)
            assert torch.isfinite(gradient).all()


def test_a_scene_of_no_extent_has_thresholds_still() -> None:
    """With a diameter of zero, no kernel divides by it."""
    batch = seen_points()
    for kernel in KERNELS:
        leaf = batch.targets.clone().requires_grad_()
        loss = phase_at(CoordinateLoss(kernel=kernel), 0.0, SceneScale(0.0, 0.0, 0.0)).loss(Prediction(leaf), batch)
        (gradient,) = torch.autograd.grad(loss, leaf)
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("measure", ["metres", "pixels"])
def test_the_threshold_in_metres_falls_from_a_share_of_the_scene_to_pixels_at_the_points_depth(measure: Any) -> None:
    """A prediction lost altogether costs just the threshold: 5 % of 12 m and 2 px at first, 2 px at last."""
    batch = seen_points()
    config = CoordinateLoss(measure=measure, kernel="dyntanh")
    lost = batch.targets + 1e4
    metre = pixels_per_metre(batch) if measure == "pixels" else torch.ones_like(batch.depth_m)
    two_pixels = 2 / pixels_per_metre(batch) * metre
    torch.testing.assert_close(loss_of(config, 1.0, lost, batch), two_pixels.mean())
    torch.testing.assert_close(loss_of(config, 0.0, lost, batch), (0.6 * metre + two_pixels).mean())
    torch.testing.assert_close(loss_of(config, 0.6, lost, batch), (0.8 * 0.6 * metre + two_pixels).mean())


@pytest.mark.parametrize(("across_m", "near"), [(0.099, True), (0.101, False)])
def test_a_sample_switches_when_it_is_near_enough(across_m: float, near: bool) -> None:
    """10 cm off, the loss of a sample goes from its distance, seen from the camera, to its reprojection error."""
    batch = seen_points(1)
    config = PerSampleSwitchLoss(within_px=1.0)
    moved = batch.targets + across_m * batch.directions_cad
    by_pixel = reprojection_losses(moved, batch, config.reprojection, 0.0)
    expected = by_pixel if near else normalised_errors_px(moved, batch)
    torch.testing.assert_close(loss_of(config, 0.0, moved, batch), expected.mean())
    assert (by_pixel < 1e-6).all()  # along the ray, the two are far apart


def test_near_enough_is_measured_in_pixels_where_points_are_far() -> None:
    """At a depth where 10 px span more than 10 cm, they decide."""
    batch = seen_points(1)
    ten_px_m = 10 / pixels_per_metre(batch)[:, None]
    assert ten_px_m.item() > 0.15
    losses = [
        loss_of(PerSampleSwitchLoss(), 0.0, batch.targets + share * ten_px_m * batch.directions_cad, batch).item()
        for share in (0.99, 1.01)
    ]
    assert losses == pytest.approx([0.0, 10.1], abs=1e-6)


def test_a_lost_sample_of_unknown_coordinate_does_not_count_in_the_per_sample_switch() -> None:
    """Neither its loss nor its number changes the mean."""
    batch = seen_points()
    moved = batch.targets + 0.05 * directions(batch)
    moved[0] -= 60 * batch.cam_from_cad[0, 2, :3]
    seen = replace(batch, scene_coordinates=batch.scene_coordinates.clone())
    seen.scene_coordinates[0] = torch.nan
    rest = replace(batch, **{key: getattr(batch, key)[1:] for key in ("pixels", "scene_coordinates")})
    rest = replace(rest, **{key: getattr(batch, key)[1:] for key in ("features", "cam_from_cad", "intrinsics")})
    config = PerSampleSwitchLoss()
    torch.testing.assert_close(loss_of(config, 0.5, moved, seen), loss_of(config, 0.5, moved[1:], rest))


def test_a_fade_ends_as_reprojection_bit_for_bit() -> None:
    """From `over` on it is the plain loss at the same progress, and just before, on valid predictions, all but."""
    batch = seen_points()
    moved = batch.targets + 0.5 * directions(batch)
    config = FadeLoss(over=0.4)
    for progress in (0.4, 0.7, 1.0):
        plain = loss_of(config.reprojection, progress, moved, batch)
        assert torch.equal(loss_of(config, progress, moved, batch), plain)
    before = [loss_of(c, 0.3999, moved, batch).item() for c in (config, config.reprojection)]
    assert before[0] == pytest.approx(before[1], rel=1e-5)
    assert before[0] != before[1]


def test_within_its_margin_a_fades_prior_costs_nothing() -> None:
    """Half a margin off, at any depth, fade is reprojection; two margins off it is not."""
    batch = seen_points()
    margin_m = 0.002 * batch.depth_m[:, None]
    within, beyond = (batch.targets + share * margin_m * batch.directions_cad for share in (0.5, 2.0))
    config = FadeLoss()
    plain = config.reprojection
    assert torch.equal(loss_of(config, 0.0, within, batch), loss_of(plain, 0.0, within, batch))
    excess = loss_of(config, 0.0, beyond, batch) - loss_of(plain, 0.0, beyond, batch)
    torch.testing.assert_close(excess, (margin_m[:, 0] * pixels_per_metre(batch)).mean())


@pytest.mark.parametrize("weighting", [0.0, 0.5, 1.0])
def test_the_best_deviation_is_a_third_of_the_squared_distance(weighting: float) -> None:
    """There, the gradient by σ vanishes; a larger σ is pulled down, a smaller one up, whatever the weighting."""
    batch = seen_points()
    moved = batch.targets + 0.8 * directions(batch)
    best = coordinate_errors_m(moved, batch) / 3**0.5
    phase = phase_at(UncertainCoordinateLoss(weighting=weighting), 0.0, SCALE)
    for factor, sign in ((0.9, -1), (1.0, 0), (1.1, 1)):
        deviation_m = (factor * best).requires_grad_()
        (gradient,) = torch.autograd.grad(phase.loss(Prediction(moved, deviation_m), batch), deviation_m)
        assert (torch.sign(gradient.where(gradient.abs() > 1e-9, 0.0)) == sign).all()


def test_weighting_multiplies_a_samples_gradients_by_a_power_of_its_deviation() -> None:
    """β scales the gradients by point and by σ with σ^2β; of the power itself nothing is differentiated."""
    batch = seen_points()
    gradients = []
    for weighting in (0.0, 0.75):
        moved = (batch.targets + 0.8 * directions(batch)).requires_grad_()
        deviation_m = torch.linspace(0.1, 3, len(batch), dtype=torch.float64).requires_grad_()
        phase = phase_at(UncertainCoordinateLoss(weighting=weighting), 0.0, SCALE)
        leaves = moved, deviation_m
        gradients.append(torch.autograd.grad(phase.loss(Prediction(*leaves), batch), leaves))
    power = torch.linspace(0.1, 3, len(batch), dtype=torch.float64) ** 1.5
    torch.testing.assert_close(gradients[1][0], gradients[0][0] * power[:, None])
    torch.testing.assert_close(gradients[1][1], gradients[0][1] * power)


def test_uncertainty_needs_a_head_that_predicts_it() -> None:
    """Without a deviation, the loss says what is missing."""
    batch = seen_points()
    with pytest.raises(ValueError, match="predicts a deviation"):
        phase_at(UncertainCoordinateLoss(), 0.0, SCALE).loss(Prediction(batch.targets), batch)
