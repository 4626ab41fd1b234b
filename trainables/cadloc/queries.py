"""Stage `queries`: the images of one split, encoded once for all trials that share the encoder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cadloc.contract import Fault, InputError, Json
from cadloc.datasets.ace_layout import Dataset, View
from cadloc.encoders import Encoder
from cadloc.encoders.images import STRIDE
from cadloc.encoding import encode_image, image_depth_m, stage_encoder
from cadloc.geometry import Array, cell_pixels, inverse, transform_points, unproject
from cadloc.parts import join_parts, write_part

__all__ = ["Queries", "build_chunk", "chunks", "encode_image", "finish"]

VIEWS_PER_CHUNK = 25
SCHEMA_VERSION = 2
_CELL_ARRAYS = ("features", "scene_coordinates")
_IMAGE_ARRAYS = ("cam_from_cad", "intrinsics", "sizes_px")


@dataclass(frozen=True)
class Queries:
    """V encoded images, each of its own size, in the order of `names`; their cells one after another, row by row.

    `features` (N, C) float16 and `scene_coordinates` (N, 3) float32 (NaN where unknown) are memory-mapped;
    `cam_from_cad` (V, 4, 4) and `intrinsics` (V, 3, 3) are float64, `sizes_px` (V, 2) is width and height.
    """

    names: tuple[str, ...]
    features: NDArray[np.float16]
    scene_coordinates: NDArray[np.float32]
    cam_from_cad: Array
    intrinsics: Array
    sizes_px: NDArray[np.int64]

    @classmethod
    def open(cls, directory: Path) -> Queries:
        """The finished stage below `directory`."""
        card = json.loads((directory / "queries.json").read_text())
        mapped = (np.load(directory / f"{name}.npy", mmap_mode="r") for name in _CELL_ARRAYS)
        loaded = (np.load(directory / f"{name}.npy") for name in _IMAGE_ARRAYS)
        return cls(tuple(card["names"]), *mapped, *loaded)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def grids(self) -> NDArray[np.int64]:
        """Rows and columns (V, 2) of cells per image."""
        return self.sizes_px[:, ::-1] // STRIDE

    def cells(self, image: int) -> slice:
        """Where the image's cells are among all N."""
        ends = np.cumsum(self.grids.prod(axis=1))
        return slice(int(ends[image] - self.grids[image].prod()), int(ends[image]))

    def pixels(self, image: int) -> Array:
        """Pixel (rows · cols, 2) that each cell of the image looks at."""
        rows, columns = self.grids[image].tolist()
        return cell_pixels(rows, columns, STRIDE).reshape(-1, 2)

    def on_grid(self, image: int, cells: NDArray[Any]) -> NDArray[Any]:
        """Values of the image's cells (rows · cols, …) as a picture (rows, cols, …)."""
        return cells.reshape(*self.grids[image], *cells.shape[1:])


def chunks(config: Mapping[str, Json], inputs: Mapping[str, Path]) -> int:
    """Groups of up to 25 images."""
    return -(-len(_views(config, inputs)) // VIEWS_PER_CHUNK)


def build_chunk(config: Mapping[str, Json], inputs: Mapping[str, Path], directory: Path, chunk: int) -> int:
    """Encodes one group into `directory/parts`; returns how many images it holds."""
    views = _views(config, inputs)[chunk * VIEWS_PER_CHUNK : (chunk + 1) * VIEWS_PER_CHUNK]
    encoder = stage_encoder(config, inputs)
    encoded = [_encoded(encoder, view) for view in views]
    cells = {name: np.concatenate([item[name] for item in encoded]) for name in _CELL_ARRAYS}
    write_part(directory, chunk, cells | {name: np.stack([item[name] for item in encoded]) for name in _IMAGE_ARRAYS})
    return len(views)


def finish(config: Mapping[str, Json], inputs: Mapping[str, Path], directory: Path) -> None:
    """Joins the groups and writes `queries.json`."""
    join_parts(directory, chunks(config, inputs), (*_CELL_ARRAYS, *_IMAGE_ARRAYS))
    card = {
        "schema_version": SCHEMA_VERSION,
        "names": [view.name for view in _views(config, inputs)],
        "encoder": config["encoder"],
        "split": config["split"],
    }
    (directory / "queries.json").write_text(json.dumps(card, indent=2) + "\n")


def _views(config: Mapping[str, Json], inputs: Mapping[str, Path]) -> tuple[View, ...]:
    """The split's views; InputError when there are none."""
    views = Dataset.open(inputs["views"]).views(config["split"])
    if not views:
        raise InputError(Fault(str(inputs["views"]), config["split"], "no views", "at least one"))
    return views


def _encoded(encoder: Encoder, view: View) -> dict[str, NDArray[Any]]:
    image = view.read_image()
    features = encode_image(encoder, image)
    pixels = cell_pixels(*features.shape[:2]).reshape(-1, 2)
    depth_m = image_depth_m(view, pixels) if view.depth_path is not None else np.full(len(pixels), np.nan)
    points_cad = transform_points(view.cad_from_cam, unproject(pixels, depth_m, view.intrinsics))
    return {
        "features": features.reshape(len(pixels), -1).astype(np.float16),
        "scene_coordinates": points_cad.astype(np.float32),
        "cam_from_cad": inverse(view.cad_from_cam),
        "intrinsics": view.intrinsics,
        "sizes_px": np.array(image.shape[1::-1], np.int64),
    }
