"""A map at ACE's own settings on a CUDA device, alone and packed; without one it says so and measures nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator

import torch

from benchmarks.ace_baseline import AceLoop
from benchmarks.limits import gemm_flops
from benchmarks.measurement import Measurement
from benchmarks.packing import flops_per_sample, pack_of, samples_made, taken, trial
from cadloc.config import TrialConfig
from cadloc.head_config import AceHead
from cadloc.samples import Samples

SAMPLES = 8_000_000
COUNTS = (1, 4, 16, 64)
_WARM_UP, _STEPS = 30, 300


def measure() -> Iterator[Measurement]:
    """8 million samples, 25,000 steps of 5120, width 512, bfloat16: rates of a few hundred steps, told of all steps."""
    if not torch.cuda.is_available():
        print("gpu: found no CUDA device; nothing is measured", file=sys.stderr)
        return
    torch.set_num_threads(1)
    start_s = time.perf_counter()
    samples = samples_made(SAMPLES, "cuda")
    torch.cuda.synchronize()
    yield Measurement("samples made on the device", time.perf_counter() - start_s, "s", better="less")
    like = trial(0, 512, 5120, "bfloat16")
    peak = gemm_flops(512, 5120, device="cuda", dtype="bfloat16")
    # Whose product of one head is too small to fill the device: that of many is its limit.
    wide = gemm_flops(4096, 5120, device="cuda", dtype="bfloat16")
    alone_s = None
    for count in COUNTS:
        step_s = seconds_of_step(samples, like, count)
        alone_s = alone_s or step_s
        yield from told(like, count, step_s, alone_s, peak if count == 1 else wide)
    if alone_s is not None:
        yield from against_the_field(samples, like, alone_s)


def told(like: TrialConfig, count: int, step_s: float, alone_s: float, peak: float) -> Iterator[Measurement]:
    """What a step of so many heads comes to: seconds of a map, maps in a minute, arithmetic per second."""
    training = like.training
    if count == 1:
        run_s = step_s * training.iterations
        yield Measurement("a head, alone", run_s, "s", better="less", target="20 s at most")
    per_minute, alone = count * 60 / step_s / training.iterations, 60 / alone_s / training.iterations
    target = "10 times alone" if count == max(COUNTS) else ""
    yield Measurement(f"heads, {count} at once", per_minute, "heads/min", alone, what="alone", target=target)
    flops = count * training.batch_size * flops_per_sample(512) / step_s
    yield Measurement(f"arithmetic, {count} at once", flops, "FLOP/s", limit=peak, limit_is="bfloat16 GEMM")


def seconds_of_step(samples: Samples, like: TrialConfig, count: int) -> float:
    """Of so many heads at once, the first ones left out, in which the step is recorded."""
    server = pack_of(count, samples, like)
    return timed(lambda steps: taken(server, steps))


def against_the_field(samples: Samples, like: TrialConfig, alone_s: float) -> Iterator[Measurement]:
    """Our step of one head against that of a loop like ACE's, in half precision as it has it, on the same device."""
    assert isinstance(like.head, AceHead)
    with torch.device("cuda"):
        loop = AceLoop(samples, like.head, like.training.batch_size, like.training.iterations)
    loop._generator = torch.Generator("cuda").manual_seed(0)
    steps = iter(range(like.training.iterations))

    def take(count: int) -> None:
        with torch.device("cuda"), torch.autocast("cuda", torch.bfloat16):
            for _ in range(count):
                loop.step(next(steps))

    what, target = "a loop like ACE's", "4 times the baseline"
    yield Measurement("steps of one head", 1 / alone_s, "steps/s", 1 / timed(take), what=what, target=target)


def timed(take: Callable[[int], object]) -> float:
    """Seconds per step."""
    take(_WARM_UP)
    torch.cuda.synchronize()
    start_s = time.perf_counter()
    take(_STEPS)
    torch.cuda.synchronize()
    return (time.perf_counter() - start_s) / _STEPS


if __name__ == "__main__":
    for measurement in measure():
        print(measurement.to_json())
