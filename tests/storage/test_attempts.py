"""The books stay exact: budgets are kept, dead attempts are retried once, fenced workers write nothing."""

import math
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import optuna
import pytest
import sqlalchemy as sa
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from hpopt.errors import DatabaseError, Fenced, InputError
from hpopt.search import sampler, tpe
from hpopt.analysis.trials import Outcome
from hpopt.storage import attempts, budget, evaluations, queries, reaper, studies
from hpopt.storage import database as database_module
from hpopt.storage.database import Database
from hpopt.storage.observations import ObservedTrials
from hpopt.study.reading import parse_study_file
from hpopt.training.run import Evaluation

PRUNED = """
name = "rungs"
[budget]
trials = 40
[sampler]
name = "random"
[pruner]
name = "asha"
[search_space]
momentum = { low = 0.8, high = 0.99 }
[fixed]
max_steps = 90
eval_steps = 10
"""


class Fleet:
    """A worker's view of a study, with a clock that a test may push."""

    def __init__(self, database, study):
        self.database = database
        self.study = study
        self.observed = ObservedTrials(database, study)
        self.worker_id = self.join()

    def join(self):
        return attempts.register_worker(self.database, self.study, host="here", pid=1, device="cpu")

    def reserve(self, worker_id=None):
        return attempts.reserve(self.database, self.study, worker_id or self.join())

    def start(self, worker_id=None):
        attempt = self.reserve(worker_id)
        self.observed.refresh()
        params = self.observed.propose(self.study, attempt)
        about = {"seed": attempt.seed if attempt.seed is not None else 7, "config": params, "data_fingerprint": None}
        attempts.start(self.database, self.study, attempt, params, **about)
        return replace(attempt, params=params)

    def record(self, attempt, step, loss=1.0):
        evaluation = Evaluation(step=step, n_steps=90, tokens=step * 10, seconds=1.0, metrics={"val_loss": loss})
        return evaluations.record(self.database, self.study, attempt, evaluation)

    def finish(self, attempt, kind="complete", value=None, reason=None):
        attempts.finish(self.database, attempt, Outcome(kind), value=value, reason=reason)

    def heartbeat(self, attempt, worker_id=None):
        return attempts.heartbeat(self.database, self.study.study_id, worker_id or self.worker_id, attempt)

    def lose(self, attempt):
        """Let an attempt go silent for an hour and be found."""
        silent = sa.text("update hpopt.attempt set heartbeat_at = now() - interval '1 hour' where attempt_id = :id")
        with self.database.begin() as connection:
            connection.execute(silent, {"id": attempt})
        return self.reap()

    def reap(self, worker_id=None):
        return reaper.reap(self.database, self.study, worker_id or self.worker_id)

    def execute(self, statement):
        with self.database.begin() as connection:
            connection.execute(sa.text(statement))

    def rows(self, query="select * from hpopt.trials order by trial"):
        with self.database.begin() as connection:
            return connection.execute(sa.text(query)).mappings().all()

    def stock(self):
        """The study as stock Optuna reads it."""
        return optuna.load_study(study_name=self.study.name, storage=RDBStorage(self.database.url))


@pytest.fixture
def fleet(database, study):
    return Fleet(database, study)


@pytest.fixture
def pruned(database):
    return Fleet(database, studies.create_study(database, parse_study_file(PRUNED, "rungs.toml")))


def test_many_workers_reserve_no_more_than_the_budget(database, study, database_url):
    """Optuna's own MaxTrialsCallback made 27 trials of a budget of 20 with 8 workers."""
    connections = [Database(database_url) for _ in range(8)]
    workers = [Fleet(connection, study) for connection in connections]
    with ThreadPoolExecutor(8) as pool:
        reserved = [attempt for attempt in pool.map(lambda k: workers[k % 8].reserve(), range(24)) if attempt]
    assert len(reserved) == 4
    assert [trial.number for trial in workers[0].stock().trials] == [0, 1, 2, 3]
    for connection in connections:
        connection.close()


def test_the_count_of_begun_trials_is_that_of_their_first_goes(fleet):
    """The reservation trusts the count, which is kept beside the rows and not counted from them."""
    fleet.finish(fleet.start(), value=1.0)
    lost = fleet.start()
    fleet.lose(lost.attempt_id)
    fleet.start()
    counted = fleet.rows(
        "select count(*) filter (where attempt_number = 1) as n, max(n_started) as kept from hpopt.attempts, hpopt.study"
    )
    assert (counted[0]["n"], counted[0]["kept"]) == (2, 2)


