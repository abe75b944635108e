"""The views of schema `hpopt` and the SQL functions that several statements share."""

import json
import math

import pytest
import sqlalchemy as sa

INF, NAN = math.inf, math.nan


def end_attempt(fleet, attempt, outcome, *, reason="broken", is_live=True, max_attempts=3):
    """Call hpopt.end_attempt as the statements of attempts.py and reaper.py do; None if the attempt has ended."""
    query = (
        "select outcome, is_running, optuna_trial_id from hpopt.end_attempt("
        f"{attempt.attempt_id}, '{outcome}', '{reason}', {is_live}, null, {max_attempts})"
    )
    rows = fleet.rows(query)
    return dict(rows[0]) if rows else None


def row_of(fleet, attempt):
    (row,) = fleet.rows(
        "select outcome, reason, ended_at is not null as has_ended, device_seconds "
        f"from hpopt.attempt where attempt_id = {attempt.attempt_id}"
    )
    return row


def worker_of(fleet, worker_id):
    (row,) = fleet.rows(
        "select extract(epoch from now() - connected_since) as connected_s, "
        "extract(epoch from now() - heartbeat_at) as heartbeat_s, stopped_at, stop_reason "
        f"from hpopt.worker where worker_id = {worker_id}"
    )
    return row


def test_end_attempt_ends_an_attempt_and_returns_its_optuna_trial(fleet):
    attempt = fleet.start()
    assert end_attempt(fleet, attempt, "failed") == {
        "outcome": "failed",
        "is_running": True,
        "optuna_trial_id": attempt.optuna_trial_id,
    }
    row = row_of(fleet, attempt)
    assert (row["outcome"], row["reason"], row["has_ended"]) == ("failed", "broken", True)


def test_end_attempt_returns_nothing_for_an_attempt_that_has_ended(fleet):
    attempt = fleet.start()
    end_attempt(fleet, attempt, "complete", reason="first")
    assert end_attempt(fleet, attempt, "failed", reason="second") is None
    row = row_of(fleet, attempt)
    assert (row["outcome"], row["reason"]) == ("complete", "first")


def test_end_attempt_fails_a_trial_that_was_lost_too_often_in_a_row(fleet):
    for expected in ("lost", "lost", "failed"):
        attempt = fleet.start()
        end = end_attempt(fleet, attempt, "lost", reason="heartbeat expired after 60 s")
        assert end["outcome"] == expected
    assert row_of(fleet, attempt)["reason"] == "heartbeat expired after 60 s (3 times in a row without progress)"


def test_end_attempt_counts_no_preempted_attempt(fleet):
    for outcome in ("lost", "preempted", "preempted", "lost"):
        attempt = fleet.start()
        assert end_attempt(fleet, attempt, outcome)["outcome"] == outcome
    assert end_attempt(fleet, fleet.start(), "lost")["outcome"] == "failed"


@pytest.mark.parametrize(("state", "outcome"), [("COMPLETE", "complete"), ("PRUNED", "pruned"), ("FAIL", "failed")])
def test_end_attempt_takes_over_the_outcome_of_an_optuna_trial_that_was_ended(fleet, state, outcome):
    attempt = fleet.start()
    fleet.execute(f"update public.trials set state = '{state}' where trial_id = {attempt.optuna_trial_id}")
    end = end_attempt(fleet, attempt, "lost")
    assert (end["outcome"], end["is_running"]) == (outcome, False)
    assert row_of(fleet, attempt)["reason"] == "ended outside of hpopt"


@pytest.mark.parametrize(("is_live", "device_seconds"), [(True, 100), (False, 40)])
def test_end_attempt_charges_the_device_time_to_the_study(fleet, is_live, device_seconds):
    """Without a live worker the device time ends with the last heartbeat."""
    attempt = fleet.start()
    fleet.execute(
        "update hpopt.attempt set started_at = clock_timestamp() - interval '100 seconds', device_seconds = 40"
    )
    end_attempt(fleet, attempt, "lost", is_live=is_live)
    assert row_of(fleet, attempt)["device_seconds"] == pytest.approx(device_seconds, abs=5)
    (study,) = fleet.rows("select device_seconds from hpopt.study")
    assert study["device_seconds"] == row_of(fleet, attempt)["device_seconds"]


