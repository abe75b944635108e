"""Measure the speed of a training step against transformers' Mixtral with torch.optim.Muon on the same machine.

Each side trains in a process of its own, one step at a time in turns, so that noise of the machine affects both
(peer.py describes the peer):

    python benchmarks/throughput.py [--sizes small middle] [--precisions fp32 bf16] [--seconds 60] [--threads N]
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peer import EXPERTS, Peer, random_data

from hpopt.training.config import PretrainConfig
from hpopt.training.hardware import peak_memory_gib
from hpopt.training.run import Run
from hpopt.training.trainer import Trainer

SIZES: dict[str, dict[str, Any]] = {
    "small": {
        "d_model": 128,
        "n_layers": 4,
        "n_heads": 4,
        "d_ff": 512,
        "batch_size": 16,
        "sequence_length": 128,
    },
    "middle": {
        "d_model": 256,
        "n_layers": 6,
        "n_heads": 8,
        "d_ff": 1024,
        "batch_size": 16,
        "sequence_length": 512,
    },
}
_WARMUP_STEPS = 2


class Step(NamedTuple):
    """The duration of a step, that of its optimizers, and the peak memory so far."""

    seconds: float
    optimizer_seconds: float
    memory_gib: float


class Timed:
    """A training whose steps and optimizers are timed; Newton-Schulz runs in bfloat16 on both sides."""

    def __init__(self, side: str, config: PretrainConfig) -> None:
        data = random_data(config)
        self._memory_before_gib = peak_memory_gib(torch.device("cpu"))
        if side == "hpopt":
            self.training: Trainer | Peer = Trainer(config, Run(folder=Path(tempfile.mkdtemp()), cache=Path()), data)
            for group in self.training.optimizers["muon"].param_groups:
                group["dtype"] = torch.bfloat16
        else:
            self.training = Peer(config, data, "cpu", side)
        self._optimizer_seconds = 0.0
        for optimizer in self.training.optimizers.values():
            optimizer.register_step_pre_hook(self._start)
            optimizer.register_step_post_hook(self._stop)

    def _start(self, *_: object) -> None:
        self._started = time.perf_counter()

    def _stop(self, *_: object) -> None:
        self._optimizer_seconds += time.perf_counter() - self._started

    def step(self) -> Step:
        """Take one step."""
        self._optimizer_seconds = 0.0
        started = time.perf_counter()
        self.training.step()
        seconds = time.perf_counter() - started
        return Step(seconds, self._optimizer_seconds, peak_memory_gib(torch.device("cpu")) - self._memory_before_gib)


class Side:
    """The process of a side, and the steps that it took since its warmup."""

    def __init__(self, connection: Connection, config: PretrainConfig) -> None:
        self._connection = connection
        self._n_tokens = config.batch_size * config.gradient_accumulation_steps * config.sequence_length
        self.n_parameters: int = connection.recv()
        self.steps: list[Step] = []
        for _ in range(_WARMUP_STEPS):
            self.step()
        self.steps.clear()

    def step(self) -> None:
        """Let the process take one step."""
        self._connection.send("step")
        self.steps.append(self._connection.recv())

    @property
    def tokens_per_second(self) -> float:
        """The median, because a noisy machine has slow steps and no fast ones."""
        return self._n_tokens / statistics.median(step.seconds for step in self.steps)

    @property
    def optimizer_share(self) -> float:
        """The share of a step spent in the optimizers."""
        return statistics.median(step.optimizer_seconds / step.seconds for step in self.steps)


@contextmanager
def started(side: str, config: PretrainConfig, threads: int) -> Iterator[Side]:
    """Start the process of a side, and stop it at the end."""
    ours, theirs = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=serve, args=(theirs, side, config, threads))
    process.start()
    theirs.close()
    with closing(ours):
        yield Side(ours, config)
        ours.send("stop")
    process.join()


def serve(connection: Connection, side: str, config: PretrainConfig, threads: int) -> None:
    """Take a step for each message, until the message is not `step`."""
    torch.set_num_threads(threads)
    timed = Timed(side, config)
    connection.send(sum(p.numel() for p in timed.training.model.parameters()))
    while connection.recv() == "step":
        connection.send(timed.step())


def fastest_experts(config: PretrainConfig, threads: int) -> str:
    """Return the fastest implementation of the peer's experts."""
    speeds = {}
    for experts in EXPERTS:
        with started(experts, config, threads) as side:
            for _ in range(3):
                side.step()
        speeds[experts] = side.tokens_per_second
    return max(speeds, key=speeds.__getitem__)


def compare(size: str, precision: str, seconds: float, threads: int) -> None:
    """Train both sides in turns and print a row for each."""
    config = PretrainConfig(
        **SIZES[size], vocab_size=4096, precision=precision, max_steps=10**6, eval_steps=10**6, warmup_ratio=0.0
    )
    experts = fastest_experts(config, threads)
    with started("hpopt", config, threads) as ours, started(experts, config, threads) as peer:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            ours.step()
            peer.step()
    for name, side in (("hpopt", ours), (f"Mixtral, {experts}", peer)):
        print(
            f"| {size} | {precision} | {name} | {side.n_parameters / 1e6:.2f} M | {side.tokens_per_second:,.0f}"
            f" | {side.tokens_per_second / peer.tokens_per_second:.2f} | {side.optimizer_share:.1%}"
            f" | {side.steps[-1].memory_gib:.2f} GiB | {len(side.steps)} |",
            flush=True,
        )


def main() -> None:
    """Print a Markdown table with a row for each size, precision and side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--seconds", type=float, default=60.0, help="how long both train, for each row")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {arguments.threads} threads, AMX {torch.cpu._is_amx_tile_supported()}")  # noqa: SLF001
    print("| size | precision | side | parameters | tokens/s | ratio | optimizer | peak memory | steps |")
    print("|---|---|---|---|---|---|---|---|---|")
    for size in arguments.sizes:
        for precision in arguments.precisions:
            compare(size, precision, arguments.seconds, arguments.threads)


if __name__ == "__main__":
    main()
