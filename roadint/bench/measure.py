"""Timing: the machine, its matrix-multiply rate, peak memory, and cases in the form that every `roadint bench … --json` has."""

import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
import transformers

_SIZE = 2048  # of the square matrices whose product is the machine's rate


def machine(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What the figures belong to; matmul_gflops is the best rate of several products of 2048 × 2048 matrices."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [
            line.partition(":")[2].strip()
            for line in cpuinfo.read_text().splitlines()
            if line.startswith("model name")
        ]
        processor = names[0] if names else processor
    return {
        "processor": torch.cuda.get_device_name(device) if device.type == "cuda" else processor,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "dtype": str(dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "matmul_gflops": round(matmul_rate(device, dtype) / 1e9, 1),
    }


def matmul_rate(device: torch.device, dtype: torch.dtype, runs: int = 7) -> float:
    """Floating-point operations a second: the best of several products."""
    one, other = (torch.randn(_SIZE, _SIZE, dtype=dtype, device=device) for _ in range(2))
    times = []
    for _ in range(runs + 1):
        started = time.perf_counter()
        one @ other
        wait_for(device)
        times.append(time.perf_counter() - started)
    return 2 * _SIZE**3 / min(times[1:])


def wait_for(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def forget_peak(device: torch.device) -> None:
    """Start a new measurement of this process' peak memory, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def peak_mb(device: torch.device) -> float:
    """The most memory that this process has had since `forget_peak`, in MB: the device's, or all of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    status = Path("/proc/self/status")
    if status.exists():
        return (
            next(
                int(line.split()[1])
                for line in status.read_text().splitlines()
                if line.startswith("VmHWM")
            )
            * 1024
            / 1e6
        )
    return float(psutil.Process().memory_info().rss) / 1e6


def case(
    name: str, system: str, seconds: Sequence[float], peak: float | None, **more: Any
) -> dict[str, Any]:
    """One row of a report."""
    rounded = [round(each, 5) for each in seconds]
    return {
        "name": name,
        "system": system,
        "median_s": round(median(rounded), 5),
        "min_s": min(rounded),
        "max_s": max(rounded),
        "runs": len(rounded),
        "peak_mb": None if peak is None else round(peak, 1),
        **more,
    }


def ratio(name: str, over: str, theirs: float, ours: float) -> dict[str, Any]:
    """How many times faster roadint is than another system."""
    return {"name": name, "over": over, "value": round(theirs / ours, 3)}
