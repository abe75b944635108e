"""Attempts keep the budget, are retried after their worker, and write nothing once another worker has the trial."""

import math
import warnings
from concurrent.futures import ThreadPoolExecutor

import optuna
import pytest
import sqlalchemy as sa
from optuna.trial import TrialState

from hpopt.errors import DatabaseError, Fenced
from hpopt.search import sampler, tpe
from hpopt.storage import attempts, budget, queries, reaper, studies
from hpopt.storage import database as database_module
from hpopt.storage.database import Database
from hpopt.storage.observations import ObservedTrials
from hpopt.study.reading import parse_study_file

RESTORED = "update hpopt.worker set connected_since = now() - interval '1 hour'"


def test_many_workers_reserve_no_more_than_the_budget(fleet, make_fleet):
    """Optuna's own MaxTrialsCallback made 27 trials of a budget of 20 with 8 workers."""
    connections = [Database(fleet.database.url) for _ in range(8)]
    workers = [make_fleet(fleet.study, connection) for connection in connections]
    with ThreadPoolExecutor(8) as pool:
        reserved = [attempt for attempt in pool.map(lambda k: workers[k % 8].reserve(), range(24)) if attempt]
    assert len(reserved) == 4
    assert [trial.number for trial in fleet.stock().trials] == [0, 1, 2, 3]
    for connection in connections:
        connection.close()


def test_the_count_of_started_trials_is_that_of_their_first_attempts(fleet):
    """A reservation trusts the counter in the row of the study and does not count attempts."""
    fleet.finish(fleet.start(), value=1.0)
    fleet.lose(fleet.start())
    fleet.start()
    (row,) = fleet.rows(
        "select count(*) filter (where attempt_number = 1) as n_first, max(n_started) as n_started "
        "from hpopt.attempts, hpopt.study"
    )
    assert (row["n_first"], row["n_started"]) == (2, 2)


def test_the_first_trial_is_the_default_configuration(fleet):
    attempt = fleet.start()
    assert attempt.params == {"learning_rate": 0.02, "momentum": 0.95, "ns_steps": 5, "optimizer": "muon"}
    assert (attempt.is_default, fleet.start().is_default) == (True, False)


def test_workers_that_share_a_seed_do_not_repeat_each_other(fleet, make_fleet):
    """Stock samplers with one seed start every worker with the same trial."""
    other_database = Database(fleet.database.url)
    other = make_fleet(fleet.study, other_database)
    fleet.start()
    assert fleet.start().params != other.start().params
    other_database.close()


def test_a_reservation_whose_reply_was_lost_returns_the_same_attempt(fleet):
    """Otherwise each lost reply would hold a part of the budget until its heartbeat expires."""
    first = fleet.reserve(fleet.worker_id)
    assert fleet.reserve(fleet.worker_id) == first
    assert fleet.rows("select count(*) as n from hpopt.attempts")[0]["n"] == 1


def test_stock_optuna_reads_what_is_written_for_it(fleet):
    complete, pruned, diverged, failed = (fleet.start() for _ in range(4))
    fleet.record(complete, 10, 3.0)
    fleet.record(complete, 20, math.inf)
    fleet.record(pruned, 10, math.nan)
    fleet.finish(complete, value=2.5)
    fleet.finish(pruned, "pruned", value=4.0)
    fleet.finish(diverged, "diverged")
    fleet.finish(failed, "failed", reason="broken")
    first, second, third, fourth = fleet.stock().trials
    assert (first.state, first.value, first.params) == (TrialState.COMPLETE, 2.5, complete.params)
    assert first.intermediate_values == {10: 3.0, 20: math.inf}
    assert first.datetime_complete > first.datetime_start
    assert (second.state, second.value, second.params) == (TrialState.PRUNED, 4.0, pruned.params)
    assert math.isnan(second.intermediate_values[10])
    assert (third.state, third.constraints) == (TrialState.PRUNED, {"diverged": 1.0})
    assert fourth.state is TrialState.FAIL
    assert fleet.stock().best_trial.number == complete.number


def test_stock_optuna_adds_trials_between_ours(fleet):
    """Optuna counts its trials, hpopt adds one to the newest: both must come to the same numbers."""
    fleet.start()
    theirs = fleet.stock().ask()
    ours = fleet.start()
    assert (theirs.number, ours.number) == (1, 2)


