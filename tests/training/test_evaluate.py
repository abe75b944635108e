import math

import numpy as np
import pytest
import torch

from hpopt.training.evaluate import evaluate, expert_load_cv
from hpopt.training.model import Transformer


@pytest.fixture
def model(config_of):
    return Transformer(config_of(), torch.Generator().manual_seed(0))


@pytest.fixture
def windows():
    return np.random.default_rng(0).integers(300, size=(7, 17))


def test_metrics_agree_with_a_plain_computation(model, windows):
    """Against torch's own cross-entropy on the full logits; each token represents two bytes."""
    measured = evaluate(model, windows, np.full(300, 2), batch_size=7)
    token_BS = torch.from_numpy(windows)
    logits = model(token_BS[:, :-1])[0] @ model.output_VD.T
    targets = token_BS[:, 1:].flatten()
    loss = torch.nn.functional.cross_entropy(logits, targets).item()
    assert measured["loss"] == pytest.approx(loss, rel=1e-5)
    assert measured["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    assert measured["bits_per_byte"] == pytest.approx(loss / math.log(2) / 2, rel=1e-5)
    assert measured["accuracy"] == pytest.approx((logits.argmax(-1) == targets).double().mean().item())


def test_metrics_do_not_depend_on_the_batch_size(model, windows):
    """The last batch is smaller; an average over batches would give its tokens more weight."""
    whole, parts = (evaluate(model, windows, np.ones(300, dtype=np.int64), batch_size=n) for n in (7, 3))
    assert parts == pytest.approx(whole, rel=1e-5)


def test_expert_load_cv_agrees_with_the_formula_worked_out():
    """Even load: 0. All to one of four: mean 1, deviations 3, -1, -1, -1, so sqrt(12 / 4) = 1.732."""
    assert expert_load_cv(torch.tensor([[5, 5, 5, 5]])) == 0
    assert expert_load_cv(torch.tensor([[4, 0, 0, 0], [1, 1, 1, 1]])) == pytest.approx(math.sqrt(3) / 2)
