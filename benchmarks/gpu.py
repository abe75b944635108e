"""What one GPU says: speed and memory, where the time goes, and the checks that need a GPU.

Every part runs in a process of its own, prints its rows at once, and ends at its time; a part that fails says so in
one line. The model has 79.1 M parameters and trains on random tokens; peer.py says what the peer is:

    python benchmarks/gpu.py [--minutes 8] [--output FILE] [--parts checks speed ...] [--device cpu --tiny]
"""

import argparse
import gc
import math
import os
import shutil
import statistics
import subprocess
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import torch
import transformers
from peer import EXPERTS, Peer, random_data
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from hpopt.training.config import PretrainConfig, count_parameters, flops_per_token
from hpopt.training.experts import run_experts
from hpopt.training.hardware import peak_flops, peak_memory_gib
from hpopt.training.optim import Muon
from hpopt.training.run import Run
from hpopt.training.trainer import Training

_SIZES: dict[str, dict[str, Any]] = {
    "full": {"d_model": 384, "n_layers": 6, "n_heads": 8, "d_ff": 1536, "vocab_size": 49152, "sequence_length": 512},
    "tiny": {"d_model": 64, "n_layers": 2, "n_heads": 2, "d_ff": 128, "vocab_size": 512, "sequence_length": 32},
}
# Sequences of a micro-batch, and how many of them make a step.
_MICRO_BATCHES = {"full": ((24, 4), (48, 2), (96, 1)), "tiny": ((4, 4),)}
_TURN_S = {"full": 1.0, "tiny": 0.1}
_TRIAL_WINDOW_S = {"full": 20.0, "tiny": 1.0}
_N_TURNS = 4
_WARMUP_STEPS = 3
_BARRIER_TIMEOUT_S = 120.0
# About 50 ms at the clock of a current GPU.
_BUSY_CYCLES = 10**8

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all parts share: the device and the size of the model."""

    device: str
    size: str

    def config(self, **changes: object) -> PretrainConfig:
        """Make the config; the learning rate stays in its warmup unless max_steps is changed."""
        batch_size, n_micro_batches = _MICRO_BATCHES[self.size][0]
        values = {
            **_SIZES[self.size],
            "n_experts": 8,
            "top_k": 2,
            "batch_size": batch_size,
            "gradient_accumulation_steps": n_micro_batches,
            "dropout": 0.1,
            "precision": "bf16",
            "max_steps": 10**6,
            **changes,
        }
        return PretrainConfig(**values, eval_steps=values["max_steps"])

    def training(self, config: PretrainConfig, folder: Path | None = None) -> Training:
        """Make our training of it."""
        run = Run(folder=folder or Path(tempfile.mkdtemp()), cache=Path(), device=self.device)
        return Training(config, run, random_data(config))


def main() -> None:
    """Print a Markdown report, part by part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="when the last part is stopped")
    parser.add_argument("--output", type=Path, help="a file for the report, written anew after every row")
    parser.add_argument("--parts", nargs="+", help="the beginnings of the names of some parts")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a model and times to test this script with")
    arguments = parser.parse_args()
    end = time.monotonic() + 60 * arguments.minutes
    bench = Bench(device=arguments.device, size="tiny" if arguments.tiny else "full")
    rows: list[str] = []

    def say(row: str) -> None:
        print(row, flush=True)
        rows.append(row)
        if arguments.output:
            arguments.output.write_text("\n".join(rows) + "\n")

    n_parameters, n_active = count_parameters(bench.config())
    say(f"# One GPU: {n_parameters / 1e6:.1f} M parameters, {n_active / 1e6:.1f} M of them for each token\n")
    say(f"{datetime.now(UTC).date()}; {_machine(arguments.device)}")
    first, last = _MICRO_BATCHES[bench.size][0], _MICRO_BATCHES[bench.size][-1]
    parts: dict[str, Callable[..., None]] = {
        "checks": checks,
        "memory that does not fit": memory_check,
        "speed": speed,
        "run of 250 steps": whole_run,
        "trials at a time": trials,
        f"compiled, micro-batches of {first[0]}": partial(compiled_speed, micro_batch=first),
        f"compiled, micro-batches of {last[0]}": partial(compiled_speed, micro_batch=last),
    }
    for title, part in parts.items():
        if arguments.parts and not title.startswith(tuple(arguments.parts)):
            continue
        if time.monotonic() > end:
            say(f"\n{title}: left out, the time is over")
            continue
        say(f"\n## {title.capitalize()}\n")
        started = time.monotonic()
        _run_part(part, bench, say, end)
        say(f"\n({time.monotonic() - started:.0f} s)")


