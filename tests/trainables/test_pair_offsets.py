"""How far a render is displaced from its photo: planted displacements come back, chance does not pass for one."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from cadloc.geometry import pinhole
from cadloc.pair_offsets import FEWEST_MATCHES, measure_offset

Image = NDArray[np.uint8]
WIDTH_PX, HEIGHT_PX = 480, 360
EVERYWHERE = np.ones((HEIGHT_PX, WIDTH_PX), bool)


def facade(seed: int) -> Image:
    """A wall with windows and stones of random places, sizes and colours: smooth edges, nothing repeats."""
    rng = np.random.default_rng(seed)
    picture = np.full((HEIGHT_PX, WIDTH_PX, 3), 150, np.uint8)
    for _ in range(220):
        corner = rng.integers(0, (WIDTH_PX, HEIGHT_PX))
        far = corner + rng.integers(8, 50, 2)
        colour = tuple(int(value) for value in rng.integers(20, 235, 3))
        cv2.rectangle(picture, corner.tolist(), far.tolist(), colour, -1, cv2.LINE_AA)
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), 0.8), np.uint8)


def photographed(picture: Image, photo_from_render: NDArray[np.float64], seed: int = 0) -> Image:
    """The picture under a homography, with another exposure, gamma, haze and noise."""
    size = picture.shape[1::-1]
    # OpenCV warps have the first pixel's centre at 0.
    shift = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1.0]])
    moved = cv2.warpPerspective(
        picture, np.linalg.inv(shift) @ photo_from_render @ shift, size, borderMode=cv2.BORDER_REPLICATE
    )
    exposed = 40 + 190 * (moved / 255.0) ** 1.5
    noisy = exposed + np.random.default_rng(seed).normal(0, 4, exposed.shape)
    return np.asarray(np.clip(noisy, 0, 255), np.uint8)


def moved_by(homography: NDArray[np.float64], pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where the pixels (M, 2) go, less where they were."""
    homogeneous = np.concatenate([pixels, np.ones((len(pixels), 1))], axis=1) @ homography.T
    return np.asarray(homogeneous[:, :2] / homogeneous[:, 2:] - pixels)


@pytest.mark.parametrize("shift", [(0.0, 0.0), (2.5, -1.25), (-9.75, 6.5)])
def test_a_planted_shift_is_found(shift: tuple[float, float]) -> None:
    """Displacements lead from the render to the photo, to a quarter of a pixel, under another exposure and noise."""
    render = facade(1)
    homography = np.array([[1, 0, shift[0]], [0, 1, shift[1]], [0, 0, 1.0]])
    found = measure_offset(photographed(render, homography), render, EVERYWHERE)
    assert found.matches > 100
    np.testing.assert_allclose(np.median(found.displacements, axis=0), shift, atol=0.1)
    assert np.median(np.linalg.norm(found.displacements - shift, axis=1)) < 0.25
    assert found.median_px == pytest.approx(np.hypot(*shift), abs=0.3)


def test_a_planted_camera_rotation_is_found() -> None:
    """A camera turned by 1 degree and rolled by 1 moves every place differently; each displacement says so."""
    render, K = facade(2), pinhole(WIDTH_PX, HEIGHT_PX, 60)
    rotation, _ = cv2.Rodrigues(np.deg2rad([0.4, -0.9, 1.0]))
    homography = K @ rotation @ np.linalg.inv(K)
    found = measure_offset(photographed(render, homography), render, EVERYWHERE)
    errors = np.linalg.norm(found.displacements - moved_by(homography, found.pixels), axis=1)
    assert found.matches > 100
    assert np.median(errors) < 0.3
    assert np.percentile(errors, 90) < 1.0


def test_what_lies_beyond_the_radius_is_not_found() -> None:
    """A pair that is farther off than the search reaches shows hardly a match instead of a wrong one."""
    render = facade(3)
    far = np.array([[1, 0, 20.0], [0, 1, 0], [0, 0, 1.0]])
    assert measure_offset(photographed(render, far), render, EVERYWHERE, 0.03).matches < FEWEST_MATCHES
    assert measure_offset(photographed(render, far), render, EVERYWHERE, 0.06).median_px == pytest.approx(20, abs=0.5)


@pytest.mark.parametrize("seed", range(3))
def test_unlike_pictures_do_not_match(seed: int) -> None:
    """Of two different walls, hardly a place is found in the other one, and no median is claimed."""
    found = measure_offset(photographed(facade(100 + seed), np.eye(3)), facade(seed), EVERYWHERE)
    assert found.matches < FEWEST_MATCHES
    assert np.isnan([found.median_px, found.p90_px]).all()


def test_only_the_model_is_looked_at() -> None:
    """All matches lie where the mask is true; an empty mask has none."""
    render = facade(4)
    left = np.arange(WIDTH_PX)[None, :] < WIDTH_PX // 3
    mask = EVERYWHERE & left
    found = measure_offset(photographed(render, np.eye(3)), render, mask)
    assert found.matches > 20
    assert (found.pixels[:, 0] < WIDTH_PX // 3).all()
    nothing = measure_offset(render, render, ~EVERYWHERE)
    assert (nothing.matches, nothing.pixels.shape) == (0, (0, 2))
    assert np.isnan(nothing.median_px)


def test_large_pictures_are_measured_in_their_own_pixels() -> None:
    """The same pair three times as large shows displacements three times as long, at pixels three times as far."""
    render = facade(5)
    photo = photographed(render, np.array([[1, 0, 3.0], [0, 1, 2.0], [0, 0, 1.0]]))
    photo, render = (cv2.resize(image, None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC) for image in (photo, render))
    found = measure_offset(photo, render, np.ones(render.shape[:2], bool))
    np.testing.assert_allclose(np.median(found.displacements, axis=0), (9.0, 6.0), atol=0.5)
    assert found.pixels[:, 0].max() > 2 * WIDTH_PX


def test_pictures_of_unlike_sizes_are_refused() -> None:
    """Photo, render and mask must be of one size."""
    with pytest.raises(ValueError, match="not of one size"):
        measure_offset(facade(6), facade(6)[1:], EVERYWHERE)
