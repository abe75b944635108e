"""The frozen table holds what analysis needs: every trial, how it ended, its curve and its last metrics."""

import math

import pytest

from hpopt.analysis.trials import CurvePoint, StudyTable
from hpopt.storage import attempts, evaluations, queries
from hpopt.storage.observations import ObservedTrials
from hpopt.training.run import Evaluation

LOSSES = ((2.0, 1.5), (3.0, math.nan), (4.0,), ())
ENDS = ("complete", "diverged", "pruned", "failed")


@pytest.fixture
def table(database, study) -> StudyTable:
    """Four trials, each with another end."""
    observed = ObservedTrials(database, study)
    for end, losses in zip(ENDS, LOSSES, strict=True):
        worker = attempts.register_worker(database, study, host="here", pid=1, device="cpu")
        attempt = attempts.reserve(database, study, worker)
        assert attempt is not None
        observed.refresh()
        params = observed.propose(study, attempt)
        attempts.start(database, study, attempt, params, seed=attempt.number, config={}, data_fingerprint=None)
        for place, loss in enumerate(losses, start=1):
            metrics = {"val_loss": loss, "accuracy": 1 / loss}
            told = Evaluation(step=10 * place, n_steps=90, tokens=100 * place, seconds=float(place), metrics=metrics)
            evaluations.record(database, study, attempt, told)
        attempts.finish(database, attempt, kind=end, value=losses[-1] if end == "complete" else None)
    return queries.read_table(database, study)


def test_the_table_says_how_each_trial_ended(table: StudyTable):
    assert [row.outcome for row in table.trials] == list(ENDS)


def test_the_curve_is_in_the_order_of_its_steps(table: StudyTable):
    assert table.trials[0].curve == (
        CurvePoint(step=10, tokens=100, seconds=1.0, value=2.0),
        CurvePoint(step=20, tokens=200, seconds=2.0, value=1.5),
    )
    assert table.trials[3].curve == ()


def test_the_metrics_are_those_of_the_last_evaluation(table: StudyTable):
    assert table.trials[0].metrics == {"val_loss": 1.5, "accuracy": 1 / 1.5}
    assert table.trials[3].metrics == {}


def test_a_metric_that_is_no_number_stays_one_that_is_no_number(table: StudyTable):
    """JSON has none, so the database keeps it as a string; as a string it would be no metric."""
    assert math.isnan(table.trials[1].metrics["val_loss"])
    assert math.isnan(table.trials[1].curve[-1].value or 0.0)


def test_the_default_configuration_is_marked(table: StudyTable):
    """Findings are told against what one would have run without a study."""
    assert [row.is_default for row in table.trials] == [True, False, False, False]


def test_the_table_knows_where_its_trials_were_compared(table: StudyTable):
    assert table.rungs.fractions == pytest.approx((1 / 9, 1 / 3))


def test_a_trial_that_runs_has_not_ended(database, study):
    worker = attempts.register_worker(database, study, host="here", pid=1, device="cpu")
    attempts.reserve(database, study, worker)
    assert [row.outcome for row in queries.read_table(database, study).trials if row.state == "RUNNING"] == [None]