def _machine(device: str) -> str:
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, CUDA {torch.version.cuda}"
    program = shutil.which("nvidia-smi")
    if device == "cpu" or program is None:
        return f"{versions}, {device}, {os.cpu_count()} cores"
    query = [program, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    return f"{versions}, {os.cpu_count()} cores; GPU, driver, memory: {answer.stdout.strip()}"


def _run_part(part: Callable[..., None], bench: Bench, say: Say, end: float) -> None:
    """Run a part in a process of its own: a GPU that has failed once fails all later calls of its process."""
    context = get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(theirs, part, bench))
    process.start()
    theirs.close()
    try:
        while ours.poll(max(0.0, end - time.monotonic())):
            say(ours.recv())
        say("stopped: the time is over")
    except EOFError:
        process.join(10)
        if process.exitcode:
            say(f"FAILED: the process ended with {process.exitcode}")
    process.kill()


def _serve(connection: Connection, part: Callable[..., None], bench: Bench) -> None:
    if bench.device == "cpu":
        # Tiny products gain nothing from threads.
        torch.set_num_threads(1)
    with connection:
        _attempt("this part", connection.send, partial(part, bench, connection.send))


def _attempt(name: str, say: Say, function: Callable[[], Any]) -> Any:  # noqa: ANN401 - what the function gives.
    """Give what the function gives; None, and a row that says why, if it fails."""
    try:
        return function()
    except Exception as error:  # noqa: BLE001 - whatever it is, the other rows are worth having.
        where = error.__traceback__
        while where is not None and where.tb_next is not None:
            where = where.tb_next
        line = f"{Path(where.tb_frame.f_code.co_filename).name}:{where.tb_lineno}" if where else "?"
        reason = " ".join(str(error).split())[:300]
        say(f"- {name}: FAILED, {type(error).__name__} at {line}: {reason}")
        return None
    finally:
        gc.collect()


class Side:
    """A training whose steps are timed in groups, and its optimizers by events in the GPU's stream."""

    def __init__(self, name: str, bench: Bench, config: PretrainConfig, experts: str | None = None) -> None:
        self.name, self._device = name, torch.device(bench.device)
        self._tokens = config.tokens_per_step
        self._flops = flops_per_token(config)
        self._peak_flops = peak_flops(self._device, torch.bfloat16)
        before_gib = _restart_peak_gib(self._device)
        self.training = Peer(config, random_data(config), bench.device, experts) if experts else bench.training(config)
        started = time.perf_counter()
        for _ in range(_WARMUP_STEPS):
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

    def turn(self, seconds: float) -> None:
        """Train for about as long."""
        self._marks.clear()
        _wait(self._device)
        started, n_steps = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            self.training.step()
            n_steps += 1
        _wait(self._device)
        elapsed = time.perf_counter() - started
        pairs = zip(self._marks[::2], self._marks[1::2], strict=True)
        on_cpu = self._device.type == "cpu"
        optimizer_s = sum(b - a if on_cpu else a.elapsed_time(b) / 1000 for a, b in pairs)
        self.step_s.append(elapsed / n_steps)
        self.optimizer_shares.append(optimizer_s / elapsed)

    @property
    def tokens_per_second(self) -> float:
        """The median of the turns."""
        return self._tokens / statistics.median(self.step_s)

    def row(self, reference: "Side") -> str:
        """Give its row of the table; the ratio is to the reference."""
        return (
            f"| {self.name} | {self.tokens_per_second:,.0f}"
            f" | {self.tokens_per_second / reference.tokens_per_second:.2f}"
            f" | {self.tokens_per_second * self._flops / self._peak_flops:.1%}"
            f" | {1000 * statistics.median(self.step_s):.1f} ms | {statistics.median(self.optimizer_shares):.1%}"
            f" | {self.memory_gib:.2f} GiB | {self.warmup_s:.1f} s |"
        )


_SIDES_HEAD = "| side | tokens/s | ratio | MFU | step | optimizer | peak memory | first steps |\n" + "|---" * 8 + "|"


