import pytest

from hpopt.analysis.budget import measure_budget
from hpopt.analysis.schedule import points_at
from hpopt.analysis.trials import CurvePoint, TrialRow


def run(trial, steps, state="COMPLETE"):
    curve = tuple(CurvePoint(step=step, tokens=step, seconds=1.0, value=1.0 / step) for step in steps)
    return TrialRow(trial=trial, state=state, value=1.0, params={}, curve=curve)


def test_trials_are_compared_at_the_first_evaluation_of_a_fraction(make_table):
    """A third of 90 steps is step 30; whoever is evaluated at 40 next is compared there."""
    table = make_table([run(0, [10, 30, 90]), run(1, [20, 40, 90])])
    assert {trial: point.step for trial, point in points_at(table, 1 / 3).items()} == {0: 30, 1: 40}


def test_an_evaluation_that_comes_much_later_is_of_another_budget(make_table):
    assert set(points_at(make_table([run(0, [10, 90]), run(1, [10, 30, 90])]), 1 / 9)) == {0, 1}
    assert set(points_at(make_table([run(0, [60, 90]), run(1, [10, 30, 90])]), 1 / 3)) == {1}


def test_a_pruned_trial_counts_as_far_as_it_came(make_table):
    """Whole trials all have 90 steps, so that one that was stopped would have had as many."""
    table = make_table([run(0, [10, 30, 90]), run(1, [10], "PRUNED")])
    assert set(points_at(table, 1 / 9)) == {0, 1}
    assert set(points_at(table, 1 / 3)) == {0}


def test_where_schedules_differ_nobody_knows_how_far_a_pruned_trial_was(make_table):
    table = make_table([run(0, [10, 30, 90]), run(1, [20, 60, 180]), run(2, [20], "PRUNED")])
    assert set(points_at(table, 1 / 9)) == {0, 1}


def test_too_few_trials_give_a_reason(make_table):
    budget = measure_budget(make_table([run(0, [10, 30, 90])]), None)
    assert budget.parameters == ()
    assert budget.reason is not None
    assert budget.reason.startswith("not enough data: 10 trials are needed at two budgets")
    assert budget.reason.endswith("there are 1 at 11%, 1 at 33%, 1 at 100%")


def test_a_trial_without_a_curve_is_no_obstacle(make_table):
    assert points_at(make_table([TrialRow(trial=0, state="COMPLETE", value=1.0, params={})]), 1 / 3) == {}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_a_value_that_is_no_number_is_not_compared(make_table, value):
    curve = (
        CurvePoint(step=30, tokens=1, seconds=1.0, value=value),
        CurvePoint(step=90, tokens=1, seconds=1.0, value=1.0),
    )
    row = TrialRow(trial=0, state="COMPLETE", value=1.0, params={}, curve=curve)
    assert points_at(make_table([row]), 1 / 3) == {}
