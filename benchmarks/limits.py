"""What the machine can do at most, measured in the same run: matrix products."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

import torch


def gemm_flops(width: int, rows: int, seconds: float = 1.0, device: str = "cpu", dtype: str = "float32") -> float:
    """Best rate, FLOP/s, of products (rows, width) @ (width, width).

    On CPUs, over both libraries that PyTorch has there (MKL, and oneDNN, which it takes for convolutions), over
    thread counts, and over one thread per process. On CUDA devices one process and stream is all there is.
    """
    if device != "cpu":
        return _gemm_here(width, rows, seconds, device, dtype)
    before, cores = torch.get_num_threads(), os.cpu_count() or 1
    found = []
    for threads in sorted({1, cores}):
        torch.set_num_threads(threads)
        found += [_gemm_here(width, rows, seconds / 4, onednn=onednn) for onednn in (False, True)]
    torch.set_num_threads(before)
    if cores > 1:
        found += [_gemm_of_processes(width, rows, seconds / 4, cores, onednn) for onednn in (False, True)]
    return max(found)


def _gemm_here(
    width: int, rows: int, seconds: float, device: str = "cpu", dtype: str = "float32", onednn: bool = False
) -> float:
    kind = getattr(torch, dtype)
    product = _product(width, rows, device, kind, onednn)

    def work() -> None:
        product()
        if device != "cpu":
            torch.cuda.synchronize()

    return _best(work, seconds) * 2 * rows * width * width


@torch.no_grad()
def _product(width: int, rows: int, device: str, kind: torch.dtype, onednn: bool) -> Callable[[], object]:
    left = torch.randn(rows, width, device=device, dtype=kind)
    right = torch.randn(width, width, device=device, dtype=kind)
    if onednn:
        images = left.view(16, rows // 16, 1, width).permute(0, 3, 1, 2)  # rows as pixels: what it is used for here
        pixel = right[:, :, None, None].contiguous(memory_format=torch.channels_last)
        return lambda: torch.nn.functional.conv2d(images, pixel)
    out = torch.empty(rows, width, device=device, dtype=kind)
    return lambda: torch.mm(left, right, out=out)


def _gemm_of_processes(width: int, rows: int, seconds: float, count: int, onednn: bool) -> float:
    context = multiprocessing.get_context("spawn")
    workers = []
    for _ in range(count):
        ours, theirs = context.Pipe()
        process = context.Process(target=_gemm_worker, args=(theirs, width, rows, seconds, onednn), daemon=True)
        process.start()
        workers.append((process, ours))
    for _, ours in workers:
        ours.recv()  # imported and warm
    for _, ours in workers:
        ours.send("go")
    total = sum(ours.recv() for _, ours in workers)
    for process, _ in workers:
        process.join()
    return float(total)


def _gemm_worker(pipe: Connection, width: int, rows: int, seconds: float, onednn: bool) -> None:
    torch.set_num_threads(1)
    product = _product(width, rows, "cpu", torch.float32, onednn)
    product()
    pipe.send("ready")
    pipe.recv()
    count, start_s = 0, time.perf_counter()
    while time.perf_counter() - start_s < seconds:
        product()
        count += 1
    pipe.send(count * 2 * rows * width * width / (time.perf_counter() - start_s))


def _best(work: Callable[[], object], seconds: float) -> float:
    """Times per second, of the fastest tenth of the runs."""
    times: list[float] = []
    end_s = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end_s:
        start_s = time.perf_counter()
        work()
        times.append(time.perf_counter() - start_s)
    times.sort()
    return 1 / times[len(times) // 10]
