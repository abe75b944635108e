"""Owns a run in memory: takes a step, evaluates, saves and restores. Leaves when it does which to pretrain.py.

Every random number follows from the seed and a position in the run, so that a checkpoint needs no random state, a
resumed run repeats an uninterrupted one to the bit on the CPU, and torch's global generators are left alone.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from hpopt.errors import DISK_TROUBLE, Diverged, Interrupted
from hpopt.training.checkpoint import load_checkpoint, save_checkpoint
from hpopt.training.config import PretrainConfig, flops_per_token
from hpopt.training.data import Batches, Data, first_windows, prepare
from hpopt.training.evaluate import evaluate
from hpopt.training.hardware import fast_dtype, keep_freed_memory, peak_flops, peak_memory_gib
from hpopt.training.loss import cross_entropy
from hpopt.training.model import Transformer, run_compiled
from hpopt.training.optim import lr_multiplier, make_optimizers, parameter_groups
from hpopt.training.progress import Progress
from hpopt.training.run import Evaluation, Run

_logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")

# What each stream of random numbers is for.
_INIT, _ORDER, _DROPOUT = range(3)


class Training:
    """A run in memory: model, optimizers, data and progress. Raises what data.prepare raises."""

    def __init__(self, config: PretrainConfig, run: Run, data: Data | None = None) -> None:
        self.config, self.run = config, run
        self.data = data or prepare(config, run.cache, run.should_stop)
        self.device = torch.device(run.device)
        if self.device.type == "cpu":
            keep_freed_memory()
        generator = torch.Generator().manual_seed(seed_of(config.seed, _INIT))
        self.model = Transformer(config, generator, _compute_dtype(config.precision, self.device)).to(self.device)
        self.forward = run_compiled if config.compile else Transformer.__call__
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

    def save(self) -> bool:
        """Write the checkpoint of the last finished step; False, after a warning, where the disk is at fault.

        A run that goes on without its checkpoint loses nothing unless it is stopped; the last one stays.
        """
        content = {
            "model": self.model.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "progress": asdict(self.progress),
        }
        try:
            save_checkpoint(self.run.checkpoint, self._identity(), content)
        except OSError as error:
            if error.errno not in DISK_TROUBLE:
                raise
            _logger.warning("no checkpoint of step %d: %s; the run goes on", self.progress.step, error)
            return False
        return True

    def _identity(self) -> dict[str, str | int | float]:
        identity = asdict(self.config)
        # A run that ran out of memory goes on with smaller micro-batches: only their product is the run's own.
        identity["batch_size"] *= identity.pop("gradient_accumulation_steps")
        return {"data_fingerprint": self.data.meta["fingerprint"], **identity}

    def step(self) -> None:
        """Take one optimizer step; Interrupted leaves the run as it was before, Diverged does not."""
        started = time.perf_counter()
        loss = self._fit(self._accumulate_gradients)
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

    def _fit(self, compute: Callable[[], _Result]) -> _Result:
        """Give what compute gives, with micro-batches of half the size as long as they do not fit into memory."""
        while True:
            try:
                return compute()
            except torch.OutOfMemoryError:
                if self.micro_batch == 1:
                    raise
                self.micro_batch = math.ceil(self.micro_batch / 2)
            # Outside of the except block: the traceback would keep the tensors that did not fit.
            self.model.zero_grad()
            torch.cuda.empty_cache()
            _logger.warning("out of memory: going on with micro-batches of %d sequences", self.micro_batch)

    def _accumulate_gradients(self) -> Tensor:
        """Add up the gradients of all micro-batches of one step; returns the mean cross-entropy."""
        first = self.progress.step * self.n_sequences
        total = torch.zeros((), device=self.device)
        for start in range(0, self.n_sequences, self.micro_batch):
            self._stop_if_asked()
            size = min(self.micro_batch, self.n_sequences - start)
            token_BS = torch.from_numpy(self.batches.at(first + start, size)).to(self.device, non_blocking=True)
            with self._dropout_seeded(first + start):
                x_TD, load = self.forward(self.model, token_BS[:, :-1], self.config.dropout)
            loss = cross_entropy(x_TD, self.model.output_VD, token_BS[:, 1:].flatten())
            share = size / self.n_sequences
            torch.autograd.backward((loss + self.config.load_balancing_weight * load.balance_loss) * share)
            total += loss.detach() * share
        return total

    def _stop_if_asked(self) -> None:
        """Write the checkpoint of the last whole step and raise Interrupted, when the surroundings say so."""
        if self.run.should_stop():
            written = "the checkpoint is written" if self.save() else "the disk took no checkpoint, the last one stays"
            raise Interrupted(f"stopped after step {self.progress.step}; {written}")

    @contextmanager
    def _dropout_seeded(self, position: int) -> Iterator[None]:
        """Let dropout follow from the seed and a position alone, and leave torch's global generators as they were."""
        if not self.config.dropout:
            yield
            return
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed_of(self.config.seed, _DROPOUT, position))
            yield

    def _clip(self) -> Tensor:
        """Clip the gradients to max_grad_norm (0 clips nothing); returns their norm before."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
        bound = self.config.max_grad_norm or math.inf
        # On a GPU the host would have to wait for the answer.
        if self.device.type != "cpu" or norm > bound:
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), bound, norm, foreach=True)
        return norm

    def _set_learning_rate(self) -> None:
        config = self.config
        multiplier = lr_multiplier(
            self.progress.step,
            config.n_steps,
            kind=config.lr_scheduler_type,
            warmup_ratio=config.warmup_ratio,
            min_lr_ratio=config.min_lr_ratio,
        )
        for group in parameter_groups(self.optimizers):
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
            "micro_batch_size": self.micro_batch,
            "peak_memory_gib": peak_memory_gib(self.device),
            **progress.close_window(),
        }
        flops = progress.metrics["tokens_per_second"] * flops_per_token(self.config)
        progress.metrics["mfu"] = flops / peak_flops(self.device, self.model.dtype)

    def measure(self, split: str) -> dict[str, float]:
        """Give the figures of evaluate.evaluate on a fixed part, eval_tokens long, of a split."""
        config = self.config
        tokens, starts = self.data.tokens[split], self.data.starts.get(split)
        windows_BS = first_windows(tokens, config.sequence_length, config.eval_tokens, starts)
        return self._fit(
            lambda: evaluate(
                self.model,
                windows_BS,
                self.data.token_bytes_V,
                batch_size=self.micro_batch,
                before_batch=self._stop_if_asked,
            )
        )

    def report(self) -> Evaluation:
        """Give the last evaluation as the surroundings take it."""
        progress = self.progress
        return Evaluation(
            step=progress.step,
            n_steps=self.config.n_steps,
            tokens=progress.tokens,
            seconds=progress.seconds,
            metrics=dict(progress.metrics or {}),
        )


def seed_of(seed: int, *position: int) -> int:
    """Derive an independent seed for a stream of random numbers and a position in it (NumPy's SeedSequence)."""
    return int(np.random.SeedSequence([seed, *position]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Choose what the large products are computed in."""
    return {"auto": fast_dtype(device), "bf16": torch.bfloat16, "fp32": torch.float32}[precision]
