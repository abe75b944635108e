"""A fleet loses nothing under faults; and the audit that says so finds what is planted."""

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

# Benchmarks are scripts, found by the folder they lie in.
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import audit
import chaos
import proxy
import recurrence

DOSE = chaos.Dose(
    seed=1,
    minutes=0.35,
    n_workers=4,
    mean_gap_s=0.35,
    trials_at_a_time=10,
    max_steps=30,
    patience=chaos.Patience(heartbeat_every_s=0.5, stale_after_s=2.0, give_up_after_s=4.0),
)
N_TRIALS = 12


def test_a_fleet_loses_nothing_under_faults():
    """A schedule that injects nothing, or a fleet that does nothing, would lose nothing either."""
    with chaos.own_folder() as folder:
        report = chaos.run_chaos(DOSE, folder)
        assert report.is_clean, "\n".join(chaos.explain(report))
    assert "lost: 0" in "\n".join(chaos.render(report))
    assert sum(report.faults.values()) >= 15
    assert len(report.faults) >= 6
    outcomes = [attempt["outcome"] for attempt in report.ledger.attempts]
    assert outcomes.count("complete") + outcomes.count("pruned") >= 5
    assert outcomes.count("lost") + outcomes.count("preempted") >= 1
    assert max(attempt["go"] for attempt in report.ledger.attempts) >= 2


