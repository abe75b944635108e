"""The table for analysis has every trial with its outcome, curve and metrics; progress has where a study stands."""

import math
import warnings

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from hpopt.analysis.trials import CurvePoint, Outcome, StudyTable
from hpopt.errors import InputError, NoAnswerError
from hpopt.search.direction import Direction
from hpopt.storage import queries, studies
from hpopt.study.reading import parse_study_file

LOSSES = ((2.0, 1.5), (3.0, math.nan), (4.0,), ())
OUTCOMES = ("complete", "diverged", "pruned", "failed")


@pytest.fixture
def table(fleet) -> StudyTable:
    """Four trials, each with another outcome."""
    for outcome, losses in zip(OUTCOMES, LOSSES, strict=True):
        attempt = fleet.start()
        for step, loss in zip((10, 20), losses, strict=False):
            fleet.record(attempt, step, loss, accuracy=1 / loss)
        value = losses[-1] if outcome == "complete" else None
        fleet.finish(attempt, outcome, value=value, reason="no data" if outcome == "failed" else None)
    return queries.read_table(fleet.database, fleet.study)


def test_the_table_has_the_outcome_and_the_reason_of_each_trial(table):
    assert [row.outcome for row in table.trials] == list(OUTCOMES)
    assert [row.reason for row in table.trials] == [None, None, None, "no data"]
    assert table.direction is Direction.MINIMIZE


def test_the_curve_is_in_the_order_of_its_steps(table):
    assert table.trials[0].curve == (
        CurvePoint(step=10, tokens=100, seconds=1.0, value=2.0),
        CurvePoint(step=20, tokens=200, seconds=1.0, value=1.5),
    )
    assert table.trials[3].curve == ()


def test_the_metrics_are_those_of_the_last_evaluation(table):
    assert table.trials[0].metrics == {"val_loss": 1.5, "accuracy": 1 / 1.5}
    assert table.trials[3].metrics == {}


def test_a_metric_that_is_not_finite_is_read_as_a_number(table):
    """JSON has no such numbers, so the database has a string."""
    assert math.isnan(table.trials[1].metrics["val_loss"])
    assert math.isnan(table.trials[1].curve[-1].value or 0.0)


def test_the_default_configuration_is_marked(table):
    """Findings compare the other trials with it."""
    assert [row.is_default for row in table.trials] == [True, False, False, False]


def test_the_table_has_the_rungs_of_its_pruner(table):
    assert table.rungs.fractions == pytest.approx((1 / 9, 1 / 3))


def test_the_params_are_in_the_order_of_the_study_file(table):
    assert list(table.trials[0].params) == ["learning_rate", "momentum", "ns_steps", "optimizer"]


def test_the_origin_of_a_table_has_file_data_and_versions(table, fleet):
    assert table.origin["study file (SHA-256, first 16)"] == fleet.study.file_sha256[:16]
    assert table.origin["hpopt"] == fleet.study.versions["hpopt"]
    assert "data fingerprint (first 16)" not in table.origin


def test_a_running_trial_has_no_outcome(fleet):
    fleet.reserve()
    table = queries.read_table(fleet.database, fleet.study)
    assert [(row.state, row.outcome) for row in table.trials] == [("RUNNING", None)]


def test_a_trial_of_stock_optuna_has_the_outcome_of_its_state(fleet):
    stock = fleet.stock()
    stock.tell(stock.ask(), 1.0)
    stock.tell(stock.ask(), state=TrialState.PRUNED)
    stock.tell(stock.ask(), state=TrialState.FAIL)
    table = queries.read_table(fleet.database, fleet.study)
    expected = [(Outcome.COMPLETE, 0), (Outcome.PRUNED, 0), (Outcome.FAILED, 0)]
    assert [(row.outcome, row.n_attempts) for row in table.trials] == expected
    finished = queries.finished_trials(fleet.database, fleet.study)
    assert [trial.outcome for trial in finished] == [outcome for outcome, _ in expected]


