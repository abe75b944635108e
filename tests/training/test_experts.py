import pytest
import torch
import torch.nn.functional as F

from hpopt.training.experts import count_tokens, load_balancing_loss, mixture_of_experts, route, run_experts
from hpopt.training.model import Transformer

T, D, E, HIDDEN, K = 150, 16, 4, 24, 2


def draw(dtype, experts=range(E)):
    """Draw tokens, weights and matrices, and choices among some of the experts."""
    generator = torch.Generator().manual_seed(0)
    order_TK = torch.stack([torch.randperm(len(experts), generator=generator)[:K] for _ in range(T)])
    expert_TK = torch.tensor(list(experts))[order_TK]
    shapes = (T, D), (T, K), (E, HIDDEN, D), (E, D, HIDDEN)
    x_TD, weight_TK, up_EFD, down_EDF = (
        torch.randn(*shape, dtype=torch.float64, generator=generator).div(shape[-1] ** 0.5).to(dtype).requires_grad_()
        for shape in shapes
    )
    return (x_TD, weight_TK, up_EFD, down_EDF), expert_TK


def run_every_expert(x_TD, weight_TK, expert_TK, up_EFD, down_EDF):
    """Compute all experts for all tokens, and sum the chosen ones."""
    y_TED = torch.einsum("edf,tef->ted", down_EDF, F.silu(torch.einsum("efd,td->tef", up_EFD, x_TD)))
    return (weight_TK.unsqueeze(-1) * y_TED.gather(1, expert_TK.unsqueeze(-1).expand(-1, -1, D))).sum(1)


def output_and_gradients(function, dtype, **kwargs):
    """Return the output and the gradients of all inputs."""
    inputs, expert_TK = draw(dtype, **kwargs)
    x_TD, weight_TK, up_EFD, down_EDF = inputs
    y_TD = function(x_TD, weight_TK, expert_TK, up_EFD, down_EDF)
    grad_TD = torch.arange(T * D, dtype=torch.float64).view(T, D).cos().to(dtype)
    return [y_TD.double(), *(g.double() for g in torch.autograd.grad(y_TD, inputs, grad_TD))]


@pytest.mark.parametrize("experts", [range(E), (1, 3)], ids=["all experts", "two experts without tokens"])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_sorted_slices_equal_every_expert_on_every_token(dtype, error, experts):
    """In bfloat16 slices are padded with rows of token 0, which must affect neither output nor gradients."""
    fast = output_and_gradients(run_experts, dtype, experts=experts)
    plain = output_and_gradients(run_every_expert, torch.float64, experts=experts)
    for a, b in zip(fast, plain, strict=True):
        assert (a - b).norm() <= error * b.norm()


def test_widths_that_the_grouped_product_does_not_support_are_computed_all_the_same(config_of):
    """A width of 20 is 40 bytes in bfloat16; where a study samples widths, no trial may fail for it."""
    config = config_of(d_model=20, n_heads=2, d_ff=12, n_layers=1)
    model = Transformer(config, torch.Generator().manual_seed(0), torch.bfloat16)
    token_BS = torch.zeros(2, config.sequence_length, dtype=torch.int64)
    eager_TD, _ = model(token_BS)
    compiled_TD, _ = torch.compile(model, backend="eager")(token_BS)
    torch.testing.assert_close(compiled_TD, eager_TD, rtol=0.05, atol=0.05)


def test_counts_are_those_of_bincount():
    _, expert_TK = draw(torch.float32)
    assert count_tokens(expert_TK, E + 1).tolist() == torch.bincount(expert_TK.flatten(), minlength=E + 1).tolist()


def draw_mixture(n_tokens=13, width=6, n_experts=5, hidden=8):
    """Draw tokens, logits of the router and matrices of a small mixture."""
    generator = torch.Generator().manual_seed(0)
    shapes = (n_tokens, width), (n_tokens, n_experts), (n_experts, hidden, width), (n_experts, width, hidden)
    return [torch.randn(*shape, dtype=torch.float64, generator=generator, requires_grad=True) for shape in shapes]


