"""The config of the training function `pretrain`, its metrics, and its counts of parameters and operations.

hyperparameters.py defines the meaning, default and range of each field. This module does not import torch.
"""

from dataclasses import dataclass, fields

from hpopt.errors import ConfigError
from hpopt.hyperparameters import check_value, default_of

# The metrics of every evaluation of pretrain; a study may optimize any of them.
PRETRAIN_METRICS = (
    "val_loss",
    "val_accuracy",
    "val_perplexity",
    "val_bits_per_byte",
    "train_loss",
    "learning_rate",
    "gradient_norm",
    "expert_load_cv",
    "router_entropy",
    "train_val_overlap",
    "tokens_per_second",
    "mfu",
    "micro_batch_size",
    "peak_memory_gib",
)

# The units of metrics whose names do not contain them.
PRETRAIN_UNITS = {"val_loss": "nats per token", "train_loss": "nats per token", "val_bits_per_byte": "bits per byte"}

# The fields that determine the prepared data; the others only choose how much of it is read, and in which windows.
PREPARED_BY = ("dataset", "dataset_config", "text_field", "max_documents", "tokenizer", "vocab_size")


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """The hyperparameters of a pre-training run of a Mixture-of-Experts language model.

    Raises ConfigError, which names the field, for a value or a combination that is not allowed.
    """

    # Architecture
    d_model: int = default_of("d_model")
    n_layers: int = default_of("n_layers")
    n_heads: int = default_of("n_heads")
    d_ff: int = default_of("d_ff")
    n_experts: int = default_of("n_experts")
    top_k: int = default_of("top_k")
    dropout: float = default_of("dropout")
    load_balancing_weight: float = default_of("load_balancing_weight")
    # Optimizer
    optimizer: str = default_of("optimizer")
    learning_rate: float = default_of("learning_rate")
    adamw_learning_rate: float = default_of("adamw_learning_rate")
    momentum: float = default_of("momentum")
    ns_steps: int = default_of("ns_steps")
    weight_decay: float = default_of("weight_decay")
    adam_beta1: float = default_of("adam_beta1")
    adam_beta2: float = default_of("adam_beta2")
    max_grad_norm: float = default_of("max_grad_norm")
    # Schedule
    max_steps: int = default_of("max_steps")
    max_tokens: int = default_of("max_tokens")
    lr_scheduler_type: str = default_of("lr_scheduler_type")
    warmup_ratio: float = default_of("warmup_ratio")
    min_lr_ratio: float = default_of("min_lr_ratio")
    # Batch
    batch_size: int = default_of("batch_size")
    gradient_accumulation_steps: int = default_of("gradient_accumulation_steps")
    sequence_length: int = default_of("sequence_length")
    # Data
    dataset: str = default_of("dataset")
    dataset_config: str = default_of("dataset_config")
    text_field: str = default_of("text_field")
    max_documents: int = default_of("max_documents")
    split: str = default_of("split")
    tokenizer: str = default_of("tokenizer")
    vocab_size: int = default_of("vocab_size")
    max_train_tokens: int = default_of("max_train_tokens")
    # Evaluation
    eval_steps: int = default_of("eval_steps")
    eval_tokens: int = default_of("eval_tokens")
    # Run
    precision: str = default_of("precision")
    compile: bool = default_of("compile")
    seed: int = default_of("seed")

    def __post_init__(self) -> None:
        for f in fields(self):
            object.__setattr__(self, f.name, check_value(f.name, getattr(self, f.name)))
        if self.d_model % self.n_heads:
            raise ConfigError("d_model", f"{self.d_model} is not divisible by n_heads {self.n_heads}")
        if (self.d_model // self.n_heads) % 2:
            raise ConfigError(
                "n_heads", f"d_model / n_heads = {self.d_model // self.n_heads} is odd; rotary positions need it even"
            )
        if self.top_k > self.n_experts:
            raise ConfigError("top_k", f"{self.top_k} is above n_experts {self.n_experts}")
        if self.max_tokens and self.max_tokens < self.tokens_per_step:
            raise ConfigError("max_tokens", f"{self.max_tokens} is below the {self.tokens_per_step} of one step")
        if self.eval_steps > self.n_steps:
            limit = f"the {self.n_steps} steps of max_tokens" if self.max_tokens else "max_steps"
            raise ConfigError("eval_steps", f"{self.eval_steps} is above {limit} {self.max_tokens or self.max_steps}")

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one optimizer step trains on."""
        return self.batch_size * self.gradient_accumulation_steps * self.sequence_length

    @property
    def n_steps(self) -> int:
        """Optimizer steps of the whole run: the whole steps that max_tokens allows, or max_steps if it is 0."""
        return self.max_tokens // self.tokens_per_step if self.max_tokens else self.max_steps

    @property
    def tokens(self) -> int:
        """Tokens that the whole run trains on."""
        return self.n_steps * self.tokens_per_step


def count_parameters(config: PretrainConfig) -> tuple[int, int]:
    """Return the number of parameters, and of those that one token uses: all but the experts it is not sent to."""
    expert = 2 * config.d_model * config.d_ff
    block = 4 * config.d_model**2 + config.n_experts * config.d_model + 2 * config.d_model
    shared = config.vocab_size * config.d_model + config.d_model + config.n_layers * block
    return shared + config.n_layers * config.n_experts * expert, shared + config.n_layers * config.top_k * expert


def flops_per_token(config: PretrainConfig) -> float:
    """Return the floating-point operations of training on one token, forward and backward.

    6 for each parameter that the token uses, and 12 * n_layers * d_model * sequence_length for attention. Source:
    Chowdhery et al. 2022 (PaLM), appendix B.
    """
    return 6.0 * count_parameters(config)[1] + 12.0 * config.n_layers * config.d_model * config.sequence_length
