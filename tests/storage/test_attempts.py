"""The books stay exact: budgets are kept, dead attempts are retried once, fenced workers write nothing."""

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from optuna.trial import TrialState

from hpopt.errors import DatabaseError, Fenced
from hpopt.storage import attempts, books, queries, reaping, studies
from hpopt.storage.database import Database
from hpopt.training.run import Evaluation


class Fleet:
    """A worker's view of a study, with a clock that a test may push."""

    def __init__(self, database, study):
        self.database = database
        self.study = study
        self.optuna = studies.open_optuna(database, study)
        self.worker_id = attempts.register_worker(database, study, host="here", pid=1, device="cpu")

    def reserve(self):
        return attempts.reserve(self.database, self.study, self.worker_id)

    def start(self):
        attempt = self.reserve()
        trial = attempts.ask(self.database, self.study, self.optuna, attempt)
        seed = attempt.seed if attempt.seed is not None else 7
        attempts.begin(self.database, attempt, seed=seed, config=trial.params, data_fingerprint=None)
        return attempt, trial

    def record(self, attempt, trial, step, loss=1.0):
        evaluation = Evaluation(step=step, n_steps=90, tokens=step * 10, seconds=1.0, metrics={"val_loss": loss})
        attempts.record(self.database, attempt, trial, evaluation)

    def finish(self, attempt, trial, kind="complete", value=None):
        attempts.finish(self.database, self.optuna, attempt, trial, kind=kind, value=value)

    def let_it_go_silent(self, attempt):
        with self.database.begin() as connection:
            query = "update hpopt.attempt set heartbeat_at = now() - interval '1 hour' where attempt_id = :id"
            connection.execute(sa.text(query), {"id": attempt.attempt_id})

    def reap(self):
        return reaping.reap(self.database, self.study, self.optuna)

    def rows(self, query="select * from hpopt.trials order by trial"):
        with self.database.begin() as connection:
            return connection.execute(sa.text(query)).mappings().all()


@pytest.fixture
def fleet(database, study):
    return Fleet(database, study)


def test_many_workers_reserve_no_more_than_the_budget(database, study, database_url):
    """Optuna's own MaxTrialsCallback made 27 trials of a budget of 20 with 8 workers."""
    connections = [Database(database_url) for _ in range(8)]
    workers = [Fleet(connection, study) for connection in connections]
    with ThreadPoolExecutor(8) as pool:
        reserved = [attempt for attempt in pool.map(lambda k: workers[k % 8].reserve(), range(24)) if attempt]
    assert len(reserved) == 4
    for connection in connections:
        connection.close()


def test_the_first_trial_is_the_default_configuration(fleet):
    _, trial = fleet.start()
    assert trial.params == {"learning_rate": 0.02, "momentum": 0.95, "ns_steps": 5, "optimizer": "muon"}


def test_workers_that_share_a_seed_do_not_repeat_each_other(fleet, database_url):
    """Stock samplers with one seed start every worker with the same trial."""
    other_database = Database(database_url)
    other = Fleet(other_database, fleet.study)
    fleet.start()
    assert fleet.start()[1].params != other.start()[1].params
    other_database.close()


def test_a_silent_attempt_is_retried_with_its_params_and_seed(fleet):
    attempt, trial = fleet.start()
    fleet.let_it_go_silent(attempt)
    assert fleet.reap() == 1
    assert fleet.reap() == 0
    again, retry = fleet.start()
    assert (again.go, again.seed, retry.params) == (2, 7, trial.params)
    assert retry.number != trial.number


def test_a_retried_trial_is_one_trial_in_views_and_budget(fleet):
    attempt, trial = fleet.start()
    fleet.record(attempt, trial, 10, 3.0)
    fleet.record(attempt, trial, 20, 2.0)
    fleet.let_it_go_silent(attempt)
    fleet.reap()
    again, retry = fleet.start()
    fleet.record(again, retry, 20, 2.0)
    fleet.finish(again, retry, value=1.5)
    shown = [row for row in fleet.rows() if row["state"] == "COMPLETE"]
    assert [(row["trial"], row["n_attempts"], row["value"]) for row in shown] == [(retry.number, 2, 1.5)]
    assert [(row["trial"], row["step"]) for row in fleet.rows("select * from hpopt.learning_curves")] == [
        (retry.number, 10),
        (retry.number, 20),
    ]
    assert books.read_books(fleet.database, fleet.study).n_started == 1


def test_a_trial_waits_in_the_views_until_it_is_retried(fleet):
    attempt, trial = fleet.start()
    fleet.let_it_go_silent(attempt)
    fleet.reap()
    assert fleet.rows()[trial.number]["state"] == "WAITING"


