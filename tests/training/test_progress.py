import math

import pytest

from hpopt.errors import Diverged
from hpopt.training.progress import Progress

STEP = {"gradient_norm": 1.0, "tokens": 64, "seconds": 0.5}


def record(losses):
    """Record a step for each training loss."""
    progress = Progress()
    for loss in losses:
        progress.record_step(loss=loss, **STEP)
    return progress


@pytest.mark.parametrize(
    ("losses", "reason"),
    [
        ([7.0, 8.0, math.nan], "training loss is nan at step 3; it started at 7.000"),
        ([7.0, math.inf], "training loss is inf at step 2; it started at 7.000"),
        ([math.nan], "training loss is nan at step 1"),
        ([7.0] + [10.1] * 10, "training loss is 10.100 over the 10 steps to 11; it started at 7.000"),
    ],
)
def test_divergence_is_reported_with_the_value_and_the_step(losses, reason):
    """The reason is stored with the trial and must be clear without a log."""
    with pytest.raises(Diverged, match=reason):
        record(losses)


def test_a_gradient_that_is_not_finite_is_divergence():
    """The loss shows it one step later, and after the last step not at all."""
    with pytest.raises(Diverged, match=r"gradient norm is inf at step 2, at loss 6\.900; it started at 7\.000"):
        record([7.0]).record_step(loss=6.9, **{**STEP, "gradient_norm": math.inf})


@pytest.mark.parametrize("losses", [[7.0] + [9.9] * 20, [7.0] + [12.0] * 8, [7.0] * 9 + [30.0] + [7.0] * 9])
def test_a_spike_or_a_slow_start_is_not_divergence(losses):
    """A loss that rises for a few steps and recovers is normal at a high learning rate."""
    record(losses)


def test_window_metrics_cover_the_steps_since_the_last_evaluation():
    """An average over the whole run would hide a loss that has begun to rise."""
    progress = record([7.0, 5.0])
    assert progress.close_window()["train_loss"] == 6.0
    progress.record_step(loss=4.0, gradient_norm=1.0, tokens=64, seconds=0.25)
    metrics = progress.close_window()
    assert metrics["train_loss"] == 4.0
    assert metrics["tokens_per_second"] == 256
    assert (progress.tokens, progress.seconds) == (192, 1.25)