def test_the_cost_of_a_study_is_that_of_its_goes(fleet):
    """What ended goes cost is kept beside the rows; a go that is handed on costs once."""
    ended, lost, running = (fleet.start() for _ in range(3))
    fleet.execute("update hpopt.attempt set started_at = now() - interval '100 seconds'")
    for attempt in (ended, lost, running):
        fleet.record(attempt, 10)
    fleet.finish(ended, value=1.0)
    fleet.lose(lost.attempt_id)
    hours = budget.read_usage(fleet.database, fleet.study).device_hours
    assert hours == pytest.approx(300 / 3600, abs=2 / 3600)
    assert hours == pytest.approx(fleet.rows("select sum(device_seconds) / 3600 as h from hpopt.attempts")[0]["h"])


def test_the_first_trial_is_the_default_configuration(fleet):
    assert fleet.start().params == {"learning_rate": 0.02, "momentum": 0.95, "ns_steps": 5, "optimizer": "muon"}


def test_workers_that_share_a_seed_do_not_repeat_each_other(fleet, database_url):
    """Stock samplers with one seed start every worker with the same trial."""
    other_database = Database(database_url)
    other = Fleet(other_database, fleet.study)
    fleet.start()
    assert fleet.start().params != other.start().params
    other_database.close()


def test_a_reservation_whose_reply_was_lost_is_given_again(fleet):
    """Otherwise each lost reply would hold a place in the budget until it is taken for dead."""
    first = fleet.reserve(fleet.worker_id)
    assert fleet.reserve(fleet.worker_id) == first
    assert fleet.rows("select count(*) as n from hpopt.attempts")[0]["n"] == 1


def test_what_is_written_for_optuna_is_what_stock_optuna_reads(fleet):
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
    """Its numbers are counted, ours follow the newest: both must come to the same."""
    fleet.start()
    theirs = fleet.stock().ask()
    ours = fleet.start()
    assert (theirs.number, ours.number) == (1, 2)


def test_a_silent_attempt_is_retried_with_its_params_and_seed(fleet):
    attempt = fleet.start()
    assert fleet.lose(attempt.attempt_id) == 1
    assert fleet.reap() == 0
    again = fleet.start()
    assert (again.attempt_number, again.seed, again.params) == (2, 7, attempt.params)
    assert again.number != attempt.number


def test_a_retried_trial_is_one_trial_in_views_and_budget(fleet):
    attempt = fleet.start()
    fleet.record(attempt, 10, 3.0)
    fleet.record(attempt, 20, 2.0)
    fleet.lose(attempt.attempt_id)
    again = fleet.start()
    fleet.record(again, 20, 2.0)
    fleet.finish(again, value=1.5)
    shown = [row for row in fleet.rows() if row["state"] == "COMPLETE"]
    assert [(row["trial"], row["n_attempts"], row["value"]) for row in shown] == [(again.number, 2, 1.5)]
    assert [(row["trial"], row["step"]) for row in fleet.rows("select * from hpopt.learning_curves")] == [
        (again.number, 10),
        (again.number, 20),
    ]
    assert fleet.stock().trials[again.number].intermediate_values == {10: 3.0, 20: 2.0}
    assert budget.read_usage(fleet.database, fleet.study).n_started == 1


def test_a_trial_waits_in_the_views_until_it_is_retried(fleet):
    attempt = fleet.start()
    fleet.lose(attempt.attempt_id)
    assert fleet.rows()[attempt.number]["state"] == "WAITING"


def test_a_fenced_worker_can_write_nothing(fleet):
    """A worker that was frozen and wakes up would otherwise overwrite the result of its successor."""
    attempt = fleet.start()
    fleet.lose(attempt.attempt_id)
    again = fleet.start()
    with pytest.raises(Fenced):
        fleet.record(attempt, 10)
    with pytest.raises(Fenced):
        fleet.finish(attempt, value=0.1)
    with pytest.raises(Fenced):
        attempts.start(fleet.database, fleet.study, attempt, {}, seed=1, config={}, data_fingerprint=None)
    assert not fleet.heartbeat(attempt).is_held
    fleet.finish(again, value=2.0)
    assert queries.best(fleet.database, fleet.study).value == 2.0
    assert fleet.stock().trials[attempt.number].intermediate_values == {}