def _restart_peak_gib(device: torch.device) -> float:
    """Restart the peak of the GPU's memory; gives what is in use."""
    if device.type == "cpu":
        return peak_memory_gib(device)
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated() / 2**30


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _take_turns(bench: Bench, sides: list[Side]) -> None:
    for _ in range(_N_TURNS):
        for side in sides:
            side.turn(_TURN_S[bench.size])


def speed(bench: Bench, say: Say) -> None:
    """Compare ours and the peer at some micro-batches of the same step; then say where our time goes."""
    ours_first = None
    say(_SIDES_HEAD)
    for batch_size, n_micro_batches in _MICRO_BATCHES[bench.size]:
        config = bench.config(batch_size=batch_size, gradient_accumulation_steps=n_micro_batches)
        shape = f"{batch_size} x {n_micro_batches}"
        makers = {f"ours, {shape}": partial(Side, f"ours, {shape}", bench, config)}
        for experts in EXPERTS:
            name = f"Mixtral, {experts}, {shape}"
            makers[name] = partial(Side, name, bench, config, experts)
        sides = [side for name, maker in makers.items() if (side := _attempt(name, say, maker))]
        _take_turns(bench, sides)
        peers = [side for side in sides if isinstance(side.training, Peer)]
        fastest = max(peers or sides, key=lambda side: side.tokens_per_second)
        for side in sides:
            say(side.row(fastest))
        ours_first = ours_first or sides[0]
        # The next micro-batches need the memory.
        del sides, peers, fastest, side
    say("\nThe ratio is to the faster peer at the same micro-batch.")
    say_kernels(bench, say, ours_first)


def compiled_speed(bench: Bench, say: Say, micro_batch: tuple[int, int]) -> None:
    """Compare ours compiled with ours; then say where its time goes, and how often it waits."""
    batch_size, n_micro_batches = micro_batch
    config = bench.config(batch_size=batch_size, gradient_accumulation_steps=n_micro_batches)
    sides = [Side("eager", bench, config), Side("compiled", bench, replace(config, compile=True))]
    _take_turns(bench, sides)
    say(_SIDES_HEAD)
    for side in sides:
        say(side.row(sides[0]))
    say("")
    losses = [side.training.progress.recent_losses[-1] for side in sides]
    say(_verdict("compiled and eager losses are close", *losses, bound=0.1))
    say(count_waits(bench, sides[1].training))
    say_kernels(bench, say, sides[1])


