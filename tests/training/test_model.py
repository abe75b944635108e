import math

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.utils import counters

from hpopt.training.config import count_parameters
from hpopt.training.loss import cross_entropy
from hpopt.training.model import Transformer, _compiled_forward, apply_dropout, rms_norm, run_compiled


def model_of(config, seed=0, dtype=torch.float32):
    return Transformer(config, torch.Generator().manual_seed(seed), dtype)


def draw_tokens(config, n_sequences=8, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(config.vocab_size, (n_sequences, config.sequence_length + 1), generator=generator)


def loss_of(model, token_BS):
    x_TD, _ = model(token_BS[:, :-1])
    return cross_entropy(x_TD, model.output_VD, token_BS[:, 1:].flatten())


def test_parameters_of_the_full_size_are_79_million_and_37_million_active(config_of):
    """The model of benchmarks/gpu.py; its active parameters include the two experts that each token uses."""
    full_size = config_of(
        d_model=384, n_layers=6, n_heads=8, d_ff=1536, n_experts=8, top_k=2, vocab_size=49152, sequence_length=512
    )
    total, active = count_parameters(full_size)
    assert round(total / 1e6, 1) == 79.1
    assert round(active / 1e6, 1) == 36.6


def test_counted_parameters_are_those_of_the_model(config_of):
    config = config_of(n_layers=3)
    assert count_parameters(config)[0] == sum(parameter.numel() for parameter in model_of(config).parameters())


@pytest.mark.parametrize(
    "shape", [{"d_model": 32}, {"d_model": 256, "n_heads": 4}, {"vocab_size": 8192, "d_model": 64}]
)
def test_first_loss_is_that_of_a_uniform_guess(config_of, shape):
    """An untrained model that is worse than a uniform guess wastes steps; a better one has seen the targets."""
    config = config_of(**shape)
    assert loss_of(model_of(config), draw_tokens(config)).item() == pytest.approx(math.log(config.vocab_size), rel=0.02)


def test_no_position_depends_on_later_ones(config_of):
    """Attention to later positions gives a low loss and a useless model."""
    config = config_of()
    model, token_BS = model_of(config), draw_tokens(config, n_sequences=1)
    changed_BS = token_BS.clone()
    changed_BS[:, 9:] = (changed_BS[:, 9:] + 1) % config.vocab_size
    before, after = (model(t)[0] for t in (token_BS[:, :-1], changed_BS[:, :-1]))
    torch.testing.assert_close(before[:9], after[:9])
    assert not torch.allclose(before[9:], after[9:])


class TotalLoss(torch.nn.Module):
    """Cross-entropy plus load balancing loss of a model, for functional_call."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, token_BS):
        x_TD, load = self.model(token_BS[:, :-1])
        return cross_entropy(x_TD, self.model.output_VD, token_BS[:, 1:].flatten()) + load.balance_loss


def test_whole_model_passes_gradcheck(config_of):
    """In float64 every gradient agrees with finite differences, through routing, experts, attention and loss."""
    config = config_of(d_model=4, n_heads=2, d_ff=3, n_layers=1, n_experts=3, vocab_size=257, sequence_length=4)
    total = TotalLoss(model_of(config, dtype=torch.float64).double())
    token_BS = draw_tokens(config, n_sequences=2)
    # The embedding's 1028 elements would take most of the time; test_loss.py checks the gradient of the output matrix.
    names = [name for name, _ in total.named_parameters() if not name.endswith("embedding_VD")]

    def function(*values):
        return torch.func.functional_call(total, dict(zip(names, values, strict=True)), (token_BS,))

    inputs = [total.get_parameter(name).detach().clone().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(function, inputs)


def test_weights_follow_from_the_seed_alone(config_of):
    """Two workers that run the same trial must start from the same weights, whatever ran before."""
    first = model_of(config_of()).state_dict()
    torch.rand(3)
    again, other = model_of(config_of()).state_dict(), model_of(config_of(), seed=1).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["embedding_VD"], other["embedding_VD"])


def draw_norm_inputs(scale=1.0):
    generator = torch.Generator().manual_seed(0)
    x = scale * torch.randn(3, 4, 6, dtype=torch.float64, generator=generator)
    return x.requires_grad_(), torch.randn(6, dtype=torch.float64, generator=generator).requires_grad_()


@pytest.mark.parametrize("scale", [1.0, 1e-4, 0.0])
def test_rms_norm_equals_the_one_of_torch(scale):
    """Also near and at zero, where the epsilon dominates the divisor."""
    x, gain_D = draw_norm_inputs(scale)
    torch.testing.assert_close(rms_norm(x, gain_D), F.rms_norm(x, (6,), gain_D, 1e-6))
    torch.testing.assert_close(rms_norm(x), F.rms_norm(x, (6,), None, 1e-6))


def test_gradient_of_rms_norm_passes_gradcheck():
    """The backward pass is our own code, for the hidden states and the gain alike."""
    assert torch.autograd.gradcheck(rms_norm, draw_norm_inputs())


@pytest.mark.parametrize("probability", [0.2, torch.tensor(0.2)], ids=["eager", "compiled"])
def test_dropout_keeps_the_mean_and_zeros_the_given_share(probability):
    """Ones become 0 or 1 / (1 - p): a fifth of 100,000 are zeros, within 5 standard deviations (630)."""
    dropped = apply_dropout(torch.ones(100_000), probability)
    assert abs((dropped == 0).sum().item() - 20_000) < 630
    torch.testing.assert_close(dropped[dropped > 0], torch.full((int((dropped > 0).sum()),), 1.25))


def test_bfloat16_stays_close_to_float32(config_of):
    """The precision must change the speed, not the result."""
    config = config_of()
    token_BS = draw_tokens(config)
    low, high = (loss_of(model_of(config, dtype=dtype), token_BS) for dtype in (torch.bfloat16, torch.float32))
    assert low.item() == pytest.approx(high.item(), rel=0.005)


@pytest.fixture
def _traced_without_a_compiler(monkeypatch):
    """Trace as torch.compile does, and run the graphs without compiling them, so that no C++ compiler is needed."""
    torch._dynamo.reset()
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **kwargs: compile_(function, backend="aot_eager", **kwargs))
    _compiled_forward.cache_clear()
    yield
    _compiled_forward.cache_clear()
    torch._dynamo.reset()


def gradients(model, token_BS, forward):
    x_TD, load = forward(model, token_BS[:, :-1])
    loss = cross_entropy(x_TD, model.output_VD, token_BS[:, 1:].flatten()) + load.balance_loss
    loss.backward()
    return [loss.detach(), *(parameter.grad for parameter in model.parameters())]


@pytest.mark.usefixtures("_traced_without_a_compiler")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_model_is_as_close_to_float64_as_the_eager_one(config_of, dtype):
    """The code written for the CPU and the plain formulas that a GPU compiles are the same function."""
    config = config_of(n_layers=1)
    token_BS = draw_tokens(config)
    exact = gradients(model_of(config, dtype=torch.float64).double(), token_BS, Transformer.__call__)
    eager = gradients(model_of(config, dtype=dtype), token_BS, Transformer.__call__)
    traced = gradients(model_of(config, dtype=dtype), token_BS, run_compiled)
    for a, b, c in zip(traced, eager, exact, strict=True):
        assert (a - c).norm() <= 2 * (b - c).norm() + 1e-5 * c.norm()


@pytest.mark.usefixtures("_traced_without_a_compiler")
def test_compiled_code_is_shared_by_all_trials_of_a_worker(config_of):
    """Compiling takes longer than a small trial, so another seed, learning rate or dropout must not repeat it."""

    def train(**changes):
        config = config_of(n_layers=1, **changes)
        model = model_of(config, seed=config.seed, dtype=torch.bfloat16)
        x_TD, _ = run_compiled(model, draw_tokens(config)[:, :-1], config.dropout)
        x_TD.float().sum().backward()
        return counters["stats"]["unique_graphs"]

    counters.clear()
    assert train(dropout=0.1) == train(dropout=0.2, seed=1, learning_rate=0.5) == train(dropout=0.3, seed=2) == 1
