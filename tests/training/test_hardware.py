import torch

from hpopt.training.hardware import peak_flops_per_second, peak_memory_gib

CPU = torch.device("cpu")


def test_peak_memory_includes_memory_that_was_freed():
    """A trial that needs 200 MiB for a moment needs a machine that has them."""
    before = peak_memory_gib(CPU)
    _ = torch.ones(200 * 2**18)
    del _
    assert peak_memory_gib(CPU) >= before
    assert peak_memory_gib(CPU) > 0.2


def test_peak_flops_are_a_rate_that_a_cpu_can_have():
    """Between a billion and a hundred trillion operations per second: another unit would give a plausible MFU."""
    assert 1e9 < peak_flops_per_second(CPU, torch.float32) < 1e14
    assert peak_flops_per_second(CPU, torch.float32) == peak_flops_per_second(CPU, torch.float32)
