"""Measure training on one GPU: speed, memory, where the time goes, and checks that need a GPU.

Prints a Markdown report part by part. Each part runs in a process of its own and is stopped when the time is over; a
part that fails is reported in one line. The model has 79.1 M parameters and trains on random tokens; peer.py describes
the peer:

    python benchmarks/gpu.py [--minutes 8] [--output FILE] [--parts checks speed ...] [--device cpu --tiny]
"""

import argparse
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import transformers
from gpu_checks import checks, memory_check
from gpu_setup import MICRO_BATCHES, Bench, Report, run_or_report
from gpu_speed import compiled_speed, speed, trials, whole_run

from hpopt.training.config import count_parameters


def main() -> None:
    """Run the parts and print their report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="when the last part is stopped")
    parser.add_argument("--output", type=Path, help="a file for the report, rewritten after every row")
    parser.add_argument("--parts", nargs="+", help="the beginnings of the names of some parts")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a small model and short times, to test this script")
    arguments = parser.parse_args()
    end = time.monotonic() + 60 * arguments.minutes
    bench = Bench(device=arguments.device, size="tiny" if arguments.tiny else "full")
    rows: list[str] = []

    def report(row: str) -> None:
        print(row, flush=True)
        rows.append(row)
        if arguments.output:
            arguments.output.write_text("\n".join(rows) + "\n")

    n_parameters, n_active = count_parameters(bench.config())
    report(f"# One GPU: {n_parameters / 1e6:.1f} M parameters, {n_active / 1e6:.1f} M of them for each token\n")
    report(f"{datetime.now(UTC).date()}; {_describe_machine(arguments.device)}")
    first, last = MICRO_BATCHES[bench.size][0], MICRO_BATCHES[bench.size][-1]
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
            report(f"\n{title}: left out, the time is over")
            continue
        report(f"\n## {title.capitalize()}\n")
        started = time.monotonic()
        _run_part(part, bench, report, end)
        report(f"\n({time.monotonic() - started:.0f} s)")


def _describe_machine(device: str) -> str:
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, CUDA {torch.version.cuda}"
    program = shutil.which("nvidia-smi")
    if device == "cpu" or program is None:
        return f"{versions}, {device}, {os.cpu_count()} cores"
    query = [program, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    return f"{versions}, {os.cpu_count()} cores; GPU, driver, memory: {answer.stdout.strip()}"


def _run_part(part: Callable[..., None], bench: Bench, report: Report, end: float) -> None:
    """Run a part in a process of its own: after a CUDA error all later calls of a process fail."""
    context = get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(theirs, part, bench))
    process.start()
    theirs.close()
    try:
        while ours.poll(max(0.0, end - time.monotonic())):
            report(ours.recv())
        report("stopped: the time is over")
    except EOFError:
        process.join(10)
        if process.exitcode:
            report(f"FAILED: the process ended with exit code {process.exitcode}")
    process.kill()


def _serve(connection: Connection, part: Callable[..., None], bench: Bench) -> None:
    if bench.device == "cpu":
        # Small products gain nothing from more threads.
        torch.set_num_threads(1)
    with connection:
        run_or_report("this part", connection.send, partial(part, bench, connection.send))


if __name__ == "__main__":
    main()
