"""The SQL functions of schema `hpopt`, which several statements share."""

import pytest


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
