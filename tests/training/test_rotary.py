import torch

from hpopt.training.rotary import rotary_table, rotate, split_and_rotate


def test_attention_depends_on_distance_alone():
    """Rotary positions: shifting query and key together leaves their product as it is."""
    q_P, k_P = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    q_SP, k_SP = (rotate(x_P.expand(32, 8), *rotary_table(32, 8)) for x_P in (q_P, k_P))
    torch.testing.assert_close(q_SP[5] @ k_SP[2], q_SP[25] @ k_SP[22], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(q_SP[5] @ k_SP[2], q_SP[5] @ k_SP[4], rtol=1e-2, atol=1e-2)


def draw(dtype):
    return torch.randn(2, 5, 3, 2, 8, dtype=dtype, generator=torch.Generator().manual_seed(0))


def test_rotation_in_place_equals_the_formula():
    """Complex products turn pairs of features; a value must not be turned, nor a position be mixed with a head."""
    qkv_BS3HP, table = draw(torch.float64), rotary_table(5, 8)
    q_BHSP, k_BHSP, v_BHSP = split_and_rotate(qkv_BS3HP, *table)
    expected_3BHSP = qkv_BS3HP.permute(2, 0, 3, 1, 4)
    torch.testing.assert_close(q_BHSP, rotate(expected_3BHSP[0], *table))
    torch.testing.assert_close(k_BHSP, rotate(expected_3BHSP[1], *table))
    assert torch.equal(v_BHSP, expected_3BHSP[2])


def test_gradient_of_the_rotation_passes_gradcheck():
    """The backward pass is written by hand: it turns back."""
    qkv_BS3HP, table = draw(torch.float64).requires_grad_(), rotary_table(5, 8)
    assert torch.autograd.gradcheck(lambda qkv: split_and_rotate(qkv, *table), (qkv_BS3HP,))


def test_rotation_in_bfloat16_stays_close_to_float32():
    """It is computed in float32, because there are no complex numbers of bfloat16."""
    qkv_BS3HP, table = draw(torch.float32), rotary_table(5, 8)
    low, high = split_and_rotate(qkv_BS3HP.bfloat16(), *table), split_and_rotate(qkv_BS3HP, *table)
    for a, b in zip(low, high, strict=True):
        assert a.dtype == torch.bfloat16
        torch.testing.assert_close(a.float(), b, rtol=0.02, atol=0.02)
