"""The peer of the speed benchmarks: transformers' Mixtral, torch.optim.Muon and torch.optim.AdamW, and random text.

The peer trains the same number of expert and other parameters, on the same batches, at the same precision, with the
same clipping. Its experts are gated (three matrices of 2/3 the width, ours are two), and torch.optim.Muon takes
two-dimensional parameters only, so it orthogonalizes the matrices of attention, and its experts learn by AdamW.
In bfloat16 it runs under autocast, as transformers' Trainer does; autocast leaves its grouped product in float32.
"""

from contextlib import nullcontext

import numpy as np
import torch
from transformers import MixtralConfig, MixtralForCausalLM

from hpopt.training.config import PretrainConfig
from hpopt.training.data import Batches, PreparedData

# The third implementation, batched_mm, copies the weights for each token: 11 GB per layer at the middle size of
# throughput.py.
EXPERTS = ("eager", "grouped_mm")


def random_data(config: PretrainConfig, n_tokens: int = 2**20) -> PreparedData:
    """Return random tokens: every row of the embedding is used, and nothing can be learned."""
    generator = np.random.default_rng(0)
    tokens = {
        split: generator.integers(config.vocab_size, size=n_tokens).astype(np.uint16)
        for split in ("train", "validation", "test")
    }
    token_bytes_V = np.ones(config.vocab_size, dtype=np.int64)
    meta = {"fingerprint": "random", "train_val_overlap": 0.0}
    return PreparedData(tokens=tokens, token_bytes_V=token_bytes_V, meta=meta)


class Peer:
    """transformers' Mixtral in training, one step at a time."""

    def __init__(self, config: PretrainConfig, data: PreparedData, device: str, experts: str) -> None:
        self.config, self.device = config, torch.device(device)
        # transformers uses the global generator.
        torch.manual_seed(config.seed)
        mixtral = MixtralConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.d_model,
            # A grouped product requires rows of a multiple of 16 bytes.
            intermediate_size=8 * round(config.d_ff * 2 / 3 / 8),
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            num_key_value_heads=config.n_heads,
            max_position_embeddings=config.sequence_length,
            tie_word_embeddings=True,
            num_experts_per_tok=config.top_k,
            num_local_experts=config.n_experts,
            output_router_logits=True,
            router_aux_loss_coef=config.load_balancing_weight,
            use_cache=False,
        )
        self.model = MixtralForCausalLM._from_config(  # noqa: SLF001 - what from_pretrained itself calls.
            mixtral, attn_implementation="sdpa", experts_implementation=experts
        ).to(self.device)
        self.model.train()
        self.optimizers = self._make_optimizers()
        self.batches = Batches(data.tokens["train"], config.sequence_length, config.seed)
        self.position = 0

    def _make_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        config = self.config
        named = list(self.model.named_parameters())
        matrices = [p for name, p in named if "self_attn" in name and p.ndim == 2]  # noqa: PLR2004 - a matrix.
        is_matrix = {id(p) for p in matrices}
        return {
            "muon": torch.optim.Muon(
                matrices,
                lr=config.learning_rate,
                weight_decay=config.weight_decay,
                momentum=config.momentum,
                ns_steps=config.ns_steps,
            ),
            "adamw": torch.optim.AdamW(
                [p for _, p in named if id(p) not in is_matrix],
                lr=config.adamw_learning_rate,
                betas=(config.adam_beta1, config.adam_beta2),
                weight_decay=config.weight_decay,
                fused=True,
            ),
        }

    def step(self) -> None:
        """Take one optimizer step, and read the loss as our step does."""
        n_micro_batches = self.config.gradient_accumulation_steps
        for _ in range(n_micro_batches):
            token_BS = torch.from_numpy(self.batches.at(self.position, self.config.batch_size)).to(self.device)
            self.position += self.config.batch_size
            with self._precision():
                target_BS = token_BS[:, 1:].contiguous()
                loss = self.model(input_ids=token_BS[:, :-1], labels=target_BS, shift_labels=target_BS).loss
            (loss / n_micro_batches).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm, foreach=True)
        for optimizer in self.optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
        loss.item()

    def _precision(self) -> torch.autocast | nullcontext[None]:
        if self.config.precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()
