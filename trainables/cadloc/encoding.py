"""From an image, or a stored view of a dataset, to what its feature cells hold and see."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter

from cadloc.augmentation import sample_depth_m
from cadloc.config import EncoderConfig
from cadloc.contract import Json, canonical
from cadloc.datasets.ace_layout import View
from cadloc.encoders import Encoder, build
from cadloc.encoders.folding import folded
from cadloc.encoders.images import STRIDE
from cadloc.encoders.projected import load_projected
from cadloc.finetuning.adapters import load_tuned
from cadloc.geometry import Array


def encode_image(encoder: Encoder, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Features (rows, cols, C) of an RGB image (H, W, 3); what exceeds a multiple of the stride is not looked at.

    The crop is on the right and below, so intrinsics stay as they are. Raises ValueError for an image under 8 px.
    """
    rows, columns = (side // STRIDE for side in image.shape[:2])
    if not rows or not columns:
        raise ValueError(f"an image of {image.shape[1]} x {image.shape[0]} px has no feature cell of {STRIDE} px")
    cropped = torch.from_numpy(np.ascontiguousarray(image[: rows * STRIDE, : columns * STRIDE]))
    features = encoder.encode(cropped.permute(2, 0, 1)[None])
    return np.asarray(features[0].permute(1, 2, 0).cpu().numpy())


@lru_cache(maxsize=2)
def process_encoder(config: str, device: str = "cpu") -> Encoder:
    """The encoder of a canonical JSON configuration, for encoding only, built once per process.

    Unless its settings say otherwise, a stage is made on the CPU and on one thread: it is shared by all who ask for it,
    so it may not depend on who made it.
    """
    torch.set_num_threads(1)
    adapter: TypeAdapter[Any] = TypeAdapter(EncoderConfig)
    return folded(build(adapter.validate_json(config), device))


def stage_encoder(config: Mapping[str, Json], inputs: Mapping[str, Path], device: str = "cpu") -> Encoder:
    """The encoder of a stage: the fine-tuned one among its inputs, else the one its `encoder` settings name.

    With a `projection` among the inputs, it is projected so.
    """
    named = "encoder" not in inputs
    encoder = process_encoder(canonical(config["encoder"]), device) if named else _tuned(inputs["encoder"], device)
    return load_projected(inputs["projection"], encoder, device) if "projection" in inputs else encoder


# A finished stage does not change.
@lru_cache(maxsize=2)
def _tuned(directory: Path, device: str) -> Encoder:
    torch.set_num_threads(1)
    return folded(load_tuned(directory, device))


def image_depth_m(view: View, pixels: Array) -> Array:
    """Depth (N,) at image pixels (N, 2); NaN where unknown or at an edge."""
    return depth_at_m(view.read_depth_m(), view.image_size_px, pixels)


def depth_at_m(depth_m: NDArray[np.floating[Any]], image_size_px: tuple[int, int], pixels: Array) -> Array:
    """Depth (N,) at pixels (N, 2) of an image, as `image_depth_m`; depth images may be smaller than photos."""
    return sample_depth_m(depth_m, pixels * (np.array(depth_m.shape[::-1]) / image_size_px))
