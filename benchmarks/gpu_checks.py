"""The parts of gpu.py that check what cannot be checked without a GPU."""

import math
import tempfile
import time
import warnings
from collections import Counter
from functools import partial
from pathlib import Path

import torch
from gpu_setup import MICRO_BATCHES, SIZES, Bench, Report, check_close, reset_peak_memory, run_or_report
from torch import Tensor

from hpopt.training.experts import run_experts
from hpopt.training.optim import Muon
from hpopt.training.trainer import Trainer

# About 50 ms at the clock of a current GPU.
_BUSY_CYCLES = 10**8


def checks(bench: Bench, report: Report) -> None:
    """Run all checks but that of memory."""
    for check in (
        partial(experts_check, dtype=torch.float32, bound=1e-5),
        partial(experts_check, dtype=torch.bfloat16, bound=0.02),
        muon_check,
        repeat_check,
        precision_check,
        waits_check,
        copy_check,
    ):
        name = check.func.__name__ if isinstance(check, partial) else check.__name__
        report(run_or_report(name, report, partial(check, bench)) or "")


def _relative_error(ours: Tensor, reference: Tensor) -> float:
    ours, reference = ours.detach().double(), reference.detach().double()
    return float((ours - reference).norm() / reference.norm().clamp(min=1e-12))


def experts_check(bench: Bench, dtype: torch.dtype, bound: float) -> str:
    """Compare output and gradients with every expert on every token in float64; half of the experts get no token."""
    size, n_tokens, n_experts = SIZES[bench.size], 512, 8
    generator = torch.Generator().manual_seed(0)
    width, hidden = size["d_model"], size["d_ff"]
    shapes = (n_tokens, width), (n_tokens, 2), (n_experts, hidden, width), (n_experts, width, hidden)
    drawn = [torch.randn(shape, generator=generator).div(shape[-1] ** 0.5).to(bench.device, dtype) for shape in shapes]
    largest = 0.0
    for n_used in (n_experts, n_experts // 2):
        expert_TK = torch.rand(n_tokens, n_used, generator=generator).topk(2).indices.to(bench.device)
        x_TD, weight_TK, up_EFD, down_EDF = inputs = [t.clone().requires_grad_() for t in drawn]
        y_TD = run_experts(x_TD, weight_TK, expert_TK, up_EFD, down_EDF)
        ours = y_TD, *torch.autograd.grad(y_TD, inputs, drawn[0])
        x_TD, weight_TK, up_EFD, down_EDF = inputs = [t.double().requires_grad_() for t in drawn]
        hidden_TEF = torch.nn.functional.silu(torch.einsum("efd,td->tef", up_EFD, x_TD))
        y_TED = torch.einsum("edf,tef->ted", down_EDF, hidden_TEF)
        chosen_TKD = y_TED.gather(1, expert_TK.unsqueeze(-1).expand(-1, -1, width))
        y_TD = (weight_TK.unsqueeze(-1) * chosen_TKD).sum(1)
        reference = y_TD, *torch.autograd.grad(y_TD, inputs, drawn[0].double())
        largest = max(largest, *(_relative_error(a, b) for a, b in zip(ours, reference, strict=True)))
    return check_close(f"experts in {dtype} equal the plain computation", largest, 0.0, bound)


def muon_check(bench: Bench) -> str:
    """Compare three steps of Muon with those of torch.optim.Muon."""
    generator = torch.Generator().manual_seed(0)
    width, hidden = SIZES[bench.size]["d_model"], SIZES[bench.size]["d_ff"]
    starts = [torch.randn(shape, generator=generator) for shape in ((width, width), (hidden, width), (width, hidden))]
    ours, theirs = ([torch.nn.Parameter(t.to(bench.device, copy=True)) for t in starts] for _ in range(2))
    optimizers = (
        Muon(ours, lr=0.02, weight_decay=0.1, momentum=0.95, ns_steps=5),
        torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.95, ns_steps=5),
    )
    for _ in range(3):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=generator).to(bench.device)
            b.grad = a.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    moved = [
        (a.detach().cpu() - start, b.detach().cpu() - start) for a, b, start in zip(ours, theirs, starts, strict=True)
    ]
    return check_close("Muon moves as torch.optim.Muon", max(_relative_error(a, b) for a, b in moved), 0.0, 0.03)


