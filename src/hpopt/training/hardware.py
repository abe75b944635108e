"""Properties of the device: memory, fast dtypes, and the peak rate of matrix products."""

import ctypes
import resource
import sys
import time
from functools import cache
from pathlib import Path

import torch

# From malloc.h of the GNU C library.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4

# Dense bfloat16 operations per second that the vendor states, by a part of the device's name; the first match counts.
_STATED_BF16_FLOPS_PER_SECOND = {
    "B200": 2250e12,
    "H200": 989e12,
    "GH200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
}
_PRODUCT_WIDTH = {"cpu": 1024, "cuda": 8192}


def keep_freed_memory() -> None:
    """Make the GNU C library's allocator keep large freed blocks for the next step; no effect with another C library.

    By default each tensor above 32 MB is returned to the kernel and faulted in again, page by page: a tenth of a
    step of the middle size of benchmarks/throughput.py.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_M_MMAP_MAX, 0)
            mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def peak_memory_gib(device: torch.device) -> float:
    """Return the peak memory of this process so far: allocated on the GPU, or resident in the host for a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        # macOS has no /proc; there ru_maxrss is in bytes.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**30
    # Linux's ru_maxrss includes the peak of the process that started this one.
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20


def fast_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype in which matrix products are fastest: bfloat16, or float32 without hardware support for it.

    Newton-Schulz of 64 matrices of 128 x 512, 5 steps, on two cores, bfloat16 against float32: with AMX 17 and 63 ms,
    with AVX-512 577 and 270, with AVX2 3261 and 54.
    """
    if device.type == "cuda":
        is_fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        is_fast = torch.cpu._is_amx_tile_supported()  # noqa: SLF001 - torch 2.11 has no other.
    return torch.bfloat16 if is_fast else torch.float32


def is_eager_cpu(x: torch.Tensor) -> bool:
    """Return whether to use the code written for the CPU: torch.compile optimizes the plain formulas better."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


@cache
def peak_flops_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """Return the peak floating-point operations per second, the denominator of model FLOPs utilization (MFU).

    The vendor's figure for bfloat16 on a known GPU; otherwise the best of five large matrix products, measured once.
    """
    if device.type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        for part, stated in _STATED_BF16_FLOPS_PER_SECOND.items():
            if part in name:
                return stated
    width = _PRODUCT_WIDTH[device.type]
    x = torch.ones(width, width, dtype=dtype, device=device)
    return 2.0 * width**3 / min(_time_product_s(x) for _ in range(5))


def _time_product_s(x: torch.Tensor) -> float:
    started = time.perf_counter()
    # Reading one element waits for the device.
    (x @ x)[0, 0].item()
    return time.perf_counter() - started
