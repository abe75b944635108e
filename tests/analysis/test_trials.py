import math

import pytest

from hpopt.analysis.trials import StudyTable, TrialRow
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


@pytest.mark.parametrize(("direction", "best"), [("minimize", 1), ("maximize", 2)])
def test_the_best_follows_the_direction(direction: str, best: int):
    found = table(row(0, 2.0), row(1, 1.0), row(2, 3.0), direction=direction).best()
    assert found is not None
    assert found.trial == best


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
def test_a_value_that_is_no_number_is_never_the_best(value: float | None, direction: str):
    """A NaN compares as false with everything, so a careless minimum returns whichever came first."""
    found = table(row(0, value), row(1, 5.0), row(2, value), direction=direction).best()
    assert found is not None
    assert found.trial == 1


def test_a_pruned_trial_is_never_the_best():
    """Its last value was measured after fewer steps, or under a constraint that it broke."""
    found = table(row(0, 1.0, "PRUNED"), row(1, 5.0)).best()
    assert found is not None
    assert found.trial == 1


def test_without_a_complete_trial_there_is_no_best():
    assert table(row(0, 1.0, "PRUNED"), row(1, None, "RUNNING")).best() is None


def test_trials_with_equal_params_are_replicates_whatever_the_order_of_their_names():
    rows = (
        TrialRow(trial=0, state="COMPLETE", value=2.0, params={"a": 1, "b": 2}),
        TrialRow(trial=1, state="COMPLETE", value=1.0, params={"b": 2, "a": 1}),
        TrialRow(trial=2, state="COMPLETE", value=1.5, params={"a": 2, "b": 2}),
    )
    assert [[each.trial for each in group] for group in table(*rows).replicates().values()] == [[1, 0], [2]]
