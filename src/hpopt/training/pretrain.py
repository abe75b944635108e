"""Owns the training loop of `pretrain`: steps, stops and what is reported. Leaves each part to its own file.

Every random number follows from the seed and a position in the run, so that a checkpoint needs no random state, a
resumed run repeats an uninterrupted one to the bit on the CPU, and torch's global generator is left alone.
"""

import logging
import math
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict

import numpy as np
import torch
from torch import Tensor

from hpopt.errors import Diverged, HpoptError, Interrupted
from hpopt.training.checkpoint import load_checkpoint, save_checkpoint
from hpopt.training.config import PretrainConfig
from hpopt.training.data import Batches, first_windows, prepare
from hpopt.training.evaluate import evaluate
from hpopt.training.leakage import warn_of_leak
from hpopt.training.loss import cross_entropy
from hpopt.training.model import Noise, Transformer
from hpopt.training.optim import all_groups, make_optimizers
from hpopt.training.progress import Progress
from hpopt.training.run import Evaluation, Run
from hpopt.training.schedule import lr_multiplier

_logger = logging.getLogger(__name__)

# What each stream of random numbers is for.
_INIT, _ORDER, _DROPOUT = range(3)


class Training:
    """A run in memory: model, optimizers, data and progress. Raises what data.prepare raises."""

    def __init__(self, config: PretrainConfig, run: Run) -> None:
        self.config, self.run = config, run
        self.data = prepare(config, run.cache, run.should_stop)
        self.device = torch.device(run.device)
        generator = torch.Generator().manual_seed(seed_of(config.seed, _INIT))
        self.model = Transformer(config, generator, _compute_dtype(config.precision, self.device)).to(self.device)
        self.optimizers = make_optimizers(self.model, config)
        train, starts = self.data.tokens["train"], self.data.starts.get("train")
        self.batches = Batches(train, config.sequence_length, seed_of(config.seed, _ORDER), starts)
        self.progress = Progress()
        self.n_sequences = config.batch_size * config.gradient_accumulation_steps
        self.micro_batch = config.batch_size

    def restore(self) -> bool:
        """Go on from the run's checkpoint, if there is one that belongs to this run; says whether there was."""
        content = load_checkpoint(self.run.checkpoint, self._identity())
        if content is None:
            return False
        self.model.load_state_dict(content["model"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(content["optimizers"][name])
        self.progress = Progress(**content["progress"])
        return True

    def save(self) -> None:
        """Write the checkpoint of the last finished step."""
        content = {
            "model": self.model.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "progress": asdict(self.progress),
        }
        save_checkpoint(self.run.checkpoint, self._identity(), content)

    def _identity(self) -> dict[str, str | int | float]:
        identity = asdict(self.config)
        # A run that ran out of memory goes on with smaller micro-batches: only their product is the run's own.
        identity["batch_size"] *= identity.pop("gradient_accumulation_steps")
        return {"data_fingerprint": self.data.meta["fingerprint"], **identity}

    def step(self) -> None:
        """Take one optimizer step; Interrupted leaves the run as it was before, Diverged does not."""
        started = time.perf_counter()
        while True:
            try:
                loss = self._accumulate_gradients()
                break
            except torch.OutOfMemoryError:
                if self.micro_batch == 1:
                    raise
                self.micro_batch = math.ceil(self.micro_batch / 2)
            # Outside of the except block: the traceback would keep the tensors that did not fit.
            self.model.zero_grad()
            torch.cuda.empty_cache()
            _logger.warning("out of memory: going on with micro-batches of %d sequences", self.micro_batch)
        gradient_norm = self._clip()
        self._set_learning_rate()
        for optimizer in self.optimizers.values():
            optimizer.step()
        self.model.zero_grad()
        # The one time in a step that the host waits for the device.
        loss_value, norm_value = torch.stack([loss, gradient_norm]).tolist()
        self.progress.advance(
            loss=loss_value,
            gradient_norm=norm_value,
            tokens=self.n_sequences * self.config.sequence_length,
            seconds=time.perf_counter() - started,
        )

    def _accumulate_gradients(self) -> Tensor:
        """Add up the gradients of all micro-batches of one step; returns the mean cross-entropy."""
        first = self.progress.step * self.n_sequences
        total = torch.zeros((), device=self.device)
        for start in range(0, self.n_sequences, self.micro_batch):
            self._stop_if_asked()
            size = min(self.micro_batch, self.n_sequences - start)
            token_BS = torch.from_numpy(self.batches.at(first + start, size)).to(self.device, non_blocking=True)
            x_TD, load = self.model(token_BS[:, :-1], self._noise(first + start))
            loss = cross_entropy(x_TD, self.model.output_VD, token_BS[:, 1:].flatten())
            share = size / self.n_sequences
            ((loss + self.config.load_balancing_weight * load.balance) * share).backward()
            total += loss.detach() * share
        return total

    def _stop_if_asked(self) -> None:
        """Write the checkpoint of the last whole step and raise Interrupted, when the surroundings say so."""
        if self.run.should_stop():
            self.save()
            raise Interrupted(f"stopped after step {self.progress.step}; the checkpoint is written")

    def _noise(self, position: int) -> Noise | None:
        if not self.config.dropout:
            return None
        seed = seed_of(self.config.seed, _DROPOUT, position)
        return Noise(self.config.dropout, torch.Generator(self.device).manual_seed(seed))

    def _clip(self) -> Tensor:
        """Clip the gradients to max_grad_norm (0 clips nothing); returns their norm before."""
        bound = self.config.max_grad_norm or math.inf
        return torch.nn.utils.clip_grad_norm_(self.model.parameters(), bound, foreach=True)

    def _set_learning_rate(self) -> None:
        config = self.config
        multiplier = lr_multiplier(
            self.progress.step,
            config.max_steps,
            kind=config.lr_scheduler_type,
            warmup_ratio=config.warmup_ratio,
            min_lr_ratio=config.min_lr_ratio,
        )
        for group in all_groups(self.optimizers):
            group["lr"] = group["peak_lr"] * multiplier
        self.progress.learning_rate = config.learning_rate * multiplier

    def evaluate(self) -> None:
        """Measure the model on the validation split, into progress.metrics; raises Diverged and Interrupted."""
        progress = self.progress
        measured = self.measure("validation")
        if not math.isfinite(measured["loss"]):
            raise Diverged(f"validation loss is {measured['loss']} at step {progress.step}")
        progress.metrics = {
            "val_loss": measured["loss"],
            "val_accuracy": measured["accuracy"],
            "val_perplexity": measured["perplexity"],
            "val_bits_per_byte": measured["bits_per_byte"],
            "expert_load_cv": measured["expert_load_cv"],
            "router_entropy": measured["router_entropy"],
            "train_val_overlap": self.data.meta["train_val_overlap"],
            "peak_memory_gib": _peak_memory_gib(self.device),
            **progress.close_window(),
        }

    def measure(self, split: str) -> dict[str, float]:
        """Give the figures of evaluate.evaluate on a fixed part, eval_tokens long, of a split."""
        config = self.config
        tokens, starts = self.data.tokens[split], self.data.starts.get(split)
        windows_BS = first_windows(tokens, config.sequence_length, config.eval_tokens, starts)
        return evaluate(
            self.model,
            windows_BS,
            self.data.token_bytes_V,
            batch_size=self.micro_batch,
            before_batch=self._stop_if_asked,
        )

    def report(self) -> Evaluation:
        """Give the last evaluation as the surroundings take it."""
        progress = self.progress
        return Evaluation(
            step=progress.step,
            n_steps=self.config.max_steps,
            tokens=progress.tokens,
            seconds=progress.seconds,
            metrics=dict(progress.metrics or {}),
        )


def pretrain(config: PretrainConfig, run: Run) -> Iterator[Evaluation]:
    """Train a Mixture-of-Experts language model and yield an Evaluation every eval_steps steps and after the last.

    The checkpoint is written before each yield. A run that resumes from the checkpoint of an evaluation yields
    that evaluation again, because nobody knows whether it was recorded; treat the second as the same.
    Raises Interrupted (checkpoint written) when run.should_stop(), asked at every micro-step, says so; Diverged when
    a loss is not finite or the training loss is 3 nats above its start for 10 steps; ConfigError for unusable data.
    """
    training = Training(config, run)
    warn_of_leak(training.data.meta["train_val_overlap"])
    training.restore()
    progress = training.progress
    while True:
        if progress.step and (progress.step % config.eval_steps == 0 or progress.step == config.max_steps):
            if progress.metrics is None:
                training.evaluate()
                training.save()
            yield training.report()
        if progress.step == config.max_steps:
            return
        training.step()


def held_out_test(config: PretrainConfig, run: Run) -> dict[str, float]:
    """Measure the model in run.checkpoint on the test split, which no evaluation of `pretrain` looks at.

    For the confirmed winner only. Gives test_loss, test_accuracy, test_perplexity and test_bits_per_byte.
    Raises HpoptError when there is no checkpoint of this run.
    """
    training = Training(config, run)
    if not training.restore():
        raise HpoptError(f"{run.checkpoint}: no checkpoint of this run to test")
    measured = training.measure("test")
    return {f"test_{name}": measured[name] for name in ("loss", "accuracy", "perplexity", "bits_per_byte")}


def seed_of(seed: int, *position: int) -> int:
    """Derive an independent seed for a stream of random numbers and a position in it (NumPy's SeedSequence)."""
    return int(np.random.SeedSequence([seed, *position]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Choose what the large products are computed in: "auto" is bfloat16 on a GPU and float32 on the CPU."""
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" else "fp32"
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]


def _peak_memory_gib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    # Linux counts in KiB, macOS in bytes.
    unit = 2**30 if sys.platform == "darwin" else 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
