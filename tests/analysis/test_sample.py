"""Trials without a final value: how many are left out, and whether that biases the result."""

from dataclasses import replace

import pytest

from hpopt.analysis.importance import estimate_importance
from hpopt.analysis.sample import _ranks, assess_table, find_left_out, with_extrapolated
from hpopt.analysis.trials import CurvePoint, Outcome, TrialRow


def prune(table, is_pruned):
    rows = [replace(row, state="PRUNED", outcome=Outcome.PRUNED) if is_pruned(row) else row for row in table.trials]
    return replace(table, trials=tuple(rows))


@pytest.fixture
def table(sample_table):
    return sample_table(lambda p: p["ns_steps"], n_trials=60, noise=1.0)


def test_pruned_trials_from_one_region_bias_the_rest(table):
    """The effect of a low learning rate is missing from the complete trials."""
    left_out = find_left_out(prune(table, lambda row: row.params["learning_rate"] < 0.004), ())
    assert left_out.is_biased
    assert "learning_rate" in left_out.differ_in
    assert "they differ from the others in learning_rate" in left_out.bias_note


def test_trials_pruned_at_random_do_not_bias_the_rest(table):
    left_out = find_left_out(prune(table, lambda row: row.trial % 3 == 0), ())
    assert (left_out.n, left_out.is_biased) == (20, False)
    assert "no significant difference" in left_out.bias_note


def test_a_parameter_that_decides_which_trials_are_pruned_is_significant(sample_table):
    """All complete trials have the same expected value; only whether a trial is pruned depends on the learning rate."""
    table = prune(sample_table(lambda _: 1.0, n_trials=60), lambda row: row.params["learning_rate"] < 0.004)
    assert assess_table(table, with_extrapolated(table))["learning_rate"] == pytest.approx(0.001)
    ped_anova, fanova = estimate_importance(table)
    assert (ped_anova.n_left_out, fanova.n_left_out) == (0, len(table.pruned()))
    assert fanova.is_biased


def run(trial, state, value, step, outcome=None):
    curve = (CurvePoint(step=step, tokens=step, seconds=1.0, value=value),)
    return TrialRow(trial=trial, state=state, value=value, params={}, curve=curve, outcome=outcome)


@pytest.mark.parametrize(("direction", "sign"), [("minimize", 1), ("maximize", -1)])
def test_pruned_trials_rank_behind_complete_ones_by_their_last_step(make_table, direction, sign):
    """A value after a tenth of the steps cannot be compared with a final one, nor that of a diverged trial."""
    rows = (
        run(0, "COMPLETE", sign * 3.0, 90),
        run(1, "COMPLETE", sign * 2.0, 90),
        run(2, "PRUNED", sign * 1.5, 10, Outcome.PRUNED),
        run(3, "PRUNED", sign * 1.6, 30, Outcome.PRUNED),
        run(4, "PRUNED", sign * 1.7, 30, Outcome.PRUNED),
        run(5, "PRUNED", sign * 0.1, 80, Outcome.DIVERGED),
    )
    assert _ranks(make_table([], direction=direction), rows).tolist() == [1, 0, 4, 2, 3, 5]
