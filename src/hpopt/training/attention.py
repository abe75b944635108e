"""Owns causal self-attention. Leaves positions to rotary.py and the block around it to model.py.

Legend: B sequences, S positions, D width, H heads, P width of a head, R = P / 2 angles.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpopt.training.hardware import is_eager_cpu
from hpopt.training.rotary import split_and_rotate

# Above as many scores, 128 MiB in bfloat16, a layer's are not kept for the backward pass.
_KEPT_SCORES = 2**26


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
        mixed_BHSP = attend(*split_and_rotate(qkv.view(n_sequences, n_positions, 3, self.n_heads, -1), *rotary))
        mixed_BSD = mixed_BHSP.transpose(1, 2).reshape(n_sequences, n_positions, width)
        return F.linear(mixed_BSD, self.output_DD.to(x_BSD.dtype))


def attend(q_BHSP: Tensor, k_BHSP: Tensor, v_BHSP: Tensor) -> Tensor:
    """Give softmax(q k / sqrt(P)) v over the positions up to each one (Vaswani et al. 2017, eq. 1).

    torch's kernel, except in bfloat16 on a CPU, where plain products are faster (forward and backward of 16 x 4
    heads of 128 x 32: 1.8 against 10.8 ms; 16 x 8 of 512 x 32: 57 against 88 ms).
    """
    n_sequences, n_heads, n_positions, width = q_BHSP.shape
    is_plain = is_eager_cpu(q_BHSP) and q_BHSP.dtype == torch.bfloat16
    if not is_plain or n_sequences * n_heads * n_positions**2 > _KEPT_SCORES:
        return F.scaled_dot_product_attention(q_BHSP, k_BHSP, v_BHSP, is_causal=True)
    mask_SS = torch.full((n_positions, n_positions), -torch.inf, dtype=q_BHSP.dtype).triu_(1)
    score_NSS = torch.baddbmm(mask_SS, q_BHSP.flatten(0, 1), k_BHSP.flatten(0, 1).mT, alpha=width**-0.5)
    return (score_NSS.softmax(-1) @ v_BHSP.flatten(0, 1)).view(q_BHSP.shape)
