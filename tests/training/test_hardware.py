import subprocess
import sys

import torch

from hpopt.training.hardware import peak_flops_per_second, peak_memory_gib

CPU = torch.device("cpu")


def test_peak_memory_counts_what_was_held_and_given_back():
    """A trial that needed 200 MiB for a moment needs a machine that has them."""
    before = peak_memory_gib(CPU)
    _ = torch.ones(200 * 2**18)
    del _
    assert peak_memory_gib(CPU) >= before
    assert peak_memory_gib(CPU) > 0.2


def test_peak_memory_is_that_of_this_process_alone():
    """Linux hands a process the peak of whoever started it, and a worker is started by something larger."""
    ballast = torch.ones(400 * 2**18)
    code = "import torch; from hpopt.training.hardware import peak_memory_gib as p; print(p(torch.device('cpu')))"
    child = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert float(child.stdout) < peak_memory_gib(CPU)
    del ballast


def test_peak_flops_is_a_rate_that_a_cpu_can_have():
    """Between a gigaflop and a hundred teraflops a second: an MFU in other units would look like a figure."""
    assert 1e9 < peak_flops_per_second(CPU, torch.float32) < 1e14
    assert peak_flops_per_second(CPU, torch.float32) == peak_flops_per_second(CPU, torch.float32)
