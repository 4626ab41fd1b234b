"""A trainable whose head a server can train, on samples made in code; named in spaces as `packed_head:train`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

from cadloc.buffer import Buffer
from cadloc.config import TrialConfig
from cadloc.contract import Json, Progress, StageSpec, TrialContext
from cadloc.geometry import inverse, look_at, pinhole, project, transform_points
from cadloc.heads import build
from cadloc.losses import YARDSTICKS
from cadloc.packing.remote import PackedRunner
from cadloc.samples import Samples
from cadloc.training import Training, mean_loss

METRIC = "test/synthetic/translation_error_median_m"
VALIDATION = "validation/synthetic/translation_error_median_m"

CHANNELS, VIEWS, PER_VIEW = 24, 8, 60


def train(config: TrialConfig, context: TrialContext) -> Iterator[Progress]:
    """A progress per milestone: the head's mean reprojection loss on what it learns from; the end has it, too."""
    torch.set_num_threads(1)
    samples = Samples.from_buffer(Buffer.open(context.stages["buffer/synthetic"]), context.device)
    head = build(config.head, CHANNELS, config.seed)
    runner = PackedRunner(context.pack, context.stages) if context.pack is not None else None
    training = Training(head, samples, config, context.directory, runner=runner)
    training.start()
    for row in training.run(lambda head: {VALIDATION: mean_loss(head, samples, YARDSTICKS[0])}):
        yield Progress(int(row["step"]), int(row["step"]), {VALIDATION: row[VALIDATION]})
    yield Progress(int(row["step"]), int(row["step"]), {METRIC: row[VALIDATION]}, finished=True)


def stages_of(config: TrialConfig) -> Mapping[str, StageSpec]:
    """One buffer for all."""
    return {"buffer/synthetic": StageSpec("packed_head:WALL", "1", {})}


def reported_metrics(config: TrialConfig) -> frozenset[str]:
    """What `train` yields."""
    return frozenset({METRIC, VALIDATION})


class Wall:
    """Cells of cameras before a wavy wall of 8 × 4 m; features are smooth functions of the point."""

    def chunks(self, config: Mapping[str, Json], inputs: Mapping[str, Path]) -> int:
        return 1

    def build_chunk(self, config: Mapping[str, Json], inputs: Mapping[str, Path], directory: Path, chunk: int) -> int:
        random = np.random.default_rng(0)
        waves, phases = random.normal(0, 0.6, (3, CHANNELS)), random.uniform(0, 6, CHANNELS)
        x, z = random.uniform(-4, 4, (VIEWS, PER_VIEW)), random.uniform(0, 4, (VIEWS, PER_VIEW))
        xyz = np.stack([x, 0.5 * np.sin(2 * x), z], axis=-1)
        K = pinhole(480, 360, 65)
        cam_from_cad = inverse(np.stack([look_at([eye, -10, 1.6], [0, 0, 2]) for eye in np.linspace(-5, 5, VIEWS)]))
        arrays = {
            "features": np.cos(xyz @ waves + phases).reshape(-1, CHANNELS).astype(np.float16),
            "pixels": project(transform_points(cam_from_cad, xyz), K).reshape(-1, 2).astype(np.float32),
            "view": np.arange(VIEWS, dtype=np.int32).repeat(PER_VIEW),
            "scene_coordinates": xyz.reshape(-1, 3).astype(np.float32),
            "cam_from_cad": cam_from_cad,
            "intrinsics": np.stack([K] * VIEWS),
        }
        for name, array in arrays.items():
            np.save(directory / f"{name}.npy", array)
        return VIEWS * PER_VIEW

    def finish(self, config: Mapping[str, Json], inputs: Mapping[str, Path], directory: Path) -> None:
        return


WALL = Wall()
