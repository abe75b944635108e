"""Trials without a final value are left out knowingly: how many, whether that is fair, and what is understated."""

from dataclasses import replace

import pytest

from hpopt.analysis.importance import measure_importance
from hpopt.analysis.sample import _places, assess_table, find_left_out, with_extrapolated
from hpopt.analysis.trials import CurvePoint, TrialRow


def prune(table, is_pruned):
    rows = [replace(row, state="PRUNED", outcome="pruned") if is_pruned(row) else row for row in table.trials]
    return replace(table, trials=tuple(rows))


@pytest.fixture
def table(sample_table):
    return sample_table(lambda p: p["ns_steps"], n_trials=60, noise=1.0)


def test_pruned_trials_from_one_region_make_the_rest_no_fair_sample(table):
    """What is bad about a low learning rate is gone from the complete trials."""
    left_out = find_left_out(prune(table, lambda row: row.params["learning_rate"] < 0.004), ())
    assert left_out.is_biased
    assert "learning_rate" in left_out.unlike
    assert "they differ from the others in learning_rate" in left_out.bias_sentence


def test_trials_pruned_at_random_leave_a_fair_sample(table):
    left_out = find_left_out(prune(table, lambda row: row.trial % 3 == 0), ())
    assert (left_out.n, left_out.is_biased) == (20, False)
    assert "by more than chance" in left_out.bias_sentence


def test_what_kills_trials_matters_even_if_the_survivors_do_not_show_it(sample_table):
    """All complete trials are alike; only who was pruned depends on the learning rate."""
    table = prune(sample_table(lambda _: 1.0, n_trials=60), lambda row: row.params["learning_rate"] < 0.004)
    assert assess_table(table, with_extrapolated(table))["learning_rate"] == pytest.approx(0.001)
    ped_anova, fanova = measure_importance(table)
    assert (ped_anova.n_left_out, fanova.n_left_out) == (0, len(table.pruned()))
    assert fanova.is_biased


def run(trial, state, value, step, outcome=None):
    curve = (CurvePoint(step=step, tokens=step, seconds=1.0, value=value),)
    return TrialRow(trial=trial, state=state, value=value, params={}, curve=curve, outcome=outcome)


@pytest.mark.parametrize(("direction", "sign"), [("minimize", 1), ("maximize", -1)])
def test_pruned_trials_rank_behind_complete_ones_by_how_far_they_came(make_table, direction, sign):
    """A value after a tenth of the steps is not to be compared with one at the end, nor that of a diverged trial."""
    rows = (
        run(0, "COMPLETE", sign * 3.0, 90),
        run(1, "COMPLETE", sign * 2.0, 90),
        run(2, "PRUNED", sign * 1.5, 10, "pruned"),
        run(3, "PRUNED", sign * 1.6, 30, "pruned"),
        run(4, "PRUNED", sign * 1.7, 30, "pruned"),
        run(5, "PRUNED", sign * 0.1, 80, "diverged"),
    )
    assert _places(make_table([], direction=direction), rows).tolist() == [1, 0, 4, 2, 3, 5]
