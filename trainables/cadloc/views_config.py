"""Settings of the views that are rendered: where from, how many, how large, how they look."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from cadloc.settings import (
    Ascending,
    AtLeastOne,
    Azimuth,
    Count,
    Degrees,
    Fraction,
    JpegQuality,
    NonNegative,
    Positive,
    Seed,
    Settings,
)


class ImageConfig(Settings):
    """Size of the rendered images; both sides are multiples of the encoders' stride 8."""

    width_px: Annotated[int, Field(ge=64, le=4096, multiple_of=8)] = 640
    height_px: Annotated[int, Field(ge=64, le=4096, multiple_of=8)] = 480


class OrbitConfig(Settings):
    """Cameras on rings about the model, all looking at it."""

    elevations_deg: Annotated[tuple[Annotated[float, Field(ge=-30, le=85)], ...], AtLeastOne] = (4.0, 15.0, 30.0)
    distances: Annotated[tuple[Positive, ...], AtLeastOne] = (0.4, 0.55)
    """Multiples of the distance from which the building's bounding sphere fills the smaller field of view."""
    target_spread: Fraction = 0.15
    """How far from the building's middle cameras aim at most, as a share of the sphere's radius."""


class GroundConfig(Settings):
    """Cameras where people stand: eye height, free space, looking at a random surface point."""

    eye_height_m: Positive = 1.6
    eye_height_spread_m: NonNegative = 0.3
    distances: Annotated[tuple[Positive, Positive], Ascending] | None = (0.25, 0.7)
    """Range of distances to the building's middle, in the multiples of `OrbitConfig.distances`, drawn log-uniformly.
    None: evenly over the rectangle that the model's buildings fill and a tenth of its radius around it, for people
    in the streets and squares between many buildings."""
    aim_spread_deg: Annotated[float, Field(ge=0, le=45)] = 2.0
    """Standard deviation of the aim about the surface point looked at."""
    max_pitch_deg: Annotated[float, Field(gt=0, le=90)] = 40.0
    """No surface point farther above or below the horizon is looked at: heads turn, but not all the way."""


class ViewpointsConfig(Settings):
    """Where the virtual cameras stand and how they see."""

    ground_share: Fraction = 0.6
    """Share of ground-level viewpoints; the rest are orbit views."""
    orbit: OrbitConfig = OrbitConfig()
    ground: GroundConfig = GroundConfig()
    azimuth_deg: Annotated[tuple[Azimuth, Azimuth], Ascending] = (-180.0, 180.0)
    """Sector the cameras stand in, seen from the building's middle, counter-clockwise from +x."""
    fields_of_view_deg: Annotated[tuple[Annotated[float, Field(gt=10, lt=120)], ...], AtLeastOne] = (55.0, 65.0, 75.0)
    """Angles that the longer image side may span (phones: 50 to 75)."""
    roll_deg: Degrees = 3.0
    """Standard deviation of the in-plane rotation."""
    clearance_m: Positive = 2.0
    """Nothing but the ground is closer to the camera than this."""
    min_hit_share: Fraction = 0.3
    """A viewpoint is accepted when this share of its cells sees the building (not the ground, not the sky)."""
    min_separation_m: NonNegative = 0.5
    min_separation_deg: NonNegative = 5.0
    """Two viewpoints of different splits differ by more than at least one of these two: no near-duplicates."""


class GtPosesConfig(Settings):
    """Renders at the poses of the scene's photos: pairs of a photo and a render, and jittered ones about them."""

    copies: Count = 16
    """Renders per mapping photo: the first at its very pose, the others jittered. Other splits have the first only."""
    jitter_translation_pct: NonNegative = 5.0
    """Standard deviation, in % of the median depth seen."""
    jitter_rotation_deg: Degrees = 3.0
    max_offset_px: Positive | None = None
    """Mapping photos whose render is displaced by more than this (median over matches) are left out. None: none is."""


class CountsConfig(Settings):
    """Views per split. Choices are made on `validation`; `query` is looked at once."""

    mapping: Count = 600
    validation: Count = 32
    query: Count = 100


class RandomisationConfig(Settings):
    """Appearance of synthetic views, drawn anew for each one (domain randomisation)."""

    light: Fraction = 0.7
    """Share of views with a random sun; the others have one fixed, soft light."""
    shadows: Fraction = 0.5
    """Share of the views with a random sun in which it casts shadows."""
    exposure_ev: NonNegative = 0.6
    """Standard deviations, in stops and in natural logarithms of gamma and white-balance gains."""
    gamma: NonNegative = 0.15
    white_balance: NonNegative = 0.08
    background: Fraction = 0.8
    """Share of views with a random sky instead of plain grey."""
    blur_px: NonNegative = 0.6
    noise: NonNegative = 0.015
    """Largest standard deviations, uniformly drawn: of the blur, and of the noise as a share of full scale."""
    jpeg_quality: Annotated[tuple[JpegQuality, JpegQuality], Ascending] = (70, 97)


class ViewsConfig(Settings):
    """Synthetic views: where from, how many, how large, how they look. `seed` is not the trial's seed."""

    image: ImageConfig = ImageConfig()
    viewpoints: ViewpointsConfig = ViewpointsConfig()
    counts: CountsConfig = CountsConfig()
    randomisation: RandomisationConfig = RandomisationConfig()
    gt_poses: GtPosesConfig = GtPosesConfig()
    backend: Literal["gl", "raycasting"] = "gl"
    """`raycasting` needs no OpenGL and is slower."""
    seed: Seed = 1
