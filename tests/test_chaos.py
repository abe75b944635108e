"""A fleet loses nothing under faults, and the audit that shows it finds planted errors."""

import shutil
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest
import sqlalchemy as sa
from sqlalchemy import make_url

from hpopt.storage import studies
from hpopt.storage.connect import open_database
from hpopt.storage.database import Database
from hpopt.study.reading import parse_study_file
from hpopt.training.run import Run
from hpopt.worker.attempt import WorkerOptions
from hpopt.worker.loop import work

# Benchmarks are scripts, which are imported from their folder.
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import audit
import chaos
import proxy
import recurrence

OPTIONS = chaos.Options(
    seed=1,
    n_faults=20,
    n_workers=4,
    mean_gap_s=0.25,
    trials_at_a_time=10,
    max_steps=30,
    step_seconds=0.05,
    timeouts=chaos.Timeouts(heartbeat_every_s=0.5, stale_after_s=2.0, give_up_after_s=4.0),
)
N_TRIALS = 12


def test_a_fleet_loses_nothing_under_faults():
    """A schedule without faults, or workers that run nothing, would lose nothing either."""
    with chaos.own_folder() as folder:
        report = chaos.run_chaos(OPTIONS, folder)
        assert report.is_clean, "\n".join(chaos.explain(report))
    assert "lost: 0" in "\n".join(chaos.render(report))
    assert report.faults.total() >= 20
    assert len(report.faults) >= 6
    outcomes = [attempt["outcome"] for attempt in report.records.attempts]
    assert outcomes.count("complete") + outcomes.count("pruned") >= 5
    assert outcomes.count("lost") + outcomes.count("preempted") >= 1
    assert max(attempt["attempt_number"] for attempt in report.records.attempts) >= 2