def test_record_contact_renews_the_heartbeat_of_a_worker_and_clears_that_it_stopped(fleet):
    fleet.execute(
        "update hpopt.worker set heartbeat_at = now() - interval '10 seconds', stopped_at = now(), "
        "stop_reason = 'heartbeat expired', connected_since = now() - interval '1 hour'"
    )
    assert fleet.rows(f"select hpopt.record_contact({fleet.worker_id}) as id")[0]["id"] == fleet.worker_id
    worker = worker_of(fleet, fleet.worker_id)
    assert (worker["stopped_at"], worker["stop_reason"]) == (None, None)
    assert worker["heartbeat_s"] < 10
    assert worker["connected_s"] >= 3600


def test_record_contact_restarts_the_connection_of_a_worker_after_half_of_its_stale_after_s(fleet):
    """Such a worker cannot tell which heartbeats of others stopped while it was disconnected."""
    fleet.execute(
        "update hpopt.worker set heartbeat_at = now() - interval '31 seconds', "
        "connected_since = now() - interval '1 hour'"
    )
    fleet.rows(f"select hpopt.record_contact({fleet.worker_id})")
    assert worker_of(fleet, fleet.worker_id)["connected_s"] < 3600


def test_record_contact_returns_null_for_a_worker_that_was_deleted(fleet):
    fleet.execute("delete from hpopt.worker")
    assert fleet.rows(f"select hpopt.record_contact({fleet.worker_id}) as id")[0]["id"] is None


def test_attempts_without_progress_count_from_the_furthest_evaluation(fleet):
    steps = (10, 20, 20, 15)
    for step in steps:
        attempt = fleet.start()
        fleet.record(attempt, step)
        fleet.finish(attempt, "lost", reason=f"lost at {step}")
    (row,) = fleet.rows(f"select hpopt.attempts_without_progress({attempt.trial_id}) as n")
    # The second attempt was the first to reach step 20; the two after it came no further.
    assert row["n"] == 2


def choices(*values):
    """Return a distribution as Python writes it: with Infinity, NaN and escaped NUL and surrogates."""
    return json.dumps({"name": "CategoricalDistribution", "attributes": {"choices": values}})


@pytest.mark.parametrize(
    ("stored", "distribution", "value"),
    [
        (0.5, '{"name": "FloatDistribution", "attributes": {}}', 0.5),
        (NAN, '{"name": "FloatDistribution", "attributes": {}}', "NaN"),
        (3.0, '{"name": "IntDistribution", "attributes": {}}', 3),
        (3.0, '{"name":"IntUniformDistribution"}', 3),
        (2.0**53, '{"name":"IntDistribution"}', 2**53),
        (1e300, '{"name": "IntDistribution"}', 10**300),
        (-INF, '{"name": "IntDistribution"}', "-Infinity"),
        (0.5, '{"name":"NewDistribution"}', 0.5),
        (1, choices("a", 16), 16),
        (1, choices("a", INF), "Infinity"),
        (0, choices("[Infinity", NAN), "[Infinity"),
        (0, choices("a\0b"), "a\ufffdb"),
        (0, choices("\ud800x\udc00", "😀"), "\ufffdx\ufffd"),
        (1, choices("\ud800x\udc00", "😀"), "😀"),
        (1, choices(None, ["q", "v"]), ["q", "v"]),
        (5, choices("a"), None),
        (-1, choices("a"), None),
        (NAN, choices("a"), None),
        (1e300, choices("a"), None),
        (0, '{"name": "CategoricalDistribution", "attributes": 5}', None),
        (0, '{"name": "Cat', None),
        (0, "", None),
        (0, "5", None),
        (0, "null", None),
    ],
)
def test_the_value_of_any_parameter_is_json(fleet, stored, distribution, value):
    query = sa.text("select hpopt.param_value(:stored, :distribution)")
    with fleet.database.begin() as connection:
        assert connection.scalar(query, {"stored": stored, "distribution": distribution}) == value