def _losses(trainer: Trainer, n_steps: int) -> list[float]:
    for _ in range(n_steps):
        trainer.step()
    return trainer.progress.recent_losses[-n_steps:]


def repeat_check(bench: Bench) -> str:
    """Train twice with the same seed, the second time with a checkpoint and a restart in between."""
    config = bench.config(max_steps=20)
    with tempfile.TemporaryDirectory() as folder:
        straight = _losses(bench.trainer(config), 8)
        trainer = bench.trainer(config, Path(folder))
        losses = _losses(trainer, 4)
        trainer.save()
        restored = bench.trainer(config, Path(folder))
        losses += _losses(restored, 4) if restored.restore() else [math.nan] * 4
    apart = [abs(a - b) for a, b in zip(straight, losses, strict=True)]
    parts = f"before and after a checkpoint {max(apart[:4]):.2g} and {max(apart[4:]):.2g} apart"
    return check_close(f"the same seed gives the same losses, {parts}", straight[-1], losses[-1], 0.01)


def precision_check(bench: Bench) -> str:
    """Compare the losses of both precisions."""
    losses = [_losses(bench.trainer(bench.config(max_steps=20, precision=p)), 4)[-1] for p in ("bf16", "fp32")]
    return check_close("the fourth losses of bf16 and fp32 are close", *losses, bound=0.05)


def waits_check(bench: Bench) -> str:
    """Count how often the host waits in an eager step."""
    trainer = bench.trainer(bench.config())
    _losses(trainer, 2)
    return count_waits(bench, trainer)


def count_waits(bench: Bench, trainer: Trainer) -> str:
    """Count how often the host waits for the device in one step: once, for the loss."""
    if bench.device == "cpu":
        return "- the host waits once in a step: needs a GPU"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            trainer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [w for w in caught if "called a synchronizing" in str(w.message)]
    where = Counter(f"{Path(w.filename).name}:{w.lineno}" for w in waits)
    return f"- the host waits once in a step: {'ok' if len(waits) == 1 else 'FAILED'} ({len(waits)}: {dict(where)})"


def copy_check(bench: Bench) -> str:
    """Time the copy of a micro-batch to a busy GPU, for which torch has no warning."""
    if bench.device == "cpu":
        return "- the copy of a micro-batch does not wait: needs a GPU"
    config = bench.config()
    token_BS = torch.zeros(config.batch_size, config.sequence_length + 1, dtype=torch.int64)
    copies = {"as it is": token_BS, "pinned": token_BS.pin_memory()}
    spent_ms = {}
    for name, source in copies.items():
        source.to(bench.device, non_blocking=True)
        torch.cuda.synchronize()
        torch.cuda._sleep(_BUSY_CYCLES)  # noqa: SLF001 - torch has no public one.
        started = time.perf_counter()
        source.to(bench.device, non_blocking=True)
        spent_ms[name] = 1000 * (time.perf_counter() - started)
    is_ok = spent_ms["as it is"] < 10 * max(1.0, spent_ms["pinned"])
    timings = ", ".join(f"{name} {ms:.2f} ms" for name, ms in spent_ms.items())
    return f"- the copy of a micro-batch does not wait: {'ok' if is_ok else 'FAILED'} ({timings})"


def memory_check(bench: Bench, report: Report) -> None:
    """Limit the memory to three quarters of what the largest micro-batch needs: the step uses smaller ones."""
    if bench.device == "cpu":
        report("- out of memory halves the micro-batch: needs a GPU")
        return
    batch_size, n_micro_batches = MICRO_BATCHES[bench.size][-1]
    config = bench.config(batch_size=batch_size, gradient_accumulation_steps=n_micro_batches, dropout=0.0, max_steps=20)
    expected = _losses(bench.trainer(config), 2)[-1]
    trainer = bench.trainer(config)
    reset_peak_memory(trainer.device)
    _losses(trainer, 1)
    needed = torch.cuda.max_memory_reserved()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.75 * needed / torch.cuda.get_device_properties(0).total_memory)
    loss = _losses(trainer, 1)[-1]
    is_ok = trainer.micro_batch < batch_size
    report(
        f"- out of memory halves the micro-batch: {'ok' if is_ok else 'FAILED'} ({batch_size} needs"
        f" {needed / 2**30:.1f} GiB; at three quarters of it {trainer.micro_batch})"
    )
    report(check_close("the step after it gives the same loss", loss, expected, 0.01))
