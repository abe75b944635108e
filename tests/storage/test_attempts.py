"""Attempts keep the budget, are retried after their worker, and write nothing once another worker has the trial."""

import math
from concurrent.futures import ThreadPoolExecutor

import optuna
import pytest
import sqlalchemy as sa
from optuna.trial import TrialState

from hpopt.errors import DatabaseError, Fenced, InputError
from hpopt.storage import attempts, budget, control, queries, studies
from hpopt.storage import database as database_module
from hpopt.storage.database import Database
from hpopt.study.reading import parse_study_file


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
    assert (attempt.can_be_pruned, fleet.start().can_be_pruned) == (False, True)


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


def test_a_frozen_worker_that_holds_the_lock_does_not_block_the_fleet(fleet, monkeypatch):
    monkeypatch.setattr(database_module, "_BRIEF", "set local lock_timeout = '1 s'")
    with fleet.database.engine.connect() as frozen:
        frozen.execute(sa.text("select from hpopt.study for update"))
        with pytest.raises(DatabaseError, match="lock timeout"):
            fleet.reserve(fleet.worker_id)


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


def test_reasons_are_stored_on_one_line(fleet):
    fleet.finish(fleet.start(), "failed", reason="first\nsecond\r\n\tthird\u2028 fourth ")
    control.pause(fleet.database, fleet.study, "by\nme")
    attempts.end_worker(fleet.database, fleet.worker_id, "no\nmore")
    assert fleet.rows()[0]["reason"] == "first second third fourth"
    assert control.read_state(fleet.database, fleet.study).reason == "by me"
    assert "no more" in [row["stop_reason"] for row in fleet.rows("select stop_reason from hpopt.worker")]


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


@pytest.mark.parametrize(("pruned_at", "state"), [(10, "paused"), (20, "open")])
def test_pruned_trials_interrupt_a_series_of_failures_only_beyond_their_step(asha_fleet, pruned_at, state):
    """A function that always fails after the first rung is called again and again where most trials end."""
    for _ in range(5):
        failed, pruned = asha_fleet.start(), asha_fleet.start()
        asha_fleet.record(failed, 10)
        asha_fleet.finish(failed, "failed", reason="no space for the cache")
        asha_fleet.record(pruned, pruned_at)
        asha_fleet.finish(pruned, "pruned", value=1.0)
    assert budget.read_usage(asha_fleet.database, asha_fleet.study).state == state


MEMORY = "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"


@pytest.mark.parametrize("reason", [MEMORY, "MemoryError: ", "RuntimeError: [enforce] can't allocate memory: 8 bytes"])
def test_running_out_of_memory_does_not_pause_the_study(asha_fleet, reason):
    """It is a result of the configuration, and the sampler avoids that region."""
    for attempt in [asha_fleet.start() for _ in range(6)]:
        asha_fleet.finish(attempt, "failed", reason=reason)
    assert budget.read_usage(asha_fleet.database, asha_fleet.study).state == "open"


def momentum_of(attempt, value):
    return f"update public.trial_params set param_value = {value} where trial_id = {attempt.optuna_trial_id}"


@pytest.mark.parametrize(("of_the_complete", "state"), [(0.8, "open"), (0.89, "paused"), (0.99, "open")])
def test_failures_that_a_parameter_separates_from_what_works_do_not_pause_the_study(asha_fleet, of_the_complete, state):
    complete, *failed = (asha_fleet.start() for _ in range(6))
    asha_fleet.execute(momentum_of(complete, of_the_complete))
    asha_fleet.finish(complete, value=1.0)
    for k, attempt in enumerate(failed):
        asha_fleet.execute(momentum_of(attempt, 0.87 + k / 100))
        asha_fleet.finish(attempt, "failed", reason="shapes do not match")
    assert budget.read_usage(asha_fleet.database, asha_fleet.study).state == state


def test_configurations_that_fail_beside_others_that_do_not_pause_the_study_after_a_longer_series(asha_fleet):
    """No single parameter separates a joint region, such as a high learning rate with a large batch."""

    def run(momentum, outcome, **fields):
        attempt = asha_fleet.start()
        asha_fleet.execute(momentum_of(attempt, momentum))
        asha_fleet.finish(attempt, outcome, **fields)
        return budget.read_usage(asha_fleet.database, asha_fleet.study).state

    assert run(0.87, "failed", reason="shapes do not match") == "open"
    for momentum in (0.8, 0.95):
        run(momentum, "complete", value=1.0)
    states = [run(0.87, "failed", reason="shapes do not match") for _ in range(15)]
    assert states == ["open"] * 14 + ["paused"]


