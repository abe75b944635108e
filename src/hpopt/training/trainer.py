"""A training run in memory: optimizer steps, evaluation, and checkpoints.

Every random number follows from the seed and a position in the run, so that a checkpoint needs no random state, a
resumed run equals an uninterrupted one bit for bit on the CPU, and torch's global generators are left unchanged.

Legend: B sequences, S positions, T = B * S tokens, D width, V vocabulary.
"""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from time import perf_counter
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from hpopt.errors import DISK_ERRNOS, Diverged, Interrupted
from hpopt.training.checkpoint import load_checkpoint, save_checkpoint
from hpopt.training.config import PretrainConfig, flops_per_token
from hpopt.training.data import Batches, PreparedData, first_windows, prepare
from hpopt.training.evaluate import evaluate
from hpopt.training.hardware import fast_dtype, keep_freed_memory, peak_flops_per_second, peak_memory_gib
from hpopt.training.loss import cross_entropy
from hpopt.training.model import Transformer, run_compiled
from hpopt.training.optim import lr_multiplier, make_optimizers, parameter_groups
from hpopt.training.progress import Progress
from hpopt.training.run import Evaluation, Run

_logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")

# The streams of random numbers of a run.
_INIT, _ORDER, _DROPOUT = range(3)


class Trainer:
    """Model, optimizers, data and progress of a run. Raises what data.prepare raises.

    `micro_batch` is the number of sequences on the device at once; it is halved where they do not fit into memory.
    """

    def __init__(self, config: PretrainConfig, run: Run, data: PreparedData | None = None) -> None:
        self.config, self.run = config, run
        self.data = data or prepare(config, run.cache, run.should_stop)
        self.device = torch.device(run.device)
        if self.device.type == "cpu":
            keep_freed_memory()
        generator = torch.Generator().manual_seed(derive_seed(config.seed, _INIT))
        self.model = Transformer(config, generator, _compute_dtype(config.precision, self.device)).to(self.device)
        self.forward = run_compiled if config.compile else Transformer.__call__
        self.optimizers = make_optimizers(self.model, config)
        train, starts = self.data.tokens["train"], self.data.starts.get("train")
        self.batches = Batches(train, config.sequence_length, derive_seed(config.seed, _ORDER), starts)
        self.progress = Progress()
        self.n_sequences = config.batch_size * config.gradient_accumulation_steps
        self.micro_batch = config.batch_size

    def restore(self) -> bool:
        """Continue from the run's checkpoint; return False if there is none that belongs to this run."""
        content = load_checkpoint(self.run.checkpoint, self._identity())
        if content is None:
            return False
        self.model.load_state_dict(content["model"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(content["optimizers"][name])
        self.progress = Progress(**content["progress"])
        return True

    def save(self) -> bool:
        """Write the checkpoint of the last finished step; on a disk error log a warning and return False.

        A run that continues without it loses nothing unless it is stopped; the previous checkpoint is kept.
        """
        content = {
            "model": self.model.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "progress": asdict(self.progress),
        }
        try:
            save_checkpoint(self.run.checkpoint, self._identity(), content)
        except OSError as error:
            if error.errno not in DISK_ERRNOS:
                raise
            _logger.warning("checkpoint of step %d not written: %s; training continues", self.progress.step, error)
            return False
        return True

    def _identity(self) -> dict[str, str | int | float]:
        identity = asdict(self.config)
        # A run that ran out of memory continues with smaller micro-batches: only the global batch identifies it.
        identity["batch_size"] *= identity.pop("gradient_accumulation_steps")
        return {"data_fingerprint": self.data.meta["fingerprint"], **identity}

    def step(self) -> None:
        """Take one optimizer step; Interrupted leaves the run as it was before the step, Diverged does not."""
        started = perf_counter()
        loss = self._retry_with_smaller_batches(self._accumulate_gradients)
        gradient_norm = self._clip_gradients()
        self._set_learning_rate()
        for optimizer in self.optimizers.values():
            optimizer.step()
        self.model.zero_grad()
        # The only time in a step that the host waits for the device.
        loss_value, norm_value = torch.stack([loss, gradient_norm]).tolist()
        self.progress.record_step(
            loss=loss_value,
            gradient_norm=norm_value,
            tokens=self.n_sequences * self.config.sequence_length,
            seconds=perf_counter() - started,
        )

    def _retry_with_smaller_batches(self, compute: Callable[[], _Result]) -> _Result:
        """Return the result of compute; halve the micro-batch as long as it does not fit into memory."""
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
            _logger.warning("out of memory: continuing with micro-batches of %d sequences", self.micro_batch)

    def _accumulate_gradients(self) -> Tensor:
        """Sum the gradients of all micro-batches of one step; return the mean cross-entropy (scalar, nats)."""
        first = self.progress.step * self.n_sequences
        total = torch.zeros((), device=self.device)
        for start in range(0, self.n_sequences, self.micro_batch):
            self._raise_if_stopped()
            size = min(self.micro_batch, self.n_sequences - start)
            token_BS = torch.from_numpy(self.batches.at(first + start, size)).to(self.device, non_blocking=True)
            with self._seeded_dropout(first + start):
                x_TD, load = self.forward(self.model, token_BS[:, :-1], self.config.dropout)
            loss = cross_entropy(x_TD, self.model.output_VD, token_BS[:, 1:].flatten())
            share = size / self.n_sequences
            torch.autograd.backward((loss + self.config.load_balancing_weight * load.balance_loss) * share)
            total += loss.detach() * share
        return total

    def _raise_if_stopped(self) -> None:
        """Write the checkpoint of the last finished step and raise Interrupted if the run has to stop."""
        if self.run.should_stop():
            saved = "checkpoint written" if self.save() else "disk error, the previous checkpoint is kept"
            raise Interrupted(f"stopped after step {self.progress.step}; {saved}")

    @contextmanager
    def _seeded_dropout(self, position: int) -> Iterator[None]:
        """Seed dropout with the run's seed and a position, and restore torch's global generators afterwards."""
        if not self.config.dropout:
            yield
            return
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(derive_seed(self.config.seed, _DROPOUT, position))
            yield

    def _clip_gradients(self) -> Tensor:
        """Clip the gradients to max_grad_norm (0: no clipping); return their norm before clipping (scalar)."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
        bound = self.config.max_grad_norm or math.inf
        # On a GPU the comparison would make the host wait.
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
        """Evaluate the model on the validation split and set progress.metrics; raises Diverged and Interrupted."""
        progress = self.progress
        measured = self.evaluate_split("validation")
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
        flops_per_second = progress.metrics["tokens_per_second"] * flops_per_token(self.config)
        progress.metrics["mfu"] = flops_per_second / peak_flops_per_second(self.device, self.model.dtype)

    def evaluate_split(self, split: str) -> dict[str, float]:
        """Return the metrics of evaluate.evaluate on the first eval_tokens tokens of a split."""
        config = self.config
        tokens, starts = self.data.tokens[split], self.data.starts.get(split)
        windows_BS = first_windows(tokens, config.sequence_length, config.eval_tokens, starts)
        return self._retry_with_smaller_batches(
            lambda: evaluate(
                self.model,
                windows_BS,
                self.data.token_bytes_V,
                batch_size=self.micro_batch,
                before_batch=self._raise_if_stopped,
            )
        )

    @property
    def last_evaluation(self) -> Evaluation:
        """The last evaluation, with the progress of the run at it."""
        progress = self.progress
        return Evaluation(
            step=progress.step,
            n_steps=self.config.n_steps,
            tokens=progress.tokens,
            seconds=progress.seconds,
            metrics=dict(progress.metrics or {}),
        )


def derive_seed(seed: int, *position: int) -> int:
    """Derive an independent seed for a stream of random numbers and a position in it (numpy.random.SeedSequence)."""
    return int(np.random.SeedSequence([seed, *position]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype of the large matrix products."""
    return {"auto": fast_dtype(device), "bf16": torch.bfloat16, "fp32": torch.float32}[precision]
