"""Features of chosen cells: the same views and cells, one by one on the CPU or in a device's batches."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cadloc.augmentation import draw_jitter
from cadloc.augmented_views import AugmentedView, augmented_views
from cadloc.cell_features import Encoded, features_in_batches, features_one_by_one, images_on_canvas
from cadloc.config import AugmentationConfig, BufferConfig, SmallEncoder
from cadloc.datasets.ace_layout import Dataset, View, write_view
from cadloc.encoders import build
from cadloc.encoders.folding import folded
from cadloc.geometry import Array, cell_pixels

INTRINSICS = np.array([[150.0, 0, 81.0], [0, 154.0, 58.5], [0, 0, 1]])
SIZES_PX = ((160, 120), (160, 120), (128, 160), (160, 120))
PASSES = 4


def picture(seed: int, width: int, height: int) -> NDArray[np.uint8]:
    """Blobs (H, W, 3): neighbours are alike, places are not."""
    noise = np.random.default_rng(seed).normal(0, 1, (height, width, 3))
    return np.clip(128 + 400 * cv2.GaussianBlur(noise, (0, 0), 3), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> tuple[View, ...]:
    """Four images of two sizes, each before a wall at 5 m."""
    directory = tmp_path_factory.mktemp("blobs")
    for k, (width, height) in enumerate(SIZES_PX):
        write_view(
            directory, "mapping", f"view_{k}", image=picture(k, width, height), depth_m=np.full((height, width), 5.0),
            cad_from_cam=np.eye(4), intrinsics=INTRINSICS, step_m=0.001,
        )  # fmt: skip
    return Dataset.open(directory).views("mapping")


def found_by(views: tuple[View, ...], encode: Callable[..., Encoded]) -> tuple[list[AugmentedView], list[Array]]:
    """What every pass over the views sees, and the unit features of its cells."""
    decode = [partial(augmented_views, view, BufferConfig(), [60] * PASSES) for view in views]
    found = list(encode(folded(build(SmallEncoder())), decode))
    return [view for view, _ in found], [unit(features.astype(np.float64)) for _, features in found]


def unit(features: Array) -> Array:
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def test_a_devices_batches_say_what_images_one_by_one_do(views: tuple[View, ...]) -> None:
    """The same cells of the same views in the same order. Features of plain views agree but for the order of sums;
    those of warped ones, for all their different sizes, but for the interpolation and what lies beyond the image:
    almost every cell's is nearer to its own than to any other cell's of the view."""
    alone, of_alone = found_by(views, features_one_by_one)
    together, of_together = found_by(views, partial(features_in_batches, device="cpu"))
    assert len(alone) == len(together) == len(views) * PASSES
    for one, other, expected, found in zip(alone, together, of_alone, of_together, strict=True):
        np.testing.assert_array_equal(one.pixels, other.pixels)
        np.testing.assert_array_equal(one.warp.intrinsics, other.warp.intrinsics)
        assert found.shape == expected.shape == (60, 128)
        if one.plain:
            assert (found * expected).sum(1).min() > 0.99999
        assert ((found @ expected.T).argmax(1) == np.arange(60)).mean() > 0.9


def test_a_canvas_shows_what_each_view_shows_alone(views: tuple[View, ...]) -> None:
    """Within its own size, every image of a batch is the one it would be alone, up to two grey levels of interpolation
    away from the border; plain ones to the bit."""
    passes = augmented_views(views[0], BufferConfig(), [5] * 6)
    canvas = images_on_canvas(passes, "cpu").permute(0, 2, 3, 1).numpy()
    for each, shown in zip(passes, canvas, strict=True):
        alone = each.image()
        own = shown[: alone.shape[0], : alone.shape[1]]
        original = each.warp.original_pixels(cell_pixels(*alone.shape[:2], 1), each.original_intrinsics)
        inside = ((original > 1) & (original < np.array([160, 120]) - 1)).all(-1)
        assert np.abs(own.astype(int) - alone)[inside].max() <= (0 if each.plain else 2)


def test_a_view_is_decoded_once_for_all_its_passes(views: tuple[View, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Five passes read one image and one depth."""
    read = []
    for name in ("read_image", "read_depth_m"):
        original = getattr(View, name)

        def counted(self: View, name: str = name, original: Callable[[View], object] = original) -> object:
            read.append(name)
            return original(self)

        monkeypatch.setattr(View, name, counted)
    assert len(augmented_views(views[0], BufferConfig(), [10] * 5)) == 5
    assert read == ["read_image", "read_depth_m"]


@given(st.integers(0, 1000))
def test_light_is_that_of_every_pixel_by_itself(seed: int) -> None:
    """The table of 256 values gives the bits of the arithmetic on every pixel."""
    light = draw_jitter(AugmentationConfig(brightness=0.5, contrast=0.5), np.random.default_rng(seed))
    image = picture(seed, 40, 30)
    bright = image.astype(np.float32) * np.float32(light.brightness)
    mean = bright.mean(dtype=np.float64)
    slowly = np.clip((bright - mean) * light.contrast + mean + 0.5, 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(light.image(image), slowly)
