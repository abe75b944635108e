import math

import pytest

from hpopt.analysis.trials import CurvePoint, StudyTable, TrialRow, evaluations_at
from hpopt.search.direction import Direction


def row(trial: int, value: float | None, state: str = "COMPLETE", **params: float) -> TrialRow:
    return TrialRow(trial=trial, state=state, value=value, params=params)  # type: ignore[arg-type]


def table(*rows: TrialRow, direction: str = "minimize") -> StudyTable:
    return StudyTable(
        name="s",
        metric="loss",
        direction=Direction(direction),
        objective="pretrain",
        file_text="",
        search_space={},
        trials=rows,
    )


def number_of(best: TrialRow | None) -> int:
    assert best is not None
    return best.trial


@pytest.mark.parametrize(("direction", "best"), [("minimize", 1), ("maximize", 2)])
def test_the_best_follows_the_direction(direction: str, best: int):
    assert number_of(table(row(0, 2.0), row(1, 1.0), row(2, 3.0), direction=direction).best()) == best


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
def test_a_value_that_is_not_finite_is_never_the_best(value: float | None, direction: str):
    """NaN compares as false with everything, so that min() may return it."""
    assert number_of(table(row(0, value), row(1, 5.0), row(2, value), direction=direction).best()) == 1


def test_a_pruned_trial_is_never_the_best():
    """Its last value was measured after fewer steps, or under a constraint that it broke."""
    assert number_of(table(row(0, 1.0, "PRUNED"), row(1, 5.0)).best()) == 1


def test_without_a_complete_trial_there_is_no_best():
    assert table(row(0, 1.0, "PRUNED"), row(1, None, "RUNNING")).best() is None


def test_trials_with_equal_params_are_replicates_whatever_the_order_of_their_names():
    rows = (
        TrialRow(trial=0, state="COMPLETE", value=2.0, params={"a": 1, "b": 2}),
        TrialRow(trial=1, state="COMPLETE", value=1.0, params={"b": 2, "a": 1}),
        TrialRow(trial=2, state="COMPLETE", value=1.5, params={"a": 2, "b": 2}),
    )
    assert [[trial.trial for trial in group] for group in table(*rows).replicates().values()] == [[1, 0], [2]]


def run(trial: int, steps: list[int], state: str = "COMPLETE") -> TrialRow:
    """A trial that was evaluated at these steps."""
    curve = tuple(CurvePoint(step=step, tokens=step, seconds=1.0, value=1.0 / step) for step in steps)
    return TrialRow(trial=trial, state=state, value=1.0, params={}, curve=curve)  # type: ignore[arg-type]


def test_trials_are_compared_at_the_first_evaluation_of_a_fraction():
    """A third of 90 steps is step 30; a trial that is next evaluated at 40 is compared there."""
    points = evaluations_at(table(run(0, [10, 30, 90]), run(1, [20, 40, 90])), 1 / 3)
    assert {trial: point.step for trial, point in points.items()} == {0: 30, 1: 40}


def test_an_evaluation_that_comes_much_later_belongs_to_another_budget():
    assert set(evaluations_at(table(run(0, [10, 90]), run(1, [10, 30, 90])), 1 / 9)) == {0, 1}
    assert set(evaluations_at(table(run(0, [60, 90]), run(1, [10, 30, 90])), 1 / 3)) == {1}


def test_a_pruned_trial_counts_up_to_where_it_was_stopped():
    """All complete trials have 90 steps, so the pruned one would have had as many."""
    study = table(run(0, [10, 30, 90]), run(1, [10], "PRUNED"))
    assert set(evaluations_at(study, 1 / 9)) == {0, 1}
    assert set(evaluations_at(study, 1 / 3)) == {0}


def test_a_pruned_trial_is_not_compared_where_the_lengths_of_schedules_differ():
    study = table(run(0, [10, 30, 90]), run(1, [20, 60, 180]), run(2, [20], "PRUNED"))
    assert set(evaluations_at(study, 1 / 9)) == {0, 1}


def test_a_trial_without_a_curve_is_skipped():
    assert evaluations_at(table(row(0, 1.0)), 1 / 3) == {}


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_a_value_that_is_not_finite_is_not_compared(value: float | None):
    curve = (
        CurvePoint(step=30, tokens=1, seconds=1.0, value=value),
        CurvePoint(step=90, tokens=1, seconds=1.0, value=1.0),
    )
    study = table(TrialRow(trial=0, state="COMPLETE", value=1.0, params={}, curve=curve))
    assert evaluations_at(study, 1 / 3) == {}
