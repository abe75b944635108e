from collections.abc import Callable

import pytest

from hpopt.analysis.trials import StudyTable, TrialRow
from hpopt.reporting.sentences import tell_answer, tell_confidence, tell_cost
from hpopt.reporting.summary import summarize

MakeTable = Callable[..., StudyTable]
MakeTrial = Callable[..., TrialRow]


def confidence(table: StudyTable) -> str:
    return " ".join(tell_confidence(table, summarize(table)))


def test_the_answer_names_trial_value_and_counts(table: StudyTable):
    answer = tell_answer(table, summarize(table))
    assert answer == "Trial 27 reached the lowest val_loss, 3.234, among 40 trials (26 complete, 1 failed, 13 pruned)."


def test_single_runs_are_called_not_confirmed(table: StudyTable):
    """The winner of many noisy runs looks better than it is, and one run cannot show it."""
    assert confidence(table).startswith("Not confirmed: the best configuration ran once.")
    assert "(from the residuals of the surrogate, not from repeated runs)" in confidence(table)


def test_seeds_of_one_configuration_are_told_with_their_range(make_table: MakeTable, make_trial: MakeTrial):
    runs = [make_trial(i, value=3.0 + i / 10, params={"x": 1}, seed=i) for i in range(3)]
    table = make_table(*runs)
    assert confidence(table).startswith("Its params ran with 3 seeds: val_loss from 3 to 3.2, mean 3.1.")
    assert summarize(table).is_confirmed()


def test_runs_with_one_seed_are_no_replicates(make_table: MakeTable, make_trial: MakeTrial):
    """Three runs of one seed agree to the last digit and say nothing about noise."""
    table = make_table(*(make_trial(i, value=3.0, params={"x": 1}, seed=42) for i in range(3)))
    assert "3 times with only 1 different seed" in confidence(table)
    assert not summarize(table).is_confirmed()


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_the_distance_to_the_next_best_is_told(make_table: MakeTable, make_trial: MakeTrial, direction: str):
    sign = 1 if direction == "minimize" else -1
    rows = [make_trial(i, value=sign * value, params={"x": i}) for i, value in enumerate([3.0, 3.25, 4.0])]
    assert "(trial 1) is 0.25 behind" in confidence(make_table(*rows, direction=direction))


def test_savings_are_not_invented_without_a_complete_trial(make_table: MakeTable, make_trial: MakeTrial):
    table = make_table(make_trial(0, state="PRUNED"))
    assert "cannot be estimated" in " ".join(tell_cost(table, summarize(table).insights.cost))