def test_an_attempt_whose_heartbeat_expired_is_retried_with_its_params_and_seed(fleet):
    attempt = fleet.start()
    assert fleet.lose(attempt) == 1
    assert fleet.reap() == 0
    retry = fleet.start()
    assert (retry.trial_id, retry.attempt_number, retry.seed) == (attempt.trial_id, 2, 7)
    assert retry.params == attempt.params
    assert retry.number != attempt.number


def test_a_retried_trial_is_one_trial_in_views_and_budget(fleet):
    attempt = fleet.start()
    fleet.record(attempt, 10, 3.0)
    fleet.record(attempt, 20, 2.0)
    fleet.lose(attempt)
    retry = fleet.start()
    fleet.record(retry, 20, 2.0)
    fleet.finish(retry, value=1.5)
    complete = [row for row in fleet.rows() if row["state"] == "COMPLETE"]
    assert [(row["trial"], row["n_attempts"], row["value"]) for row in complete] == [(retry.number, 2, 1.5)]
    assert [(row["trial"], row["step"]) for row in fleet.rows("select * from hpopt.learning_curves")] == [
        (retry.number, 10),
        (retry.number, 20),
    ]
    assert fleet.stock().trials[retry.number].intermediate_values == {10: 3.0, 20: 2.0}
    assert budget.read_usage(fleet.database, fleet.study).n_started == 1


def test_a_requeued_trial_is_waiting_in_the_views(fleet):
    attempt = fleet.start()
    fleet.lose(attempt)
    assert fleet.rows()[attempt.number]["state"] == "WAITING"


def test_a_requeued_trial_waits_for_its_retry_time(fleet):
    """A disk that has just failed would fail the next attempt too."""
    attempt = fleet.start()
    attempts.finish(fleet.database, attempt, "preempted", reason="no space left on device", retry_after_s=3600)
    assert fleet.reserve().trial_id != attempt.trial_id
    fleet.execute("update hpopt.attempt set retry_at = now()")
    assert fleet.reserve().trial_id == attempt.trial_id


def test_a_fenced_worker_can_write_nothing(fleet):
    """A worker that was frozen and resumes would otherwise overwrite the result of its successor."""
    attempt = fleet.start()
    fleet.lose(attempt)
    retry = fleet.start()
    with pytest.raises(Fenced, match=rf"^trial {attempt.number} was reassigned to another worker$"):
        fleet.record(attempt, 10)
    with pytest.raises(Fenced):
        fleet.finish(attempt, value=0.1)
    with pytest.raises(Fenced):
        attempts.start(fleet.database, fleet.study, attempt, {}, seed=1, config={}, data_fingerprint=None)
    assert not fleet.heartbeat(attempt).is_held
    fleet.finish(retry, value=2.0)
    assert queries.best(fleet.database, fleet.study).value == 2.0
    assert fleet.stock().trials[attempt.number].intermediate_values == {}


def test_finishing_again_after_a_lost_reply_is_accepted(fleet):
    attempt = fleet.start()
    fleet.finish(attempt, value=1.25)
    fleet.finish(attempt, value=1.25)
    assert fleet.rows()[attempt.number]["outcome"] == "complete"
    with pytest.raises(Fenced):
        fleet.finish(attempt, "pruned")


def test_finishing_again_as_lost_is_accepted_where_the_trial_has_failed(fleet):
    """The third loss in a row fails the trial, and the worker does not know that if the reply was lost."""
    for _ in range(3):
        attempt = fleet.start()
        fleet.finish(attempt, "lost", reason="CUDA error")
    fleet.finish(attempt, "lost", reason="CUDA error")
    assert fleet.rows()[-1]["outcome"] == "failed"


def test_a_trial_that_was_ended_in_optuna_keeps_that_outcome(fleet):
    attempt = fleet.start()
    fleet.stock().tell(attempt.number, 1.25)
    with pytest.raises(Fenced):
        fleet.record(attempt, 10)
    fleet.finish(attempt, "lost", reason="Optuna's trial was ended")
    row = fleet.rows()[attempt.number]
    assert (row["outcome"], row["value"], row["reason"]) == ("complete", 1.25, "ended outside of hpopt")


def test_a_reason_may_contain_any_character(fleet):
    """PostgreSQL has no text with a NUL, which an error message of a library can have."""
    attempt = fleet.start()
    fleet.finish(attempt, "failed", reason="bad byte \0 in 'x' %s %(y)s :z \U0001f600")
    assert fleet.rows()[attempt.number]["reason"] == "bad byte  in 'x' %s %(y)s :z \U0001f600"


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
    fleet.execute(RESTORED)
    reaping = attempts.register_worker(fleet.database, fleet.study, host="there", pid=2, device="cpu", stale_after_s=5)
    assert fleet.reap(reaping) == 0
    assert fleet.heartbeat(attempt, reaping).is_held


