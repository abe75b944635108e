"""The figures and notes that are added to the page of a study, none of which is stored."""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace

import optuna
import pytest
import sqlalchemy as sa
from optuna_dashboard import save_note, wsgi

from hpopt.dashboard.figures import EMPTY, LARGE_STUDY_TRIALS, FigureBuilder, FiguresAndNotes
from hpopt.dashboard.snapshot import Snapshot, SnapshotReader, StorageWithNotes
from hpopt.storage.database import Database

N_TRIALS = 60
TIMEOUT_S = 60
# Longer than a test may take.
FOREVER_S = 3600.0


class Dashboard:
    """optuna-dashboard with figures and notes, without HTTP and cache."""

    def __init__(self, database: Database, builder: FigureBuilder):
        self.builder = builder
        self.storage = StorageWithNotes(database.uncached_optuna, builder.read_notes)
        self.snapshots = SnapshotReader(self.storage)
        self._app = wsgi(self.storage)

    def snapshot(self) -> Snapshot:
        snapshot = self.snapshots.read(1)
        assert snapshot is not None
        return snapshot

    def build(self) -> FiguresAndNotes:
        return finish_build(self.builder, self.snapshot())

    def get_study(self) -> dict[str, object]:
        """Return optuna-dashboard's response about the study."""
        environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/api/studies/1", "QUERY_STRING": "after=0", "SERVER_NAME": ""}
        environ |= {"SERVER_PORT": "80", "wsgi.url_scheme": "http"}
        return json.loads(b"".join(self._app(environ, lambda *_: None)))

    def trial_notes(self) -> dict[int, str]:
        """Return the notes that are not empty, by trial number."""
        trials = self.get_study()["trials"]
        return {trial["number"]: trial["note"]["body"] for trial in trials if trial["note"]["body"]}


def finish_build(builder: FigureBuilder, snapshot: Snapshot) -> FiguresAndNotes:
    """Return the latest figures and notes once the build has finished, if one is due or running."""
    build = builder.start_if_due(snapshot)
    if build.thread is not None:
        build.thread.join(TIMEOUT_S)
        assert not build.thread.is_alive()
    return build.latest


@pytest.fixture(scope="module")
def finished_builder(shared_quickstart_url: str) -> Iterator[FigureBuilder]:
    """A builder that has built for the study once; a copy of the study in another database has the same ids."""
    with closing(Database(shared_quickstart_url)) as database:
        # The first build is always due, and no other will be.
        builder = FigureBuilder(database, print, refresh_every_s=math.inf)
        assert Dashboard(database, builder).build().figures
        yield builder


@pytest.fixture
def database(quickstart_url: str) -> Iterator[Database]:
    with closing(Database(quickstart_url)) as database:
        yield database


@pytest.fixture
def dashboard(database: Database, finished_builder: FigureBuilder) -> Dashboard:
    return Dashboard(database, finished_builder)


@pytest.fixture
def new_builder(database: Database) -> Callable[..., FigureBuilder]:
    return lambda **options: FigureBuilder(database, print, **options)


def add_failed_trial(database: Database, number: int) -> None:
    study = optuna.load_study(study_name="quickstart", storage=database.optuna)
    study.add_trial(optuna.create_trial(state=optuna.trial.TrialState.FAIL))
    assert study.trials[-1].number == number


def test_the_figures_have_titles_and_are_small(dashboard: Dashboard):
    built = dashboard.build().figures
    figures = {figure.id: json.loads(figure.json) for figure in built}
    titles = {name: figure["layout"]["title"]["text"].partition("<")[0] for name, figure in figures.items()}
    sensitivities = [title for name, title in titles.items() if "sensitivity" in name]
    assert sorted(sensitivities) == sorted(f"Sensitivity to {name}" for name in dashboard.snapshot().trials[0].params)
    assert [title for title in titles.values() if title not in sensitivities] == [
        "Importance by two measures",
        "Interactions",
        "Optimum by training length",
        "Parallel coordinates of the best trials",
        "Learning curves of the best and pruned trials",
    ]
    assert all(len(figure.json) < 30_000 for figure in built)


def test_the_note_describes_the_study_and_its_warnings(dashboard: Dashboard):
    note = dashboard.get_study()["note"]["body"]
    for text in ("Minimizing val_loss (objective: ", "| learning_rate |", "### Warnings", "**tie**", "[search_space]"):
        assert text in note


def test_only_the_best_trials_have_notes(dashboard: Dashboard, database: Database):
    notes = dashboard.trial_notes()
    best = optuna.load_study(study_name="quickstart", storage=database.optuna).best_trial.number
    assert len(notes) == 5
    assert notes[best].startswith("**The best of 20 complete trials**")


