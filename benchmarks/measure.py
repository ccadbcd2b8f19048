"""Clocks, peaks and profiles of work on a GPU, and the ceilings of the GPU that it runs on."""

import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def synchronised_time() -> float:
    """Seconds on the host's clock, once the GPU has finished what it was given on the current stream.

    Not on all: inference captures graphs in a thread, and CUDA refuses to wait for a stream that is being captured.
    """
    if torch.cuda.is_available():
        torch.cuda.current_stream().synchronize()
    return time.perf_counter()


@dataclass(frozen=True)
class Ceilings:
    """What this GPU does at best: bf16 matrix products in FLOP/s, and memory traffic in bytes/s."""

    flops: float
    bandwidth: float

    @classmethod
    def measure(cls) -> "Ceilings":
        """By a matrix product of side 8192 and a copy of 4 GiB (read and written bytes both count)."""
        side, device = 8192, "cuda"
        a, b = (torch.randn(side, side, dtype=torch.bfloat16, device=device) for _ in range(2))
        source = torch.empty(2**32, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        return cls(2 * side**3 / _seconds(lambda: a @ b), 2 * 2**32 / _seconds(lambda: target.copy_(source)))


def _seconds(work: Callable[[], Any], repeats: int = 10) -> float:
    for _ in range(3):
        work()
    begin = synchronised_time()
    for _ in range(repeats):
        work()
    return (synchronised_time() - begin) / repeats


class Phases:
    """Seconds spent in named parts of a piece of work.

    The GPU is waited for before and after each part, so whole steps and batches are timed without.
    """

    def __init__(self, watching: bool) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._watching = watching

    def watch(self, owner: Any, method: str, name: str) -> None:
        """Adds the time of every call of ``owner.method`` to part ``name``."""
        if not self._watching:
            return
        original = getattr(owner, method)

        def watched(*args: Any, **kwargs: Any) -> Any:
            begin = synchronised_time()
            try:
                return original(*args, **kwargs)
            finally:
                self.seconds[name] += synchronised_time() - begin

        setattr(owner, method, watched)


@contextmanager
def profiled(rows: int = 20) -> Iterator[None]:
    """Writes the kernels that cost most within the block to standard output."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        yield
        synchronised_time()
    # Without the CPU's operators, of which a decoding loop has too many to sum up in good time.
    costs = profiler.key_averages().table(sort_by="self_device_time_total", row_limit=rows, max_name_column_width=90)
    sys.stdout.write(costs + "\n")
