"""Extrapolation of pruned trials from the complete ones."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import linregress

from hpopt.analysis.extrapolation import MIN_FOR_A_LINE, extrapolate_finals
from hpopt.analysis.trials import CurvePoint, Outcome, TrialRow

EARLY = [5.0, 5.2, 5.1, 5.6, 5.3, 5.5]
FINAL = [3.9, 4.0, 4.1, 4.4, 4.0, 4.3]


def run(number: int, early: float, final: float | None) -> TrialRow:
    """A trial of 20 steps, stopped at step 10 where it has no final value."""
    points = [(10, early)] if final is None else [(10, early), (20, final)]
    curve = tuple(CurvePoint(step=step, tokens=step, seconds=step, value=value) for step, value in points)
    is_complete = final is not None
    return TrialRow(
        trial=number,
        state="COMPLETE" if is_complete else "PRUNED",
        outcome=Outcome.COMPLETE if is_complete else Outcome.PRUNED,
        value=curve[-1].value,
        params={"learning_rate": 0.01},
        seed=number,
        curve=curve,
    )


def complete() -> list[TrialRow]:
    return [run(i, early, final) for i, (early, final) in enumerate(zip(EARLY, FINAL, strict=True))]


@pytest.mark.parametrize("stopped_at", [5.3, 6.5])
def test_the_value_is_that_of_the_least_squares_line_with_the_error_of_one_prediction(make_table, stopped_at: float):
    """Reference: scipy's line, and the textbook formula of the standard error of a single prediction."""
    extrapolated = extrapolate_finals(make_table([*complete(), run(9, stopped_at, None)]))[9]
    line, n = linregress(EARLY, FINAL), len(EARLY)
    assert extrapolated.value == pytest.approx(line.intercept + line.slope * stopped_at)
    residuals = np.array(FINAL) - line.intercept - line.slope * np.array(EARLY)
    size = ((np.array(EARLY) - np.mean(EARLY)) ** 2).sum()
    variance = (residuals**2).sum() / (n - 2) * (1 + 1 / n + (stopped_at - np.mean(EARLY)) ** 2 / size)
    assert extrapolated.std == pytest.approx(math.sqrt(variance))


@pytest.mark.parametrize("spike", [10.0, 50.0])
def test_a_loss_spike_of_one_trial_does_not_turn_the_line(make_table, spike: float):
    """Least squares alone would pull all extrapolated values towards it."""
    stopped = run(9, 5.3, None)
    usual = extrapolate_finals(make_table([*complete(), stopped]))[9]
    spiked = run(8, spike, 3.8)
    assert extrapolate_finals(make_table([*complete(), spiked, stopped]))[9] == usual


def test_an_extrapolated_value_is_never_certain(make_table):
    rows = [run(i, 5 + i / 10, 4 + i / 10) for i in range(6)]
    assert extrapolate_finals(make_table([*rows, run(9, 5.3, None)]))[9].std > 0


def test_nothing_is_extrapolated_from_few_complete_trials(make_table):
    assert extrapolate_finals(make_table([*complete()[: MIN_FOR_A_LINE - 1], run(9, 5.3, None)])) == {}


def test_where_a_better_start_does_not_end_better_nothing_is_extrapolated(make_table):
    """A falling line would rank the worst trials best."""
    against = [run(i, early, final) for i, (early, final) in enumerate(zip(EARLY, FINAL[::-1], strict=True))]
    falling = [
        replace(row, curve=(row.curve[0], replace(row.curve[1], value=10 - row.curve[0].value))) for row in against
    ]
    falling = [replace(row, value=row.curve[1].value) for row in falling]
    assert extrapolate_finals(make_table([*falling, run(9, 5.3, None)])) == {}


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_a_trial_that_diverged_or_has_no_value_is_not_extrapolated(make_table, value: float | None):
    not_finite = replace(run(9, 5.3, None), curve=(CurvePoint(step=10, tokens=10, seconds=1, value=value),))
    diverged = replace(run(10, 5.3, None), outcome=Outcome.DIVERGED)
    assert extrapolate_finals(make_table([*complete(), not_finite, diverged])) == {}


def test_nothing_is_extrapolated_from_a_step_at_which_no_other_trial_was_evaluated(make_table):
    other_step = replace(run(9, 5.3, None), curve=(CurvePoint(step=7, tokens=7, seconds=1, value=5.3),))
    assert extrapolate_finals(make_table([*complete(), other_step])) == {}
