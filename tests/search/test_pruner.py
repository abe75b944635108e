"""Trials are compared at the same fractions of their schedules."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpopt.search.pruner import build_rungs

ASHA = build_rungs("asha", min_fraction=1 / 9, reduction_factor=3)
MEDIAN = build_rungs("median", min_fraction=1 / 9, reduction_factor=3)
NONE = build_rungs("none", min_fraction=1 / 9, reduction_factor=3)


@pytest.mark.parametrize("n_steps", [5, 9, 90, 100, 1_000_003])
def test_rungs_are_the_same_fractions_of_short_and_long_schedules(n_steps):
    first, second = (round(n_steps / 9), round(n_steps / 3))
    assert ASHA.reached(first, n_steps) == ASHA.fractions[0]
    assert ASHA.reached(second, n_steps) == ASHA.fractions[1]
    assert ASHA.fractions == pytest.approx((1 / 9, 1 / 3))


def test_the_rung_of_a_step_is_the_last_one_at_or_before_it():
    assert ASHA.reached(9, 90) is None
    assert {ASHA.reached(step, 90) for step in range(10, 30)} == {ASHA.fractions[0]}
    assert {ASHA.reached(step, 90) for step in range(30, 90)} == {ASHA.fractions[1]}


@pytest.mark.parametrize("rungs", [ASHA, MEDIAN])
def test_the_end_of_the_schedule_is_not_a_rung(rungs):
    assert rungs.reached(89, 90) is not None
    assert rungs.reached(90, 90) is None


@pytest.mark.parametrize(
    ("min_fraction", "reduction_factor", "fractions"),
    [(0.1, 2, (0.1, 0.2, 0.4, 0.8)), (0.25, 4, (0.25,)), (1.0, 3, ())],
)
def test_each_rung_is_the_one_before_it_times_the_reduction_factor(min_fraction, reduction_factor, fractions):
    rungs = build_rungs("asha", min_fraction=min_fraction, reduction_factor=reduction_factor)
    assert rungs.fractions == pytest.approx(fractions)
    assert rungs.share == pytest.approx(1 / reduction_factor)


@pytest.mark.parametrize(
    ("n_trials", "n_better", "should_prune"), [(1, 0, False), (2, 1, True), (6, 1, False), (6, 2, True), (2, 0, False)]
)
def test_the_best_third_continues_and_always_the_best_trial(n_trials, n_better, should_prune):
    assert ASHA.should_prune(n_trials=n_trials, n_better=n_better) is should_prune


@pytest.mark.parametrize("factor", [2, 3, 49])
def test_exactly_one_in_reduction_factor_trials_continues(factor):
    """In binary arithmetic 49 * (1 / 49) is below 1, and the best 2 of 98 trials would be 1."""
    rungs = build_rungs("asha", min_fraction=0.01, reduction_factor=factor)
    for n_trials in range(2, 200):
        continuing = [n for n in range(n_trials) if not rungs.should_prune(n_trials=n_trials, n_better=n)]
        assert len(continuing) == max(1, math.floor(n_trials / factor))


def test_the_median_pruner_compares_at_every_evaluation_from_five_trials_on():
    assert MEDIAN.reached(5, 90) is None
    assert [MEDIAN.reached(step, 90) for step in (10, 20)] == [0.111111, 0.222222]
    assert not MEDIAN.should_prune(n_trials=4, n_better=3)
    assert MEDIAN.should_prune(n_trials=5, n_better=2)
    assert MEDIAN.should_prune(n_trials=6, n_better=3)
    assert not MEDIAN.should_prune(n_trials=6, n_better=2)


@pytest.mark.parametrize(
    ("warmup", "fractions"), [(0.1, (1 / 9, 1 / 3)), (0.2, (1 / 3,)), (1 / 3, (1 / 3,)), (0.5, (0.75,)), (1.0, (1.0,))]
)
def test_rungs_within_the_longest_warmup_are_left_out(warmup, fractions):
    rungs = build_rungs("asha", min_fraction=1 / 9, reduction_factor=3, warmup_fraction=warmup)
    assert rungs.fractions == pytest.approx(fractions)
    median = build_rungs("median", min_fraction=1 / 9, reduction_factor=3, warmup_fraction=warmup)
    assert median.at_every_evaluation_from == max(1 / 9, warmup)


@pytest.mark.parametrize(("warmup", "asha", "median"), [(0, [10, 30], [10]), (20, [30], [20]), (31, [], [31])])
def test_no_trials_are_compared_in_the_steps_of_the_longest_warmup(warmup, asha, median):
    for name, steps in (("asha", asha), ("median", median)):
        rungs = build_rungs(name, min_fraction=1 / 9, reduction_factor=3, warmup_steps=warmup)
        assert rungs.place(90) == steps
        compared = [step for step in range(90) if rungs.reached(step, 90) is not None]
        assert compared[:1] == steps[:1]


def test_without_a_pruner_there_are_no_rungs():
    assert NONE.reached(30, 90) is None


@given(
    name=st.sampled_from(["asha", "median"]),
    min_fraction=st.sampled_from([0.01, 1 / 9, 0.125, 0.3, 0.5]),
    reduction_factor=st.integers(2, 4),
    n_steps=st.integers(1, 40),
    warmup_steps=st.integers(0, 40),
)
def test_the_steps_of_the_rungs_are_the_first_that_are_compared_there(name, n_steps, **options):
    rungs = build_rungs(name, **options)
    reached = [rungs.reached(step, n_steps) for step in range(1, n_steps)]
    first = [step for step, rung in enumerate(reached, 1) if rung is not None and rung not in reached[: step - 1]]
    placed = [step for step in dict.fromkeys(rungs.place(n_steps)) if step < n_steps]
    assert placed == (first if name == "asha" else first[:1])
