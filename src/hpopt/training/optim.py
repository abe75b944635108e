"""Owns Muon and which parameter is trained by which optimizer. Leaves the learning rate's course to schedule.py.

Legend: N matrices of one shape, R rows, C columns, Q the smaller of the two.
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


def newton_schulz(x_NRC: Tensor, n_steps: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Bring the singular values of each matrix near 1, its singular vectors unchanged; returns `dtype`.

    After 5 steps they lie in about 0.7 to 1.2. Source: torch.optim.Muon, with which it agrees operation by
    operation, batched over N; tall matrices are multiplied from the right instead of being transposed.
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


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized (Jordan et al. 2024), for parameters whose last two dimensions are a matrix.

    Equals torch.optim.Muon (nesterov, decoupled weight decay, learning rate times sqrt(max(1, rows / columns)))
    on two-dimensional parameters; of a stacked parameter each matrix is orthogonalized on its own.
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
        """Take one step along the gradients; parameters without one stay."""
        for group in self.param_groups:
            for parameters in _by_shape(group["params"]):
                _muon_step(parameters, [self._momentum_of(parameter) for parameter in parameters], group)

    def _momentum_of(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer: Tensor = state["momentum_buffer"]
        return buffer


def _by_shape(parameters: list[Tensor]) -> list[list[Tensor]]:
    """Group the parameters with gradients by the shape of their matrices."""
    groups: dict[tuple[int, ...], list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            groups.setdefault(tuple(parameter.shape[-2:]), []).append(parameter)
    return list(groups.values())


def _muon_step(parameters: list[Tensor], buffers: list[Tensor], group: dict[str, Any]) -> None:
    """Step the parameters of one shape: products of many small matrices in one batch cost the same as of one large."""
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


def make_optimizers(model: nn.Module, config: PretrainConfig) -> dict[str, torch.optim.Optimizer]:
    """Give the optimizers by name; each group carries its peak learning rate as `peak_lr`.

    The matrices of the blocks (attention and experts) learn at `learning_rate`: by Muon, or by AdamW if
    optimizer = "adamw". Embedding, router and gains always learn by AdamW at `adamw_learning_rate`: the rows of
    an embedding and of a router are one vector a token or expert, not a map between features. Gains are not decayed.
    """
    named = list(model.named_parameters())
    matrices = [p for name, p in named if name.startswith("blocks.") and p.ndim > 1 and not name.endswith("router_ED")]
    is_matrix = {id(p) for p in matrices}
    others = [p for _, p in named if id(p) not in is_matrix]
    fast, slow = config.learning_rate, config.adamw_learning_rate
    groups = [
        {"params": [p for p in others if p.ndim > 1], "lr": slow, "weight_decay": config.weight_decay},
        {"params": [p for p in others if p.ndim == 1], "lr": slow, "weight_decay": 0.0},
    ]
    optimizers: dict[str, torch.optim.Optimizer] = {}
    if config.optimizer == "adamw":
        groups.append({"params": matrices, "lr": fast, "weight_decay": config.weight_decay})
    else:
        optimizers["muon"] = Muon(
            matrices,
            lr=fast,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            ns_steps=config.ns_steps,
            dtype=fast_dtype(matrices[0].device),
        )
    optimizers["adamw"] = torch.optim.AdamW(
        groups, betas=(config.adam_beta1, config.adam_beta2), eps=_ADAM_EPS, fused=True
    )
    for group in all_groups(optimizers):
        group["peak_lr"] = group["lr"]
    return optimizers


def all_groups(optimizers: dict[str, torch.optim.Optimizer]) -> list[dict[str, Any]]:
    """List the parameter groups of all optimizers."""
    return [group for optimizer in optimizers.values() for group in optimizer.param_groups]
