import pytest
import torch
import torch.nn.functional as F

from hpopt.training import loss as loss_module
from hpopt.training.loss import cross_entropy, token_losses


@pytest.fixture
def _chunks_of_three(monkeypatch):
    """Divide 7 tokens of a vocabulary of 11 into three chunks, of 3, 3 and 1."""
    monkeypatch.setitem(loss_module._CHUNK_LOGITS, "cpu", 3 * 11)


def draw_inputs(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x_TD = torch.randn(7, 5, dtype=dtype, generator=generator, requires_grad=True)
    weight_VD = torch.randn(11, 5, dtype=dtype, generator=generator, requires_grad=True)
    return x_TD, weight_VD, torch.randint(11, (7,), generator=generator)


@pytest.mark.usefixtures("_chunks_of_three")
def test_chunked_cross_entropy_equals_the_one_of_torch():
    """Chunks save memory; they must not change the value."""
    x_TD, weight_VD, target_T = draw_inputs()
    expected = F.cross_entropy(x_TD @ weight_VD.T, target_T)
    torch.testing.assert_close(cross_entropy(x_TD, weight_VD, target_T), expected)


@pytest.mark.usefixtures("_chunks_of_three")
def test_gradient_of_the_cross_entropy_passes_gradcheck():
    """The gradient is our own code, for hidden states and output matrix alike."""
    x_TD, weight_VD, target_T = draw_inputs()
    assert torch.autograd.gradcheck(lambda x, w: 3 * cross_entropy(x, w, target_T), (x_TD, weight_VD))


@pytest.mark.usefixtures("_chunks_of_three")
def test_token_losses_average_to_the_cross_entropy():
    """Validation and training loss must be the same quantity to be compared."""
    x_TD, weight_VD, target_T = draw_inputs()
    loss_T, correct_T = token_losses(x_TD, weight_VD, target_T)
    torch.testing.assert_close(loss_T.mean(), cross_entropy(x_TD, weight_VD, target_T).detach())
    assert correct_T.tolist() == ((x_TD @ weight_VD.T).argmax(-1) == target_T).tolist()


def test_cross_entropy_in_bfloat16_stays_close_to_float32():
    """A sum over the vocabulary in bfloat16 would lose its small terms; the softmax is always in float32."""
    x_TD, weight_VD, target_T = draw_inputs(torch.float32)
    low = cross_entropy(x_TD.bfloat16(), weight_VD.bfloat16(), target_T)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, cross_entropy(x_TD, weight_VD, target_T), rtol=0.01, atol=0.01)