def test_a_fenced_worker_can_write_nothing(fleet):
    """A worker that was frozen and wakes up would otherwise overwrite the result of its successor."""
    attempt, trial = fleet.start()
    fleet.let_it_go_silent(attempt)
    fleet.reap()
    again, retry = fleet.start()
    with pytest.raises(Fenced):
        fleet.record(attempt, trial, 10)
    with pytest.raises(Fenced):
        fleet.finish(attempt, trial, value=0.1)
    assert not attempts.beat(fleet.database, attempt, fleet.worker_id)
    fleet.finish(again, retry, value=2.0)
    assert queries.best(fleet.database, fleet.study).value == 2.0


def test_a_worker_that_died_between_optunas_tell_and_ours_keeps_its_result(fleet):
    attempt, trial = fleet.start()
    fleet.optuna.tell(trial, 1.25)
    fleet.let_it_go_silent(attempt)
    fleet.reap()
    assert books.read_books(fleet.database, fleet.study).n_ended == 1
    assert queries.best(fleet.database, fleet.study).value == 1.25


def test_a_trial_is_listed_as_ended_once(fleet):
    """Between Optuna's tell and ours its end is known with one time, afterwards with another."""
    attempt, trial = fleet.start()
    fleet.optuna.tell(trial, 1.25)
    assert queries.ended_trials(fleet.database, fleet.study) == []
    fleet.let_it_go_silent(attempt)
    fleet.reap()
    (ended,) = queries.ended_trials(fleet.database, fleet.study)
    assert queries.ended_trials(fleet.database, fleet.study, ended.finished_at) == []


def test_a_reservation_that_never_got_a_trial_frees_its_place(fleet):
    for _ in range(4):
        attempt = fleet.reserve()
        fleet.let_it_go_silent(attempt)
    assert fleet.reserve() is None
    fleet.reap()
    assert fleet.reserve() is not None


def test_a_configuration_is_not_lost_with_the_worker_that_had_just_taken_it(fleet):
    attempt = fleet.reserve()
    taken = fleet.optuna.ask()
    fleet.let_it_go_silent(attempt)
    with fleet.database.begin() as connection:
        long_ago = "update public.trials set datetime_start = now() - interval '1 day' where state = 'RUNNING'"
        connection.execute(sa.text(long_ago))
    fleet.reap()
    assert fleet.optuna.trials[taken.number].state is TrialState.FAIL
    assert fleet.start()[1].params["learning_rate"] == 0.02


def test_a_configuration_is_not_lost_with_a_worker_that_died_before_it_sampled(fleet, monkeypatch):
    attempt = fleet.reserve()
    with monkeypatch.context() as patched:
        patched.setattr("hpopt.strategy.suggest", lambda _trial, _space: None)
        attempts.ask(fleet.database, fleet.study, fleet.optuna, attempt)
    fleet.let_it_go_silent(attempt)
    fleet.reap()
    assert fleet.start()[1].params["learning_rate"] == 0.02


def test_a_trial_that_was_reaped_while_it_was_asked_for_runs_once(fleet):
    """The reaper fails it and enqueues its configuration again; the slow worker must not tie the dead one."""
    attempt = fleet.reserve()
    slow = fleet.optuna.ask()
    attempts.give_back(fleet.database, fleet.optuna, slow)
    assert not attempts._tie(fleet.database, attempt, slow)
    attempts.drop(fleet.database, attempt, "its trial was reaped")
    assert fleet.start()[1].params["learning_rate"] == 0.02
    assert fleet.start()[1].params["learning_rate"] != 0.02
    assert [row["trial"] for row in fleet.rows()] == [1, 2]


def test_a_patient_worker_is_not_taken_for_dead_by_a_hasty_one(fleet, database, study):
    """A second machine may join with another heartbeat; each is judged by its own."""
    attempt, _ = fleet.start()
    with database.begin() as connection:
        connection.execute(sa.text("update hpopt.attempt set heartbeat_at = now() - interval '40 seconds'"))
    hasty = attempts.register_worker(database, study, host="there", pid=2, device="cpu", stale_after_s=5)
    assert fleet.reap() == 0
    assert attempts.beat(database, attempt, hasty)


def test_a_trial_whose_end_optuna_was_never_told_is_failed(fleet):
    attempt, trial = fleet.start()
    attempts.drop(fleet.database, attempt, "the database went away")
    fleet.reap()
    assert fleet.optuna.trials[trial.number].state is TrialState.FAIL


