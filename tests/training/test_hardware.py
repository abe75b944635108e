import mmap
from pathlib import Path

import torch

from hpopt.training.hardware import peak_flops_per_second, peak_memory_gib

CPU = torch.device("cpu")


def test_peak_memory_includes_memory_that_was_freed():
    """A trial that needs 200 MiB for a moment needs a machine that has them."""
    peak_gib = peak_memory_gib(CPU)
    resident_gib = int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE / 2**30
    block = mmap.mmap(-1, int((peak_gib - resident_gib + 0.2) * 2**30))
    for start in range(0, len(block), mmap.PAGESIZE):
        block[start] = 1
    block.close()
    assert peak_memory_gib(CPU) > peak_gib + 0.15


def test_peak_flops_are_a_rate_that_a_cpu_can_have():
    """A rate in another unit would not be between a billion and a hundred trillion operations per second."""
    assert 1e9 < peak_flops_per_second(CPU, torch.float32) < 1e14
    assert peak_flops_per_second(CPU, torch.float32) == peak_flops_per_second(CPU, torch.float32)