@pytest.fixture(scope="module")
def finished(postgres_url) -> Iterator[str]:
    """The name of a database with a study that one worker ran to its end, undisturbed."""
    name = f"chaos_{uuid.uuid4().hex}"
    _execute(postgres_url, f"CREATE DATABASE {name}")
    home = Path(tempfile.mkdtemp(prefix="hpopt-chaos-"))
    dose = chaos.Dose(step_seconds=0.0, max_steps=30)
    with open_database(_url(postgres_url, name), home, create=True) as database:
        study = studies.create_study(database, parse_study_file(dose.study_file(N_TRIALS), "test"))
        work(database, study, WorkerOptions(home=home, say=lambda _: None))
    shutil.rmtree(home)
    yield name
    _execute(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def database(postgres_url, finished) -> Iterator[Database]:
    """A copy of the finished study's database, to plant errors in."""
    name = f"chaos_{uuid.uuid4().hex}"
    _execute(postgres_url, f"CREATE DATABASE {name} TEMPLATE {finished}")
    # What is set for a database is not copied with it; without this, stock Optuna would look into our schema.
    _execute(postgres_url, f"ALTER ROLE current_user IN DATABASE {name} SET search_path = public")
    with closing(Database(_url(postgres_url, name))) as database:
        yield database
    _execute(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


def test_an_undisturbed_study_has_every_outcome_and_passes_the_audit(database):
    ledger = audit.read_ledger(database, chaos.STUDY)
    assert {attempt["outcome"] for attempt in ledger.attempts} == {"complete", "pruned", "failed", "diverged"}
    assert ledger.rungs
    assert not any(audit.audit(ledger).values())


# A further go of the first trial that completed, with an Optuna trial of its own; {outcome} and {state} are its end.
SECOND_GO = """
    with first as (
        select a.*, t.number from hpopt.attempt a join public.trials t using (trial_id)
        where a.outcome = 'complete' order by a.attempt_id limit 1
    ), again as (
        insert into public.trials (number, study_id, state, datetime_start)
        select 1 + (select max(number) from public.trials), study_id, '{state}', now() from first returning trial_id
    ), params as (
        insert into public.trial_params (trial_id, param_name, param_value, distribution_json)
        select again.trial_id, p.param_name, p.param_value, p.distribution_json
        from again, first join public.trial_params p on p.trial_id = first.trial_id
    ), result as (
        insert into public.trial_values (trial_id, objective, value, value_type)
        select again.trial_id, 0, v.value, v.value_type
        from again, first join public.trial_values v on v.trial_id = first.trial_id
    )
    insert into hpopt.attempt (study_id, worker_id, trial_id, first_trial_id, go, seed, outcome, ended_at)
    select first.study_id, first.worker_id, again.trial_id, first.first_trial_id, {go}, {seed}, {outcome}, {ended_at}
    from first, again
"""
CHOSEN = """
    create temporary table chosen as
    select trial_id from hpopt.attempt where outcome = 'complete' order by attempt_id limit 1
"""
DOUBLED = {"state": "COMPLETE", "go": 2, "seed": "first.seed", "outcome": "'complete'", "ended_at": "now()"}

PLANTED = {
    "an evaluation is deleted": (
        "delete from hpopt.evaluation e using chosen c where e.trial_id = c.trial_id and step = 15",
        audit.STEPS,
    ),
    "the last evaluation is deleted": (
        "delete from hpopt.evaluation e using chosen c where e.trial_id = c.trial_id and step = 30",
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
        update hpopt.evaluation e set metrics = other.metrics from hpopt.evaluation other join chosen using (trial_id)
        where e.trial_id = other.trial_id and e.step = 15 and other.step = 18
        """,
        "each evaluation is the fault-free one",
    ),
    "a step is made twice": (
        """
        insert into hpopt.evaluation select trial_id, 31, attempt_id, tokens, seconds, metrics
        from hpopt.evaluation join chosen using (trial_id) where step = 30
        """,
        audit.STEPS,
    ),
    "a value is changed": (
        "update public.trial_values v set value = value + 1e-9 from chosen c where v.trial_id = c.trial_id",
        "each result is the fault-free one",
    ),
    "the value of a pruned trial is changed": (
        """
        update public.trial_values v set value = value + 1e-9 from hpopt.attempt a
        where v.trial_id = a.trial_id and a.outcome = 'pruned'
        """,
        "each result is the fault-free one",
    ),
    "trials failed that should not": (
        "update hpopt.attempt set outcome = 'failed' where outcome = 'complete'",
        "each result is the fault-free one",
    ),
    "a seed is changed": (
        "update hpopt.attempt a set seed = seed + 1 from chosen c where a.trial_id = c.trial_id",
        "each result is the fault-free one",
    ),
    "a result is doubled": (SECOND_GO.format(**DOUBLED), audit.RESULTS),
    "a trial of Optuna is doubled": (
        "insert into public.trials (number, study_id, state) select 999, study_id, 'COMPLETE' from hpopt.study",
        "stock Optuna reads the same completed trials",
    ),
    "a retry has another seed": (
        SECOND_GO.format(**{**DOUBLED, "seed": "first.seed + 1"}),
        "the goes of a trial share params and seed",
    ),
    "a go is left out": (SECOND_GO.format(**{**DOUBLED, "go": 3}), "goes are numbered 1 to n"),
    "an attempt has no outcome": (
        SECOND_GO.format(**{**DOUBLED, "state": "RUNNING", "outcome": "null", "ended_at": "null"}),
        "each attempt has an outcome",
    ),
    "a trial is left running": (
        SECOND_GO.format(**{**DOUBLED, "state": "RUNNING", "outcome": "'lost'"}),
        "nothing is left running",
    ),
    "a trial waits to be retried": (
        SECOND_GO.format(**{**DOUBLED, "state": "FAIL", "outcome": "'lost'"}),
        audit.BUDGET,
    ),
    "a trial is gone": ("delete from hpopt.attempt a using chosen c where a.trial_id = c.trial_id", audit.BUDGET),
    "rungs hold other values": ("update hpopt.rung set value = value + 1e-9", "each rung holds the fault-free value"),
    "what Optuna was told is deleted": (
        "delete from public.trial_intermediate_values v using chosen c where v.trial_id = c.trial_id and step = 15",
        "Optuna was told every evaluation",
    ),
}


@pytest.mark.parametrize("what", PLANTED)
def test_the_audit_finds_what_is_planted(database, what):
    statement, title = PLANTED[what]
    with database.begin() as connection:
        connection.execute(sa.text(CHOSEN))
        assert connection.execute(sa.text(statement)).rowcount > 0
    assert audit.audit(audit.read_ledger(database, chaos.STUDY))[title]


def test_the_audit_finds_a_trial_that_was_lost_too_often(database):
    for go in range(2, 6):
        with database.begin() as connection:
            connection.execute(sa.text(SECOND_GO.format(**{**DOUBLED, "go": go, "state": "FAIL", "outcome": "'lost'"})))
    title = "no trial is lost more than 3 times in a row without progress"
    assert audit.audit(audit.read_ledger(database, chaos.STUDY))[title]


def test_a_run_that_goes_on_from_its_checkpoint_ends_with_the_answer(tmp_path):
    """The answer in closed form is worked out without the loop that it judges."""
    config = recurrence.Config(step_seconds=0.0, seed=3)
    asked = iter([False] * 20 + [True])
    run = Run(folder=tmp_path, cache=tmp_path, should_stop=lambda: next(asked, False))
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
    assert all(each != recurrence.fault_free(config, each.step) for each in recurrence.train(config, run))


def test_a_dropped_reply_is_that_of_a_request_that_arrived(postgres_url, database_url):
    """The sharpest of the faults: committed, and nobody is told."""
    target = make_url(database_url)
    with proxy.Network(target.port, 1) as network, closing(_connect(target)) as direct:
        (link,) = network.links
        through = _connect(target.set(port=link.port))
        through.autocommit = True
        cursor, seen = through.cursor(), direct.cursor()
        cursor.execute("create table arrived (n int)")
        link.stall(replies_only=True)
        timer = threading.Timer(0.5, lambda: link.flow(reset=True))
        timer.start()
        with pytest.raises(psycopg2.OperationalError):
            cursor.execute("insert into arrived values (1)")
        timer.join()
        seen.execute("select n from arrived")
        assert seen.fetchall() == [(1,)]


def test_a_stalled_link_delivers_late_and_a_refusing_one_not_at_all(database_url):
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


def _url(url: str, name: str) -> str:
    return make_url(url).set(database=name).render_as_string(hide_password=False)


def _connect(url: sa.URL) -> psycopg2.extensions.connection:
    return psycopg2.connect(url.set(drivername="postgresql").render_as_string(hide_password=False))


def _execute(url: str, statement: str) -> None:
    with closing(_connect(make_url(url))) as connection:
        connection.autocommit = True
        connection.cursor().execute(statement)
