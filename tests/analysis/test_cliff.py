import random
from dataclasses import replace

import pytest

from hpopt.analysis.cliff import find_divergence
from hpopt.analysis.trials import Outcome


def with_divergence(sample_table, diverges, n_trials=60):
    table = sample_table(lambda _: 1.0, n_trials=n_trials)
    rows = [replace(row, state="PRUNED", outcome=Outcome.DIVERGED) if diverges(row) else row for row in table.trials]
    return replace(table, trials=tuple(rows))


def test_the_value_beyond_which_runs_diverge_is_found(sample_table):
    table = with_divergence(sample_table, lambda row: row.params["learning_rate"] > 0.03)
    divergence = find_divergence(table)
    (cliff,) = divergence.cliffs
    assert (cliff.name, cliff.side) == ("learning_rate", "high")
    assert cliff.threshold == pytest.approx(0.03, rel=0.15)
    assert cliff.low <= 0.03 <= cliff.high
    assert divergence.share == pytest.approx(sum(row.params["learning_rate"] > 0.03 for row in table.trials) / 60)


def test_a_cliff_may_be_at_the_low_end(sample_table):
    table = with_divergence(sample_table, lambda row: row.params["ns_steps"] < 3)
    (cliff,) = find_divergence(table).cliffs
    assert (cliff.name, cliff.side) == ("ns_steps", "low")
    assert (cliff.low, cliff.high) == (2, 3)


def test_a_blurred_cliff_has_a_wider_interval(sample_table):
    """One in seven diverges below the threshold and six in seven above it."""
    sharp = with_divergence(sample_table, lambda row: row.params["learning_rate"] > 0.01)
    blurred = with_divergence(
        sample_table,
        lambda row: (row.params["learning_rate"] > 0.01) == (random.Random(row.trial).random() < 0.85),  # noqa: S311 - no secret.
    )
    (narrow,), (wide,) = find_divergence(sharp).cliffs, find_divergence(blurred).cliffs
    assert wide.low < 0.01 < wide.high
    assert wide.high / wide.low > 1.2 * narrow.high / narrow.low


def test_levels_that_diverge_are_named(sample_table):
    table = with_divergence(sample_table, lambda row: row.params["optimizer"] == "sgd")
    (cliff,) = find_divergence(table).cliffs
    assert (cliff.side, cliff.threshold, cliff.levels) == (None, None, ("sgd",))


def test_random_divergence_has_no_cliff(sample_table):
    divergence = find_divergence(with_divergence(sample_table, lambda row: row.trial % 7 == 0))
    assert divergence.cliffs == ()
    assert divergence.n_diverged == 9


def test_two_diverged_trials_show_no_region(sample_table):
    table = with_divergence(sample_table, lambda row: row.trial < 2)
    assert find_divergence(table).reason == "not enough data: 3 diverged trials and as many others are needed"
