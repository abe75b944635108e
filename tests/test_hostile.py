"""Whatever another tool writes into the database, every study still answers, and each export is read by its parser."""

import csv
import io
from contextlib import closing, contextmanager, suppress

import hostile
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from hpopt.errors import InputError
from hpopt.reporting.files import write_trials
from hpopt.storage import queries, studies
from hpopt.storage.database import Database
from hpopt.storage.observations import ObservedTrials
from hpopt.storage.views import VIEWS
from hpopt.terminal.answer import render_answer, render_rows
from hpopt.terminal.exports import PARAMS_AS, best_as_json, progress_as_json, rows_as_json
from hpopt.terminal.status import render_status

ONE_DATABASE = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
FEW_TRIALS = st.lists(hostile.TRIALS, min_size=1, max_size=8)


@pytest.fixture
def database(migrated_url):
    """A database with a study of six trials."""
    with closing(Database(migrated_url)) as database:
        hostile.create(database)
        yield database


@contextmanager
def written(database, trials):
    """Write trials into the study and into another one, and remove them at the end."""
    for study_name in ("answer", "foreign"):
        hostile.write_trials(database, study_name, trials)
    yield
    hostile.remove_trials(database)


def read_pages(database):
    """Check the dashboard's list of studies and its page of each of the two."""
    pages = list(hostile.get_pages(database))
    assert len(pages) == 3
    for status, body in pages:
        hostile.check_page(status, body)


@given(trials=FEW_TRIALS)
@settings(max_examples=15, suppress_health_check=ONE_DATABASE)
def test_any_foreign_trials_leave_every_answer_readable(database, tmp_path, trials):
    study = studies.load_study(database, "answer")
    console = Console(file=io.StringIO(), markup=False, highlight=False)
    with written(database, trials):
        progress = queries.progress(database, study)
        console.print(render_status(progress, queries.finished_trials(database, study), None))
        console.print(render_answer(progress, study))
        hostile.read_json(progress_as_json(progress))
        best = queries.best(database, study)
        hostile.read_json(best_as_json(best, []))
        for name, export in PARAMS_AS.items():
            with suppress(InputError):
                hostile.READERS[name](export(best.params))
        for view in VIEWS:
            names, rows = queries.read_rows(database, f"select * from hpopt.{view}")
            console.print(render_rows(names, rows))
            hostile.read_json(rows_as_json(names, rows))
        table = queries.read_table(database, study)
        table.replicates()
        write_trials(table, tmp_path / "trials.csv")
        assert len(list(csv.reader((tmp_path / "trials.csv").open(newline="")))) == 1 + len(table.trials)
        observed = ObservedTrials(database, study)
        observed.refresh()
        read_pages(database)


@pytest.mark.long
@pytest.mark.timeout(1800)
@given(trials=FEW_TRIALS)
@settings(max_examples=25, suppress_health_check=ONE_DATABASE)
def test_any_foreign_trials_leave_every_verb_and_the_report_readable(database, tmp_path, trials):
    questions = hostile.Questions(database.url)
    with written(database, trials):
        hostile.ask_about_rows(questions, database, tmp_path, with_report=True)
    assert questions.n_asked["page"] == 3
    assert questions.failures == []
