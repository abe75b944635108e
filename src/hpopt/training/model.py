"""Owns the language model: a decoder of attention and mixture-of-experts blocks. Leaves routing to moe.py.

Legend: B sequences, S positions, T = B * S tokens, D width, H heads, P width of a head, E experts, F hidden,
V vocabulary, L layers.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from hpopt.training.config import PretrainConfig
from hpopt.training.moe import Routing, moe

# Su et al. 2021 (RoFormer), section 3.2.2.
_ROTARY_BASE = 10_000.0
_NORM_EPS = 1e-6


class Load(NamedTuple):
    """The routing of all layers: balance (their mean, differentiable), count_LE (int64), mean entropy (nats)."""

    balance: Tensor
    count_LE: Tensor
    entropy: Tensor


class Noise(NamedTuple):
    """Dropout for one forward pass: the probability of a zero, and where the randomness comes from."""

    probability: float
    generator: Generator

    def __call__(self, x: Tensor) -> Tensor:
        """Zero elements of x, scale the others up (Srivastava et al. 2014); torch's own dropout takes no generator."""
        keep = 1.0 - self.probability
        return x * torch.empty_like(x).bernoulli_(keep, generator=self.generator).div_(keep)


class Attention(nn.Module):
    """Causal self-attention with rotary positions; query, key and value are stacked in one (3, D, D) parameter."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv_3DD = nn.Parameter(torch.empty(3, width, width))
        self.output_DD = nn.Parameter(torch.empty(width, width))

    def forward(self, x_BSD: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """Mix each position with those before it; x_BSD to x_BSD."""
        n_sequences, n_positions, width = x_BSD.shape
        qkv = F.linear(x_BSD, self.qkv_3DD.to(x_BSD.dtype).view(3 * width, width))
        q_BHSP, k_BHSP, v_BHSP = (
            qkv.view(n_sequences, n_positions, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        )
        mixed_BHSP = F.scaled_dot_product_attention(
            rotate(q_BHSP, rotary), rotate(k_BHSP, rotary), v_BHSP, is_causal=True
        )
        mixed_BSD = mixed_BHSP.transpose(1, 2).reshape(n_sequences, n_positions, width)
        return F.linear(mixed_BSD, self.output_DD.to(x_BSD.dtype))


class Experts(nn.Module):
    """A mixture of two-matrix SiLU experts; matrices are (out, in) as in nn.Linear, stacked over experts."""

    def __init__(self, width: int, hidden: int, n_experts: int, top_k: int) -> None:
        super().__init__()
        self.top_k = top_k
        self.router_ED = nn.Parameter(torch.empty(n_experts, width))
        self.up_EFD = nn.Parameter(torch.empty(n_experts, hidden, width))
        self.down_EDF = nn.Parameter(torch.empty(n_experts, width, hidden))

    def forward(self, x_BSD: Tensor, dtype: torch.dtype) -> tuple[Tensor, Routing]:
        """Send each token through its experts, computing in `dtype`; the router stays in x's (full) precision."""
        x_TD = x_BSD.flatten(0, 1)
        # In bfloat16 near ties between experts are decided by rounding, hence full precision.
        logit_TE = F.linear(x_TD, self.router_ED)
        y_TD, routing = moe(x_TD.to(dtype), logit_TE, self.up_EFD.to(dtype), self.down_EDF.to(dtype), self.top_k)
        return y_TD.view(x_BSD.shape), routing


class Block(nn.Module):
    """One layer: attention, then experts, each behind an RMSNorm and added to the residual stream."""

    def __init__(self, config: PretrainConfig) -> None:
        super().__init__()
        self.attention_gain_D = nn.Parameter(torch.empty(config.d_model))
        self.attention = Attention(config.d_model, config.n_heads)
        self.experts_gain_D = nn.Parameter(torch.empty(config.d_model))
        self.experts = Experts(config.d_model, config.d_ff, config.n_experts, config.top_k)

    def forward(
        self, x_BSD: Tensor, rotary: tuple[Tensor, Tensor], dtype: torch.dtype, noise: Noise | None
    ) -> tuple[Tensor, Routing]:
        """Add what attention and experts say to the residual stream x_BSD, which stays in full precision."""
        answer_BSD = self.attention(norm(x_BSD, self.attention_gain_D).to(dtype), rotary)
        x_BSD = x_BSD + (noise(answer_BSD) if noise else answer_BSD)
        answer_BSD, routing = self.experts(norm(x_BSD, self.experts_gain_D), dtype)
        return x_BSD + (noise(answer_BSD) if noise else answer_BSD), routing