def test_values_that_cannot_be_analyzed_are_left_out_of_the_table(fleet):
    """They are shown by the views and in the answer."""
    stock = fleet.stock()
    values = {"learning_rate": None, "momentum": math.inf, "ns_steps": "5", "optimizer": ["a", 1], "further": None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        distributions = {name: CategoricalDistribution([value]) for name, value in values.items()}
        stock.add_trial(create_trial(params=values, distributions=distributions, value=0.0))
    (_, row) = queries.read_table(fleet.database, fleet.study).trials
    assert row.params == {"optimizer": '["a", 1]', "further": None}
    assert queries.best(fleet.database, fleet.study).params == {**values, "momentum": "Infinity"}


def test_a_value_without_a_logarithm_is_left_out_where_the_range_is_logarithmic(fleet):
    distributions = {"learning_rate": FloatDistribution(-1.0, 1.0), "momentum": FloatDistribution(-1.0, 1.0)}
    params = {"learning_rate": -0.5, "momentum": -0.5}
    fleet.stock().add_trial(create_trial(params=params, distributions=distributions, value=0.0))
    (_, row) = queries.read_table(fleet.database, fleet.study).trials
    assert row.params == {"momentum": -0.5}


def test_the_best_of_a_study_without_a_complete_trial_is_an_error_of_its_own(fleet):
    with pytest.raises(NoAnswerError, match=r"^study 'tiny' has no completed trial yet$"):
        queries.best(fleet.database, fleet.study)


def test_progress_has_outcomes_workers_best_and_the_value_of_the_defaults(fleet):
    defaults, pruned, running = (fleet.start() for _ in range(3))
    fleet.finish(defaults, value=2.0)
    fleet.finish(pruned, "pruned")
    fleet.lose(fleet.start())
    fleet.record(running, 10, 1.25, tokens_per_second=5600.0)
    progress = queries.progress(fleet.database, fleet.study)
    assert progress.n_by_outcome == {"complete": 1, "pruned": 1, "running": 1, "waiting": 1}
    assert (progress.planned_trials, progress.n_steps, progress.finished_reason) == (4, 90, None)
    assert (progress.best.value, progress.default_value, progress.tokens) == (2.0, 2.0, 100)
    (worker,) = (worker for worker in progress.workers if worker.trial is not None)
    assert (worker.trial, worker.attempt_number, worker.step) == (running.number, 1, 10)
    assert (worker.value, worker.tokens_per_second, worker.is_stale) == (1.25, 5600.0, False)


def test_a_worker_whose_heartbeat_expired_is_stale(fleet):
    fleet.execute("update hpopt.worker set heartbeat_at = now() - interval '61 seconds'")
    (worker,) = queries.progress(fleet.database, fleet.study).workers
    assert worker.is_stale
    assert worker.seconds_since_heartbeat >= 61


def test_finished_trials_are_in_the_order_in_which_they_finished(fleet):
    first, second, third = (fleet.start() for _ in range(3))
    for attempt in (second, third, first):
        fleet.finish(attempt, value=1.0)
    finished = queries.finished_trials(fleet.database, fleet.study)
    assert [trial.trial for trial in finished] == [second.number, third.number, first.number]
    last_two = queries.finished_trials(fleet.database, fleet.study, last=2)
    assert [trial.trial for trial in last_two] == [third.number, first.number]
    after = queries.finished_trials(fleet.database, fleet.study, after=finished[0].finished_at)
    assert after == last_two


def test_a_query_is_read_only(fleet):
    names, rows = queries.read_rows(fleet.database, "select 1 as n, '%' as percent;")
    assert (names, rows) == (["n", "percent"], [[1, "%"]])
    with pytest.raises(InputError, match="read-only"):
        queries.read_rows(fleet.database, "delete from hpopt.study")
    with pytest.raises(InputError, match="read-only transaction"):
        queries.read_rows(fleet.database, "explain analyze delete from hpopt.study")
    with pytest.raises(InputError, match=r'relation "hpopt\.studies" does not exist'):
        queries.read_rows(fleet.database, "select * from hpopt.studies")


@pytest.mark.parametrize(
    ("query", "value"),
    [
        ("select string_agg(n::text, ';') from generate_series(1, 2) n", "1;2"),
        ("select ';--', '%s :name' -- a comment; with a semicolon", ";--"),
        ("/* a; b */ table hpopt.study_names; ;", None),
        ("select $q$a;b$q$;\n", "a;b"),
        ('select 1 as "a;b"', 1),
        ("values ('{x}')", "{x}"),
        ("show transaction_read_only", "on"),
        ("select E'\\';'", "';"),
    ],
)
def test_a_query_can_have_semicolons_as_in_psql(fleet, query, value):
    fleet.execute("create view hpopt.study_names as select null::text as name")
    assert queries.read_rows(fleet.database, query)[1][0][0] == value


@pytest.mark.parametrize(
    "query",
    ["select 1; delete from hpopt.study", "commit; delete from hpopt.study", "", "--", "delete from hpopt.study;"],
)
def test_a_query_is_a_single_one_that_returns_rows(fleet, query):
    with pytest.raises(InputError, match="expected one query that returns rows"):
        queries.read_rows(fleet.database, query)
    assert len(fleet.rows("select from hpopt.study")) == 1


@pytest.mark.parametrize("query", ["select '10000-01-01'::timestamp", "select '\ud800' from x", "select '\0", "☃ '"])
def test_a_query_that_fails_has_one_line(fleet, query):
    with pytest.raises(InputError) as refused:
        queries.read_rows(fleet.database, query)
    assert len(str(refused.value).splitlines()) == 1


def test_answers_have_searched_and_derived_values_and_arguments_only_what_the_objective_takes(database, make_fleet):
    text = """
name = "derived"
[budget]
trials = 3
[search_space]
learning_rate = { low = 0.01, high = 0.1 }
decay = { low = 0.05, high = 0.1 }
[derived]
adamw_learning_rate = "0.1 * learning_rate"
momentum = "1 - decay"
[[enqueue]]
params = { learning_rate = 0.02, decay = 0.1 }
"""
    study = studies.create_study(database, parse_study_file(text, "derived.toml"))
    fleet = make_fleet(study)
    attempt = fleet.start()
    fleet.finish(attempt, value=1.0)
    params = {"learning_rate": 0.02, "decay": 0.1, "adamw_learning_rate": 0.1 * 0.02, "momentum": 0.9}
    assert list(queries.best(database, study).params.items()) == list(params.items())
    assert study.not_taken == ["decay"]
    (row,) = queries.read_table(database, study).trials
    assert row.params.keys() == {"learning_rate", "decay"}
    assert row.derived == {"momentum": 0.9, "adamw_learning_rate": 0.1 * 0.02}
