import math

import pytest
import torch

from hpopt.training.config import count_parameters
from hpopt.training.loss import cross_entropy
from hpopt.training.model import Noise, Transformer, rotary_table, rotate


def model_of(config, seed=0, dtype=torch.float32):
    return Transformer(config, torch.Generator().manual_seed(seed), dtype)


def tokens(config, n_sequences=8, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(config.vocab_size, (n_sequences, config.sequence_length + 1), generator=generator)


def loss_of(model, token_BS):
    x_TD, _ = model(token_BS[:, :-1])
    return cross_entropy(x_TD, model.output_VD, token_BS[:, 1:].flatten())


def test_parameter_counts_of_the_document_are_79_and_37_million(config_of):
    """The document says 22.4M active, which leaves out the two experts that each token uses."""
    document = config_of(
        d_model=384, n_layers=6, n_heads=8, d_ff=1536, n_experts=8, top_k=2, vocab_size=49152, sequence_length=512
    )
    total, active = count_parameters(document)
    assert round(total / 1e6, 1) == 79.1
    assert round(active / 1e6, 1) == 36.6


def test_counted_parameters_are_those_of_the_model(config_of):
    config = config_of(n_layers=3)
    assert count_parameters(config)[0] == sum(parameter.numel() for parameter in model_of(config).parameters())


@pytest.mark.parametrize(
    "shape", [{"d_model": 32}, {"d_model": 256, "n_heads": 4}, {"vocab_size": 8192, "d_model": 64}]
)
def test_first_loss_is_that_of_guessing(config_of, shape):
    """An untrained model that is worse than guessing wastes its first steps; one that is better has seen the answer."""
    config = config_of(**shape)
    assert loss_of(model_of(config), tokens(config)).item() == pytest.approx(math.log(config.vocab_size), rel=0.02)


def test_no_position_sees_the_ones_after_it(config_of):
    """A leak from the future gives a wonderful loss and a useless model."""
    config = config_of()
    model, token_BS = model_of(config), tokens(config, n_sequences=1)
    changed_BS = token_BS.clone()
    changed_BS[:, 9:] = (changed_BS[:, 9:] + 1) % config.vocab_size
    before, after = (model(t)[0] for t in (token_BS[:, :-1], changed_BS[:, :-1]))
    torch.testing.assert_close(before[:9], after[:9])
    assert not torch.allclose(before[9:], after[9:])


def test_attention_depends_on_distance_alone():
    """Rotary positions: shifting query and key together leaves their product as it is."""
    rotary = rotary_table(32, 8)
    q_P, k_P = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    q_SP, k_SP = (rotate(x_P.expand(32, 8), rotary) for x_P in (q_P, k_P))
    torch.testing.assert_close(q_SP[5] @ k_SP[2], q_SP[25] @ k_SP[22], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(q_SP[5] @ k_SP[2], q_SP[5] @ k_SP[4], rtol=1e-2, atol=1e-2)


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
            angle_SP = torch.arange(n_positions, dtype=torch.float64)[:, None] * frequency
            turned.append(
                torch.complex(y_SP[:, :half], y_SP[:, half:]) * torch.polar(torch.ones_like(angle_SP), angle_SP)
            )
        rows = []
        for s in range(n_positions):
            score = (turned[0][s] * turned[1][: s + 1].conj()).sum(-1).real / (2 * half) ** 0.5
            rows.append(score.softmax(0) @ v_SD[: s + 1, columns])
        heads.append(torch.stack(rows))
    return torch.cat(heads, dim=1) @ module.output_DD.T


def test_attention_equals_a_plain_computation_position_by_position(config_of):
    """A head cut the wrong way or a key that is not rotated still trains, only worse."""
    attention = model_of(config_of()).double().blocks[0].attention
    x_SD = torch.randn(7, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    fast = attention(x_SD[None], rotary_table(7, 16))[0]
    torch.testing.assert_close(fast, plain_attention(attention, x_SD), rtol=1e-5, atol=1e-5)


class Total(torch.nn.Module):
    """Cross-entropy plus balance loss of a model, so that functional_call can vary its parameters."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, token_BS):
        x_TD, load = self.model(token_BS[:, :-1])
        return cross_entropy(x_TD, self.model.output_VD, token_BS[:, 1:].flatten()) + load.balance


def test_whole_model_passes_gradcheck(config_of):
    """In float64 every gradient agrees with finite differences, through routing, experts, attention and loss."""
    config = config_of(d_model=4, n_heads=2, d_ff=3, n_layers=1, n_experts=3, vocab_size=257, sequence_length=4)
    total = Total(model_of(config, dtype=torch.float64).double())
    token_BS = tokens(config, n_sequences=2)
    # The embedding's 1028 numbers would take most of the time; what its gradient is made of is checked elsewhere.
    names = [name for name, _ in total.named_parameters() if not name.endswith("embedding_VD")]

    def function(*values):
        return torch.func.functional_call(total, dict(zip(names, values, strict=True)), (token_BS,))

    inputs = [total.get_parameter(name).detach().clone().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(function, inputs)


def test_weights_follow_from_the_seed_alone(config_of):
    """Two workers that replicate a trial must start from the same weights, whatever ran before."""
    first = model_of(config_of()).state_dict()
    torch.rand(3)
    again, other = model_of(config_of()).state_dict(), model_of(config_of(), seed=1).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["embedding_VD"], other["embedding_VD"])


def test_dropout_keeps_the_mean_and_drops_the_share():
    """Ones become 0 or 1 / (1 - p): a fifth of 100,000 is dropped within 5 standard deviations (630)."""
    dropped = Noise(0.2, torch.Generator().manual_seed(0))(torch.ones(100_000))
    assert abs((dropped == 0).sum().item() - 20_000) < 630
    torch.testing.assert_close(dropped[dropped > 0], torch.full((int((dropped > 0).sum()),), 1.25))


def test_bfloat16_stays_close_to_float32(config_of):
    """The precision must change the speed, not the answer."""
    config = config_of()
    token_BS = tokens(config)
    low, high = (loss_of(model_of(config, dtype=dtype), token_BS) for dtype in (torch.bfloat16, torch.float32))
    assert low.item() == pytest.approx(high.item(), rel=0.005)