class Transformer(nn.Module):
    """The decoder; its weights follow from the generator alone. Embedding and output share their matrix.

    `dtype` is what the large products are computed in; parameters and the residual stream keep the parameters' own.
    """

    rotary_cos_SP: Tensor
    rotary_sin_SP: Tensor

    def __init__(self, config: PretrainConfig, generator: Generator, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype = dtype
        self.embedding_VD = nn.Parameter(torch.empty(config.vocab_size, config.d_model))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.final_gain_D = nn.Parameter(torch.empty(config.d_model))
        cos_SP, sin_SP = rotary_table(config.sequence_length, config.d_model // config.n_heads)
        self.register_buffer("rotary_cos_SP", cos_SP, persistent=False)
        self.register_buffer("rotary_sin_SP", sin_SP, persistent=False)
        self._initialize(config, generator)

    @torch.no_grad()
    def _initialize(self, config: PretrainConfig, generator: Generator) -> None:
        for name, parameter in self.named_parameters():
            if name.endswith("gain_D"):
                parameter.fill_(1.0)
                continue
            std = 1 / math.sqrt(parameter.shape[-1])
            if name == "embedding_VD":
                # A token's own logit starts near std * D: with 2 / D the first loss stays within 1% of ln V.
                std = min(0.02, 2 / config.d_model)
            elif name.endswith(("output_DD", "down_EDF")):
                # 2 L branches add up to a residual stream of variance near 2 (Radford et al. 2019, section 2.3).
                std /= math.sqrt(2 * config.n_layers)
            parameter.normal_(0.0, std, generator=generator)

    def forward(self, token_BS: Tensor, noise: Noise | None = None) -> tuple[Tensor, Load]:
        """Give the last hidden states x_TD (in `dtype`, to be multiplied with output_VD) and the experts' load."""
        n_positions = token_BS.shape[1]
        rotary = self.rotary_cos_SP[:n_positions], self.rotary_sin_SP[:n_positions]
        # The norm makes the residual stream start at variance 1 whatever the scale of the embedding.
        x_BSD = norm(F.embedding(token_BS, self.embedding_VD))
        if noise:
            x_BSD = noise(x_BSD)
        routings = []
        for block in self.blocks:
            x_BSD, routing = block(x_BSD, rotary, self.dtype, noise)
            routings.append(routing)
        balances, counts, entropies = (torch.stack(column) for column in zip(*routings, strict=True))
        x_TD = norm(x_BSD, self.final_gain_D).flatten(0, 1).to(self.dtype)
        return x_TD, Load(balances.mean(), counts, entropies.mean())

    @property
    def output_VD(self) -> Tensor:
        """The output matrix, tied to the embedding, in `dtype`."""
        return self.embedding_VD.to(self.dtype)


def norm(x: Tensor, gain_D: Tensor | None = None) -> Tensor:
    """Divide by the root mean square over the last dimension (Zhang and Sennrich 2019, eq. 4)."""
    return F.rms_norm(x, x.shape[-1:], gain_D, _NORM_EPS)


def rotary_table(n_positions: int, head_width: int) -> tuple[Tensor, Tensor]:
    """Give cos_SP and sin_SP with P = head_width / 2 angles a position. Source: Su et al. 2021, eq. 15."""
    frequency_P = _ROTARY_BASE ** (-torch.arange(0, head_width, 2, dtype=torch.float64) / head_width)
    angle_SP = torch.outer(torch.arange(n_positions, dtype=torch.float64), frequency_P)
    return angle_SP.cos().float(), angle_SP.sin().float()


def rotate(x_BHSP: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the pairs (i, i + P/2) of each head by the angle of their position (Su et al. 2021, eq. 34)."""
    cos_SP, sin_SP = (table.to(x_BHSP.dtype) for table in rotary)
    first, second = x_BHSP.chunk(2, dim=-1)
    return torch.cat([first * cos_SP - second * sin_SP, second * cos_SP + first * sin_SP], dim=-1)
