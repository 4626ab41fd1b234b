"""Images per second and core that the encoders turn into features."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.measurement import Measurement, interleaved
from cadloc.config import AceEncoder, EncoderConfig, SmallEncoder
from cadloc.encoders import Encoder, build
from cadloc.encoders.folding import folded

HEIGHT_PX, WIDTH_PX = 480, 640
# Counted by hand from the layers at 640 × 480 (two operations per multiplication and addition).
FLOP = {"small": 8.81e9, "ace": 58.4e9}


def measure() -> Iterator[Measurement]:
    """Both learned encoders; the 512 features of ACE's size have random weights, which take as long as any."""
    torch.set_num_threads(1)
    image = torch.randint(0, 255, (1, 3, HEIGHT_PX, WIDTH_PX), dtype=torch.uint8)
    limit = arithmetic_flops()
    for config in (SmallEncoder(), AceEncoder(weights="random")):
        yield _measured(config, image, limit)


def arithmetic_flops(seconds: float = 1.0) -> float:
    """Best rate, FLOP/s, of one thread over the products and convolutions that encoders are made of.

    Where PyTorch's matrix product is slower than a 3 × 3 convolution, as on AMD's processors, the latter is the limit.
    """
    channels, rows, columns = 256, HEIGHT_PX // 8, WIDTH_PX // 8
    x = torch.randn(1, channels, rows, columns).contiguous(memory_format=torch.channels_last)
    kernel = torch.randn(channels, channels, 3, 3).contiguous(memory_format=torch.channels_last)
    left, right = torch.randn(rows * columns, channels), torch.randn(channels, channels)
    product = 2 * rows * columns * channels * channels
    with torch.inference_mode():
        by_mm = product * _best(lambda: left @ right, seconds / 2)
        by_convolution = 9 * product * _best(lambda: torch.conv2d(x, kernel, padding=1), seconds / 2)
    return max(by_mm, by_convolution)


def layer_by_layer(encoder: Encoder, images: Tensor) -> Tensor:
    """As ACE encodes: one image, its channels one after another in memory, every layer of the network on its own."""
    with torch.no_grad():
        return encoder.encode(images)


def _measured(config: EncoderConfig, image: Tensor, limit: float) -> Measurement:
    plain = build(config)
    quick = folded(plain)
    rates = interleaved({"ours": lambda: quick.encode(image), "plain": lambda: layer_by_layer(plain, image)}, 9)
    return Measurement(
        f"encode.{config.name}",
        rates["ours"],
        "images/s per core",
        rates["plain"],
        limit / FLOP[config.name],
        what="one image, layer by layer, without gradients",
        limit_is="the best product or convolution of one thread",
    )


def _best(work: Callable[[], object], seconds: float) -> float:
    """Times per second of the fastest run."""
    work()
    fastest, end_s = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end_s:
        start_s = time.perf_counter()
        work()
        fastest = min(fastest, time.perf_counter() - start_s)
    return 1 / fastest
