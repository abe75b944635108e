"""Muon, the assignment of parameters to optimizers, and the learning rate schedule.

Legend: N matrices of one shape, n matrices of one parameter, R rows, C columns, Q the smaller of R and C.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from hpopt.training.config import PretrainConfig
from hpopt.training.hardware import fast_dtype

# Coefficients and epsilon of Keller Jordan's Muon (kellerjordan.github.io/posts/muon), as in torch.optim.Muon.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_EPS = 1e-7
# As in torch.optim.AdamW.
_ADAM_EPS = 1e-8
# The share of the run over which wsd (warmup, stable, decay) decays: Hägele et al. 2024, section 3.
_WSD_DECAY_RATIO = 0.2


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized (Jordan et al. 2024), for parameters whose last two dimensions are a matrix.

    Equals torch.optim.Muon (nesterov, decoupled weight decay, learning rate times sqrt(max(1, rows / columns)))
    on two-dimensional parameters; each matrix of a stacked parameter is orthogonalized separately. `dtype` is that
    of the orthogonalization.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        *,
        lr: float,
        weight_decay: float,
        momentum: float,
        ns_steps: int,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        super().__init__(
            parameters,
            {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "ns_steps": ns_steps, "dtype": dtype},
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override] # noqa: ARG002 - torch's signature.
        """Update all parameters that have a gradient."""
        for group in self.param_groups:
            for parameters in _group_by_shape(group["params"]):
                _step_one_shape(parameters, [self._momentum_buffer(parameter) for parameter in parameters], group)

    def _momentum_buffer(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer: Tensor = state["momentum_buffer"]
        return buffer


def _group_by_shape(parameters: list[Tensor]) -> list[list[Tensor]]:
    """Group the parameters that have a gradient by the shape of their matrices."""
    groups: dict[tuple[int, ...], list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            groups.setdefault(tuple(parameter.shape[-2:]), []).append(parameter)
    return list(groups.values())


def _step_one_shape(parameters: list[Tensor], buffers: list[Tensor], group: dict[str, Any]) -> None:
    """Update the parameters of one shape: products of many small matrices in one batch cost the same as one large."""
    rows, columns = parameters[0].shape[-2:]
    counts = [parameter.numel() // (rows * columns) for parameter in parameters]
    batch_NRC = parameters[0].new_empty(sum(counts), rows, columns, dtype=group["dtype"])
    for parameter, buffer, x_nRC in zip(parameters, buffers, torch.split(batch_NRC, counts), strict=True):
        if parameter.grad is not None:
            buffer.lerp_(parameter.grad, 1 - group["momentum"])
            x_nRC.copy_(torch.lerp(parameter.grad, buffer, group["momentum"]).view_as(x_nRC))
    directions = torch.split(newton_schulz(batch_NRC, group["ns_steps"], group["dtype"]), counts)
    for parameter, direction_nRC in zip(parameters, directions, strict=True):
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(direction_nRC.view_as(parameter), alpha=-group["lr"] * math.sqrt(max(1.0, rows / columns)))


def newton_schulz(x_NRC: Tensor, n_steps: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Bring the singular values of each matrix near 1 and keep its singular vectors; returns y_NRC in `dtype`.

    After 5 steps the singular values lie in about 0.7 to 1.2. Source: torch.optim.Muon, with which it agrees operation
    by operation, batched over N; tall matrices are multiplied from the right instead of being transposed.
    """
    is_tall = x_NRC.shape[-2] > x_NRC.shape[-1]
    x_NRC = x_NRC.to(dtype)
    # The Frobenius norm bounds the spectral norm, so all singular values start at 1 or below.
    x_NRC = x_NRC / x_NRC.norm(dim=(-2, -1), keepdim=True).clamp(min=_EPS)
    for _ in range(n_steps):
        gram_NQQ = x_NRC.mT @ x_NRC if is_tall else x_NRC @ x_NRC.mT
        polynomial_NQQ = torch.baddbmm(gram_NQQ, gram_NQQ, gram_NQQ, beta=_B, alpha=_C)
        factors = (x_NRC, polynomial_NQQ) if is_tall else (polynomial_NQQ, x_NRC)
        x_NRC = torch.baddbmm(x_NRC, *factors, beta=_A)
    return x_NRC