@pytest.fixture(scope="module")
def finished(postgres_url) -> Iterator[str]:
    """The name of a database with a study that one worker finished without faults."""
    name = f"chaos_{uuid.uuid4().hex}"
    _execute(postgres_url, f"CREATE DATABASE {name}")
    home = Path(tempfile.mkdtemp(prefix="hpopt-chaos-"))
    options = chaos.Options(step_seconds=0.0, max_steps=30)
    with open_database(_url(postgres_url, name), home, create=True) as database:
        study = studies.create_study(database, parse_study_file(options.study_file(N_TRIALS), "test"))
        work(database, study, WorkerOptions(home=home, log=lambda _line: None))
    shutil.rmtree(home)
    yield name
    _execute(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def database(postgres_url, finished) -> Iterator[Database]:
    """A copy of the finished study's database, to plant errors in."""
    name = f"chaos_{uuid.uuid4().hex}"
    _execute(postgres_url, f"CREATE DATABASE {name} TEMPLATE {finished}")
    # A copy has no settings of roles, and the search path of a user called hpopt begins with schema hpopt.
    _execute(postgres_url, f"ALTER ROLE current_user IN DATABASE {name} SET search_path = public")
    with closing(Database(_url(postgres_url, name))) as database:
        yield database
    _execute(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


def test_a_study_without_faults_has_every_outcome_and_passes_the_audit(database):
    records = audit.read_records(database, chaos.STUDY)
    assert {attempt["outcome"] for attempt in records.attempts} == {"complete", "pruned", "failed", "diverged"}
    assert records.rungs
    assert not any(audit.audit(records).values())


# A further attempt at the first completed trial; {outcome} is how it ended, {state} that of its Optuna trial.
FURTHER_ATTEMPT = """
    with first as (
        select * from hpopt.attempt where outcome = 'complete' order by attempt_id limit 1
    ), again as (
        insert into public.trials (number, study_id, state, datetime_start)
        select 1 + (select max(number) from public.trials), study_id, '{state}', now() from first returning trial_id
    ), params as (
        insert into public.trial_params (trial_id, param_name, param_value, distribution_json)
        select again.trial_id, p.param_name, p.param_value, p.distribution_json
        from again, first join public.trial_params p on p.trial_id = first.optuna_trial_id
    ), result as (
        insert into public.trial_values (trial_id, objective, value, value_type)
        select again.trial_id, 0, v.value, v.value_type
        from again, first join public.trial_values v on v.trial_id = first.optuna_trial_id
    )
    insert into hpopt.attempt
        (study_id, worker_id, optuna_trial_id, trial_id, attempt_number, seed, outcome, ended_at)
    select first.study_id, first.worker_id, again.trial_id, first.trial_id, {attempt_number}, {seed}, {outcome},
           {ended_at}
    from first, again
"""
CHOSEN = """
    create temporary table chosen as
    select optuna_trial_id from hpopt.attempt where outcome = 'complete' order by attempt_id limit 1
"""
REPEATED = {
    "state": "COMPLETE",
    "attempt_number": 2,
    "seed": "first.seed",
    "outcome": "'complete'",
    "ended_at": "now()",
}

PLANTED_ERRORS = {
    "an evaluation is deleted": (
        "delete from hpopt.evaluation e using chosen c where e.optuna_trial_id = c.optuna_trial_id and step = 15",
        audit.STEPS,
    ),
    "the last evaluation is deleted": (
        "delete from hpopt.evaluation e using chosen c where e.optuna_trial_id = c.optuna_trial_id and step = 30",
        audit.STEPS,
    ),
    "the first evaluation of a pruned trial is deleted": (
        """
        delete from hpopt.evaluation
        where step = 3 and attempt_id = (select min(attempt_id) from hpopt.attempt where outcome = 'pruned')
        """,
        audit.STEPS,
    ),
    "an evaluation is that of another step": (
        """
        update hpopt.evaluation e set metrics = other.metrics
        from hpopt.evaluation other join chosen using (optuna_trial_id)
        where e.optuna_trial_id = other.optuna_trial_id and e.step = 15 and other.step = 18
        """,
        "each evaluation is that of a run without faults",
    ),
    "there is a step after the last": (
        """
        insert into hpopt.evaluation select optuna_trial_id, 31, attempt_id, tokens, seconds, metrics
        from hpopt.evaluation join chosen using (optuna_trial_id) where step = 30
        """,
        audit.STEPS,
    ),
    "a value is changed": (
        "update public.trial_values v set value = value + 1e-9 from chosen c where v.trial_id = c.optuna_trial_id",
        "each result is that of a run without faults",
    ),
    "the value of a pruned trial is changed": (
        """
        update public.trial_values v set value = value + 1e-9 from hpopt.attempt a
        where v.trial_id = a.optuna_trial_id and a.outcome = 'pruned'
        """,
        "each result is that of a run without faults",
    ),
    "trials failed that should be complete": (
        "update hpopt.attempt set outcome = 'failed' where outcome = 'complete'",
        "each result is that of a run without faults",
    ),
    "a seed is changed": (
        "update hpopt.attempt a set seed = seed + 1 from chosen c where a.optuna_trial_id = c.optuna_trial_id",
        "each result is that of a run without faults",
    ),
    "a trial has two results": (FURTHER_ATTEMPT.format(**REPEATED), audit.RESULTS),
    "Optuna has a trial without an attempt": (
        "insert into public.trials (number, study_id, state) select 999, study_id, 'COMPLETE' from hpopt.study",
        "stock Optuna reads the same completed trials",
    ),
    "a retry has another seed": (
        FURTHER_ATTEMPT.format(**{**REPEATED, "seed": "first.seed + 1"}),
        "the attempts at a trial share params and seed",
    ),
    "an attempt number is left out": (
        FURTHER_ATTEMPT.format(**{**REPEATED, "attempt_number": 3}),
        "attempts are numbered 1 to n",
    ),
    "an attempt has no outcome": (
        FURTHER_ATTEMPT.format(**{**REPEATED, "state": "RUNNING", "outcome": "null", "ended_at": "null"}),
        "each attempt has an outcome",
    ),
    "a trial is left running": (
        FURTHER_ATTEMPT.format(**{**REPEATED, "state": "RUNNING", "outcome": "'lost'"}),
        "nothing is left running",
    ),
    "a trial is to be retried": (
        FURTHER_ATTEMPT.format(**{**REPEATED, "state": "FAIL", "outcome": "'lost'"}),
        audit.BUDGET,
    ),
    "a trial is deleted": (
        "delete from hpopt.attempt a using chosen c where a.optuna_trial_id = c.optuna_trial_id",
        audit.BUDGET,
    ),
    "rungs have other values": (
        "update hpopt.rung set value = value + 1e-9",
        "each rung has the value of a run without faults",
    ),
    "an intermediate value is deleted": (
        """
        delete from public.trial_intermediate_values v using chosen c
        where v.trial_id = c.optuna_trial_id and step = 15
        """,
        "Optuna has each evaluation as an intermediate value",
    ),
}


@pytest.mark.parametrize("error", PLANTED_ERRORS)
def test_the_audit_finds_a_planted_error(database, error):
    statement, title = PLANTED_ERRORS[error]
    with database.begin() as connection:
        connection.execute(sa.text(CHOSEN))
        assert connection.execute(sa.text(statement)).rowcount > 0
    assert audit.audit(audit.read_records(database, chaos.STUDY))[title]


def test_the_audit_finds_a_trial_that_was_lost_too_often(database):
    for number in range(2, 6):
        lost = {**REPEATED, "attempt_number": number, "state": "FAIL", "outcome": "'lost'"}
        with database.begin() as connection:
            connection.execute(sa.text(FURTHER_ATTEMPT.format(**lost)))
    title = "no trial is lost more than 3 times in a row without progress"
    assert audit.audit(audit.read_records(database, chaos.STUDY))[title]


def test_a_run_that_is_resumed_from_its_checkpoint_has_the_evaluations_of_the_closed_form(tmp_path):
    """The closed form does not use the loop of the training function."""
    config = recurrence.Config(step_seconds=0.0, seed=3)
    replies = iter([False] * 20 + [True])
    run = Run(folder=tmp_path, cache=tmp_path, should_stop=lambda: next(replies, False))
    with pytest.raises(recurrence.Interrupted):
        list(recurrence.train(config, run))
    evaluations = list(recurrence.train(config, run))
    assert [evaluation.step for evaluation in evaluations] == list(range(21, 61, 3))
    assert evaluations == [recurrence.fault_free(config, evaluation.step) for evaluation in evaluations]


def test_a_checkpoint_of_another_trial_changes_every_value(tmp_path):
    config, other = recurrence.Config(step_seconds=0.0, seed=3), recurrence.Config(step_seconds=0.0, seed=4)
    run = Run(folder=tmp_path, cache=tmp_path)
    evaluations = recurrence.train(other, run)
    next(evaluations)
    assert all(row != recurrence.fault_free(config, row.step) for row in recurrence.train(config, run))


def test_a_dropped_reply_is_that_of_a_request_that_arrived(database_url):
    """The hardest of the faults: the transaction is committed, and its client gets no reply."""
    target = make_url(database_url)
    with proxy.Network(target.port, 1) as network, closing(_connect(target)) as direct:
        (link,) = network.links
        through = _connect(target.set(port=link.port))
        through.autocommit = True
        cursor, direct_cursor = through.cursor(), direct.cursor()
        cursor.execute("create table arrived (n int)")
        link.stall(replies_only=True)
        timer = threading.Timer(0.5, lambda: link.flow(reset=True))
        timer.start()
        with pytest.raises(psycopg2.OperationalError):
            cursor.execute("insert into arrived values (1)")
        timer.join()
        direct_cursor.execute("select n from arrived")
        assert direct_cursor.fetchall() == [(1,)]


def test_a_stalled_link_delays_and_a_refusing_one_closes(database_url):
    target = make_url(database_url)
    with proxy.Network(target.port, 1) as network:
        (link,) = network.links
        with closing(_connect(target.set(port=link.port))) as through:
            link.stall(replies_only=False)
            timer = threading.Timer(0.5, lambda: link.flow(reset=False))
            timer.start()
            cursor = through.cursor()
            cursor.execute("select clock_timestamp() - statement_timestamp() < interval '0.4 s'")
            assert cursor.fetchone() == (True,)
            timer.join()
            link.refuse()
            with pytest.raises(psycopg2.OperationalError):
                cursor.execute("select 1")
        with pytest.raises(psycopg2.OperationalError, match="refused"):
            _connect(target.set(port=link.port))
        link.accept()
        _connect(target.set(port=link.port)).close()


def test_a_link_with_a_certificate_takes_clients_that_verify_it_and_no_others(database_url, tmp_path):
    target = make_url(database_url)
    certificate, other = proxy.create_certificate(tmp_path), tmp_path / "other"
    other.mkdir()
    with proxy.Network(target.port, 2, certificate) as network:
        link = network.links[1]
        encrypted = target.set(port=link.port, query=link.query)
        with closing(_connect(encrypted)) as through:
            assert through.info.ssl_in_use
        with pytest.raises(psycopg2.OperationalError, match="certificate verify failed"):
            _connect(encrypted.update_query_dict({"sslrootcert": str(proxy.create_certificate(other))}))
        with pytest.raises(psycopg2.OperationalError):
            _connect(encrypted.update_query_dict({"sslmode": "disable"}))


def _url(url: str, name: str) -> str:
    return make_url(url).set(database=name).render_as_string(hide_password=False)


def _connect(url: sa.URL) -> psycopg2.extensions.connection:
    return psycopg2.connect(url.set(drivername="postgresql").render_as_string(hide_password=False))


def _execute(url: str, statement: str) -> None:
    with closing(_connect(make_url(url))) as connection:
        connection.autocommit = True
        connection.cursor().execute(statement)