def say_kernels(bench: Bench, say: Say, side: Side) -> None:
    """Print the kernels of one step that take the most time."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.device == "cuda" else [])]
    with profile(activities=activities) as profiler:
        side.training.step()
        _wait(torch.device(bench.device))
    kind = DeviceType.CUDA if bench.device == "cuda" else DeviceType.CPU
    kernels = [e for e in profiler.key_averages() if e.device_type == kind and not e.is_user_annotation]
    column = "self_device_time_total" if bench.device == "cuda" else "self_cpu_time_total"
    kernels.sort(key=lambda kernel: -getattr(kernel, column))
    total_us = sum(getattr(kernel, column) for kernel in kernels)
    n_kernels = sum(kernel.count for kernel in kernels)
    busy = total_us / 1e6 / statistics.median(side.step_s)
    say(f"\n{side.name}: {n_kernels} kernels in a step, {total_us / 1000:.1f} ms; the device is busy {busy:.0%}.\n")
    say("| ms a step | share | calls | kernel |\n|---|---|---|---|")
    for kernel in kernels[:15]:
        us = getattr(kernel, column)
        name = kernel.key.replace("|", "/").replace("void at::native::", "")[:120]
        say(f"| {us / 1000:.2f} | {us / total_us:.1%} | {kernel.count} | `{name}` |")


def whole_run(bench: Bench, say: Say) -> None:
    """Train 250 steps from start to end, and evaluate once."""
    config = bench.config(max_steps=250 if bench.size == "full" else 25)
    started = time.perf_counter()
    training = bench.training(config)
    setup_s, started = time.perf_counter() - started, time.perf_counter()
    for _ in range(config.n_steps):
        training.step()
    trained_s, started = time.perf_counter() - started, time.perf_counter()
    training.evaluate()
    evaluated_s, started = time.perf_counter() - started, time.perf_counter()
    training.save()
    saved_s = time.perf_counter() - started
    metrics = training.report().metrics
    say(
        f"{config.n_steps} steps, {config.tokens:,} tokens: {trained_s:.1f} s ({config.tokens / trained_s:,.0f}"
        f" tokens/s); setting up {setup_s:.1f} s, one evaluation {evaluated_s:.1f} s, one checkpoint {saved_s:.1f} s\n"
    )
    say(", ".join(f"{name} {metrics[name]:.4g}" for name in ("train_loss", "val_loss", "mfu", "peak_memory_gib")))


_at_once: Barrier


def _set_barrier(barrier: Barrier) -> None:
    global _at_once  # noqa: PLW0603 - a barrier reaches a process only when it starts.
    _at_once = barrier


def trials(bench: Bench, say: Say) -> None:
    """Train one, two and four trials at a time on the one device, each in a process of its own."""
    say("| trials | tokens/s together | against one |\n|---|---|---|")
    alone = math.nan
    for n_trials in (1, 2, 4) if bench.size == "full" else (1, 2):
        context = get_context("spawn")
        barrier = context.Barrier(n_trials)
        with ProcessPoolExecutor(n_trials, context, _set_barrier, (barrier,)) as pool:
            together = sum(pool.map(_train_for_a_window, [bench] * n_trials))
        alone = together if n_trials == 1 else alone
        say(f"| {n_trials} | {together:,.0f} | {together / alone:.2f} |")


def _train_for_a_window(bench: Bench) -> float:
    """Train when all trials are ready; gives tokens a second."""
    training = bench.training(bench.config())
    for _ in range(_WARMUP_STEPS):
        training.step()
    _at_once.wait(_BARRIER_TIMEOUT_S)
    started, n_steps = time.perf_counter(), 0
    while time.perf_counter() - started < _TRIAL_WINDOW_S[bench.size]:
        training.step()
        n_steps += 1
    return n_steps * training.config.tokens_per_step / (time.perf_counter() - started)


def checks(bench: Bench, say: Say) -> None:
    """Check what cannot be checked without a GPU."""
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
        say(_attempt(name, say, partial(check, bench)) or "")


def _verdict(claim: str, a: float, b: float, bound: float) -> str:
    is_fine = abs(a - b) <= bound
    return f"- {claim}: {'ok' if is_fine else 'FAILED'} ({a:.6g} and {b:.6g}, bound {bound:g})"


def _relative(ours: Tensor, theirs: Tensor) -> float:
    ours, theirs = ours.detach().double(), theirs.detach().double()
    return float((ours - theirs).norm() / theirs.norm().clamp(min=1e-12))


def experts_check(bench: Bench, dtype: torch.dtype, bound: float) -> str:
    """Compare output and gradients with every expert on every token in float64; half of the experts get no token."""
    size, n_tokens, n_experts = _SIZES[bench.size], 512, 8
    generator = torch.Generator().manual_seed(0)
    width, hidden = size["d_model"], size["d_ff"]
    shapes = (n_tokens, width), (n_tokens, 2), (n_experts, hidden, width), (n_experts, width, hidden)
    drawn = [torch.randn(shape, generator=generator).div(shape[-1] ** 0.5).to(bench.device, dtype) for shape in shapes]
    worst = 0.0
    for n_chosen in (n_experts, n_experts // 2):
        expert_TK = torch.rand(n_tokens, n_chosen, generator=generator).topk(2).indices.to(bench.device)
        x_TD, weight_TK, up_EFD, down_EDF = inputs = [t.clone().requires_grad_() for t in drawn]
        y_TD = run_experts(x_TD, weight_TK, expert_TK, up_EFD, down_EDF)
        ours = y_TD, *torch.autograd.grad(y_TD, inputs, drawn[0])
        x_TD, weight_TK, up_EFD, down_EDF = inputs = [t.double().requires_grad_() for t in drawn]
        hidden_TEF = torch.nn.functional.silu(torch.einsum("efd,td->tef", up_EFD, x_TD))
        y_TED = torch.einsum("edf,tef->ted", down_EDF, hidden_TEF)
        chosen_TKD = y_TED.gather(1, expert_TK.unsqueeze(-1).expand(-1, -1, width))
        y_TD = (weight_TK.unsqueeze(-1) * chosen_TKD).sum(1)
        theirs = y_TD, *torch.autograd.grad(y_TD, inputs, drawn[0].double())
        worst = max(worst, *(_relative(a, b) for a, b in zip(ours, theirs, strict=True)))
    return _verdict(f"experts in {dtype} equal the plain computation", worst, 0.0, bound)


def muon_check(bench: Bench) -> str:
    """Compare three steps of Muon with torch.optim.Muon's."""
    generator = torch.Generator().manual_seed(0)
    width, hidden = _SIZES[bench.size]["d_model"], _SIZES[bench.size]["d_ff"]
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
    return _verdict("Muon moves as torch.optim.Muon", max(_relative(a, b) for a, b in moved), 0.0, 0.03)


