import pytest

from hpopt.training.schedule import lr_multiplier


def course(kind, n_steps=10, warmup_ratio=0.2, min_lr_ratio=0.0):
    return [
        lr_multiplier(step, n_steps, kind=kind, warmup_ratio=warmup_ratio, min_lr_ratio=min_lr_ratio)
        for step in range(n_steps)
    ]


def test_warmup_climbs_linearly_and_reaches_the_peak_after_its_last_step():
    """Two steps of warmup of ten: a third, two thirds, then 1. A first step at 0 would be a step wasted."""
    assert course("constant")[:4] == pytest.approx([1 / 3, 2 / 3, 1, 1])


def test_cosine_is_half_way_down_in_the_middle():
    """(1 + cos(pi p)) / 2 at p = 0, 1/4, 1/2, 3/4 is 1, 0.853553, 0.5, 0.146447."""
    assert course("cosine", n_steps=4, warmup_ratio=0) == pytest.approx([1, 0.853553, 0.5, 0.146447], abs=1e-6)


def test_linear_falls_evenly_to_the_floor():
    """From 1 towards 0.2 in four steps: a fifth less each."""
    assert course("linear", n_steps=4, warmup_ratio=0, min_lr_ratio=0.2) == pytest.approx([1, 0.8, 0.6, 0.4])


def test_wsd_is_flat_and_decays_over_the_last_fifth():
    assert course("wsd") == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1, 1, 0.5])


@pytest.mark.parametrize("kind", ["cosine", "linear", "wsd"])
def test_the_last_step_is_near_the_floor_however_many_micro_steps_there_are(kind):
    """The horizon counts optimizer steps. Counted in micro-steps the learning rate once ended near 90% of its peak."""
    assert course(kind, n_steps=250, warmup_ratio=0.05)[-1] < 0.03


def test_whole_run_of_warmup_never_decays():
    """warmup_ratio = 1 is allowed and must not divide by zero."""
    assert course("cosine", n_steps=3, warmup_ratio=1) == pytest.approx([0.25, 0.5, 0.75])


def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="'step' is not cosine, linear, wsd or constant"):
        course("step")