def test_a_repeated_finish_is_no_fence(fleet):
    """An end whose reply was lost is told again."""
    attempt = fleet.start()
    fleet.finish(attempt, value=1.25)
    fleet.finish(attempt, value=1.25)
    assert fleet.rows()[attempt.number]["outcome"] == "complete"
    with pytest.raises(Fenced):
        fleet.finish(attempt, "pruned")


def test_a_trial_that_somebody_ended_in_the_dashboard_has_ended_so(fleet):
    attempt = fleet.start()
    fleet.stock().tell(attempt.number, 1.25)
    with pytest.raises(Fenced):
        fleet.record(attempt, 10)
    fleet.finish(attempt, "lost", reason="it was ended meanwhile")
    row = fleet.rows()[attempt.number]
    assert (row["outcome"], row["value"], row["reason"]) == ("complete", 1.25, "ended outside of hpopt")


def test_a_configuration_is_not_lost_with_a_worker_that_died_before_it_sampled(fleet):
    fleet.lose(fleet.reserve().attempt_id)
    again = fleet.start()
    assert (again.attempt_number, again.params["learning_rate"]) == (2, 0.02)


def test_a_trial_of_stock_optuna_is_left_alone(fleet):
    """A script may run trials of its own in a study of ours."""
    theirs = fleet.stock().ask()
    fleet.execute("update public.trials set datetime_start = now() - interval '1 day'")
    fleet.reap()
    assert fleet.stock().trials[theirs.number].state is TrialState.RUNNING


def test_a_patient_worker_is_not_taken_for_dead_by_a_hasty_one(fleet, database, study):
    """A second machine may join with another heartbeat; each is judged by its own."""
    attempt = fleet.start()
    fleet.execute("update hpopt.attempt set heartbeat_at = now() - interval '40 seconds'")
    fleet.execute("update hpopt.worker set connected_since = now() - interval '1 hour'")
    hasty = attempts.register_worker(database, study, host="there", pid=2, device="cpu", stale_after_s=5)
    assert fleet.reap(hasty) == 0
    assert fleet.heartbeat(attempt, hasty).is_held


def test_nobody_is_taken_for_dead_after_an_outage_that_cut_off_everybody(fleet):
    """The first worker to come back would otherwise take all others' trials away, which were training on."""
    attempt = fleet.start()
    fleet.execute("update hpopt.attempt set heartbeat_at = now() - interval '3 minutes'")
    fleet.execute(
        "update hpopt.worker set heartbeat_at = now() - interval '3 minutes', connected_since = now() - interval '1 hour'"
    )
    reaper = fleet.worker_id
    fleet.heartbeat(None, reaper)
    assert fleet.reap(reaper) == 0
    assert fleet.heartbeat(attempt).is_held
    fleet.execute("update hpopt.attempt set heartbeat_at = now() - interval '3 minutes'")
    fleet.execute("update hpopt.worker set connected_since = now() - interval '61 seconds'")
    assert fleet.reap(reaper) == 1


def test_reaping_is_done_once_by_whoever_comes_first(fleet, database_url):
    lost = [fleet.start() for _ in range(3)]
    fleet.execute("update hpopt.attempt set heartbeat_at = now() - interval '1 hour'")
    connections = [Database(database_url) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda c: reaper.reap(c, fleet.study, fleet.worker_id), connections))
    assert sum(found) == len(lost)
    assert {row["outcome"] for row in fleet.rows("select outcome from hpopt.attempts")} == {"lost"}
    for connection in connections:
        connection.close()


def test_a_frozen_holder_of_the_lock_does_not_stop_the_fleet(fleet, monkeypatch):
    monkeypatch.setattr(database_module, "_BRIEF", "set local lock_timeout = '1 s'")
    with fleet.database.engine.connect() as frozen:
        frozen.execute(sa.text("select from hpopt.study for update"))
        with pytest.raises(DatabaseError, match="lock timeout"):
            fleet.reserve(fleet.worker_id)


def test_a_trial_whose_workers_keep_dying_is_given_up(fleet):
    """A trial that kills its worker would otherwise come back until the budget of device hours is gone."""
    for go in (1, 2, 3):
        attempt = fleet.start()
        assert attempt.attempt_number == go
        fleet.lose(attempt.attempt_id)
    row = fleet.rows()[-1]
    assert (row["outcome"], row["reason"]) == (
        "failed",
        "heartbeat expired after 60 s (3 times in a row without progress)",
    )
    assert fleet.reserve().attempt_number == 1


