import pytest
import torch
import torch.nn.functional as F

from hpopt.training import attention as attention_module
from hpopt.training.attention import Attention, causal_attention, rotary_table, rotate, split_and_rotate


def attend_position_by_position(module, x_SD):
    """Compute one head and one position at a time, with pairs of features as complex numbers."""
    n_positions, width = x_SD.shape
    half = width // module.n_heads // 2
    frequency = 10_000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    q_SD, k_SD, v_SD = (x_SD @ weight_DD.T for weight_DD in module.qkv_3DD)
    heads = []
    for head in range(module.n_heads):
        columns = slice(head * 2 * half, (head + 1) * 2 * half)
        rotated = []
        for y_SD in (q_SD, k_SD):
            y_SP = y_SD[:, columns]
            angle_SR = torch.arange(n_positions, dtype=torch.float64)[:, None] * frequency
            rotation_SR = torch.polar(torch.ones_like(angle_SR), angle_SR)
            rotated.append(torch.complex(y_SP[:, ::2], y_SP[:, 1::2]) * rotation_SR)
        rows = []
        for s in range(n_positions):
            score = (rotated[0][s] * rotated[1][: s + 1].conj()).sum(-1).real / (2 * half) ** 0.5
            rows.append(score.softmax(0) @ v_SD[: s + 1, columns])
        heads.append(torch.stack(rows))
    return torch.cat(heads, dim=1) @ module.output_DD.T


def test_attention_equals_a_plain_computation_position_by_position():
    """A head that is split wrongly or a key that is not rotated still trains, only worse."""
    generator = torch.Generator().manual_seed(0)
    attention = Attention(32, 2).double()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, 0.0, 32**-0.5, generator=generator)
    x_SD = torch.randn(7, 32, dtype=torch.float64, generator=generator)
    fast = attention(x_SD[None], rotary_table(7, 16))[0]
    torch.testing.assert_close(fast, attend_position_by_position(attention, x_SD), rtol=1e-5, atol=1e-5)


def draw_qkv(dtype):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, 9, 8, dtype=torch.float64, generator=generator).to(dtype) for _ in range(3)]


@pytest.mark.parametrize("max_kept_scores", [0, 2**26], ids=["kernel", "plain"])
def test_attention_in_bfloat16_stays_close_to_float64(monkeypatch, max_kept_scores):
    """Plain products of many scores would need too much memory, so torch's kernel computes the same."""
    monkeypatch.setattr(attention_module, "_MAX_KEPT_SCORES", max_kept_scores)
    exact = F.scaled_dot_product_attention(*draw_qkv(torch.float64), is_causal=True)
    torch.testing.assert_close(causal_attention(*draw_qkv(torch.bfloat16)).double(), exact, rtol=0.03, atol=0.03)


def test_rotary_scores_depend_on_distance_alone():
    """Shifting query and key by the same number of positions leaves their product unchanged."""
    q_P, k_P = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    q_SP, k_SP = (rotate(x_P.expand(32, 8), *rotary_table(32, 8)) for x_P in (q_P, k_P))
    torch.testing.assert_close(q_SP[5] @ k_SP[2], q_SP[25] @ k_SP[22], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(q_SP[5] @ k_SP[2], q_SP[5] @ k_SP[4], rtol=1e-2, atol=1e-2)


def draw_stacked(dtype):
    return torch.randn(2, 5, 3, 2, 8, dtype=dtype, generator=torch.Generator().manual_seed(0))


def test_rotation_in_place_equals_the_formula():
    """Complex products rotate pairs of features; values must not be rotated, nor positions be mixed with heads."""
    qkv_BS3HP, table = draw_stacked(torch.float64), rotary_table(5, 8)
    q_BHSP, k_BHSP, v_BHSP = split_and_rotate(qkv_BS3HP, *table)
    expected_3BHSP = qkv_BS3HP.permute(2, 0, 3, 1, 4)
    torch.testing.assert_close(q_BHSP, rotate(expected_3BHSP[0], *table))
    torch.testing.assert_close(k_BHSP, rotate(expected_3BHSP[1], *table))
    assert torch.equal(v_BHSP, expected_3BHSP[2])


def test_gradient_of_the_rotation_passes_gradcheck():
    """The backward pass is our own code: it rotates back."""
    qkv_BS3HP, table = draw_stacked(torch.float64).requires_grad_(), rotary_table(5, 8)
    assert torch.autograd.gradcheck(lambda qkv: split_and_rotate(qkv, *table), (qkv_BS3HP,))


def test_rotation_in_bfloat16_stays_close_to_float32():
    """It is computed in float32, because torch has no complex numbers of bfloat16."""
    qkv_BS3HP, table = draw_stacked(torch.float32), rotary_table(5, 8)
    low, high = split_and_rotate(qkv_BS3HP.bfloat16(), *table), split_and_rotate(qkv_BS3HP, *table)
    for a, b in zip(low, high, strict=True):
        assert a.dtype == torch.bfloat16
        torch.testing.assert_close(a.float(), b, rtol=0.02, atol=0.02)
