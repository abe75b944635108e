"""Causal self-attention with rotary positions.

Legend: B sequences, S positions, D width, H heads, P width of a head, R = P / 2 angles, N = B * H.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from hpopt.training.hardware import is_eager_cpu

# Su et al. 2021 (RoFormer), section 3.2.2.
_ROTARY_BASE = 10_000.0
# Above this number of scores, 128 MiB in bfloat16, those of a layer are not kept for the backward pass.
_MAX_KEPT_SCORES = 2**26


class Attention(nn.Module):
    """Causal self-attention with rotary positions; query, key and value are stacked in one (3, D, D) parameter."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv_3DD = nn.Parameter(torch.empty(3, width, width))
        self.output_DD = nn.Parameter(torch.empty(width, width))

    def forward(self, x_BSD: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """Attend from each position to itself and those before it.

        `rotary` is cos_SR and sin_SR of rotary_table. Returns y_BSD in x's dtype.
        """
        n_sequences, n_positions, width = x_BSD.shape
        qkv = F.linear(x_BSD, self.qkv_3DD.to(x_BSD.dtype).view(3 * width, width))
        q_BHSP, k_BHSP, v_BHSP = split_and_rotate(qkv.view(n_sequences, n_positions, 3, self.n_heads, -1), *rotary)
        mixed_BHSP = causal_attention(q_BHSP, k_BHSP, v_BHSP)
        mixed_BSD = mixed_BHSP.transpose(1, 2).reshape(n_sequences, n_positions, width)
        return F.linear(mixed_BSD, self.output_DD.to(x_BSD.dtype))


def causal_attention(q_BHSP: Tensor, k_BHSP: Tensor, v_BHSP: Tensor) -> Tensor:
    """Compute softmax(q k / sqrt(P)) v over the positions up to each one; returns y_BHSP in q's dtype.

    Calls torch's kernel, except in bfloat16 on a CPU, where plain products are faster (forward and backward of 16 x 4
    heads of 128 x 32: 1.8 against 10.8 ms; 16 x 8 of 512 x 32: 57 against 88 ms). Source: Vaswani et al. 2017, eq. 1.
    """
    n_sequences, n_heads, n_positions, width = q_BHSP.shape
    is_plain = is_eager_cpu(q_BHSP) and q_BHSP.dtype == torch.bfloat16
    if not is_plain or n_sequences * n_heads * n_positions**2 > _MAX_KEPT_SCORES:
        return F.scaled_dot_product_attention(q_BHSP, k_BHSP, v_BHSP, is_causal=True)
    mask_SS = torch.full((n_positions, n_positions), -torch.inf, dtype=q_BHSP.dtype).triu_(1)
    score_NSS = torch.baddbmm(mask_SS, q_BHSP.flatten(0, 1), k_BHSP.flatten(0, 1).mT, alpha=width**-0.5)
    return (score_NSS.softmax(-1) @ v_BHSP.flatten(0, 1)).view(q_BHSP.shape)


def rotary_table(n_positions: int, head_width: int) -> tuple[Tensor, Tensor]:
    """Return cos_SR and sin_SR (float32) of the angles of each position. Source: Su et al. 2021, eq. 15."""
    frequency_R = _ROTARY_BASE ** (-torch.arange(0, head_width, 2, dtype=torch.float64) / head_width)
    angle_SR = torch.outer(torch.arange(n_positions, dtype=torch.float64), frequency_R)
    return angle_SR.cos().float(), angle_SR.sin().float()


def rotate(x_BHSP: Tensor, cos_SR: Tensor, sin_SR: Tensor) -> Tensor:
    """Rotate the pairs (2i, 2i + 1) of each head by the angles of their position; returns y_BHSP in x's dtype.

    Source: Su et al. 2021, eq. 34.
    """
    cos_SR, sin_SR = cos_SR.to(x_BHSP.dtype), sin_SR.to(x_BHSP.dtype)
    even_BHSR, odd_BHSR = torch.unflatten(x_BHSP, -1, (-1, 2)).unbind(-1)
    pairs = [even_BHSR * cos_SR - odd_BHSR * sin_SR, odd_BHSR * cos_SR + even_BHSR * sin_SR]
    return torch.stack(pairs, dim=-1).flatten(-2)


def split_and_rotate(qkv_BS3HP: Tensor, cos_SR: Tensor, sin_SR: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Split query, key and value, and rotate query and key; returns q_BHSP, k_BHSP and v_BHSP in the input's dtype."""
    if is_eager_cpu(qkv_BS3HP):
        split: tuple[Tensor, Tensor, Tensor] = _SplitAndRotate.apply(qkv_BS3HP, cos_SR, sin_SR)  # type: ignore[no-untyped-call]
        return split
    q_BHSP, k_BHSP, v_BHSP = qkv_BS3HP.permute(2, 0, 3, 1, 4).unbind(0)
    return rotate(q_BHSP, cos_SR, sin_SR), rotate(k_BHSP, cos_SR, sin_SR), v_BHSP


class _SplitAndRotate(torch.autograd.Function):
    """split_and_rotate on a CPU: pairs of features are complex numbers, and the backward pass rotates back."""

    @staticmethod
    def forward(ctx: FunctionCtx, qkv_BS3HP: Tensor, cos_SR: Tensor, sin_SR: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(cos_SR, sin_SR)
        x_3BHSP = qkv_BS3HP.permute(2, 0, 3, 1, 4)
        rotated_3BHSP = x_3BHSP.to(_rotation_dtype(x_3BHSP), memory_format=torch.contiguous_format, copy=True)
        _rotate_in_place(rotated_3BHSP[:2], cos_SR, sin_SR)
        return rotated_3BHSP.to(x_3BHSP.dtype).unbind(0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401 - torch has no type for it.
        cos_SR, sin_SR = ctx.saved_tensors
        grad_3BHSP = torch.stack(grads).to(_rotation_dtype(grads[0]))
        _rotate_in_place(grad_3BHSP[:2], cos_SR, -sin_SR)
        grad_BS3HP = grad_3BHSP.permute(1, 3, 0, 2, 4)
        return grad_BS3HP.to(grads[0].dtype, memory_format=torch.contiguous_format), None, None


def _rotation_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype to rotate in: torch has no complex numbers of bfloat16."""
    return torch.promote_types(x.dtype, torch.float32)


def _rotate_in_place(x_2BHSP: Tensor, cos_SR: Tensor, sin_SR: Tensor) -> None:
    rotation_SR = torch.complex(cos_SR.to(x_2BHSP.dtype), sin_SR.to(x_2BHSP.dtype))
    torch.view_as_complex(torch.unflatten(x_2BHSP, -1, (-1, 2))).mul_(rotation_SR)
