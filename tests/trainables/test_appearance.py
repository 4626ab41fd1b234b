"""Looks of synthetic views and simulated photographs: random, repeatable, and never touching geometry."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from cadloc.appearance import (
    Image,
    Pixels,
    compressed,
    draw_light,
    draw_sky,
    randomised,
    view_generator,
)
from cadloc.geometry import look_at, pinhole
from cadloc.occluders import draw_occluders
from cadloc.photographs import LARGEST_OCCLUDED_SHARE, developed, draw_weather, photograph
from cadloc.rendering import Light
from cadloc.views_config import RandomisationConfig

SHAPE = (120, 160)
POSE = look_at([0.0, -20.0, 1.6], [0.0, 0.0, 3.0])
K = pinhole(160, 120, 65.0)
PLAIN = RandomisationConfig(
    light=0, exposure_ev=0, gamma=0, white_balance=0, background=0, blur_px=0, noise=0, jpeg_quality=(100, 100)
)


def render() -> tuple[Pixels, Pixels]:
    """A smooth pattern on the left half of the image, premultiplied, and its coverage."""
    rows, columns = np.mgrid[0 : SHAPE[0], 0 : SHAPE[1]]
    coverage = (columns < 80).astype(np.float32)
    grey = 120 + 60 * np.sin(rows / 15) * np.cos(columns / 20)
    return (np.repeat(grey[..., None], 3, axis=2) * coverage[..., None]).astype(np.float32), coverage


def look(config: RandomisationConfig, name: str = "mapping_000000", seed: int = 0) -> Image:
    image, coverage = render()
    return randomised(image, coverage, POSE, K, config, view_generator(seed, name, "camera"))


def photo(name: str = "query_000000", depth: float = 20.0) -> tuple[Image, NDArray[np.bool_]]:
    image, coverage = render()
    weather = draw_weather(view_generator(0, name, "weather"))
    depth_m = (depth * coverage).astype(np.float32)
    return photograph(image, coverage, depth_m, POSE, K, 0.0, weather, view_generator(0, name, "photograph"))


def test_same_view_same_look() -> None:
    """A view's appearance depends on seed and name only."""
    assert np.array_equal(look(RandomisationConfig()), look(RandomisationConfig()))
    assert draw_light(RandomisationConfig(), view_generator(5, "a", "light")) == draw_light(
        RandomisationConfig(), view_generator(5, "a", "light")
    )


@pytest.mark.parametrize(("name", "seed"), [("mapping_000001", 0), ("mapping_000000", 1)])
def test_other_views_look_different(name: str, seed: int) -> None:
    """Another name or another seed gives another appearance."""
    difference = look(RandomisationConfig()).astype(float) - look(RandomisationConfig(), name, seed)
    assert np.abs(difference).mean() > 5


def test_every_setting_off_leaves_the_render() -> None:
    """Without randomisation the image is the render on plain grey, up to JPEG's rounding."""
    image, coverage = render()
    expected = image + 127 * (1 - coverage[..., None])
    assert np.abs(look(PLAIN).astype(float) - expected)[:, [*range(70), *range(90, 160)]].max() <= 3
    assert draw_light(PLAIN, view_generator(0, "a", "light")) == Light()


@pytest.mark.parametrize(
    "setting", [{"exposure_ev": 0.5}, {"gamma": 0.3}, {"white_balance": 0.2}, {"background": 1.0}, {"noise": 0.1}]
)
def test_every_setting_acts(setting: dict[str, float]) -> None:
    """Each setting alone changes the image."""
    changed = look(PLAIN.model_copy(update=setting)).astype(float) - look(PLAIN)
    assert np.abs(changed).mean() > 1


def test_tone_keeps_order() -> None:
    """Exposure and gamma never make a darker pixel brighter than a brighter one."""
    ramp = np.tile(np.linspace(0, 255, 160, dtype=np.float32)[None, :, None], (120, 1, 3))
    config = PLAIN.model_copy(update={"exposure_ev": 0.6, "gamma": 0.2})
    seen = randomised(ramp, np.ones(SHAPE, np.float32), POSE, K, config, view_generator(2, "a", "camera"))
    assert (np.diff(seen.mean(axis=(0, 2))) > -1.5).all()


def test_share_of_random_suns() -> None:
    """About the configured share of views has a random sun, and of these about that share casts shadows."""
    config = RandomisationConfig(light=0.5, shadows=0.5)
    lights = [draw_light(config, view_generator(0, f"view{index}", "light")) for index in range(400)]
    suns = [light for light in lights if light != Light()]
    assert 160 < len(suns) < 240
    assert 0.35 < np.mean([light.shadows for light in suns]) < 0.65


def test_sky_stays_where_it_is_when_the_camera_turns() -> None:
    """Two cameras in one place see the same sky in the same direction."""
    sky = draw_sky(np.random.default_rng(0))
    straight = sky.image(look_at([0, 0, 0], [0, 1, 0.5]), K, *SHAPE)
    turned = sky.image(look_at([0, 0, 0], [0, 1, 0.5], roll_deg=180), K, *SHAPE)
    assert np.abs(straight - turned[::-1, ::-1]).mean() < 1.0


def test_photographs_are_repeatable_and_differ() -> None:
    """A photograph depends on its name only, and no two are alike."""
    (first, occluded), (again, occluded_again), (other, _) = photo(), photo(), photo("query_000001")
    assert np.array_equal(first, again)
    assert np.array_equal(occluded, occluded_again)
    assert np.abs(first.astype(float) - other).mean() > 5


def test_occluders_hide_no_more_than_allowed() -> None:
    """People and cars hide something in most photographs, and never more than a fifth."""
    shares = [photo(f"query_{index:06d}", 60.0)[1].mean() for index in range(12)]
    assert max(shares) <= LARGEST_OCCLUDED_SHARE
    assert np.mean(np.array(shares) > 0) > 0.5


def test_nearer_walls_hide_occluders() -> None:
    """Nobody is drawn over a wall that stands nearer than anybody."""
    image = np.full((*SHAPE, 3), 100, np.float32)
    depth_m = np.full(SHAPE, 1.0, np.float32)
    occluded = draw_occluders(image, depth_m, POSE, K, 0.0, Light(), 1.0, np.random.default_rng(0))
    assert not occluded.any()
    assert (image == 100).all()


def test_occluders_stand_below_the_horizon() -> None:
    """Seen from eye height, nobody's top is far above the horizon and nobody floats: feet are on the ground."""
    image = np.full((*SHAPE, 3), 100, np.float32)
    level = look_at([0.0, -20.0, 1.6], [0.0, 0.0, 1.6])
    depth_m = np.zeros(SHAPE, np.float32)
    occluded = draw_occluders(image, depth_m, level, K, 0.0, Light(), 0.5, np.random.default_rng(1))
    rows = np.flatnonzero(occluded.any(axis=1))
    # The tallest are 0.4 m above the eye, at 3.5 m or more.
    assert rows.min() >= 60 - 0.4 * K[1, 1] / 3.5 - 2
    assert rows.max() > 60


def test_exposure_meets_dark_and_bright_scenes() -> None:
    """Automatic exposure gives a dark and a bright scene nearly the same brightness."""
    dark, bright = (
        developed(np.full((*SHAPE, 3), level, np.float32), np.random.default_rng(0)).mean() for level in (90, 180)
    )
    assert abs(dark - bright) < 10


def test_compression_keeps_colour_order() -> None:
    """Red stays red through the JPEG round trip."""
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 200
    assert np.abs(compressed(red, 95).astype(int) - red).max() < 5