def test_progress_between_deaths_gives_a_trial_more_goes(fleet):
    for go in (1, 2, 3, 4):
        attempt = fleet.start()
        fleet.record(attempt, go * 10)
        fleet.lose(attempt.attempt_id)
    assert fleet.reserve().attempt_number == 5


def test_a_device_that_fails_counts_as_a_death_of_the_worker(fleet):
    for _ in range(3):
        fleet.finish(fleet.start(), "lost", reason="CUDA error: an illegal memory access")
    row = fleet.rows()[-1]
    assert row["outcome"] == "failed"
    assert row["reason"] == "CUDA error: an illegal memory access (3 times in a row without progress)"


def test_preemption_never_counts_against_a_trial(fleet):
    for _ in range(5):
        fleet.finish(fleet.start(), "preempted")
    assert fleet.reserve().attempt_number == 6


def test_a_diverged_trial_is_kept_and_never_best(fleet):
    attempt = fleet.start()
    fleet.record(attempt, 10, 0.5)
    fleet.finish(attempt, "diverged")
    row = fleet.rows()[attempt.number]
    assert (row["state"], row["outcome"], row["feasible"]) == ("PRUNED", "diverged", False)
    assert queries.find_best(fleet.database, fleet.study) is None


def test_a_metric_that_is_not_finite_is_recorded_as_such(fleet):
    fleet.record(fleet.start(), 10, math.nan)
    value = fleet.rows("select (metrics ->> 'val_loss')::double precision as value from hpopt.evaluation")[0]["value"]
    assert math.isnan(value)


def test_an_evaluation_that_is_told_twice_is_there_once(fleet):
    attempt = fleet.start()
    fleet.record(attempt, 10, 3.0)
    fleet.record(attempt, 10, 3.0)
    assert len(fleet.rows("select * from hpopt.evaluation")) == 1


def test_only_the_best_third_goes_on_from_a_rung(pruned):
    losses = (5.0, 4.0, 6.0, 3.0, 4.5, 2.0)
    verdicts = [pruned.record(pruned.start(), 10, loss).should_prune for loss in losses]
    # The first is the configuration of the defaults; the fifth is the third best of five, of which one goes on.
    assert verdicts == [False, False, True, False, True, False]


def test_goes_of_one_trial_compete_once(pruned):
    """Optuna counts each go of a retried trial as a competitor."""
    fallen = pruned.start()
    pruned.record(fallen, 10, 1.0)
    for _ in range(2):
        pruned.lose(fallen.attempt_id)
        fallen = pruned.start()
        assert not pruned.record(fallen, 10, 1.0).should_prune
    assert [row["value"] for row in pruned.rows("select value from hpopt.rung")] == [1.0]


def test_a_late_value_is_not_taken_for_that_of_an_earlier_rung(pruned):
    """A go that resumes behind a rung has no value there, but the one that was recorded when it was reached."""
    attempt = pruned.start()
    pruned.record(attempt, 10, 5.0)
    pruned.lose(attempt.attempt_id)
    again = pruned.start()
    pruned.record(again, 20, 1.0)
    assert [(row["step"], row["value"]) for row in pruned.rows("select * from hpopt.rung")] == [(10, 5.0)]


def test_a_run_of_failures_pauses_the_study_with_their_reason(pruned):
    """Five different trials that fail alike have a reason that the rest of the budget would share."""
    for k in range(5):
        pruned.finish(pruned.start(), "failed", reason=f"no such file: /data/{k}")
    counted = budget.read_usage(pruned.database, pruned.study)
    assert (counted.state, counted.state_reason) == ("paused", "5 trials in a row failed: no such file: /data/0")
    assert pruned.reserve() is None


@pytest.mark.parametrize("between", ["complete", "failed"])
def test_failures_of_their_own_pause_nothing(pruned, between):
    for _ in range(4):
        pruned.finish(pruned.start(), "failed", reason="no such file")
    pruned.finish(pruned.start(), between, value=1.0, reason="another one")
    pruned.finish(pruned.start(), "failed", reason="no such file")
    assert budget.read_usage(pruned.database, pruned.study).state == "open"


