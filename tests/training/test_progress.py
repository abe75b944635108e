import math

import pytest

from hpopt.errors import Diverged
from hpopt.training.progress import Progress

STEP = {"gradient_norm": 1.0, "tokens": 64, "seconds": 0.5}


def run(losses):
    """Record a step for each training loss."""
    progress = Progress()
    for loss in losses:
        progress.advance(loss=loss, **STEP)
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
def test_diverged_says_which_figure_at_which_step(losses, reason):
    """Whoever reads the study must see why a trial ended without opening a log."""
    with pytest.raises(Diverged, match=reason):
        run(losses)


def test_a_gradient_that_is_not_finite_is_divergence():
    """The loss shows it one step later; after the last step it never would."""
    with pytest.raises(Diverged, match=r"gradient norm is inf at step 2, at loss 6\.900; it started at 7\.000"):
        run([7.0]).advance(loss=6.9, **{**STEP, "gradient_norm": math.inf})


@pytest.mark.parametrize("losses", [[7.0] + [9.9] * 20, [7.0] + [12.0] * 8, [7.0] * 9 + [30.0] + [7.0] * 9])
def test_a_spike_or_a_slow_start_is_no_divergence(losses):
    """A loss that jumps once and comes back belongs to training at a high learning rate."""
    run(losses)


def test_a_window_covers_the_steps_since_the_last_one():
    """An average over the whole run would flatter a loss that has begun to rise."""
    progress = run([7.0, 5.0])
    assert progress.close_window()["train_loss"] == 6.0
    progress.advance(loss=4.0, gradient_norm=1.0, tokens=64, seconds=0.25)
    closed = progress.close_window()
    assert closed["train_loss"] == 4.0
    assert closed["tokens_per_second"] == 256
    assert (progress.tokens, progress.seconds) == (192, 1.25)
