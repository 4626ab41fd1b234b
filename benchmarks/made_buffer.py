"""A buffer of a wavy wall, made in code: what training and memory are measured on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cadloc.buffer import Buffer
from cadloc.geometry import inverse, look_at, pinhole, project, transform_points

VIEWS = 200


def made_buffer(directory: Path, samples: int, dimensions: int) -> Buffer:
    """Writes a finished stage `buffer` to `directory`: `samples` cells, a multiple of 200, with random features."""
    generator = np.random.default_rng(0)
    each = samples // VIEWS
    x, z = generator.uniform(-4, 4, (VIEWS, each)), generator.uniform(0, 4, (VIEWS, each))
    points_cad = np.stack([x, 0.5 * np.sin(2 * x), z], axis=-1)
    eyes = np.stack([np.linspace(-5, 5, VIEWS), generator.uniform(-12, -9, VIEWS), np.full(VIEWS, 1.6)], axis=1)
    cam_from_cad = inverse(np.stack([look_at(eye, [0, 0, 2]) for eye in eyes]))
    K = pinhole(640, 480, 65)
    np.save(directory / "pixels.npy", _rows(project(transform_points(cam_from_cad, points_cad), K)))
    np.save(directory / "scene_coordinates.npy", _rows(points_cad))
    np.save(directory / "view.npy", np.repeat(np.arange(VIEWS, dtype=np.int32), each))
    np.save(directory / "cam_from_cad.npy", cam_from_cad)
    np.save(directory / "intrinsics.npy", np.stack([K] * VIEWS))
    shape = (each * VIEWS, dimensions)
    features = np.lib.format.open_memmap(directory / "features.npy", "w+", np.float16, shape)
    for view in range(VIEWS):
        features[view * each : (view + 1) * each] = generator.standard_normal((each, dimensions), np.float32)
    features.flush()
    return Buffer.open(directory)


def _rows(values: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    return values.reshape(-1, values.shape[-1]).astype(np.float32)