@pytest.mark.parametrize(("failed_after", "state"), [(None, "open"), (10, "paused")])
def test_a_trial_that_went_on_beyond_the_failures_shows_that_the_code_works(asha_fleet, failed_after, state):
    """One that was pruned before the step at which the others fail shows nothing: they may fail at the end."""
    pruned, *failed = (asha_fleet.start() for _ in range(6))
    asha_fleet.record(pruned, 10)
    asha_fleet.finish(pruned, "pruned", value=1.0)
    asha_fleet.execute(momentum_of(pruned, 0.8))
    for attempt in failed:
        asha_fleet.execute(momentum_of(attempt, 0.9))
        if failed_after:
            asha_fleet.record(attempt, failed_after)
        asha_fleet.finish(attempt, "failed", reason="shapes do not match")
    assert budget.read_usage(asha_fleet.database, asha_fleet.study).state == state


@pytest.mark.parametrize(("works", "state"), [("muon", "open"), ("adamw", "paused")])
def test_failures_of_one_choice_do_not_pause_the_study(database, make_fleet, study_file, works, state):
    """Neither choice is beyond the other, so only those that work are compared."""
    text = study_file.replace("trials = 4", "trials = 40")
    fleet = make_fleet(studies.create_study(database, parse_study_file(text, "tiny.toml")))
    fleet.finish(fleet.start(), value=1.0)
    attempts_ = [fleet.start() for _ in range(5)]
    choice = {"muon": 0, "adamw": 1}
    fleet.execute("update public.trial_params set param_value = 0.9 where param_name = 'momentum'")
    fleet.execute("update public.trial_params set param_value = 5 where param_name = 'ns_steps'")
    fleet.execute("update public.trial_params set param_value = 0.02 where param_name = 'learning_rate'")
    fleet.execute("update public.trial_params set param_value = 1 where param_name = 'optimizer'")
    fleet.execute(
        f"update public.trial_params set param_value = {choice[works]} where param_name = 'optimizer' and trial_id = "
        "(select min(trial_id) from public.trials)"
    )
    for attempt in attempts_:
        fleet.finish(attempt, "failed", reason="no such kernel")
    assert budget.read_usage(fleet.database, fleet.study).state == state


def test_failures_without_a_conditional_parameter_are_not_explained_by_it(database, make_fleet, study_file):
    """The momentum of the one that has it is above that of all that work."""
    conditional = study_file.replace("high = 0.99 }", 'high = 0.99, when = { optimizer = "muon" } }')
    text = conditional.replace("trials = 4", "trials = 40")
    fleet = make_fleet(studies.create_study(database, parse_study_file(text, "tiny.toml")))
    params = {"learning_rate": 0.02, "ns_steps": 5}
    has_muon = [True, False, False, False, False, True, False]
    momenta = iter([0.99, 0.8])
    for is_muon in has_muon:
        own = {"optimizer": "muon", "momentum": next(momenta)} if is_muon else {"optimizer": "adamw"}
        control.enqueue(fleet.database, fleet.study, {**params, **own}, n_fresh_seeds=1)
    by_momentum = {}
    for attempt in [fleet.start() for _ in range(8)][1:]:
        by_momentum.setdefault(attempt.params.get("momentum"), []).append(attempt)
    fleet.finish(by_momentum[0.8][0], value=1.0)
    fleet.finish(by_momentum[None].pop(), value=1.0)
    for attempt in (*by_momentum[None], *by_momentum[0.99]):
        fleet.finish(attempt, "failed", reason="no such kernel")
    assert budget.read_usage(fleet.database, fleet.study).state == "paused"