def test_no_attempt_is_reaped_right_after_an_outage_that_disconnected_all_workers(fleet):
    """The first worker to reconnect would otherwise requeue the trials of all others, which were still training."""
    attempt = fleet.start()
    fleet.execute("update hpopt.attempt set heartbeat_at = now() - interval '3 minutes'")
    fleet.execute(f"{RESTORED}, heartbeat_at = now() - interval '3 minutes'")
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


def test_a_frozen_worker_that_holds_the_lock_does_not_block_the_fleet(fleet, monkeypatch):
    monkeypatch.setattr(database_module, "_BRIEF", "set local lock_timeout = '1 s'")
    with fleet.database.engine.connect() as frozen:
        frozen.execute(sa.text("select from hpopt.study for update"))
        with pytest.raises(DatabaseError, match="lock timeout"):
            fleet.reserve(fleet.worker_id)


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


def test_a_failed_device_counts_as_a_loss(fleet):
    for _ in range(3):
        fleet.finish(fleet.start(), "lost", reason="CUDA error: an illegal memory access")
    row = fleet.rows()[-1]
    assert row["outcome"] == "failed"
    assert row["reason"] == "CUDA error: an illegal memory access (3 times in a row without progress)"


def test_a_preempted_trial_is_retried_without_limit(fleet):
    for _ in range(5):
        fleet.finish(fleet.start(), "preempted")
    assert fleet.reserve().attempt_number == 6


def test_a_diverged_trial_is_stored_and_never_the_best(fleet):
    attempt = fleet.start()
    fleet.record(attempt, 10, 0.5)
    fleet.finish(attempt, "diverged")
    row = fleet.rows()[attempt.number]
    assert (row["state"], row["outcome"], row["feasible"]) == ("PRUNED", "diverged", False)
    assert queries.find_best(fleet.database, fleet.study) is None


@pytest.mark.parametrize("outcome", ["failed", "lost"])
def test_five_failures_in_a_row_for_one_reason_pause_the_study(asha_fleet, outcome):
    """The rest of the budget would fail for the same reason."""
    for k, attempt in enumerate([asha_fleet.start() for _ in range(5)]):
        assert budget.read_usage(asha_fleet.database, asha_fleet.study).state == "open"
        asha_fleet.finish(attempt, outcome, reason=f"no such file: /data/{k}")
    usage = budget.read_usage(asha_fleet.database, asha_fleet.study)
    assert (usage.state, usage.state_reason) == ("paused", "5 trials in a row failed: no such file: /data/0")
    assert asha_fleet.reserve() is None


@pytest.mark.parametrize("between", ["complete", "failed"])
def test_failures_for_different_reasons_do_not_pause_the_study(asha_fleet, between):
    for _ in range(4):
        asha_fleet.finish(asha_fleet.start(), "failed", reason="no such file")
    asha_fleet.finish(asha_fleet.start(), between, value=1.0, reason="another one")
    asha_fleet.finish(asha_fleet.start(), "failed", reason="no such file")
    assert budget.read_usage(asha_fleet.database, asha_fleet.study).state == "open"


def test_expired_heartbeats_do_not_pause_the_study(asha_fleet):
    """Machines that fail say nothing about the trials that are left."""
    for attempt in [asha_fleet.start() for _ in range(5)]:
        asha_fleet.finish(attempt, "lost", reason="heartbeat expired after 60 s")
    assert budget.read_usage(asha_fleet.database, asha_fleet.study).state == "open"


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


def test_a_heartbeat_after_the_study_was_deleted_says_that_it_is_stopped(fleet):
    attempt = fleet.start()
    optuna.delete_study(study_name=fleet.study.name, storage=fleet.database.optuna)
    reply = fleet.heartbeat(attempt)
    assert (reply.is_held, reply.state) == (False, "stopped")


def test_a_heartbeat_returns_the_state_of_the_study(fleet):
    attempt = fleet.start()
    assert fleet.heartbeat(attempt) == attempts.HeartbeatReply(is_held=True, state="open")
    fleet.execute("update hpopt.study set state = 'paused'")
    assert fleet.heartbeat(attempt) == attempts.HeartbeatReply(is_held=True, state="paused")


