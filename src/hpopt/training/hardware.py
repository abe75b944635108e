"""Owns what a run has of its machine: memory, and the rate of matrix products. Leaves its use to pretrain.py."""

import ctypes
import resource
import sys
import time
from functools import cache
from pathlib import Path

import torch

# From malloc.h of the GNU C library.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4

# Dense bfloat16 operations a second that the vendor states, by a part of the device's name; the first that fits.
_STATED_BF16_FLOPS = {
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
    """Have the allocator of a CPU keep large blocks for the next step, where it is the GNU C library's.

    By default each tensor above 32 MB is handed back to the kernel and faulted in anew, page by page: a tenth of a
    step of the middle size of benchmarks/throughput.py.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_M_MMAP_MAX, 0)
            mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def peak_memory_gib(device: torch.device) -> float:
    """Give the most memory that this process has held so far: on the GPU, or of the host where there is none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        # macOS, in bytes.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**30
    # Linux's ru_maxrss begins with that of whoever started this process.
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20


def fast_dtype(device: torch.device) -> torch.dtype:
    """Choose the dtype of matrix products that is faster: bfloat16, but float32 where there are no units for it.

    Newton-Schulz of 64 matrices of 128 x 512, 5 steps, on two cores, bfloat16 against float32: with AMX 17 and 63 ms,
    with AVX-512 577 and 270, with AVX2 3261 and 54.
    """
    if device.type == "cuda":
        is_fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        is_fast = torch.cpu._is_amx_tile_supported()  # noqa: SLF001 - torch 2.11 has no other.
    return torch.bfloat16 if is_fast else torch.float32


def is_eager_cpu(x: torch.Tensor) -> bool:
    """Say whether what is written for the CPU applies: torch.compile makes more of the plain formulas."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


@cache
def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Give the operations a second to measure a model's against.

    What the vendor states for bfloat16 on a known GPU; else the best of a few large matrix products, measured once.
    """
    if device.type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        for part, stated in _STATED_BF16_FLOPS.items():
            if part in name:
                return stated
    width = _PRODUCT_WIDTH[device.type]
    x = torch.ones(width, width, dtype=dtype, device=device)
    return 2.0 * width**3 / min(_seconds_of_product(x) for _ in range(5))


def _seconds_of_product(x: torch.Tensor) -> float:
    started = time.perf_counter()
    # Reading one element waits for the device.
    (x @ x)[0, 0].item()
    return time.perf_counter() - started
