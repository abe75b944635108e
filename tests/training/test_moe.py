import pytest
import torch
import torch.nn.functional as F

from hpopt.training.moe import choose, load_balance, moe

T, D, E, HIDDEN, K = 13, 6, 5, 8, 2


def parts(seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator, requires_grad=True)

    return draw(T, D), draw(T, E), draw(E, HIDDEN, D), draw(E, D, HIDDEN)


def plain_moe(x_TD, logit_TE, up_EFD, down_EDF):
    """Take one token and one expert at a time, as in Shazeer et al. 2017, eq. 1-5."""
    rows = []
    for x_D, logit_E in zip(x_TD, logit_TE, strict=True):
        chosen = sorted(range(E), key=lambda e: -logit_E[e].item())[:K]
        weights = torch.softmax(torch.stack([logit_E[e] for e in chosen]), 0)
        rows.append(sum(w * (down_EDF[e] @ F.silu(up_EFD[e] @ x_D)) for w, e in zip(weights, chosen, strict=True)))
    return torch.stack(rows)


def test_mixture_equals_a_plain_computation_token_by_token():
    """Sorting, slicing and gathering back is where tokens get swapped."""
    inputs = parts()
    torch.testing.assert_close(moe(*inputs, K)[0], plain_moe(*inputs))


def test_gradients_of_the_mixture_equal_those_of_the_plain_computation():
    """A gradient that reaches the wrong expert still trains, only worse."""
    weights = torch.arange(T * D, dtype=torch.float64).view(T, D).cos()
    fast = torch.autograd.grad((moe(*(inputs := parts()), K)[0] * weights).sum(), inputs)
    plain = torch.autograd.grad((plain_moe(*(inputs := parts())) * weights).sum(), inputs)
    torch.testing.assert_close(fast, plain)


def test_an_expert_without_tokens_gets_a_gradient_of_zero():
    """An empty slice must not break the loop; with few tokens it is common."""
    x_TD, _, up_EFD, down_EDF = parts()
    logit_TE = torch.zeros(T, E, dtype=torch.float64)
    logit_TE[:, 1:3] = 1.0
    y_TD, routing = moe(x_TD, logit_TE, up_EFD, down_EDF, K)
    y_TD.sum().backward()
    assert routing.count_E.tolist() == [0, T, T, 0, 0]
    assert up_EFD.grad[0].abs().sum() == 0
    assert up_EFD.grad[1].abs().sum() > 0


def test_weights_are_the_softmax_over_the_chosen():
    """Softmax over all experts would shrink the output with every expert added."""
    weight_TK, expert_TK = choose(torch.tensor([[0.0, 2.0, 1.0, -1.0]]), 2)
    assert expert_TK.tolist() == [[1, 2]]
    torch.testing.assert_close(weight_TK, torch.tensor([[0.7310586, 0.2689414]]))


def test_more_chosen_than_experts_is_refused():
    with pytest.raises(ValueError, match="top_k: 5 is above the number of experts 4"):
        choose(torch.zeros(3, 4), 5)


def test_balance_loss_agrees_with_the_formula_by_hand():
    """Two experts, top-1: f = (3/4, 1/4), P = (0.6, 0.4), so 2 * (0.75 * 0.6 + 0.25 * 0.4) = 1.1."""
    probability_TE = torch.tensor([[0.7, 0.3], [0.7, 0.3], [0.6, 0.4], [0.4, 0.6]])
    torch.testing.assert_close(load_balance(probability_TE.log(), torch.tensor([3, 1])), torch.tensor(1.1))


@pytest.mark.parametrize(
    ("count_E", "logit_E", "expected"), [([5, 5, 5, 5], [0.0] * 4, 1.0), ([10, 10, 0, 0], [9e3, 9e3, 0, 0], 2.0)]
)
def test_balance_loss_is_one_when_even_and_e_over_k_when_collapsed(count_E, logit_E, expected):
    """Its scale must not depend on E or the batch, or load_balancing_weight would mean something else each time."""
    logit_TE = torch.tensor([logit_E] * 10)
    torch.testing.assert_close(load_balance(logit_TE, torch.tensor(count_E)), torch.tensor(expected))


def test_balance_loss_pushes_the_router_away_from_the_crowded_expert():
    """The gradient flows through P only, as in Switch: it must lower the logits of crowded experts."""
    logit_TE = torch.zeros(8, 4, requires_grad=True)
    load_balance(logit_TE, torch.tensor([10, 2, 2, 2])).backward()
    assert (logit_TE.grad[:, 0] > 0).all()
    assert (logit_TE.grad[:, 1:] < 0).all()
