"""Owns RMSNorm. Leaves where it stands to model.py.

Legend: D width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx

from hpopt.training.hardware import is_eager_cpu

_EPS = 1e-6


def norm(x: Tensor, gain_D: Tensor | None = None) -> Tensor:
    """Divide by the root mean square over the last dimension, times the gain (Zhang and Sennrich 2019, eq. 4)."""
    if is_eager_cpu(x) and gain_D is not None:
        y: Tensor = _Norm.apply(x, gain_D)  # type: ignore[no-untyped-call]
        return y
    return F.rms_norm(x, x.shape[-1:], gain_D, _EPS)


class _Norm(torch.autograd.Function):
    """The same on a CPU, where torch has no kernel for it and passes over the memory three times as often."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, gain_D: Tensor) -> Tensor:
        mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        scale = mean_square.add_(_EPS).rsqrt_()
        ctx.save_for_backward(x, gain_D, scale)
        y: Tensor = x * scale
        return y.mul_(gain_D)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ANN401 - torch has no type for it.
        x, gain_D, scale = ctx.saved_tensors
        width = x.shape[-1]
        product = slope * x
        # d scale / d x = -scale^3 x / D.
        through_scale = (product @ gain_D).unsqueeze(-1).mul_(scale.pow(3)).div_(width)
        slope_x = (slope * gain_D).mul_(scale).addcmul_(x, through_scale, value=-1)
        return slope_x, scale.flatten() @ product.view(-1, width)
