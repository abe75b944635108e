"""Attempts whose heartbeat expired are lost once, and their trials are retried while they make progress."""

from concurrent.futures import ThreadPoolExecutor

from optuna.trial import TrialState

from hpopt.storage import attempts, reaper
from hpopt.storage.database import Database

CONNECTED = "update hpopt.worker set connected_since = now() - interval '1 hour'"


def test_an_attempt_whose_heartbeat_expired_is_retried_with_its_params_and_seed(fleet):
    attempt = fleet.start()
    assert fleet.lose(attempt) == 1
    assert fleet.reap() == 0
    retry = fleet.start()
    assert (retry.trial_id, retry.attempt_number, retry.seed) == (attempt.trial_id, 2, 7)
    assert retry.params == attempt.params
    assert retry.number != attempt.number


def test_an_enqueued_configuration_survives_the_loss_of_its_worker_before_sampling(fleet):
    fleet.lose(fleet.reserve())
    retry = fleet.start()
    assert (retry.attempt_number, retry.params["learning_rate"]) == (2, 0.02)


def test_a_trial_of_stock_optuna_is_never_reaped(fleet):
    """A script may run trials of its own in a study of ours."""
    theirs = fleet.stock().ask()
    fleet.execute("update public.trials set datetime_start = now() - interval '1 day'")
    fleet.reap()
    assert fleet.stock().trials[theirs.number].state is TrialState.RUNNING


def test_a_heartbeat_expires_by_the_stale_after_s_of_its_own_worker(fleet):
    """Another machine may join with a shorter heartbeat."""
    attempt = fleet.start()
    fleet.execute("update hpopt.attempt set heartbeat_at = now() - interval '40 seconds'")
    reaping = attempts.register_worker(fleet.database, fleet.study, host="there", pid=2, device="cpu", stale_after_s=5)
    fleet.execute(CONNECTED)
    assert fleet.reap(reaping) == 0
    assert fleet.heartbeat(attempt, reaping).is_held


def test_no_attempt_is_reaped_right_after_an_outage_that_disconnected_all_workers(fleet):
    """The first worker to reconnect would otherwise requeue the trials of all others, which were still training."""
    attempt = fleet.start()
    fleet.execute("update hpopt.attempt set heartbeat_at = now() - interval '3 minutes'")
    fleet.execute(f"{CONNECTED}, heartbeat_at = now() - interval '3 minutes'")
    fleet.heartbeat(None)
    assert fleet.reap() == 0
    assert fleet.heartbeat(attempt).is_held
    fleet.execute("update hpopt.attempt set heartbeat_at = now() - interval '3 minutes'")
    fleet.execute("update hpopt.worker set connected_since = now() - interval '61 seconds'")
    assert fleet.reap() == 1


def test_an_attempt_is_reaped_once_by_workers_that_reap_at_the_same_time(fleet):
    lost = [fleet.start() for _ in range(3)]
    fleet.execute("update hpopt.attempt set heartbeat_at = now() - interval '1 hour'")
    connections = [Database(fleet.database.url) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        counts = list(pool.map(lambda c: reaper.reap(c, fleet.study, fleet.worker_id), connections))
    assert sum(counts) == len(lost)
    assert {row["outcome"] for row in fleet.rows("select outcome from hpopt.attempts")} == {"lost"}
    for connection in connections:
        connection.close()


def test_a_trial_that_is_lost_three_times_in_a_row_without_progress_has_failed(fleet):
    """A trial that kills its worker would otherwise be retried until the budget of device hours is exhausted."""
    for attempt_number in (1, 2, 3):
        attempt = fleet.start()
        assert attempt.attempt_number == attempt_number
        fleet.lose(attempt)
    row = fleet.rows()[-1]
    assert (row["outcome"], row["reason"]) == (
        "failed",
        "heartbeat expired after 60 s (3 times in a row without progress)",
    )
    assert fleet.stock().trials[attempt.number].state is TrialState.FAIL
    assert fleet.reserve().attempt_number == 1


def test_a_trial_that_makes_progress_between_losses_is_retried_without_limit(fleet):
    for attempt_number in (1, 2, 3, 4):
        attempt = fleet.start()
        fleet.record(attempt, attempt_number * 10)
        fleet.lose(attempt)
    assert fleet.reserve().attempt_number == 5


def test_evaluations_of_steps_that_were_reached_before_are_no_progress(fleet):
    """A trial that is lost after each restart from the same checkpoint would otherwise be retried for ever."""
    for _ in range(4):
        attempt = fleet.start()
        fleet.record(attempt, 10)
        fleet.lose(attempt)
    assert [row["outcome"] for row in fleet.rows("select outcome from hpopt.attempts order by attempt_number")] == [
        "lost",
        "lost",
        "lost",
        "failed",
    ]


def test_a_worker_that_reconnects_is_running_again(fleet):
    """Other workers stop one whose heartbeat expired; its next contact shows that it was only unreachable."""
    worker_id = fleet.join()
    fleet.execute(f"update hpopt.worker set heartbeat_at = now() - interval '1 hour' where worker_id = {worker_id}")
    fleet.execute("update hpopt.worker set connected_since = now() - interval '1 hour'")
    fleet.reap()
    query = f"select stopped_at, stop_reason from hpopt.worker where worker_id = {worker_id}"
    assert fleet.rows(query)[0]["stop_reason"] == "heartbeat expired"
    fleet.heartbeat(None, worker_id)
    assert dict(fleet.rows(query)[0]) == {"stopped_at": None, "stop_reason": None}


def test_a_worker_that_has_just_connected_reaps_attempts_whose_workers_must_have_given_up(fleet):
    """They exit after 900 s without the database, and a heartbeat expires after 60 s."""
    fleet.start()
    for age_s, n_reaped in ((900, 0), (961, 1)):
        age = f"heartbeat_at = now() - interval '{age_s} seconds'"
        fleet.execute(f"update hpopt.attempt set {age}")
        fleet.execute(f"{CONNECTED}, {age}")
        assert fleet.reap(fleet.join()) == n_reaped
        n_stopped = fleet.rows("select count(*) as n from hpopt.worker where stopped_at is not null")[0]["n"]
        assert (n_stopped > 0) == (n_reaped > 0)


def test_only_workers_that_run_and_whose_heartbeat_expired_are_stopped(fleet):
    exited, _, running = (fleet.join() for _ in range(3))
    attempts.end_worker(fleet.database, exited, "SIGTERM")
    fleet.execute(f"{CONNECTED}, heartbeat_at = now() - interval '1 hour'")
    for worker_id in (fleet.worker_id, running):
        fleet.execute(f"update hpopt.worker set heartbeat_at = now() where worker_id = {worker_id}")
    fleet.reap()
    rows = fleet.rows("select stop_reason from hpopt.worker order by worker_id")
    assert [row["stop_reason"] for row in rows] == [None, "SIGTERM", "heartbeat expired", None]
