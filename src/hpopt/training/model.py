"""The language model: a decoder of transformer blocks with Mixture-of-Experts layers, and its initial weights.

Legend: B sequences, S positions, T = B * S tokens, D width, R angles of a position, E experts, F hidden,
V vocabulary, L layers.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.autograd.function import FunctionCtx

from hpopt.training.attention import Attention, rotary_table
from hpopt.training.config import PretrainConfig
from hpopt.training.experts import Routing, mixture_of_experts
from hpopt.training.hardware import is_eager_cpu

_NORM_EPS = 1e-6
# The most recompilations that torch.compile allows for all frames of a function (accumulated_recompile_limit).
_RECOMPILE_LIMIT = 256


class Load(NamedTuple):
    """The routing of all layers.

    `balance_loss` is the mean of the load balancing losses (scalar, differentiable), `count_LE` the tokens of each
    expert (int64), `entropy` the mean entropy of the routers' probabilities (scalar, nats, not differentiable).
    """

    balance_loss: Tensor
    count_LE: Tensor
    entropy: Tensor


class Experts(nn.Module):
    """A mixture of two-matrix SiLU experts; matrices are (out, in) as in nn.Linear, stacked over experts."""

    def __init__(self, width: int, hidden: int, n_experts: int, top_k: int) -> None:
        super().__init__()
        self.top_k = top_k
        self.router_ED = nn.Parameter(torch.empty(n_experts, width))
        self.up_EFD = nn.Parameter(torch.empty(n_experts, hidden, width))
        self.down_EDF = nn.Parameter(torch.empty(n_experts, width, hidden))

    def forward(self, x_BSD: Tensor, dtype: torch.dtype) -> tuple[Tensor, Routing]:
        """Send each token through its experts, which compute in `dtype`; the router computes in x's dtype.

        Returns y_BSD in `dtype`, and the routing.
        """
        x_TD = x_BSD.flatten(0, 1)
        # In bfloat16 rounding would decide near ties between experts, hence full precision.
        logit_TE = F.linear(x_TD, self.router_ED)
        up_EFD, down_EDF = self.up_EFD.to(dtype), self.down_EDF.to(dtype)
        y_TD, routing = mixture_of_experts(x_TD.to(dtype), logit_TE, up_EFD, down_EDF, self.top_k)
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
        self, x_BSD: Tensor, rotary: tuple[Tensor, Tensor], dtype: torch.dtype, dropout: float | Tensor
    ) -> tuple[Tensor, Routing]:
        """Add the outputs of attention and experts, computed in `dtype`, to the residual stream.

        Returns the residual stream x_BSD in the dtype of the parameters, and the routing.
        """
        y_BSD = self.attention(rms_norm(x_BSD, self.attention_gain_D).to(dtype), rotary)
        x_BSD = x_BSD + apply_dropout(y_BSD, dropout)
        y_BSD, routing = self.experts(rms_norm(x_BSD, self.experts_gain_D), dtype)
        return x_BSD + apply_dropout(y_BSD, dropout), routing


class Transformer(nn.Module):
    """The decoder; its weights follow from the generator alone. Embedding and output share their matrix.

    `dtype` is what the large products are computed in; parameters and the residual stream keep the dtype of the
    parameters.
    """

    rotary_cos_SR: Tensor
    rotary_sin_SR: Tensor

    def __init__(self, config: PretrainConfig, generator: Generator, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype = dtype
        self.embedding_VD = nn.Parameter(torch.empty(config.vocab_size, config.d_model))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.final_gain_D = nn.Parameter(torch.empty(config.d_model))
        cos_SR, sin_SR = rotary_table(config.sequence_length, config.d_model // config.n_heads)
        self.register_buffer("rotary_cos_SR", cos_SR, persistent=False)
        self.register_buffer("rotary_sin_SR", sin_SR, persistent=False)
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

    def forward(self, token_BS: Tensor, dropout: float | Tensor = 0.0) -> tuple[Tensor, Load]:
        """Return the last hidden states x_TD (in `dtype`, to be multiplied with output_VD) and the load of the experts.

        `token_BS` is int64; `dropout` is the probability that an activation is set to zero, drawn from torch's global
        generator.
        """
        n_positions = token_BS.shape[1]
        rotary = self.rotary_cos_SR[:n_positions], self.rotary_sin_SR[:n_positions]
        # The norm makes the residual stream start at variance 1 whatever the scale of the embedding.
        x_BSD = apply_dropout(rms_norm(F.embedding(token_BS, self.embedding_VD)), dropout)
        routings = []
        for block in self.blocks:
            x_BSD, routing = block(x_BSD, rotary, self.dtype, dropout)
            routings.append(routing)
        balance_loss_L, count_LE, entropy_L = (torch.stack(column) for column in zip(*routings, strict=True))
        x_TD = rms_norm(x_BSD, self.final_gain_D).flatten(0, 1).to(self.dtype)
        return x_TD, Load(balance_loss_L.mean(), count_LE, entropy_L.mean())

    @property
    def output_VD(self) -> Tensor:
        """The output matrix, tied to the embedding, in `dtype`."""
        return self.embedding_VD.to(self.dtype)


def apply_dropout(x: Tensor, dropout: float | Tensor) -> Tensor:
    """Set elements of x to zero with probability `dropout` and divide the others by 1 - dropout.

    Source: Srivastava et al. 2014, with the scaling moved to training.
    """
    if isinstance(dropout, Tensor):
        # With a number, a compiled function would be recompiled for each value.
        return x * (torch.rand_like(x) >= dropout) / (1 - dropout)
    return F.dropout(x, dropout) if dropout else x


def rms_norm(x: Tensor, gain_D: Tensor | None = None) -> Tensor:
    """Divide x by its root mean square over the last dimension and multiply by the gain; returns x's shape and dtype.

    Source: Zhang and Sennrich 2019, eq. 4.
    """
    if is_eager_cpu(x) and gain_D is not None:
        y: Tensor = _RMSNorm.apply(x, gain_D)  # type: ignore[no-untyped-call]
        return y
    return F.rms_norm(x, x.shape[-1:], gain_D, _NORM_EPS)


class _RMSNorm(torch.autograd.Function):
    """rms_norm on a CPU, where torch has no kernel for it and reads the memory three times as often."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, gain_D: Tensor) -> Tensor:
        mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        scale = mean_square.add_(_NORM_EPS).rsqrt_()
        ctx.save_for_backward(x, gain_D, scale)
        y: Tensor = x * scale
        return y.mul_(gain_D)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ANN401 - torch has no type for it.
        x, gain_D, scale = ctx.saved_tensors
        width = x.shape[-1]
        product = grad_y * x
        # d scale / d x = -scale^3 x / D.
        through_scale = (product @ gain_D).unsqueeze(-1).mul_(scale.pow(3)).div_(width)
        grad_x = (grad_y * gain_D).mul_(scale).addcmul_(x, through_scale, value=-1)
        return grad_x, scale.flatten() @ product.view(-1, width)


def run_compiled(model: Transformer, token_BS: Tensor, dropout: float = 0.0) -> tuple[Tensor, Load]:
    """Run the forward pass of a model, compiled; models of one shape share the compiled code, whatever the trial."""
    # Filled on the device: a copy from the host would wait for it.
    return _compiled_forward()(model, token_BS, torch.full((), dropout, device=token_BS.device) if dropout else 0.0)


@cache
def _compiled_forward() -> Callable[[Transformer, Tensor, float | Tensor], tuple[Tensor, Load]]:
    # By default the ninth width or depth of a study, and all after it, would run uncompiled.
    torch._dynamo.config.recompile_limit = _RECOMPILE_LIMIT  # noqa: SLF001 - its documented place.
    return torch.compile(lambda model, token_BS, dropout: model(token_BS, dropout), dynamic=False)