def mix_token_by_token(x_TD, logit_TE, up_EFD, down_EDF):
    """Compute one token and one expert at a time, as in Shazeer et al. 2017, eq. 1-5."""
    rows = []
    for x_D, logit_E in zip(x_TD, logit_TE, strict=True):
        chosen = sorted(range(len(logit_E)), key=lambda e: -logit_E[e].item())[:K]
        weights = torch.softmax(torch.stack([logit_E[e] for e in chosen]), 0)
        rows.append(sum(w * (down_EDF[e] @ F.silu(up_EFD[e] @ x_D)) for w, e in zip(weights, chosen, strict=True)))
    return torch.stack(rows)


def test_mixture_equals_a_plain_computation_token_by_token():
    """Sorting, slicing and gathering could swap tokens."""
    inputs = draw_mixture()
    torch.testing.assert_close(mixture_of_experts(*inputs, K)[0], mix_token_by_token(*inputs))


def test_gradients_of_the_mixture_equal_those_of_the_plain_computation():
    """A gradient that reaches the wrong expert still trains, only worse."""
    weight_TD = torch.arange(13 * 6, dtype=torch.float64).view(13, 6).cos()
    fast = torch.autograd.grad((mixture_of_experts(*(inputs := draw_mixture()), K)[0] * weight_TD).sum(), inputs)
    plain = torch.autograd.grad((mix_token_by_token(*(inputs := draw_mixture())) * weight_TD).sum(), inputs)
    torch.testing.assert_close(fast, plain)


def test_an_expert_without_tokens_gets_a_gradient_of_zero():
    """An empty slice must not break the loop; with few tokens it is common."""
    x_TD, _, up_EFD, down_EDF = draw_mixture()
    logit_TE = torch.zeros(13, 5, dtype=torch.float64)
    logit_TE[:, 1:3] = 1.0
    y_TD, routing = mixture_of_experts(x_TD, logit_TE, up_EFD, down_EDF, K)
    y_TD.sum().backward()
    assert routing.count_E.tolist() == [0, 13, 13, 0, 0]
    assert up_EFD.grad[0].abs().sum() == 0
    assert up_EFD.grad[1].abs().sum() > 0


def test_weights_are_the_softmax_over_the_chosen():
    """Softmax over all experts would shrink the output with every expert added."""
    weight_TK, expert_TK = route(torch.tensor([[0.0, 2.0, 1.0, -1.0]]), 2)
    assert expert_TK.tolist() == [[1, 2]]
    torch.testing.assert_close(weight_TK, torch.tensor([[0.7310586, 0.2689414]]))


def test_top_k_above_the_number_of_experts_is_refused():
    with pytest.raises(ValueError, match="top_k: 5 is above the number of experts 4"):
        route(torch.zeros(3, 4), 5)


def test_balance_loss_agrees_with_the_formula_worked_out():
    """Two experts, top-1: f = (3/4, 1/4), P = (0.6, 0.4), so 2 * (0.75 * 0.6 + 0.25 * 0.4) = 1.1."""
    probability_TE = torch.tensor([[0.7, 0.3], [0.7, 0.3], [0.6, 0.4], [0.4, 0.6]])
    torch.testing.assert_close(load_balancing_loss(probability_TE.log(), torch.tensor([3, 1])), torch.tensor(1.1))


@pytest.mark.parametrize(
    ("count_E", "logit_E", "expected"), [([5, 5, 5, 5], [0.0] * 4, 1.0), ([10, 10, 0, 0], [9e3, 9e3, 0, 0], 2.0)]
)
def test_balance_loss_is_one_when_even_and_e_over_k_when_collapsed(count_E, logit_E, expected):
    """Its scale must not depend on E or the batch, or load_balancing_weight would mean something else each time."""
    logit_TE = torch.tensor([logit_E] * 10)
    torch.testing.assert_close(load_balancing_loss(logit_TE, torch.tensor(count_E)), torch.tensor(expected))


def test_balance_loss_lowers_the_logits_of_the_crowded_expert():
    """The gradient flows through P only, as in Switch Transformer."""
    logit_TE = torch.zeros(8, 4, requires_grad=True)
    load_balancing_loss(logit_TE, torch.tensor([10, 2, 2, 2])).backward()
    assert (logit_TE.grad[:, 0] > 0).all()
    assert (logit_TE.grad[:, 1:] < 0).all()