def test_nothing_is_stored(database: Database, new_builder: Callable[..., FigureBuilder]):
    """A study's attributes are part of every poll, and a read-only page must not write."""
    before = read_attributes(database)
    dashboard = Dashboard(database, new_builder())
    assert dashboard.build().notes
    assert dashboard.get_study()["note"]["body"]
    assert read_attributes(database) == before


def read_attributes(database: Database) -> list[object]:
    tables = ("study_system_attributes", "study_user_attributes", "trial_user_attributes", "trial_system_attributes")
    with database.begin() as connection:
        return [connection.execute(sa.text(f"select * from public.{table} order by 1")).all() for table in tables]


@pytest.mark.parametrize("body", ["Looks good.", ""])
def test_a_saved_note_replaces_that_of_the_study(dashboard: Dashboard, body: str):
    study = optuna.load_study(study_name="quickstart", storage=dashboard.storage)
    save_note(study, body)
    assert dashboard.get_study()["note"] == {"version": 1, "body": body}
    assert len(dashboard.trial_notes()) == 5


def test_a_saved_note_replaces_that_of_a_trial(dashboard: Dashboard):
    study = optuna.load_study(study_name="quickstart", storage=dashboard.storage)
    best = study.best_trial
    save_note(optuna.Trial(study, best._trial_id), "Mine.")
    notes = dashboard.trial_notes()
    assert (len(notes), notes[best.number]) == (5, "Mine.")


def test_the_figures_are_rebuilt_when_trials_have_finished(
    database: Database, new_builder: Callable[..., FigureBuilder]
):
    dashboard = Dashboard(database, new_builder(refresh_every_s=0.0))
    first = dashboard.build()
    assert dashboard.build() is first
    add_failed_trial(database, N_TRIALS)
    second = dashboard.build()
    assert (first.n_finished, second.n_finished) == (N_TRIALS, N_TRIALS + 1)
    assert dashboard.build() is second


def test_the_figures_are_not_rebuilt_before_the_refresh_time(dashboard: Dashboard, database: Database):
    first = dashboard.build()
    add_failed_trial(database, N_TRIALS)
    assert dashboard.build() is first
    assert first.n_finished == N_TRIALS


def test_the_first_page_waits_for_its_figures(database: Database, new_builder: Callable[..., FigureBuilder]):
    dashboard = Dashboard(database, new_builder(wait_s=FOREVER_S))
    assert dashboard.builder.get(dashboard.snapshot()).figures


def test_the_first_page_waits_no_longer_than_the_limit(database: Database, new_builder: Callable[..., FigureBuilder]):
    dashboard = Dashboard(database, new_builder(wait_s=0.0))
    # No build can finish while this is held.
    with dashboard.builder._build_lock:
        assert dashboard.builder.get(dashboard.snapshot()) is EMPTY
    assert dashboard.build().figures


def test_the_first_page_of_a_large_study_does_not_wait(database: Database, new_builder: Callable[..., FigureBuilder]):
    dashboard = Dashboard(database, new_builder(wait_s=FOREVER_S, large_study_delay_s=0.0))
    snapshot = dashboard.snapshot()
    large = replace(snapshot, trials=[*snapshot.trials] * (LARGE_STUDY_TRIALS // N_TRIALS + 1))
    with dashboard.builder._build_lock:
        assert dashboard.builder.get(large) is EMPTY
    assert finish_build(dashboard.builder, large).figures


def test_a_study_of_plain_optuna_gets_no_figures(database: Database, new_builder: Callable[..., FigureBuilder]):
    study = optuna.create_study(study_name="plain", storage=database.optuna)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    dashboard = Dashboard(database, new_builder())
    snapshot = dashboard.snapshots.read(study._study_id)
    assert snapshot is not None
    assert finish_build(dashboard.builder, snapshot) == FiguresAndNotes(n_finished=3)


def test_a_study_deleted_meanwhile_gets_no_figures(database: Database, new_builder: Callable[..., FigureBuilder]):
    dashboard = Dashboard(database, new_builder())
    snapshot = dashboard.snapshot()
    optuna.delete_study(study_name="quickstart", storage=database.optuna)
    assert not finish_build(dashboard.builder, snapshot).figures


def test_an_unreachable_database_is_logged_and_leaves_the_page_without_figures(dashboard: Dashboard):
    """Nobody would catch what the build thread raises."""
    lines: list[str] = []
    with closing(Database("postgresql://hpopt@127.0.0.1:1/none")) as unreachable:
        assert finish_build(FigureBuilder(unreachable, lines.append), dashboard.snapshot()) is EMPTY
    (line,) = lines
    assert line.startswith("no figures for study 'quickstart': postgresql://hpopt@127.0.0.1:1/none")