def test_the_sampler_observes_the_trials_that_stock_optuna_has(asha_fleet):
    """States, values, params and constraints must be those of the database, read as they change or all at once."""
    outcomes = ["complete", "pruned", "diverged", "failed", "complete"]
    asha_fleet.observed.refresh()
    running = [asha_fleet.start() for _ in outcomes]
    asha_fleet.observed.refresh()
    for k, (attempt, outcome) in enumerate(zip(running, outcomes, strict=True)):
        asha_fleet.record(attempt, 10, 1.0 + k)
        asha_fleet.finish(attempt, outcome, value=2.0 + k if outcome == "complete" else None)
    last = asha_fleet.start()
    for observed in (asha_fleet.observed, ObservedTrials(asha_fleet.database, asha_fleet.study)):
        observed.refresh()
        observations = observed.observations()
        stock = [t for t in asha_fleet.stock().trials if t.state is not TrialState.FAIL]
        assert list(observations.values["momentum"]) == [trial.params["momentum"] for trial in stock]
        assert list(observations.kind) == [tpe.COMPLETE, tpe.PRUNED, tpe.INFEASIBLE, tpe.COMPLETE, tpe.RUNNING]
        assert list(observations.score[:4]) == [2.0, 2.0, 1.0, 6.0]
        assert observations.step[1] == 10
        assert observations.values["momentum"][-1] == last.params["momentum"]


def test_the_observations_grow_beyond_their_first_capacity(asha_fleet):
    asha_fleet.execute(
        "insert into public.trials (study_id, number, state) select study_id, n, 'RUNNING' "
        "from hpopt.study, generate_series(1, 600) n"
    )
    asha_fleet.execute(
        "insert into public.trial_params (trial_id, param_name, param_value, distribution_json) "
        """select trial_id, 'momentum', 0.8 + number / 10000.0, '{"name": "FloatDistribution", "attributes": """
        """{"step": null, "low": 0.8, "high": 0.99, "log": false}}' from public.trials where number > 0"""
    )
    asha_fleet.observed.refresh()
    observations = asha_fleet.observed.observations()
    assert len(observations.kind) == 600
    assert observations.values["momentum"][-1] == pytest.approx(0.86)


def test_trials_of_another_space_are_not_observed(fleet):
    """One trial with another range would make multivariate TPE drop the parameter without a warning."""
    stock = fleet.stock()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = stock.ask({"momentum": optuna.distributions.FloatDistribution(0.1, 0.2)})
        stock.tell(theirs, 0.1)
        space = sampler.to_distributions(fleet.study.file.search_space)
        other_names = {f"my_{name}": distribution for name, distribution in space.items()}
        stock.tell(stock.ask(other_names), 0.1)
    fleet.observed.refresh()
    assert fleet.observed.observations().n_finished == 0


def test_the_row_of_the_best_has_its_documented_columns_and_no_invented_interval(fleet):
    attempt = fleet.start()
    fleet.finish(attempt, value=1.5)
    row = dict(fleet.rows("select * from hpopt.best_params")[0])
    assert row.pop("finished_at") is not None
    assert row == {
        "study_name": "tiny",
        "value": 1.5,
        "value_low": None,
        "value_high": None,
        "n_seeds": 1,
        "source": "search",
        "params": {"learning_rate": 0.02, "momentum": 0.95, "ns_steps": 5, "optimizer": "muon"},
        "trial": attempt.number,
    }


def test_a_budget_that_was_raised_ends_no_running_trial(database, make_fleet):
    """Workers read the file when they start; the budget that counts is that of the file in the database."""
    text = 'name = "raised"\n[budget]\ngpu_hours = 1.0\n[search_space]\nmomentum = { low = 0.8, high = 0.99 }'
    fleet = make_fleet(studies.create_study(database, parse_study_file(text, "raised.toml")))
    attempt = fleet.start()
    fleet.execute("update hpopt.attempt set started_at = now() - interval '2 hours'")
    studies.create_study(database, parse_study_file(text.replace("1.0", "9.0"), "raised.toml"))
    # An evaluation brings the hours up to date, the next one counts them.
    assert [fleet.record(attempt, step).limit_reached for step in (10, 20)] == [None, None]
    studies.create_study(database, parse_study_file(text, "raised.toml"))
    assert fleet.record(attempt, 30).limit_reached == "gpu_hours budget exhausted (1)"
