"""Samples per second and core of the whole stage `buffer`, against the way ACE fills its own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from benchmarks.encode import layer_by_layer
from benchmarks.measurement import Measurement, interleaved
from cadloc import buffer
from cadloc.augmented_views import augmented_views
from cadloc.catalog import stage_builder, stages_of
from cadloc.config import BufferConfig, SmallEncoder, TrialConfig
from cadloc.contract import Json, canonical
from cadloc.datasets.ace_layout import Dataset, View
from cadloc.encoders import Encoder, build
from cadloc.encoding import encode_image, process_encoder
from cadloc.geometry import Array, rotation_about_z

VIEWS, PASSES, PER_IMAGE = 12, 4, 1024
ROUNDS = 3
ENCODER = SmallEncoder()
SETTINGS = BufferConfig(samples=VIEWS * PASSES * PER_IMAGE, passes=PASSES)


def measure() -> Iterator[Measurement]:
    """One rendered scene, small images, four passes: ours, ACE's way, and encoding alone."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        views = _rendered(Path(folder) / "views")
        config = {"encoder": ENCODER.model_dump(mode="json"), "buffer": SETTINGS.model_dump(mode="json")}
        made = Path(folder) / "buffer"
        stored = _ours(config, views, made)
        ready = _images(views)
        encoder = process_encoder(canonical(config["encoder"]))
        plain = build(ENCODER)
        rates = interleaved(
            {
                "ours": partial(_ours, config, views, made),
                "aces": partial(_as_ace_does, plain, views),
                "encode": lambda: [encode_image(encoder, image) for image in ready],
            },
            ROUNDS,
        )
    taken = VIEWS * PASSES * PER_IMAGE
    yield Measurement(
        "buffer",
        rates["ours"] * stored,
        "samples/s per core",
        # It draws as many samples of every image, with replacement.
        rates["aces"] * taken,
        rates["encode"] * stored,
        what="decoded and converted anew in every pass, resized, lit and turned one after another, layer by layer, "
        "with poses and intrinsics of every sample",
        limit_is="encoding alone",
    )


def _rendered(directory: Path) -> Path:
    """Mapping views of a built-in scene."""
    counts = {"mapping": VIEWS, "validation": 1, "query": 1}
    image = {"width_px": 640, "height_px": 480}
    trial = TrialConfig.model_validate(
        {"scene": {"name": "gate", "built_in": True}, "views": {"image": image, "counts": counts}}
    )
    stage = stages_of(trial)["views/synthetic"]
    builder = stage_builder("views")
    for chunk in range(builder.chunks(stage.config, {})):
        builder.build_chunk(stage.config, {}, directory, chunk)
    builder.finish(stage.config, {}, directory)
    return directory


def _ours(config: dict[str, Json], views: Path, directory: Path) -> int:
    inputs = {"views": views}
    for chunk in range(buffer.chunks(config, inputs)):
        buffer.build_chunk(config, inputs, directory, chunk)
    buffer.finish(config, inputs, directory)
    return len(buffer.Buffer.open(directory))


def _images(views: Path) -> list[NDArray[np.uint8]]:
    """What is encoded, made beforehand."""
    most = [PER_IMAGE] * PASSES
    return [
        each.image() for view in Dataset.open(views).views("mapping") for each in augmented_views(view, SETTINGS, most)
    ]


# --- ACE's way, as its paper, its supplement and readers of its code describe it ---------------------------


def _as_ace_does(encoder: Encoder, views: Path) -> dict[str, torch.Tensor]:
    """A buffer of samples that each carry their pose and intrinsics, filled image by image."""
    dataset = Dataset.open(views).views("mapping")
    size = len(dataset) * PASSES * PER_IMAGE
    shapes = {"features": (128,), "pixels": (2,), "points": (3,), "poses": (3, 4), "K": (3, 3), "inverse_K": (3, 3)}
    types = {"features": torch.float16}
    stored = {name: torch.empty(size, *shape, dtype=types.get(name)) for name, shape in shapes.items()}
    generator, used = np.random.default_rng(0), 0
    for _ in range(PASSES):
        for view in dataset:
            found = _one_image(encoder, view, generator)
            for name, values in found.items():
                stored[name][used : used + PER_IMAGE] = values
            used += PER_IMAGE
    return stored


def _one_image(encoder: Encoder, view: View, generator: np.random.Generator) -> dict[str, torch.Tensor]:
    image, depth_m = Image.open(view.image_path).convert("RGB"), view.read_depth_m()
    scale, angle_deg = generator.uniform(2 / 3, 3 / 2), generator.uniform(-15, 15)
    width, height = (round(side * scale / 8) * 8 for side in image.size)
    resized = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR).convert("L"), np.float32) / 255
    bright = (resized * generator.uniform(0.9, 1.1)).clip(0, 1)
    lit = ((bright - bright.mean()) * generator.uniform(0.9, 1.1) + bright.mean()).clip(0, 1)
    turned = ndimage.rotate(lit.astype(np.float64), angle_deg, reshape=False, order=1, mode="reflect")
    depth = cv2.resize(depth_m, (width, height), interpolation=cv2.INTER_NEAREST)
    depth = ndimage.rotate(depth, angle_deg, reshape=False, order=0, mode="constant")
    cells = cv2.resize(depth, (width // 8, height // 8), interpolation=cv2.INTER_NEAREST)
    gray = torch.from_numpy((turned * 255).clip(0, 255).astype(np.uint8))
    features = layer_by_layer(encoder, gray.expand(1, 3, -1, -1).contiguous())[0].flatten(1).T
    K = view.intrinsics * [[scale], [scale], [1]]
    return _drawn(features, cells, view.cad_from_cam @ rotation_about_z(angle_deg), K, generator)


def _drawn(
    features: torch.Tensor, cells: NDArray[Any], cad_from_cam: Array, K: Array, generator: np.random.Generator
) -> dict[str, torch.Tensor]:
    valid = torch.from_numpy(np.flatnonzero(cells > 0) if (cells > 0).any() else np.arange(cells.size))
    chosen = valid[torch.from_numpy(generator.integers(0, len(valid), PER_IMAGE))]
    rows, columns = torch.meshgrid(torch.arange(cells.shape[0]), torch.arange(cells.shape[1]), indexing="ij")
    pixels = (torch.stack([columns, rows], -1).reshape(-1, 2)[chosen] + 0.5) * 8
    intrinsics = torch.from_numpy(K).float().expand(PER_IMAGE, 3, 3)
    inverse_K = intrinsics.inverse()
    poses = torch.from_numpy(np.linalg.inv(cad_from_cam)[:3]).float().expand(PER_IMAGE, 3, 4)
    rays = torch.cat([pixels, torch.ones(PER_IMAGE, 1)], 1) @ inverse_K[0].T
    points_cam = rays * torch.from_numpy(cells.reshape(-1)).float()[chosen, None]
    to_cad = torch.from_numpy(cad_from_cam).float()
    points = points_cam @ to_cad[:3, :3].T + to_cad[:3, 3]
    return {
        "features": features[chosen].half(),
        "pixels": pixels,
        "points": points,
        "poses": poses,
        "K": intrinsics,
        "inverse_K": inverse_K,
    }
