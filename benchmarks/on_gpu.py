"""Cells of the throughput benchmark on a GPU, one after another in one process: time, memory, what bounds the step."""

import gc
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.tasks import Cell, build, flops
from custom.training.replay import PLAIN_STEPS

KINDS = (
    ("attention", r"attention|fmha|flash|sdpa|window"),
    ("convolution", r"conv|fprop|dgrad|wgrad"),
    ("matrix product", r"gemm|cutlass|cublas|nvjet"),
    ("memory traffic", r""),
)
"""What a kernel does, by its name; the first that fits. The last: norms, copies, sums, all that moves more than it
multiplies."""
BUSY = 0.9
"""Share of a step's time in which kernels run, below which the host is what bounds it."""


def measure(cell: Cell, repeats: int) -> dict[str, Any]:
    """The row of a cell: seconds of each step, its memory and kernels; where it fails, the error."""
    row: dict[str, Any] = asdict(cell)
    clean()
    before = torch.cuda.memory_allocated()
    row["flops"] = flops(cell)
    try:
        step = build(cell, *([torch.compile] if "compiled" in cell.implementation else []))
        for _ in range(PLAIN_STEPS + 2 if not cell.task.startswith("infer") else 1):
            step()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        cpu = time.process_time()
        row["seconds"], row["result"] = timed(step, repeats)
        row["cpu_seconds"] = [(time.process_time() - cpu) / repeats]
        row["peak_bytes"] = torch.cuda.max_memory_allocated() - before
        row["kernels"] = kernel_seconds(step)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:  # a compiler's, too
        row["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
    return row


def clean() -> None:
    """Give all memory back that the cell before has left."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
    gc.collect()
    torch.cuda.empty_cache()


def timed(step: Callable[[], Tensor], repeats: int) -> tuple[list[float], float]:
    """Seconds from each step's end to the next one's, on the GPU's clock, and the last result's mean.

    The host may run ahead, as in a training.
    """
    ends = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    ends[0].record()
    for end in ends[1:]:
        result = step()
        end.record()
    mean = result.float().mean().item()
    return [a.elapsed_time(b) / 1000 for a, b in pairwise(ends)], mean


def kernel_seconds(step: Callable[[], Tensor]) -> dict[str, float]:
    """Seconds of one step's kernels on the GPU by what they do (`KINDS`)."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        step()
        torch.cuda.synchronize()
    seconds = dict.fromkeys((kind for kind, _ in KINDS), 0.0)
    for event in profiler.events():
        if event.device_type == DeviceType.CUDA:
            seconds[kind_of(event.name)] += event.time_range.elapsed_us() / 1e6
    return seconds


def kind_of(kernel: str) -> str:
    """What a kernel does, by its name."""
    return next(kind for kind, pattern in KINDS if re.search(pattern, kernel, re.IGNORECASE))


def bound(kernels: Mapping[str, float], seconds: float) -> str:
    """What bounds a step, in words: the host, or the kernels that take most of its time."""
    busy = sum(kernels.values())
    if busy < BUSY * seconds:
        return f"the host: kernels run {busy / seconds:.0%} of the time"
    most = max(kernels, key=kernels.__getitem__)
    return f"{most}: {kernels[most] / busy:.0%} of the kernels' time"


def bandwidth() -> float:
    """Bytes a second of a large copy on the GPU, read and written; the best of several."""
    source = torch.randn(2**28, device="cuda")
    target = torch.empty_like(source)
    target.copy_(source)
    seconds, _ = timed(lambda: target.copy_(source)[:1], 6)
    return 2 * source.numel() * source.element_size() / min(seconds)


def largest_batch(cell: Cell, limit: int = 512) -> int:
    """The largest power of two of pairs that fits a GPU's memory, 0 for none."""
    fits = 0
    for batch in (2**power for power in range(limit.bit_length())):
        clean()
        try:
            build(replace(cell, batch=batch))()
        except torch.OutOfMemoryError:
            break
        fits = batch
    clean()
    return fits
