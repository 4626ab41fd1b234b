"""What the machine can do at most, measured in the same run: matrix products and copies of memory."""

from __future__ import annotations

import multiprocessing
import os
import time
from multiprocessing.connection import Connection

import torch

_SIDE = 1024


def gemm_flops(width: int, rows: int, seconds: float = 1.0, device: str = "cpu", dtype: str = "float32") -> float:
    """Best rate, FLOP/s, of products (rows, width) @ (width, width), over thread counts and one thread per process.

    On CUDA devices one process and stream is all there is.
    """
    if device != "cpu":
        return _gemm_here(width, rows, seconds, device, dtype)
    before, cores = torch.get_num_threads(), os.cpu_count() or 1
    found = []
    for threads in sorted({1, cores}):
        torch.set_num_threads(threads)
        found.append(_gemm_here(width, rows, seconds, device, dtype))
    torch.set_num_threads(before)
    if cores > 1:
        found.append(_gemm_of_processes(width, rows, seconds, cores))
    return max(found)


def memcpy_bytes(seconds: float = 0.5) -> float:
    """Bytes per second that one thread copies from one large array into another."""
    source = torch.ones(32 * _SIDE * _SIDE, dtype=torch.uint8)
    target = torch.empty_like(source)
    return _best(lambda: target.copy_(source), seconds) * source.numel()


def _gemm_here(width: int, rows: int, seconds: float, device: str, dtype: str) -> float:
    kind = getattr(torch, dtype)
    left = torch.randn(rows, width, device=device, dtype=kind)
    right = torch.randn(width, width, device=device, dtype=kind)
    out = torch.empty(rows, width, device=device, dtype=kind)

    def work() -> None:
        torch.mm(left, right, out=out)
        if device != "cpu":
            torch.cuda.synchronize()

    return _best(work, seconds) * 2 * rows * width * width


def _gemm_of_processes(width: int, rows: int, seconds: float, count: int) -> float:
    context = multiprocessing.get_context("spawn")
    workers = []
    for _ in range(count):
        ours, theirs = context.Pipe()
        process = context.Process(target=_gemm_worker, args=(theirs, width, rows, seconds), daemon=True)
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


def _gemm_worker(pipe: Connection, width: int, rows: int, seconds: float) -> None:
    torch.set_num_threads(1)
    _gemm_here(width, rows, 0.1, "cpu", "float32")
    pipe.send("ready")
    pipe.recv()
    pipe.send(_sustained(width, rows, seconds))


def _sustained(width: int, rows: int, seconds: float) -> float:
    left, right = torch.randn(rows, width), torch.randn(width, width)
    out = torch.empty(rows, width)
    count, start_s = 0, time.perf_counter()
    while time.perf_counter() - start_s < seconds:
        torch.mm(left, right, out=out)
        count += 1
    return count * 2 * rows * width * width / (time.perf_counter() - start_s)


def _best(work, seconds: float) -> float:  # type: ignore[no-untyped-def]
    """Times per second, of the fastest tenth of the runs."""
    times: list[float] = []
    end_s = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end_s:
        start_s = time.perf_counter()
        work()
        times.append(time.perf_counter() - start_s)
    times.sort()
    return 1 / times[len(times) // 10]
