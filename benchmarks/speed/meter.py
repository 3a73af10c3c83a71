"""Seconds, peak memory and the ceiling of one device."""

from __future__ import annotations

import ctypes
import gc
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from headrank_pipeline.attention.tap import fast_products


@dataclass(frozen=True)
class Reading:
    """One call: wall seconds, CPU seconds of all threads, peak memory with what was held before [bytes], its result."""

    seconds: float
    cpu_seconds: float
    peak: int | None
    held: int | None
    result: Any

    def shared(self, lists: int) -> Reading:
        """Return the reading of one of several lists; memory stays that of all."""
        return replace(self, seconds=self.seconds / lists, cpu_seconds=self.cpu_seconds / lists)

    def record(self) -> dict[str, Any]:
        """Return all but the result."""
        return {name: value for name, value in asdict(self).items() if name != "result"}


def measure(call: Callable[[], Any], device: torch.device) -> Reading:
    """Run a call once. On Linux the process's peak is reset before it, on a GPU the allocator's."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # what was queued before is not the call's
    held = _reset_peak(device)
    started, cpu = time.perf_counter(), time.process_time()
    result = call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return Reading(seconds, cpu, _peak(device), held, result)


def _reset_peak(device: torch.device) -> int | None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return int(torch.cuda.memory_allocated(device))
    if not Path("/proc/self/clear_refs").exists():
        return None
    ctypes.CDLL(None).malloc_trim(0)  # freed memory that the allocator keeps would count as held
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status("VmRSS")


def _peak(device: torch.device) -> int | None:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return _status("VmHWM") if Path("/proc/self/clear_refs").exists() else None


def _status(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])


def ceilings(hidden: int, mlp: int, dtype: torch.dtype, device: torch.device) -> dict[str, float]:
    """Return FLOP/s of one large linear layer with PyTorch's own products and with ours: the best of five tries.

    A GPU is given twenty in a row: one alone would be over before it is noticed.
    """
    rows, calls = (16384, 20) if device.type == "cuda" else (2048, 1)
    inputs = torch.randn(rows, hidden, dtype=dtype, device=device)
    weight = torch.randn(mlp, hidden, dtype=dtype, device=device)

    def multiply() -> None:
        for _ in range(calls):
            torch.nn.functional.linear(inputs, weight)

    found = {}
    for name, enabled in (("stock", False), ("ours", True)):
        with torch.inference_mode(), fast_products(device, enabled=enabled):
            times = [measure(multiply, device).seconds for _ in range(6)]
        found[name] = 2 * calls * rows * hidden * mlp / min(times[1:])
    return found
