"""Every loss against one written sample by sample, with if and else, in plain numpy."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

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
from cadloc.losses.phase import Prediction
from cadloc.samples import Batch, SceneScale

SCALE = SceneScale(diameter_m=12.0, metres_per_pixel=0.03, farthest_m=14.0)


@dataclass(frozen=True)
class Sample:
    """One sample, everything float64: `truth` (3,) or None, `predicted` (3,) in `cad`, `sigma_m`."""

    pose: NDArray[np.float64]
    K: NDArray[np.float64]
    pixel: NDArray[np.float64]
    truth: NDArray[np.float64] | None
    predicted: NDArray[np.float64]
    sigma_m: float

    def in_camera(self, point: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.pose[:3, :3] @ point + self.pose[:3, 3]

    @property
    def distance_m(self) -> float:
        assert self.truth is not None
        return float(np.sqrt(((self.predicted - self.truth) ** 2).sum()))

    @property
    def px_per_m(self) -> float:
        assert self.truth is not None
        return float(np.sqrt(self.K[0, 0] * self.K[1, 1]) / self.in_camera(self.truth)[2])


def made_samples(seed: int = 5, count: int = 60) -> list[Sample]:
    """Three cameras; predictions near, off, behind, too far and wide of the mark, of known and unknown points."""
    generator = np.random.default_rng(seed)
    poses = inverse(np.stack([look_at([9 * np.cos(a), 9 * np.sin(a), 2], [0, 0, 1]) for a in (0.1, 2.0, 4.0)]))
    samples = []
    for i in range(count):
        pose, K = poses[i % 3], pinhole(480, 360, 60) * [[1], [1.1], [1]] + [[0, 0, 7.5], [0, 0, 0], [0, 0, 0]]
        truth = generator.normal(0, 1.5, 3)
        forward = pose[2, :3]
        sideways = pose[0, :3]
        shift = [
            generator.normal(0, 0.02, 3),
            generator.normal(0, 0.4, 3),
            -30 * forward,
            2000 * forward,
            60 * sideways,
        ][i % 5]
        point = pose[:3, :3] @ truth + pose[:3, 3]
        pixel = (K @ point)[:2] / point[2] + generator.normal(0, 2, 2)
        known = truth if generator.uniform() < 0.7 else None
        samples.append(Sample(pose, K, pixel, known, truth + shift, float(generator.uniform(0.05, 2))))
    return samples


def as_tensors(samples: list[Sample]) -> tuple[Batch, Prediction]:
    def stacked(arrays: list[NDArray[np.float64]]) -> torch.Tensor:
        return torch.tensor(np.stack(arrays), dtype=torch.float64)

    batch = Batch(
        torch.zeros(len(samples), 1),
        stacked([s.pixel for s in samples]),
        stacked([np.full(3, np.nan) if s.truth is None else s.truth for s in samples]),
        stacked([s.pose for s in samples]),
        stacked([s.K for s in samples]),
        complete=False,
    )
    deviation_m = torch.tensor([s.sigma_m for s in samples], dtype=torch.float64)
    return batch, Prediction(stacked([s.predicted for s in samples]), deviation_m)


def slow_threshold(course: str, t: float, largest: float, smallest: float) -> float:
    return largest * math.sqrt(1 - t * t) + smallest if course == "circle" else largest * (1 - t) + smallest


def slow_kernel(e: float, kernel: str, course: str, t: float, largest: float, smallest: float) -> float:
    tau = slow_threshold(course, t, largest, smallest)
    r, s = e / tau, largest
    if kernel == "barron":
        a = 2 - 4 * t
        if a == 2:
            return tau * r * r / 2
        if a == 0:
            return tau * math.log(r * r / 2 + 1)
        return tau * abs(a - 2) / a * ((r * r / abs(a - 2) + 1) ** (a / 2) - 1)
    return {
        "none": e,
        "dyntanh": tau * math.tanh(r),
        "tanh": s * math.tanh(e / s),
        "l1": e if e <= s else 0.0,
        "l1_sqrt": e if e <= s else math.sqrt(s * e),
        "l1_log": e if e <= s else math.log(1 + s * e),
        "geman_mcclure": tau * 9 * r * r / (9 * r * r + 4),
    }[kernel]


def slow_error_px(sample: Sample, config: ReprojectionLoss) -> float | None:
    """None where the projection is invalid."""
    point = sample.in_camera(sample.predicted)
    if point[2] < config.depth_min_m or point[2] > config.depth_max_m:
        return None
    u, v = (sample.K @ point)[:2] / point[2] - sample.pixel
    error = abs(u) + abs(v) if config.norm == "l1" else math.hypot(u, v)
    return error if error <= config.hard_clamp_px else None


def slow_clamped(error: float, config: ReprojectionLoss | LateralRadialLoss, t: float) -> float:
    return slow_kernel(error, config.kernel, config.course, t, config.soft_clamp_px, config.soft_clamp_min_px)


def slow_to_ray(sample: Sample, config: ReprojectionLoss) -> float:
    target = config.depth_target_m * np.linalg.inv(sample.K) @ [*sample.pixel, 1.0]
    return float(np.abs(sample.in_camera(sample.predicted) - target).sum())


def reprojection(sample: Sample, config: ReprojectionLoss, t: float) -> float:
    error = slow_error_px(sample, config)
    return slow_to_ray(sample, config) if error is None else slow_clamped(error, config, t)


def coordinate(sample: Sample, config: CoordinateLoss, t: float) -> float | None:
    if sample.truth is None:
        return None
    unit = sample.px_per_m if config.measure == "pixels" else 1.0
    largest, smallest = config.largest_pct / 100 * SCALE.diameter_m, config.smallest_px / sample.px_per_m
    return slow_kernel(sample.distance_m * unit, config.kernel, config.course, t, largest * unit, smallest * unit)


def lateral_radial(sample: Sample, config: LateralRadialLoss, t: float) -> float | None:
    if sample.truth is None:
        return None
    if slow_error_px(sample, ReprojectionLoss(norm="l2")) is None:
        return sample.px_per_m * sample.distance_m
    x, y, z = sample.in_camera(sample.truth)
    dx, dy, dz = sample.in_camera(sample.predicted) - [x, y, z]
    lateral = math.hypot(sample.K[0, 0] * (dx - x / z * dz) / z, sample.K[1, 1] * (dy - y / z * dz) / z)
    share = config.radial**2
    error = math.sqrt((1 - share) * lateral**2 + share * (sample.px_per_m * sample.distance_m) ** 2)
    return slow_clamped(error, config, t)


def fade(sample: Sample, config: FadeLoss, t: float) -> float:
    if t >= config.over or sample.truth is None:
        return reprojection(sample, config.reprojection, t)
    error = slow_error_px(sample, config.reprojection)
    first = sample.px_per_m * sample.distance_m if error is None else slow_clamped(error, config.reprojection, t)
    margin = max(config.margin_m, config.margin_pct / 100 * sample.in_camera(sample.truth)[2])
    weight = config.weight * 0.5 * (1 + math.cos(math.pi * t / config.over))
    return first + weight * sample.px_per_m * max(0.0, sample.distance_m - margin)


def switching(sample: Sample, config: SwitchingLoss, t: float) -> float | None:
    if t < config.at:
        return coordinate(sample, config.coordinate, t / config.at if config.schedule == "reset" else t)
    return reprojection(
        sample, config.reprojection, (t - config.at) / (1 - config.at) if config.schedule == "reset" else t
    )


def per_sample_switch(sample: Sample, config: PerSampleSwitchLoss, t: float) -> float | None:
    error = slow_error_px(sample, config.reprojection)
    if sample.truth is None:
        return None if error is None else slow_clamped(error, config.reprojection, t)
    within = max(config.within_m, config.within_px / sample.px_per_m)
    if error is None or sample.distance_m > within:
        return sample.px_per_m * sample.distance_m
    return slow_clamped(error, config.reprojection, t)


def uncertain(sample: Sample, config: UncertainCoordinateLoss, _t: float) -> float | None:
    if sample.truth is None:
        return None
    likelihood = 3 * math.log(sample.sigma_m) + sample.distance_m**2 / (2 * sample.sigma_m**2)
    return float(sample.sigma_m ** (2 * config.weighting) * likelihood)


SLOW = {
    "reprojection": reprojection,
    "coordinate": coordinate,
    "lateral_radial": lateral_radial,
    "fade": fade,
    "switching": switching,
    "per_sample_switch": per_sample_switch,
    "uncertain_coordinate": uncertain,
}
KERNELS = ("dyntanh", "tanh", "l1", "l1_sqrt", "l1_log", "geman_mcclure", "barron")
ROBUST = CoordinateLoss(kernel="dyntanh")
CONFIGS: list[LossConfig] = [
    *(ReprojectionLoss(kernel=kernel, norm="l2", course="linear") for kernel in KERNELS),
    ReprojectionLoss(),
    CoordinateLoss(),
    CoordinateLoss(measure="pixels"),
    *(CoordinateLoss(kernel=kernel, course="linear") for kernel in KERNELS),
    *(CoordinateLoss(kernel=kernel, measure="pixels") for kernel in KERNELS),
    *(LateralRadialLoss(radial=radial) for radial in (0.0, 0.2, 1.0)),
    LateralRadialLoss(kernel="none"),
    LateralRadialLoss(kernel="barron", course="linear"),
    FadeLoss(),
    FadeLoss(over=0.8, weight=0.5, margin_m=0.3),
    SwitchingLoss(coordinate=ROBUST),
    SwitchingLoss(coordinate=ROBUST, schedule="continue"),
    PerSampleSwitchLoss(),
    PerSampleSwitchLoss(within_m=0.5, reprojection=ReprojectionLoss()),
    UncertainCoordinateLoss(),
    UncertainCoordinateLoss(weighting=0.5),
]


def described(config: LossConfig) -> str:
    keys = sorted(config.model_fields_set - {"name", "reprojection"})  # in one order, whichever process asks
    chosen = [str(getattr(config, key)) for key in keys]
    return " ".join([config.name, *chosen])


@pytest.mark.parametrize("config", CONFIGS, ids=described)
def test_a_loss_equals_its_slow_reference_on_valid_and_invalid_samples(config: LossConfig) -> None:
    """Choosing by `where` gives what if and else give: behind the camera, too far, wide of the mark, unknown."""
    samples = made_samples()
    batch, predicted = as_tensors(samples)
    for progress in (0.0, 0.01, 0.25, 0.5, 0.52, 0.9, 1.0):
        losses = [SLOW[config.name](sample, config, progress) for sample in samples]  # type: ignore[operator]
        expected = np.mean([loss for loss in losses if loss is not None])
        found = phase_at(config, progress, SCALE).loss(predicted, batch)
        assert found.item() == pytest.approx(expected, rel=1e-9)


def test_the_references_meet_every_case() -> None:
    """Among the samples, each kind of prediction occurs with a known and with an unknown coordinate."""
    limits, cases = ReprojectionLoss(), set()
    for sample in made_samples():
        depth_m, error = sample.in_camera(sample.predicted)[2], slow_error_px(sample, limits)
        kind = "valid" if error is not None else "behind" if depth_m < 0.1 else "far" if depth_m > 1000 else "wide"
        cases.add((kind, sample.truth is not None))
    assert cases == {(kind, known) for kind in ("valid", "behind", "far", "wide") for known in (True, False)}
