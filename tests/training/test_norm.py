import pytest
import torch
import torch.nn.functional as F

from hpopt.training.norm import norm


def inputs(scale=1.0):
    generator = torch.Generator().manual_seed(0)
    x = scale * torch.randn(3, 4, 6, dtype=torch.float64, generator=generator)
    return x.requires_grad_(), torch.randn(6, dtype=torch.float64, generator=generator).requires_grad_()


@pytest.mark.parametrize("scale", [1.0, 1e-4, 0.0])
def test_norm_equals_the_one_of_torch(scale):
    """Also near and at zero, where the epsilon is all there is to divide by."""
    x, gain_D = inputs(scale)
    torch.testing.assert_close(norm(x, gain_D), F.rms_norm(x, (6,), gain_D, 1e-6))
    torch.testing.assert_close(norm(x), F.rms_norm(x, (6,), None, 1e-6))


def test_gradient_of_the_norm_passes_gradcheck():
    """The backward pass is written by hand, for the hidden states and the gain alike."""
    assert torch.autograd.gradcheck(norm, inputs())