def test_a_retry_keeps_the_rungs_that_it_passed(database):
    """Optuna would take the first value after the resume for that of every rung before it."""
    text = 'name = "rungs"\n[budget]\ntrials = 2\n[search_space]\nmomentum = { low = 0.8, high = 0.99 }\n'
    fleet = Fleet(database, studies.create_study(database, text + "[fixed]\nmax_steps = 90\n", "rungs.toml"))
    attempt, trial = fleet.start()
    trial.report(5.0, 10)
    trial.should_prune()
    fleet.let_it_go_silent(attempt)
    fleet.reap()
    _, retry = fleet.start()
    passed = database.optuna.get_trial_system_attrs(attempts.id_of(retry))
    assert passed["completed_rung_0"] == 5.0


def test_a_repeated_finish_is_no_fence(fleet):
    """A tell whose reply was lost is repeated and then refused, though it was done."""
    attempt, trial = fleet.start()
    fleet.optuna.tell(trial, 1.25)
    fleet.finish(attempt, trial, value=1.25)
    assert fleet.rows()[trial.number]["outcome"] == "complete"


def test_a_frozen_holder_of_the_lock_does_not_stop_the_fleet(fleet, monkeypatch):
    monkeypatch.setattr(attempts, "_LOCK_TIMEOUT_S", 1)
    with fleet.database.engine.connect() as frozen:
        frozen.execute(sa.text("select from hpopt.study for update"))
        with pytest.raises(DatabaseError, match="lock timeout"):
            fleet.reserve()


def test_a_trial_whose_workers_keep_dying_is_given_up(fleet):
    """A trial that kills its worker would otherwise come back until the budget of device hours is gone."""
    for go in (1, 2, 3):
        attempt, _ = fleet.start()
        assert attempt.go == go
        fleet.let_it_go_silent(attempt)
        fleet.reap()
    row = fleet.rows()[-1]
    assert (row["outcome"], row["reason"]) == ("failed", "its worker died 3 times in a row without progress")
    assert fleet.reserve().first_trial_id is None


def test_progress_between_deaths_gives_a_trial_more_goes(fleet):
    for go in (1, 2, 3, 4):
        attempt, trial = fleet.start()
        fleet.record(attempt, trial, go * 10)
        fleet.let_it_go_silent(attempt)
        fleet.reap()
    assert fleet.reserve().go == 5


def test_preemption_never_counts_against_a_trial(fleet):
    for _ in range(5):
        attempt, trial = fleet.start()
        fleet.finish(attempt, trial, "preempted")
    assert fleet.reserve().go == 6


def test_a_diverged_trial_is_kept_and_never_best(fleet):
    attempt, trial = fleet.start()
    trial.report(0.5, 10)
    fleet.finish(attempt, trial, "diverged")
    row = fleet.rows()[trial.number]
    assert (row["state"], row["outcome"], row["feasible"], row["value"]) == ("PRUNED", "diverged", False, 0.5)
    assert queries.find_best(fleet.database, fleet.study) is None


def test_a_metric_that_is_not_finite_is_recorded_as_such(fleet):
    attempt, trial = fleet.start()
    fleet.record(attempt, trial, 10, math.nan)
    value = fleet.rows("select (metrics ->> 'val_loss')::double precision as value from hpopt.evaluation")[0]["value"]
    assert math.isnan(value)


def test_the_best_row_has_its_promised_columns_and_no_invented_interval(fleet):
    attempt, trial = fleet.start()
    fleet.finish(attempt, trial, value=1.5)
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
        "trial": trial.number,
    }


@pytest.mark.parametrize(
    ("budget", "reason"),
    [
        ("gpu_hours = 0.5", "0.5 device hours spent"),
        ("wall_hours = 0.5", "0.5 hours passed"),
        ("target = 2.0\ntrials = 9", "target 2 reached"),
    ],
)
def test_hours_and_target_end_a_study(database, budget, reason):
    text = f'name = "limits"\n[budget]\n{budget}\n[search_space]\nmomentum = {{ low = 0.8, high = 0.99 }}'
    fleet = Fleet(database, studies.create_study(database, text, "limits.toml"))
    attempt, trial = fleet.start()
    fleet.finish(attempt, trial, value=1.5)
    with database.begin() as connection:
        an_hour = "update hpopt.attempt set started_at = now() - interval '1 hour', device_seconds = 3600"
        connection.execute(sa.text(an_hour))
    assert fleet.reserve() is None
    assert books.finished(fleet.study, books.read_books(database, fleet.study)) == reason