def make_optimizers(model: nn.Module, config: PretrainConfig) -> dict[str, torch.optim.Optimizer]:
    """Return the optimizers of a Transformer by name; each parameter group has its peak learning rate as `peak_lr`.

    Muon, or AdamW if config.optimizer is "adamw", trains the matrices of the blocks (attention and experts) at
    `learning_rate`. AdamW trains embedding, router and gains at `adamw_learning_rate`: a row of an embedding or a
    router is one vector per token or expert, so these matrices are no maps between features. Gains have no weight
    decay.
    """
    named = list(model.named_parameters())
    matrices = [p for name, p in named if name.startswith("blocks.") and p.ndim > 1 and not name.endswith("router_ED")]
    matrix_ids = {id(p) for p in matrices}
    others = [p for _, p in named if id(p) not in matrix_ids]
    lr, adamw_lr = config.learning_rate, config.adamw_learning_rate
    groups = [
        {"params": [p for p in others if p.ndim > 1], "lr": adamw_lr, "weight_decay": config.weight_decay},
        {"params": [p for p in others if p.ndim == 1], "lr": adamw_lr, "weight_decay": 0.0},
    ]
    optimizers: dict[str, torch.optim.Optimizer] = {}
    if config.optimizer == "adamw":
        groups.append({"params": matrices, "lr": lr, "weight_decay": config.weight_decay})
    else:
        optimizers["muon"] = Muon(
            matrices,
            lr=lr,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            ns_steps=config.ns_steps,
            dtype=fast_dtype(matrices[0].device),
        )
    optimizers["adamw"] = torch.optim.AdamW(
        groups, betas=(config.adam_beta1, config.adam_beta2), eps=_ADAM_EPS, fused=True
    )
    for group in parameter_groups(optimizers):
        group["peak_lr"] = group["lr"]
    return optimizers


def parameter_groups(optimizers: dict[str, torch.optim.Optimizer]) -> list[dict[str, Any]]:
    """List the parameter groups of all optimizers."""
    return [group for optimizer in optimizers.values() for group in optimizer.param_groups]


def lr_multiplier(step: int, n_steps: int, *, kind: str, warmup_ratio: float, min_lr_ratio: float) -> float:
    """Return the learning rate of optimizer step `step` (0 to n_steps - 1) as a multiple of its peak.

    Warmup rises linearly over round(warmup_ratio * n_steps) steps, starts above 0 and reaches 1 at the first step
    after it. The decay would reach min_lr_ratio at step n_steps, one after the last.
    `kind` is cosine (Loshchilov and Hutter 2017, eq. 5), linear, wsd (constant, then linear over the last 20%) or
    constant. Raises ValueError for another kind.
    """
    n_warmup = round(warmup_ratio * n_steps)
    if step < n_warmup:
        return (step + 1) / (n_warmup + 1)
    return min_lr_ratio + (1 - min_lr_ratio) * _decay(step, n_warmup, n_steps, kind)


def _decay(step: int, n_warmup: int, n_steps: int, kind: str) -> float:
    """Fall from 1 to 0 over the steps after the warmup."""
    progress = (step - n_warmup) / max(1, n_steps - n_warmup)
    if kind == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if kind == "linear":
        return 1 - progress
    if kind == "wsd":
        n_decay = max(1, round(_WSD_DECAY_RATIO * n_steps))
        return min(1.0, (n_steps - step) / n_decay)
    if kind == "constant":
        return 1.0
    raise ValueError(f"lr_scheduler_type: {kind!r} is not cosine, linear, wsd or constant")
