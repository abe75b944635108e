"""The model, the device and the reporting that all parts of gpu.py share."""

import gc
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peer import random_data

from hpopt.training.config import PretrainConfig
from hpopt.training.hardware import peak_memory_gib
from hpopt.training.run import Run
from hpopt.training.trainer import Trainer

SIZES: dict[str, dict[str, Any]] = {
    "full": {"d_model": 384, "n_layers": 6, "n_heads": 8, "d_ff": 1536, "vocab_size": 49152, "sequence_length": 512},
    "tiny": {"d_model": 64, "n_layers": 2, "n_heads": 2, "d_ff": 128, "vocab_size": 512, "sequence_length": 32},
}
# Sequences of a micro-batch, and micro-batches of a step.
MICRO_BATCHES = {"full": ((24, 4), (48, 2), (96, 1)), "tiny": ((4, 4),)}
WARMUP_STEPS = 3

# Prints one row of the report.
Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """The device, and the size of the model as a key of SIZES."""

    device: str
    size: str

    def config(self, **changes: object) -> PretrainConfig:
        """Return the config; the learning rate stays in its warmup unless max_steps is changed."""
        batch_size, n_micro_batches = MICRO_BATCHES[self.size][0]
        values = {
            **SIZES[self.size],
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

    def trainer(self, config: PretrainConfig, folder: Path | None = None) -> Trainer:
        """Return our trainer of a config, on random tokens."""
        run = Run(folder=folder or Path(tempfile.mkdtemp()), cache=Path(), device=self.device)
        return Trainer(config, run, random_data(config))


def run_or_report(name: str, report: Report, function: Callable[[], Any]) -> Any:  # noqa: ANN401 - the function's result.
    """Return the result of a function; if it fails, report the error in one row and return None."""
    try:
        return function()
    except Exception as error:  # noqa: BLE001 - the other rows are useful whatever the error.
        where = error.__traceback__
        while where is not None and where.tb_next is not None:
            where = where.tb_next
        line = f"{Path(where.tb_frame.f_code.co_filename).name}:{where.tb_lineno}" if where else "?"
        reason = " ".join(str(error).split())[:300]
        report(f"- {name}: FAILED, {type(error).__name__} at {line}: {reason}")
        return None
    finally:
        gc.collect()


def check_close(claim: str, a: float, b: float, bound: float) -> str:
    """Return the row of a check that two numbers differ by no more than a bound."""
    is_ok = abs(a - b) <= bound
    return f"- {claim}: {'ok' if is_ok else 'FAILED'} ({a:.6g} and {b:.6g}, bound {bound:g})"


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all work."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def reset_peak_memory(device: torch.device) -> float:
    """Reset the peak of the GPU's memory and return what is allocated; on a CPU return the peak, in GiB."""
    if device.type == "cpu":
        return peak_memory_gib(device)
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated() / 2**30