def test_a_failed_trial_that_is_requeued_keeps_its_params_and_seed_and_counts_once(fleet):
    failed = fleet.start()
    fleet.finish(failed, "failed", reason="NameError: name 'x' is not defined")
    fleet.finish(fleet.start(), value=2.0)
    assert control.retry(fleet.database, fleet.study)[1].n_pending_retry == 1
    assert fleet.rows()[failed.number]["state"] == "WAITING"
    retry = fleet.start()
    assert (retry.params, retry.seed, retry.attempt_number) == (failed.params, 7, 2)
    fleet.finish(retry, value=1.0)
    usage = budget.read_usage(fleet.database, fleet.study)
    assert (usage.n_finished, usage.n_pending_retry, usage.n_started) == (2, 0, 2)
    history = fleet.rows("select outcome, reason from hpopt.attempts order by attempt_id")
    assert [tuple(row.values()) for row in history] == [
        ("failed", "NameError: name 'x' is not defined"),
        ("complete", None),
        ("complete", None),
    ]
    assert control.retry(fleet.database, fleet.study)[1].n_pending_retry == 0


def test_a_requeued_trial_that_failed_by_losses_may_be_lost_again(fleet):
    for _ in range(3):
        fleet.lose(fleet.start())
    assert fleet.rows()[-1]["outcome"] == "failed"
    control.retry(fleet.database, fleet.study)
    fleet.lose(fleet.start())
    assert fleet.rows("select outcome from hpopt.attempts where is_last")[0]["outcome"] == "lost"


def test_failed_trials_are_requeued_by_number(fleet):
    first, second = fleet.start(), fleet.start()
    for attempt in (first, second):
        fleet.finish(attempt, "failed", reason="broken")
    assert control.retry(fleet.database, fleet.study, [second.number])[1].n_pending_retry == 1
    assert fleet.start().trial_id == second.trial_id
    with pytest.raises(InputError, match=r"^study 'tiny': there is no trial 7; failed: 0$"):
        control.retry(fleet.database, fleet.study, [first.number, 7])
    assert control.read_state(fleet.database, fleet.study).n_pending_retry == 0


def test_expired_heartbeats_do_not_pause_the_study(asha_fleet):
    """Machines that fail say nothing about the trials that are left."""
    for attempt in [asha_fleet.start() for _ in range(5)]:
        asha_fleet.finish(attempt, "lost", reason="heartbeat expired after 60 s")
    assert budget.read_usage(asha_fleet.database, asha_fleet.study).state == "open"


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
        "host": "here",
        "folder": None,
        "answer": "unconfirmed",
        **dict.fromkeys(("optimism", "noise_std", "candidates", "test_metrics")),
        "arm": None,
    }


@pytest.mark.parametrize(
    ("seed", "is_valid"), [(0, True), (2**63 - 1, True), (2**63, False), (-1, False), (1.0, False)]
)
def test_a_seed_is_one_that_the_database_holds_and_any_other_is_a_parameter_that_fails(fleet, seed, is_valid):
    fleet.start()
    fleet.stock().enqueue_trial({"ns_steps": 7}, user_attrs={"seed": seed})
    attempt = fleet.reserve()
    assert (attempt.seed, attempt.params.get("seed")) == ((seed, None) if is_valid else (None, seed))


def test_a_trial_that_completes_among_failures_interrupts_their_series_whenever_it_started(asha_fleet):
    complete, *failed = (asha_fleet.start() for _ in range(6))
    asha_fleet.execute(momentum_of(complete, 0.89))
    for k, attempt in enumerate(failed):
        asha_fleet.execute(momentum_of(attempt, 0.87 + k / 100))
        if k == 4:
            asha_fleet.finish(complete, value=1.0)
        asha_fleet.finish(attempt, "failed", reason="no such file")
    assert budget.read_usage(asha_fleet.database, asha_fleet.study).state == "open"


@pytest.mark.parametrize("beside", ["failed for another reason", "complete in another study"])
def test_a_parameter_need_not_separate_failures_from_unrelated_trials(asha_fleet, fleet, beside):
    complete, *failed = (asha_fleet.start() for _ in range(6))
    asha_fleet.execute(momentum_of(complete, 0.8))
    other = asha_fleet if beside.startswith("failed") else fleet
    unrelated = other.start()
    other.execute(momentum_of(unrelated, 0.8 if beside.startswith("failed") else 0.89))
    other.finish(unrelated, beside.split()[0], value=1.0, reason="another reason")
    asha_fleet.finish(complete, value=1.0)
    for k, attempt in enumerate(failed):
        asha_fleet.execute(momentum_of(attempt, 0.87 + k / 100))
        asha_fleet.finish(attempt, "failed", reason="shapes do not match")
    assert budget.read_usage(asha_fleet.database, asha_fleet.study).state == "open"
