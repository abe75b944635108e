import pytest
import torch
import torch.nn.functional as F

from hpopt.training import attention as attention_file
from hpopt.training.attention import Attention, attend
from hpopt.training.rotary import rotary_table


def plain_attention(module, x_SD):
    """Attend one head and one position at a time; pairs of features are complex numbers that rotary positions turn."""
    n_positions, width = x_SD.shape
    half = width // module.n_heads // 2
    frequency = 10_000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    q_SD, k_SD, v_SD = (x_SD @ weight_DD.T for weight_DD in module.qkv_3DD)
    heads = []
    for head in range(module.n_heads):
        columns = slice(head * 2 * half, (head + 1) * 2 * half)
        turned = []
        for y_SD in (q_SD, k_SD):
            y_SP = y_SD[:, columns]
            angle_SR = torch.arange(n_positions, dtype=torch.float64)[:, None] * frequency
            turned.append(torch.complex(y_SP[:, ::2], y_SP[:, 1::2]) * torch.polar(torch.ones_like(angle_SR), angle_SR))
        rows = []
        for s in range(n_positions):
            score = (turned[0][s] * turned[1][: s + 1].conj()).sum(-1).real / (2 * half) ** 0.5
            rows.append(score.softmax(0) @ v_SD[: s + 1, columns])
        heads.append(torch.stack(rows))
    return torch.cat(heads, dim=1) @ module.output_DD.T


def test_attention_equals_a_plain_computation_position_by_position():
    """A head cut the wrong way or a key that is not rotated still trains, only worse."""
    generator = torch.Generator().manual_seed(0)
    attention = Attention(32, 2).double()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, 0.0, 32**-0.5, generator=generator)
    x_SD = torch.randn(7, 32, dtype=torch.float64, generator=generator)
    fast = attention(x_SD[None], rotary_table(7, 16))[0]
    torch.testing.assert_close(fast, plain_attention(attention, x_SD), rtol=1e-5, atol=1e-5)


def draws(dtype):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, 9, 8, dtype=torch.float64, generator=generator).to(dtype) for _ in range(3)]


@pytest.mark.parametrize("kept", [0, 2**26], ids=["kernel", "plain"])
def test_attention_in_bfloat16_stays_close_to_float64(monkeypatch, kept):
    """Plain products of many scores would need too much memory, so the kernel takes over: same answer."""
    monkeypatch.setattr(attention_file, "_KEPT_SCORES", kept)
    exact = F.scaled_dot_product_attention(*draws(torch.float64), is_causal=True)
    torch.testing.assert_close(attend(*draws(torch.bfloat16)).double(), exact, rtol=0.03, atol=0.03)
