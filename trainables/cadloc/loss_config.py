"""Settings of the losses: what supervises a head, and how that changes over a run."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from cadloc.settings import Fraction, NonNegative, OpenFraction, Positive, Settings

Kernel: TypeAlias = Literal["dyntanh", "tanh", "l1", "l1_sqrt", "l1_log", "geman_mcclure", "barron"]
"""How an error e becomes a loss under a threshold τ (`cadloc.losses.kernels`)."""

Course: TypeAlias = Literal["circle", "linear"]
"""How a threshold falls over a run: high for long and at the end at once (ACE), or evenly."""


class ReprojectionLoss(Settings):
    """ACE's reprojection error with dynamic tanh (ACE, section 3.4 and supplement): needs poses only."""

    name: Literal["reprojection"] = "reprojection"
    kernel: Kernel = "dyntanh"
    norm: Literal["l1", "l2"] = "l1"
    """Of the two pixel differences: ACE's sum, or the distance (DSAC*)."""
    course: Course = "circle"
    """How the soft clamp falls, under the kernels `dyntanh`, `geman_mcclure` and `barron`; others keep it."""
    soft_clamp_px: Positive = 50.0
    soft_clamp_min_px: Positive = 1.0
    hard_clamp_px: Positive = 1000.0
    depth_min_m: Positive = 0.1
    depth_max_m: Positive = 1000.0
    depth_target_m: Positive = 10.0

    @model_validator(mode="after")
    def _some_depth_is_valid(self) -> ReprojectionLoss:
        if self.depth_min_m >= self.depth_max_m:
            raise ValueError(f"depth_min_m = {self.depth_min_m:g} is not below depth_max_m = {self.depth_max_m:g}")
        return self


class CoordinateLoss(Settings):
    """Euclidean distance to the known scene coordinate: the CAD's privileged supervision."""

    name: Literal["coordinate"] = "coordinate"
    measure: Literal["metres", "pixels"] = "metres"
    """`pixels`: the distance as it would look from the camera, focal length · distance / depth."""
    kernel: Kernel | Literal["none"] = "none"
    """Under a kernel, the threshold follows depth and progress: from `largest_pct` of the scene's diameter down to
    what `smallest_px` pixels span at the point's depth; kernels that know no course keep the former."""
    course: Course = "circle"
    largest_pct: Positive = 5.0
    smallest_px: Positive = 2.0


class LateralRadialLoss(Settings):
    """Between reprojection error and depth-normalised distance: errors across the viewing ray, and less those along it.

    e² = (1 − radial²) · lateral² + radial² · (focal length · distance / depth)², in pixels; `lateral` is the
    reprojection error to first order. 0 is reprojection with known depths, 1 the depth-normalised distance, which
    predictions behind the camera or 1000 px off cost in any case. Samples without a known coordinate do not count.
    """

    name: Literal["lateral_radial"] = "lateral_radial"
    radial: Fraction = 0.2
    kernel: Kernel | Literal["none"] = "dyntanh"
    course: Course = "circle"
    soft_clamp_px: Positive = 50.0
    soft_clamp_min_px: Positive = 1.0


class FadeLoss(Settings):
    """Reprojection, and a 3D prior that fades: the distance beyond a margin, weighted by a falling cosine.

    The distance is taken as it would look from the camera, in pixels, and so is added to pixels at any depth. While the
    prior acts, invalid predictions of known coordinates cost that distance, not the one to ACE's target on the ray.
    """

    name: Literal["fade"] = "fade"
    over: Annotated[float, Field(gt=0, le=1)] = 0.4
    """Share of the run after which the prior is gone."""
    weight: Positive = 1.0
    margin_m: NonNegative = 0.0
    margin_pct: NonNegative = 0.2
    """Distances up to the larger of `margin_m` and this share of the point's depth cost nothing."""
    reprojection: ReprojectionLoss = ReprojectionLoss()


class SwitchingLoss(Settings):
    """`coordinate` for the first share `at` of the run, then `reprojection` in units matched at the switch."""

    name: Literal["switching"] = "switching"
    at: OpenFraction = 1 / 3
    schedule: Literal["reset", "continue"] = "reset"
    """Whether the clamp's schedule starts at the switch, or runs from the beginning as in the source work. Under
    `reset`, a kernel of `coordinate` runs its course up to the switch."""
    learning_rate: Literal["continue", "restart"] = "continue"
    """Whether one cycle of the learning rate spans the run, or each side of the switch has its own."""
    coordinate: CoordinateLoss = CoordinateLoss()
    reprojection: ReprojectionLoss = ReprojectionLoss()


class PerSampleSwitchLoss(Settings):
    """DSAC*'s rule (Brachmann and Rother, 2021, section 3.3): every sample switches when it is near enough.

    The depth-normalised distance where the prediction is invalid, or farther off than `within_m` and than
    `within_px` span at the point's depth; elsewhere the reprojection error. Samples without a known coordinate count
    only while their projection is valid.
    """

    name: Literal["per_sample_switch"] = "per_sample_switch"
    within_m: Positive = 0.1
    within_px: Positive = 10.0
    reprojection: ReprojectionLoss = ReprojectionLoss(kernel="l1_sqrt", norm="l2", soft_clamp_px=100.0)


class UncertainCoordinateLoss(Settings):
    """Distance weighted by a standard deviation that the head predicts (CrossLoc, Yan et al. 2022): 3 log σ + d² / 2σ².

    The deviation orders the cells for the pose solver where `localization.sampling` is `prosac`.
    """

    name: Literal["uncertain_coordinate"] = "uncertain_coordinate"
    weighting: Fraction = 0.0
    """β of β-NLL (Seitzer et al. 2022): every sample's loss times its own σ^2β, held fixed, so that samples of large
    σ are not given up on. 0 is CrossLoc's."""


LossConfig: TypeAlias = Annotated[
    ReprojectionLoss
    | CoordinateLoss
    | LateralRadialLoss
    | FadeLoss
    | SwitchingLoss
    | PerSampleSwitchLoss
    | UncertainCoordinateLoss,
    Field(discriminator="name"),
]


def predicts_deviation(loss: LossConfig) -> bool:
    """Whether the loss needs a head that says how far it may be off."""
    return isinstance(loss, UncertainCoordinateLoss)
