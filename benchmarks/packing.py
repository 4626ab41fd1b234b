"""Many heads on one device at once, against the same heads one after another."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.limits import gemm_flops
from benchmarks.measurement import Measurement, interleaved
from cadloc.config import TrialConfig
from cadloc.geometry import inverse, look_at, pinhole
from cadloc.head_config import AceHead
from cadloc.heads import build
from cadloc.learner import Learner
from cadloc.loss_config import CoordinateLoss, LossConfig, ReprojectionLoss, SwitchingLoss
from cadloc.packing.requests import StretchRequest, packed
from cadloc.packing.server import PackServer
from cadloc.samples import Samples
from cadloc.scene_config import SceneConfig
from cadloc.stretch import Progression, Stretch
from cadloc.training_config import TrainingConfig

CHANNELS = 512
LOSSES: tuple[LossConfig, ...] = (ReprojectionLoss(), CoordinateLoss(), SwitchingLoss())
_VIEWS, _STEPS = 64, 3


def measure() -> Iterator[Measurement]:
    """On the CPU, heads of width 256 in batches of 1024; where there is a CUDA device, ACE's own settings there."""
    torch.set_num_threads(1)  # as a sweep runs: one process per core
    yield from measure_on("cpu", (1, 4, 16), samples_made(100_000, "cpu"), trial(0, 256, 1024, "float32"), _STEPS)
    if torch.cuda.is_available():
        samples = samples_made(2_000_000, "cuda")
        yield from measure_on("cuda", (1, 4, 16, 64), samples, trial(0, 512, 5120, "bfloat16"), 100)


def measure_on(
    device: str, counts: tuple[int, ...], samples: Samples, like: TrialConfig, steps: int
) -> Iterator[Measurement]:
    """Samples per second of so many heads like one, and on CUDA how many of them are trained in a minute."""
    training, width = like.training, int(like.model_dump()["head"]["width"])
    one = pack_of(1, samples, like)
    limit = gemm_flops(width, training.batch_size, device=device, dtype=training.precision) / flops_per_sample(width)
    for count in counts:
        many = one if count == 1 else pack_of(count, samples, like)
        works: dict[str, Callable[[], object]] = {"apart": lambda: taken(one, steps)}
        works["packed"] = lambda many=many: taken(many, steps)  # type: ignore[misc]
        found = interleaved(works, rounds=3 if device == "cpu" else 5)
        here, apart = (found[name] * steps * training.batch_size for name in ("packed", "apart"))
        yield Measurement(
            f"packing {device}, {count} heads of width {width}",
            here * count,
            "samples/s",
            apart,
            limit,
            "the same heads one after another",
            "GEMM",
        )
        if device != "cpu":
            heads, alone = (60 * rate / training.iterations / training.batch_size for rate in (here * count, apart))
            what = "one after another"
            yield Measurement(f"heads trained on {device}, {count} at once", heads, "heads/min", alone, what=what)


def taken(server: PackServer, steps: int) -> None:
    """So many steps of all heads; waits for the device."""
    for _ in range(steps):
        server.step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def pack_of(count: int, samples: Samples, like: TrialConfig) -> PackServer:
    """A server with so many slots, and in each a head of its own loss and seed at its first step."""
    server = PackServer(str(samples.features.device), count, opener=lambda config, stages, device: samples)
    for seed in range(count):
        config = like.model_copy(update={"seed": seed, "loss": LOSSES[seed % len(LOSSES)]})
        head = build(config.head, samples.dimensions, seed).to(samples.features.device)
        head.fit(samples, seed)
        stretch = Stretch(Learner(head, samples, config), Progression(), config.training.iterations)
        request = StretchRequest(config, {"buffer/synthetic": Path("made")}, packed(stretch), stretch.milestone)
        server.admit(request, lambda answer: None)
    return server


def flops_per_sample(width: int) -> float:
    """Of ACE's head: forward, and backward to weights and, but for the first layers, to inputs; read-out left out."""
    first = CHANNELS * width * (1 if width == CHANNELS else 2)
    rest = 7 * width * width
    return 2.0 * (2 * first + 3 * rest)


def trial(seed: int, width: int, batch_size: int, precision: str) -> TrialConfig:
    """ACE's 25,000 steps."""
    settings = {"batch_size": batch_size, "precision": precision}
    return TrialConfig(
        scene=SceneConfig(name="gate", built_in=True),
        head=AceHead(width=width),
        seed=seed,
        training=TrainingConfig.model_validate(settings),
    )


def samples_made(count: int, device: str) -> Samples:
    """Random features of points before a ring of cameras: speed does not depend on what they are."""
    generator = torch.Generator(device).manual_seed(0)
    numbers = np.random.default_rng(0)
    eyes = [(20 * np.cos(a), 20 * np.sin(a), 1.6) for a in numbers.uniform(0, 2 * np.pi, _VIEWS)]
    cam_from_cad = torch.from_numpy(inverse(np.stack([look_at(eye, [0, 0, 2]) for eye in eyes]))).float().to(device)
    intrinsics = torch.from_numpy(np.stack([pinhole(640, 480, 65)] * _VIEWS)).float().to(device)
    view = torch.randint(_VIEWS, (count,), generator=generator, device=device)
    points = 4 * torch.rand(count, 3, generator=generator, device=device)
    seen = torch.einsum("nij,nj->ni", cam_from_cad[view, :3, :3], points) + cam_from_cad[view, :3, 3]
    pixels = torch.einsum("nij,nj->ni", intrinsics[view, :2], seen / seen[:, 2:])
    features = torch.empty(count, CHANNELS, dtype=torch.float16, device=device)
    return Samples(features.normal_(generator=generator), pixels, view, points, cam_from_cad, intrinsics)


if __name__ == "__main__":
    start_s = time.perf_counter()
    for measurement in measure():
        print(measurement.to_json())
    print(f"{time.perf_counter() - start_s:.0f} s")