def add_foreign(fleet, n_trials=1, *, study_name="foreign", **columns):
    """Add complete trials that another tool wrote, as SQL; `columns` replace SQL expressions of their columns."""
    sql = {"start": "now()", "value": "number", "param": "'lr'", "distribution": "'{}'", "constraint": "'0'"} | columns
    fleet.execute(f"insert into public.studies (study_name) values ('{study_name}')")
    fleet.execute(
        f"""
        insert into public.trials (study_id, number, state, datetime_start, datetime_complete)
        select study_id, number, 'COMPLETE', {sql["start"]}, now()
        from public.studies cross join generate_series(0, {n_trials - 1}) number where study_name = '{study_name}'
        """
    )
    trials = f"from public.trials join public.studies using (study_id) where study_name = '{study_name}'"
    fleet.execute(
        "insert into public.study_directions (study_id, objective, direction) "
        f"select study_id, 0, 'MAXIMIZE' from public.studies where study_name = '{study_name}'"
    )
    fleet.execute(
        "insert into public.trial_values (trial_id, objective, value, value_type) "
        f"select trial_id, 0, {sql['value']}, 'FINITE' {trials}"
    )
    fleet.execute(
        "insert into public.trial_params (trial_id, param_name, param_value, distribution_json) "
        f"select trial_id, {sql['param']}, 0, {sql['distribution']} {trials}"
    )
    fleet.execute(
        "insert into public.trial_system_attributes (trial_id, key, value_json) "
        f"select trial_id, 'constraints:x', {sql['constraint']} {trials}"
    )


@pytest.mark.parametrize(
    ("columns", "shown"),
    [
        ({"distribution": '\'{"name": "Cat\''}, {"value": 0, "params": {"lr": None}, "feasible": True}),
        ({"distribution": "null"}, {"value": 0, "params": {"lr": None}}),
        ({"param": "null"}, {"params": {}}),
        ({"param": "repeat('{''\"$(x)😀', 50)"}, {"params": {"{'\"$(x)😀" * 50: 0}}),
        ({"value": "'nan'::float"}, {"value": None}),
        ({"value": "null"}, {"value": None}),
        ({"start": "'infinity'"}, {"started_at": None}),
        ({"start": "'4713-01-01 BC'"}, {"started_at": None}),
        ({"constraint": "'null'"}, {"feasible": True}),
        ({"constraint": "'[1e999'"}, {"feasible": True}),
        ({"constraint": "'Infinity'"}, {"feasible": False}),
        ({"constraint": "'NaN'"}, {"feasible": False}),
    ],
)
def test_a_row_of_another_tool_fails_no_view(fleet, columns, shown):
    fleet.finish(fleet.start(), value=1.0)
    add_foreign(fleet, **columns)
    (row,) = fleet.rows("select * from hpopt.trials where study_name = 'foreign'")
    assert {name: row[name] for name in shown} == shown
    for view in ("best_params", "leaderboard", "budget_usage", "constraint_violations", "learning_curves", "fleet"):
        fleet.rows(f"select * from hpopt.{view}")
    (best,) = fleet.rows("select value from hpopt.best_params where study_name = 'tiny'")
    assert best["value"] == 1.0


def test_a_query_about_one_study_reads_no_rows_of_others(fleet):
    attempt = fleet.start()
    fleet.record(attempt, 10)
    fleet.finish(attempt, value=1.0)
    for i in range(20):
        add_foreign(fleet, n_trials=300, study_name=f"foreign {i}")
    fleet.execute("analyze")
    n_rows = {}
    for view in ("trials", "leaderboard", "best_params", "learning_curves", "fleet", "findings"):
        query = f"explain (analyze, format json) select * from hpopt.{view} where study_name = 'tiny'"
        (plan,) = fleet.rows(query)
        n_rows[view] = count_rows_read(plan["QUERY PLAN"][0]["Plan"])
    assert max(n_rows.values()) < 100, n_rows


def count_rows_read(node):
    """Count the rows that the scans below a node of a plan read, and those that they passed over."""
    inner = sum(map(count_rows_read, node.get("Plans", ())))
    own = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
    return inner + (own * node["Actual Loops"] if "Scan" in node["Node Type"] else 0)