def _losses(training: Training, n_steps: int) -> list[float]:
    for _ in range(n_steps):
        training.step()
    return training.progress.recent_losses[-n_steps:]


def repeat_check(bench: Bench) -> str:
    """Train twice with the same seed, the second time by way of a checkpoint in between."""
    config = bench.config(max_steps=20)
    with tempfile.TemporaryDirectory() as folder:
        straight = _losses(bench.training(config), 8)
        training = bench.training(config, Path(folder))
        losses = _losses(training, 4)
        training.save()
        restored = bench.training(config, Path(folder))
        losses += _losses(restored, 4) if restored.restore() else [math.nan] * 4
    apart = [abs(a - b) for a, b in zip(straight, losses, strict=True)]
    parts = f"before and after a checkpoint {max(apart[:4]):.2g} and {max(apart[4:]):.2g} apart"
    return _verdict(f"the same seed gives the same losses, {parts}", straight[-1], losses[-1], 0.01)


def precision_check(bench: Bench) -> str:
    """Compare the losses of both precisions."""
    losses = [_losses(bench.training(bench.config(max_steps=20, precision=p)), 4)[-1] for p in ("bf16", "fp32")]
    return _verdict("the fourth losses of bf16 and fp32 are close", *losses, bound=0.05)


def waits_check(bench: Bench) -> str:
    """Count how often our eager step waits."""
    training = bench.training(bench.config())
    _losses(training, 2)
    return count_waits(bench, training)


def count_waits(bench: Bench, training: Training) -> str:
    """Count how often the host waits for the device in one step: once, for the loss."""
    if bench.device == "cpu":
        return "- the host waits once in a step: needs a GPU"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            training.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [w for w in caught if "called a synchronizing" in str(w.message)]
    where = Counter(f"{Path(w.filename).name}:{w.lineno}" for w in waits)
    return f"- the host waits once in a step: {'ok' if len(waits) == 1 else 'FAILED'} ({len(waits)}: {dict(where)})"


def copy_check(bench: Bench) -> str:
    """Time the copy of a micro-batch to a busy GPU, which the warnings of torch do not cover."""
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
    is_fine = spent_ms["as it is"] < 10 * max(1.0, spent_ms["pinned"])
    timed = ", ".join(f"{name} {ms:.2f} ms" for name, ms in spent_ms.items())
    return f"- the copy of a micro-batch does not wait: {'ok' if is_fine else 'FAILED'} ({timed})"


def memory_check(bench: Bench, say: Say) -> None:
    """Leave three quarters of the memory that the largest micro-batch needs: the step is taken in smaller ones."""
    if bench.device == "cpu":
        say("- out of memory halves the micro-batch: needs a GPU")
        return
    batch_size, n_micro_batches = _MICRO_BATCHES[bench.size][-1]
    config = bench.config(batch_size=batch_size, gradient_accumulation_steps=n_micro_batches, dropout=0.0, max_steps=20)
    expected = _losses(bench.training(config), 2)[-1]
    training = bench.training(config)
    _restart_peak_gib(training.device)
    _losses(training, 1)
    needed = torch.cuda.max_memory_reserved()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.75 * needed / torch.cuda.get_device_properties(0).total_memory)
    loss = _losses(training, 1)[-1]
    is_fine = training.micro_batch < batch_size
    say(
        f"- out of memory halves the micro-batch: {'ok' if is_fine else 'FAILED'} ({batch_size} needs"
        f" {needed / 2**30:.1f} GiB; at three quarters of it {training.micro_batch})"
    )
    say(_verdict("the step after it gives the same loss", loss, expected, 0.01))


if __name__ == "__main__":
    main()