def test_a_budget_that_was_raised_meanwhile_ends_no_trial(database):
    """Workers read the file when they start; what counts is the file that the database has now."""
    text = 'name = "raised"\n[budget]\ngpu_hours = 1.0\n[search_space]\nmomentum = { low = 0.8, high = 0.99 }'
    fleet = Fleet(database, studies.create_study(database, parse_study_file(text, "raised.toml")))
    attempt = fleet.start()
    fleet.execute("update hpopt.attempt set started_at = now() - interval '2 hours'")
    studies.create_study(database, parse_study_file(text.replace("1.0", "9.0")), "raised.toml")
    # An evaluation brings the hours up to date, the next one counts them.
    assert [fleet.record(attempt, step).limit_reached for step in (10, 20)] == [None, None]
    studies.create_study(database, parse_study_file(text, "raised.toml"))
    assert fleet.record(attempt, 30).limit_reached == "gpu_hours budget exhausted (1)"


def test_a_worker_of_another_version_is_refused_with_both_named(fleet):
    other = replace(fleet.study, versions={"hpopt": "0.0.1"})
    with pytest.raises(InputError, match=r"is run by hpopt 0\.0\.1, this is \d"):
        studies.require_version(other)


def test_the_sampler_sees_what_stock_optuna_would_show_it(database):
    """The history is a copy: states, values, params and constraints must be those of the database."""
    fleet = Fleet(database, studies.create_study(database, parse_study_file(PRUNED, "rungs.toml")))
    outcomes = ["complete", "pruned", "diverged", "failed", "complete"]
    fleet.observed.refresh()
    running = [fleet.start() for _ in outcomes]
    fleet.observed.refresh()
    for place, (attempt, outcome) in enumerate(zip(running, outcomes, strict=True)):
        fleet.record(attempt, 10, 1.0 + place)
        fleet.finish(attempt, outcome, value=2.0 + place if outcome == "complete" else None)
    left = fleet.start()
    for observed_trials in (fleet.observed, ObservedTrials(database, fleet.study)):
        observed_trials.refresh()
        observed = observed_trials.observations()
        stock = [t for t in fleet.stock().trials if t.state is not TrialState.FAIL]
        assert list(observed.values["momentum"]) == [trial.params["momentum"] for trial in stock]
        assert list(observed.kind) == [tpe.COMPLETE, tpe.PRUNED, tpe.INFEASIBLE, tpe.COMPLETE, tpe.RUNNING]
        assert list(observed.score[:4]) == [2.0, 2.0, 1.0, 6.0]
        assert observed.step[1] == 10
        assert observed.values["momentum"][-1] == left.params["momentum"]


def test_the_history_grows_with_the_study(pruned):
    """More trials than its columns had room for at first."""
    pruned.execute(
        "insert into public.trials (study_id, number, state) select study_id, n, 'RUNNING' "
        "from hpopt.study, generate_series(1, 600) n"
    )
    pruned.execute(
        "insert into public.trial_params (trial_id, param_name, param_value, distribution_json) "
        """select trial_id, 'momentum', 0.8 + number / 10000.0, '{"name": "FloatDistribution", "attributes": """
        """{"step": null, "low": 0.8, "high": 0.99, "log": false}}' from public.trials where number > 0"""
    )
    pruned.observed.refresh()
    observed = pruned.observed.observations()
    assert len(observed.kind) == 600
    assert observed.values["momentum"][-1] == pytest.approx(0.86)


def test_the_history_leaves_out_what_does_not_fit_the_space(fleet):
    """One trial with another range would make multivariate TPE drop the parameter without a word."""
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


def test_the_best_row_has_its_promised_columns_and_no_invented_interval(fleet):
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


@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        ("gpu_hours = 0.5", "gpu_hours budget exhausted (0.5)"),
        ("wall_hours = 0.5", "wall_hours budget exhausted (0.5)"),
        ("target = 2.0\ntrials = 9", "target 2 reached"),
    ],
)
def test_hours_and_target_end_a_study(database, limit, reason):
    text = f'name = "limits"\n[budget]\n{limit}\n[search_space]\nmomentum = {{ low = 0.8, high = 0.99 }}'
    fleet = Fleet(database, studies.create_study(database, parse_study_file(text, "limits.toml")))
    attempt = fleet.start()
    fleet.execute("update hpopt.attempt set started_at = now() - interval '1 hour'")
    fleet.finish(attempt, value=1.5)
    assert fleet.reserve() is None
    assert budget.finished_reason(fleet.study, budget.read_usage(database, fleet.study)) == reason
