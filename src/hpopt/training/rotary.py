"""Owns rotary positions (Su et al. 2021). Leaves attention to model.py.

Legend: B sequences, S positions, H heads, P width of a head, R = P / 2 angles.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from hpopt.training.hardware import is_eager_cpu

# Su et al. 2021 (RoFormer), section 3.2.2.
_BASE = 10_000.0


def rotary_table(n_positions: int, head_width: int) -> tuple[Tensor, Tensor]:
    """Give cos_SR and sin_SR of each position's angles. Source: Su et al. 2021, eq. 15."""
    frequency_R = _BASE ** (-torch.arange(0, head_width, 2, dtype=torch.float64) / head_width)
    angle_SR = torch.outer(torch.arange(n_positions, dtype=torch.float64), frequency_R)
    return angle_SR.cos().float(), angle_SR.sin().float()


def rotate(x_BHSP: Tensor, cos_SR: Tensor, sin_SR: Tensor) -> Tensor:
    """Rotate the pairs (2i, 2i + 1) of each head by the angle of their position (Su et al. 2021, eq. 34)."""
    cos_SR, sin_SR = cos_SR.to(x_BHSP.dtype), sin_SR.to(x_BHSP.dtype)
    first, second = torch.unflatten(x_BHSP, -1, (-1, 2)).unbind(-1)
    return torch.stack([first * cos_SR - second * sin_SR, second * cos_SR + first * sin_SR], dim=-1).flatten(-2)


def split_and_rotate(qkv_BS3HP: Tensor, cos_SR: Tensor, sin_SR: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Split query, key and value, each BHSP, and rotate query and key."""
    if is_eager_cpu(qkv_BS3HP):
        split: tuple[Tensor, Tensor, Tensor] = _SplitAndRotate.apply(qkv_BS3HP, cos_SR, sin_SR)  # type: ignore[no-untyped-call]
        return split
    q_BHSP, k_BHSP, v_BHSP = qkv_BS3HP.permute(2, 0, 3, 1, 4).unbind(0)
    return rotate(q_BHSP, cos_SR, sin_SR), rotate(k_BHSP, cos_SR, sin_SR), v_BHSP


class _SplitAndRotate(torch.autograd.Function):
    """The same on a CPU, by complex products in place: pairs are complex numbers, and the backward turns them back."""

    @staticmethod
    def forward(ctx: FunctionCtx, qkv_BS3HP: Tensor, cos_SR: Tensor, sin_SR: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(cos_SR, sin_SR)
        x_3BHSP = qkv_BS3HP.permute(2, 0, 3, 1, 4)
        turned_3BHSP = x_3BHSP.to(_exact(x_3BHSP), memory_format=torch.contiguous_format, copy=True)
        _turn(turned_3BHSP[:2], cos_SR, sin_SR)
        return turned_3BHSP.to(x_3BHSP.dtype).unbind(0)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401 - torch has no type for it.
        cos_SR, sin_SR = ctx.saved_tensors
        slope_3BHSP = torch.stack(slopes).to(_exact(slopes[0]))
        _turn(slope_3BHSP[:2], cos_SR, -sin_SR)
        slope_BS3HP = slope_3BHSP.permute(1, 3, 0, 2, 4)
        return slope_BS3HP.to(slopes[0].dtype, memory_format=torch.contiguous_format), None, None


def _exact(x: Tensor) -> torch.dtype:
    """Give the dtype to rotate in: there are no complex numbers of bfloat16."""
    return torch.promote_types(x.dtype, torch.float32)


def _turn(x: Tensor, cos_SR: Tensor, sin_SR: Tensor) -> None:
    turn_SR = torch.complex(cos_SR.to(x.dtype), sin_SR.to(x.dtype))
    torch.view_as_complex(torch.unflatten(x, -1, (-1, 2))).mul_(turn_SR)
