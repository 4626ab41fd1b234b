"""Stage `queries`: the images of one split, encoded once for all trials that share the encoder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cadloc.contract import Fault, InputError, Json, canonical
from cadloc.datasets.ace_layout import Dataset, View
from cadloc.encoders import Encoder
from cadloc.encoders.images import STRIDE
from cadloc.encoding import encode_image, image_depth_m, process_encoder
from cadloc.geometry import Array, cell_pixels, inverse, transform_points, unproject
from cadloc.parts import join_parts, write_part

__all__ = ["Queries", "build_chunk", "chunks", "encode_image", "finish"]

VIEWS_PER_CHUNK = 25
SCHEMA_VERSION = 1
_ARRAYS = ("features", "scene_coordinates", "cam_from_cad", "intrinsics")


@dataclass(frozen=True)
class Queries:
    """V encoded images of one size, in the order of `names`.

    `features` (V, rows, cols, C) float16 and `scene_coordinates` (V, rows, cols, 3) float32 (NaN where unknown) are
    memory-mapped; `cam_from_cad` (V, 4, 4) and `intrinsics` (V, 3, 3) are float64.
    """

    names: tuple[str, ...]
    width_px: int
    height_px: int
    features: NDArray[np.float16]
    scene_coordinates: NDArray[np.float32]
    cam_from_cad: Array
    intrinsics: Array

    @classmethod
    def open(cls, directory: Path) -> Queries:
        """The finished stage below `directory`."""
        card = json.loads((directory / "queries.json").read_text())
        mapped = (np.load(directory / f"{name}.npy", mmap_mode="r") for name in _ARRAYS[:2])
        loaded = (np.load(directory / f"{name}.npy") for name in _ARRAYS[2:])
        return cls(tuple(card["names"]), card["width_px"], card["height_px"], *mapped, *loaded)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def pixels(self) -> Array:
        """Pixel (rows, cols, 2) that each cell looks at, the same in every image."""
        return cell_pixels(self.features.shape[1], self.features.shape[2], STRIDE)


def chunks(config: Mapping[str, Json], inputs: Mapping[str, Path]) -> int:
    """Groups of up to 25 images."""
    return -(-len(_views(config, inputs)) // VIEWS_PER_CHUNK)


def build_chunk(config: Mapping[str, Json], inputs: Mapping[str, Path], directory: Path, chunk: int) -> int:
    """Encodes one group into `directory/parts`; returns how many images it holds."""
    views = _views(config, inputs)[chunk * VIEWS_PER_CHUNK : (chunk + 1) * VIEWS_PER_CHUNK]
    encoder = process_encoder(canonical(config["encoder"]))
    encoded = [_encoded(encoder, view) for view in views]
    write_part(directory, chunk, {name: np.stack([item[name] for item in encoded]) for name in _ARRAYS})
    return len(views)


def finish(config: Mapping[str, Json], inputs: Mapping[str, Path], directory: Path) -> None:
    """Joins the groups and writes `queries.json`."""
    views = _views(config, inputs)
    join_parts(directory, chunks(config, inputs), _ARRAYS)
    width, height = views[0].image_size_px
    card = {
        "schema_version": SCHEMA_VERSION,
        "names": [view.name for view in views],
        "width_px": width,
        "height_px": height,
        "encoder": config["encoder"],
        "split": config["split"],
    }
    (directory / "queries.json").write_text(json.dumps(card, indent=2) + "\n")


def _views(config: Mapping[str, Json], inputs: Mapping[str, Path]) -> tuple[View, ...]:
    """The split's views; InputError when there are none, or their images differ in size."""
    views = Dataset.open(inputs["views"]).views(config["split"])
    if not views:
        raise InputError(Fault(str(inputs["views"]), config["split"], "no views", "at least one"))
    sizes = sorted({view.image_size_px for view in views})
    if len(sizes) > 1:
        found = ", ".join(f"{width} x {height} px" for width, height in sizes)
        raise InputError(Fault(str(inputs["views"]), config["split"], found, "images of one size"))
    return views


def _encoded(encoder: Encoder, view: View) -> dict[str, NDArray[Any]]:
    features = encode_image(encoder, view.read_image())
    pixels = cell_pixels(*features.shape[:2]).reshape(-1, 2)
    depth_m = image_depth_m(view, pixels) if view.depth_path is not None else np.full(len(pixels), np.nan)
    points_cad = transform_points(view.cad_from_cam, unproject(pixels, depth_m, view.intrinsics))
    return {
        "features": features.astype(np.float16),
        "scene_coordinates": points_cad.reshape(*features.shape[:2], 3).astype(np.float32),
        "cam_from_cad": inverse(view.cad_from_cam),
        "intrinsics": view.intrinsics,
    }
