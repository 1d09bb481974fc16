"""The machine that a benchmark runs on: what it is, its matrix-multiply rate, its peak memory."""

import gc
import os
import platform
import time
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers

_LEAST, _SIZE = 256, 2048  # numbers in a row of the products whose rate is measured
_LONG = 0.03  # seconds of a product, from which a larger one is not needed


def default_device() -> torch.device:
    """Where benchmarks run that load no model: a GPU where there is one, as `roadint.load`."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def machine(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Describe the machine of a report's figures.

    Args:
        device: The device of the benchmark.
        dtype: The dtype of the benchmark.

    Returns:
        Names and sizes; "matmul_gflops" is the rate of `matmul_rate` in 10⁹ operations a second,
        "float32_products" how exact products of float32 are ("highest", or "high" with TF32).
    """
    return {
        "device": device.type,
        "processor": _processor(device),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "dtype": str(dtype).removeprefix("torch."),
        "float32_products": torch.get_float32_matmul_precision(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "matmul_gflops": round(matmul_rate(device, dtype) / 1e9, 1),
    }


def matmul_rate(device: torch.device, dtype: torch.dtype, runs: int = 7) -> float:
    """Measure how fast matrices are multiplied: 2048 × 2048 numbers, or fewer on slow machines.

    Args:
        device: The device.
        dtype: The dtype of the matrices.
        runs: The number of products, after one that warms up.

    Returns:
        Floating-point operations a second, by the quickest product.
    """
    size = _LEAST
    while True:
        seconds = _quickest_product(size, device, dtype, runs)
        if size == _SIZE or seconds > _LONG:
            return 2 * size**3 / seconds
        size *= 2


def _quickest_product(size: int, device: torch.device, dtype: torch.dtype, runs: int) -> float:
    left, right = (torch.randn(size, size).to(device, dtype) for _ in range(2))
    times = []
    for _ in range(runs + 1):
        wait_for(device)
        started = time.perf_counter()
        left @ right
        wait_for(device)
        times.append(time.perf_counter() - started)
    return min(times[1:])


def wait_for(device: torch.device) -> None:
    """Wait until the device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free_memory(device: torch.device) -> None:
    """Give back what nothing holds any more on a GPU, circles of references included."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def forget_peak(device: torch.device) -> None:
    """Start a new measurement of this process' peak memory, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def peak_mb(device: torch.device) -> float:
    """Read the most memory that this process has had since `forget_peak`.

    Args:
        device: A GPU, whose memory is counted; the process' own for any other device.

    Returns:
        10⁶ bytes.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    peaks = _lines_of("/proc/self/status", "VmHWM")
    if peaks:
        return int(peaks[0].split()[0]) * 1024 / 1e6
    return used_mb(device)


def used_mb(device: torch.device) -> float:
    """Read the memory that this process has now.

    Args:
        device: As in `peak_mb`.

    Returns:
        10⁶ bytes.
    """
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / 1e6
    return float(psutil.Process().memory_info().rss) / 1e6


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    names = _lines_of("/proc/cpuinfo", "model name")
    return names[0] if names else platform.processor() or platform.machine()


def _lines_of(path: str, field: str) -> list[str]:
    """What a file of /proc says of a field; empty where the system has no such file."""
    if not Path(path).is_file():
        return []
    lines = Path(path).read_text().splitlines()
    return [line.partition(":")[2].strip() for line in lines if line.startswith(field)]
