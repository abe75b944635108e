"""Trials are compared where they come to the same fraction of their schedules, once, and only with each other."""

import pytest

from hpopt.search.pruner import build_rungs

ASHA = build_rungs("asha", min_fraction=1 / 9, reduction_factor=3)


def test_rungs_are_the_same_fractions_of_short_and_long_schedules():
    for n_steps in (9, 90, 100, 1_000_003):
        first, second = (round(n_steps / 9), round(n_steps / 3))
        assert ASHA.reached(first, n_steps, 0) == ASHA.fractions[0]
        assert ASHA.reached(second, n_steps, first) == ASHA.fractions[1]
    assert ASHA.fractions == pytest.approx((1 / 9, 1 / 3))


def test_an_evaluation_between_rungs_reaches_none_and_the_end_is_no_rung():
    assert ASHA.reached(20, 90, 10) is None
    assert ASHA.reached(90, 90, 80) is None


def test_one_value_counts_at_one_rung_only():
    """An evaluation that comes late would else be compared with what others had much earlier."""
    assert ASHA.reached(50, 90, 0) == ASHA.fractions[1]
    assert ASHA.reached(60, 90, 50) is None


@pytest.mark.parametrize(("n", "n_better", "hopeless"), [(1, 0, False), (2, 1, True), (6, 1, False), (6, 2, True)])
def test_the_best_third_goes_on_and_always_the_best(n, n_better, hopeless):
    assert ASHA.should_prune(n=n, n_better=n_better) is hopeless


def test_the_median_compares_every_evaluation_once_there_are_enough():
    median = build_rungs("median", min_fraction=1 / 9, reduction_factor=3)
    assert median.reached(5, 90, 0) is None
    assert [median.reached(step, 90, step - 10) for step in (10, 20)] == [0.111111, 0.222222]
    assert not median.should_prune(n=4, n_better=3)
    assert median.should_prune(n=6, n_better=3)


def test_without_a_pruner_there_are_no_rungs():
    assert build_rungs("none", min_fraction=1 / 9, reduction_factor=3).reached(30, 90, 0) is None
