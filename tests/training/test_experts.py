import pytest
import torch
import torch.nn.functional as F

from hpopt.training.experts import count_tokens, run_experts
from hpopt.training.model import Transformer

T, D, E, HIDDEN, K = 150, 16, 4, 24, 2


def draws(dtype, choices=range(E)):
    """Draw tokens, weights, choices among the experts that are named, and matrices."""
    generator = torch.Generator().manual_seed(0)
    order_TK = torch.stack([torch.randperm(len(choices), generator=generator)[:K] for _ in range(T)])
    expert_TK = torch.tensor(list(choices))[order_TK]
    shapes = (T, D), (T, K), (E, HIDDEN, D), (E, D, HIDDEN)
    x_TD, weight_TK, up_EFD, down_EDF = (
        torch.randn(*shape, dtype=torch.float64, generator=generator).div(shape[-1] ** 0.5).to(dtype).requires_grad_()
        for shape in shapes
    )
    return (x_TD, weight_TK, up_EFD, down_EDF), expert_TK


def every_expert_on_every_token(x_TD, weight_TK, up_EFD, down_EDF, expert_TK):
    """Compute all experts for all tokens, and add up the chosen ones."""
    y_TED = torch.einsum("edf,tef->ted", down_EDF, F.silu(torch.einsum("efd,td->tef", up_EFD, x_TD)))
    return (weight_TK.unsqueeze(-1) * y_TED.gather(1, expert_TK.unsqueeze(-1).expand(-1, -1, D))).sum(1)


def run(function, dtype, **kwargs):
    """Give the output and the gradients of all inputs."""
    inputs, expert_TK = draws(dtype, **kwargs)
    x_TD, weight_TK, up_EFD, down_EDF = inputs
    y_TD = (
        function(x_TD, weight_TK, expert_TK, up_EFD, down_EDF)
        if function is run_experts
        else function(*inputs, expert_TK)
    )
    slope_TD = torch.arange(T * D, dtype=torch.float64).view(T, D).cos().to(dtype)
    return [y_TD.double(), *(g.double() for g in torch.autograd.grad(y_TD, inputs, slope_TD))]


@pytest.mark.parametrize("choices", [range(E), (1, 3)], ids=["all experts", "two experts without tokens"])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_sorted_slices_equal_every_expert_on_every_token(dtype, error, choices):
    """In bfloat16 slices are padded with rows of token 0: they must reach neither output nor gradients."""
    fast, plain = (
        run(run_experts, dtype, choices=choices),
        run(every_expert_on_every_token, torch.float64, choices=choices),
    )
    for a, b in zip(fast, plain, strict=True):
        assert (a - b).norm() <= error * b.norm()


def test_widths_that_the_grouped_product_does_not_take_are_computed_all_the_same(config_of):
    """A width of 20 is 40 bytes in bfloat16; where a study samples widths, no trial may fail for it."""
    config = config_of(d_model=20, n_heads=2, d_ff=12)
    model = Transformer(config, torch.Generator().manual_seed(0), torch.bfloat16)
    token_BS = torch.zeros(2, config.sequence_length, dtype=torch.int64)
    eager_TD, _ = model(token_BS)
    compiled_TD, _ = torch.compile(model, backend="eager")(token_BS)
    torch.testing.assert_close(compiled_TD, eager_TD, rtol=0.05, atol=0.05)


def test_counts_are_those_of_bincount():
    _, expert_TK = draws(torch.float32)
    assert count_tokens(expert_TK, E + 1).tolist() == torch.bincount(expert_TK.flatten(), minlength=E + 1).tolist()
