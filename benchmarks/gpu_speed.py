"""The parts of gpu.py that measure speed."""

import math
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from typing import Any

import torch
from gpu_checks import count_waits
from gpu_setup import (
    MICRO_BATCHES,
    WARMUP_STEPS,
    Bench,
    Report,
    check_close,
    reset_peak_memory,
    run_or_report,
    synchronize,
)
from peer import EXPERTS, Peer, random_data
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from hpopt.training.config import PretrainConfig, flops_per_token
from hpopt.training.hardware import peak_flops_per_second, peak_memory_gib

_TURN_S = {"full": 1.0, "tiny": 0.1}
_TRIAL_S = {"full": 20.0, "tiny": 1.0}
_N_TURNS = 4
_BARRIER_TIMEOUT_S = 120.0
_N_KERNELS = 15
_HEAD = "| side | tokens/s | ratio | MFU | step | optimizer | peak memory | first steps |\n" + "|---" * 8 + "|"


class Side:
    """A training whose steps are timed in groups, and its optimizers by events in the GPU's stream."""

    def __init__(self, name: str, bench: Bench, config: PretrainConfig, experts: str | None = None) -> None:
        self.name, self._device = name, torch.device(bench.device)
        self._tokens = config.tokens_per_step
        self._flops = flops_per_token(config)
        self._peak_flops_per_second = peak_flops_per_second(self._device, torch.bfloat16)
        before_gib = reset_peak_memory(self._device)
        self.training = Peer(config, random_data(config), bench.device, experts) if experts else bench.trainer(config)
        started = time.perf_counter()
        for _ in range(WARMUP_STEPS):
            self.training.step()
        self.warmup_s = time.perf_counter() - started
        self.memory_gib = peak_memory_gib(self._device) - before_gib
        self._marks: list[Any] = []
        for optimizer in self.training.optimizers.values():
            optimizer.register_step_pre_hook(self._mark)
            optimizer.register_step_post_hook(self._mark)
        self.step_s: list[float] = []
        self.optimizer_shares: list[float] = []

    def _mark(self, *_: object) -> None:
        if self._device.type == "cpu":
            self._marks.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append(event)

    def train(self, seconds: float) -> None:
        """Take steps for that time, and record the time per step and the share of the optimizers."""
        self._marks.clear()
        synchronize(self._device)
        started, n_steps = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            self.training.step()
            n_steps += 1
        synchronize(self._device)
        elapsed = time.perf_counter() - started
        pairs = zip(self._marks[::2], self._marks[1::2], strict=True)
        is_cpu = self._device.type == "cpu"
        optimizer_s = sum(b - a if is_cpu else a.elapsed_time(b) / 1000 for a, b in pairs)
        self.step_s.append(elapsed / n_steps)
        self.optimizer_shares.append(optimizer_s / elapsed)

    @property
    def tokens_per_second(self) -> float:
        """The median of all turns."""
        return self._tokens / statistics.median(self.step_s)

    def row(self, reference: "Side") -> str:
        """Return the row of the table, with the ratio to a reference."""
        return (
            f"| {self.name} | {self.tokens_per_second:,.0f}"
            f" | {self.tokens_per_second / reference.tokens_per_second:.2f}"
            f" | {self.tokens_per_second * self._flops / self._peak_flops_per_second:.1%}"
            f" | {1000 * statistics.median(self.step_s):.1f} ms | {statistics.median(self.optimizer_shares):.1%}"
            f" | {self.memory_gib:.2f} GiB | {self.warmup_s:.1f} s |"
        )


def _take_turns(bench: Bench, sides: list[Side]) -> None:
    for _ in range(_N_TURNS):
        for side in sides:
            side.train(_TURN_S[bench.size])


def speed(bench: Bench, report: Report) -> None:
    """Compare our training and the peer with several micro-batches of the same step, and profile ours."""
    ours_first = None
    report(_HEAD)
    for batch_size, n_micro_batches in MICRO_BATCHES[bench.size]:
        config = bench.config(batch_size=batch_size, gradient_accumulation_steps=n_micro_batches)
        shape = f"{batch_size} x {n_micro_batches}"
        makers = {f"hpopt, {shape}": partial(Side, f"hpopt, {shape}", bench, config)}
        for experts in EXPERTS:
            name = f"Mixtral, {experts}, {shape}"
            makers[name] = partial(Side, name, bench, config, experts)
        sides = [side for name, maker in makers.items() if (side := run_or_report(name, report, maker))]
        _take_turns(bench, sides)
        peers = [side for side in sides if isinstance(side.training, Peer)]
        fastest = max(peers or sides, key=lambda side: side.tokens_per_second)
        for side in sides:
            report(side.row(fastest))
        ours_first = ours_first or sides[0]
        # The next micro-batches need the memory.
        del sides, peers, fastest, side
    report("\nThe ratio is to the faster Mixtral at the same micro-batch.")
    profile_step(bench, report, ours_first)


