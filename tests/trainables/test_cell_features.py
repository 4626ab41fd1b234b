"""Features of chosen cells: the same views and cells, one by one on the CPU or in a device's batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from cadloc.augmentation import draw_jitter
from cadloc.augmented_views import AugmentedView, augmented_views
from cadloc.cell_features import Encoded, features_in_batches, features_one_by_one, images_together
from cadloc.config import AugmentationConfig, BufferConfig, SmallEncoder
from cadloc.datasets.ace_layout import Dataset, View, write_view
from cadloc.encoders import build
from cadloc.encoders.folding import folded
from cadloc.geometry import Array, cell_pixels

INTRINSICS = np.array([[150.0, 0, 81.0], [0, 154.0, 58.5], [0, 0, 1]])
SIZES_PX = ((160, 120), (160, 120), (128, 160), (160, 120))
PASSES = 4
SETTINGS = BufferConfig(cells="any", augmentation=AugmentationConfig(scale=(0.9, 1.1)))
"""Few sizes, so that images of one are met together."""

in_batches = partial(features_in_batches, device="cpu")


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


class Counting:
    """An encoder that tells how many images it was asked about at once."""

    stride, dimensions = 8, 128

    def __init__(self) -> None:
        self._encoder = folded(build(SmallEncoder()))
        self.counts: list[int] = []

    def encode(self, images: Tensor) -> Tensor:
        """Features of the encoder."""
        self.counts.append(len(images))
        return self._encoder.encode(images)


def found_by(
    views: Sequence[View], encode: Callable[..., Encoded], encoder: Counting
) -> tuple[list[AugmentedView], list[Array]]:
    """What every pass over the views sees, and the unit features of all its cells."""
    decode = [partial(augmented_views, view, SETTINGS, [10_000] * PASSES) for view in views]
    found = list(encode(encoder, decode))
    return [view for view, _ in found], [unit(features.astype(np.float64)) for _, features in found]


def unit(features: Array) -> Array:
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def test_a_devices_batches_say_what_images_one_by_one_do(views: tuple[View, ...]) -> None:
    """The same cells of the same views in the same order. Features of plain views agree but for the order of sums;
    those of warped ones but for the interpolation, in every cell up to the borders."""
    alone, of_alone = found_by(views, features_one_by_one, Counting())
    together, of_together = found_by(views, in_batches, Counting())
    assert len(alone) == len(together) == len(views) * PASSES
    for one, other, expected, found in zip(alone, together, of_alone, of_together, strict=True):
        np.testing.assert_array_equal(one.pixels, other.pixels)
        np.testing.assert_array_equal(one.warp.intrinsics, other.warp.intrinsics)
        assert found.shape == expected.shape == (one.warp.width_px * one.warp.height_px // 64, 128)
        assert (found * expected).sum(1).min() > (0.99999 if one.plain else 0.99)


def test_whatever_is_batched_beside_a_view_changes_nothing_of_it(views: tuple[View, ...]) -> None:
    """A view's features are those that a batch of its passes alone gives, though it shared batches with others."""
    encoder = Counting()
    _, of_all = found_by(views, in_batches, encoder)
    assert max(encoder.counts) > PASSES
    for k, view in enumerate(views):
        _, of_one = found_by([view], in_batches, Counting())
        for expected, found in zip(of_one, of_all[k * PASSES : (k + 1) * PASSES], strict=True):
            assert (found * expected).sum(1).min() > 0.99999


def test_images_made_together_are_those_made_alone(views: tuple[View, ...]) -> None:
    """Up to two grey levels of interpolation, what is reflected beyond the original included; plain ones to the bit."""
    outside = 0
    for each in augmented_views(views[0], BufferConfig(), [5] * 6):
        (shown,) = images_together([each], "cpu").permute(0, 2, 3, 1).numpy()
        assert np.abs(shown.astype(int) - each.image()).max() <= (0 if each.plain else 2)
        original = each.warp.original_pixels(cell_pixels(*shown.shape[:2], 1), each.original_intrinsics)
        outside += ((original < 0) | (original > np.array([160, 120]))).any(-1).sum()
    assert outside > 1000


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
