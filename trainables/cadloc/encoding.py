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
from cadloc.encoders.images import STRIDE
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
def process_encoder(config: str) -> Encoder:
    """The encoder of a canonical JSON configuration, built once per process.

    Always on the CPU and on one thread: a stage is shared by all who ask for it, so it may not depend on who made it.
    """
    torch.set_num_threads(1)
    adapter: TypeAdapter[Any] = TypeAdapter(EncoderConfig)
    return build(adapter.validate_json(config))


def stage_encoder(config: Mapping[str, Json], inputs: Mapping[str, Path]) -> Encoder:
    """The encoder of a stage: the fine-tuned one among its inputs, else the one its `encoder` settings name."""
    if "encoder" in inputs:
        return _tuned(inputs["encoder"])
    return process_encoder(canonical(config["encoder"]))


# A finished stage does not change.
@lru_cache(maxsize=2)
def _tuned(directory: Path) -> Encoder:
    torch.set_num_threads(1)
    return load_tuned(directory)


def image_depth_m(view: View, pixels: Array) -> Array:
    """Depth (N,) at image pixels (N, 2); NaN where unknown or at an edge. Depth images may be smaller than photos."""
    depth_m = view.read_depth_m()
    depth_from_image = np.array(depth_m.shape[::-1]) / view.image_size_px
    return sample_depth_m(depth_m, pixels * depth_from_image)