def compiled_speed(bench: Bench, report: Report, micro_batch: tuple[int, int]) -> None:
    """Compare our training with and without torch.compile, and profile the compiled one."""
    batch_size, n_micro_batches = micro_batch
    config = bench.config(batch_size=batch_size, gradient_accumulation_steps=n_micro_batches)
    sides = [Side("eager", bench, config), Side("compiled", bench, replace(config, compile=True))]
    _take_turns(bench, sides)
    report(_HEAD)
    for side in sides:
        report(side.row(sides[0]))
    report("")
    losses = [side.training.progress.recent_losses[-1] for side in sides]
    report(check_close("compiled and eager losses are close", *losses, bound=0.1))
    report(count_waits(bench, sides[1].training))
    profile_step(bench, report, sides[1])


def profile_step(bench: Bench, report: Report, side: Side) -> None:
    """Report the kernels of one step that take the most time."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.device == "cuda" else [])]
    with profile(activities=activities) as profiler:
        side.training.step()
        synchronize(torch.device(bench.device))
    kind = DeviceType.CUDA if bench.device == "cuda" else DeviceType.CPU
    kernels = [e for e in profiler.key_averages() if e.device_type == kind and not e.is_user_annotation]
    column = "self_device_time_total" if bench.device == "cuda" else "self_cpu_time_total"
    kernels.sort(key=lambda kernel: -getattr(kernel, column))
    total_us = sum(getattr(kernel, column) for kernel in kernels)
    n_calls = sum(kernel.count for kernel in kernels)
    busy = total_us / 1e6 / statistics.median(side.step_s)
    report(f"\n{side.name}: {n_calls} kernels in a step, {total_us / 1000:.1f} ms; the device is busy {busy:.0%}.\n")
    report("| ms per step | share | calls | kernel |\n|---|---|---|---|")
    for kernel in kernels[:_N_KERNELS]:
        us = getattr(kernel, column)
        name = kernel.key.replace("|", "/").replace("void at::native::", "")[:120]
        report(f"| {us / 1000:.2f} | {us / total_us:.1%} | {kernel.count} | `{name}` |")


def whole_run(bench: Bench, report: Report) -> None:
    """Train 250 steps from start to end, and evaluate once."""
    config = bench.config(max_steps=250 if bench.size == "full" else 25)
    started = time.perf_counter()
    trainer = bench.trainer(config)
    setup_s, started = time.perf_counter() - started, time.perf_counter()
    for _ in range(config.n_steps):
        trainer.step()
    training_s, started = time.perf_counter() - started, time.perf_counter()
    trainer.evaluate()
    evaluation_s, started = time.perf_counter() - started, time.perf_counter()
    trainer.save()
    checkpoint_s = time.perf_counter() - started
    metrics = trainer.last_evaluation.metrics
    report(
        f"{config.n_steps} steps, {config.tokens:,} tokens: {training_s:.1f} s ({config.tokens / training_s:,.0f}"
        f" tokens/s); setup {setup_s:.1f} s, one evaluation {evaluation_s:.1f} s, one checkpoint {checkpoint_s:.1f} s\n"
    )
    report(", ".join(f"{name} {metrics[name]:.4g}" for name in ("train_loss", "val_loss", "mfu", "peak_memory_gib")))


_barrier: Barrier


def _set_barrier(barrier: Barrier) -> None:
    global _barrier  # noqa: PLW0603 - a barrier can be passed to a process only when it starts.
    _barrier = barrier


def trials(bench: Bench, report: Report) -> None:
    """Train one, two and four trials at once on the device, each in a process of its own."""
    report("| trials | tokens/s together | ratio to one |\n|---|---|---|")
    alone = math.nan
    for n_trials in (1, 2, 4) if bench.size == "full" else (1, 2):
        context = get_context("spawn")
        barrier = context.Barrier(n_trials)
        with ProcessPoolExecutor(n_trials, context, _set_barrier, (barrier,)) as pool:
            together = sum(pool.map(_train_one_trial, [bench] * n_trials))
        alone = together if n_trials == 1 else alone
        report(f"| {n_trials} | {together:,.0f} | {together / alone:.2f} |")


def _train_one_trial(bench: Bench) -> float:
    """Train for a fixed time once all trials are ready; return tokens per second."""
    trainer = bench.trainer(bench.config())
    for _ in range(WARMUP_STEPS):
        trainer.step()
    _barrier.wait(_BARRIER_TIMEOUT_S)
    started, n_steps = time.perf_counter(), 0
    while time.perf_counter() - started < _TRIAL_S[bench.size]:
        trainer.step()
        n_steps += 1
    return n_steps * trainer.config.tokens_per_step / (time.perf_counter() - started)
