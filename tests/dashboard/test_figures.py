"""What the dashboard adds to the page of a study, and that nothing of it is stored."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa
from finished_trials import make_finished_study
from optuna_dashboard import save_note, wsgi

from hpopt.dashboard import figures as figures_module
from hpopt.dashboard.figures import NOTHING, Publication, Publisher
from hpopt.dashboard.noted_storage import NotedStorage
from hpopt.dashboard.snapshot import Look, ShownStudies
from hpopt.storage import migrate
from hpopt.storage.database import Database

N_TRIALS = 60
STUDY = (Path(__file__).parents[2] / "studies" / "quickstart.toml").read_text()


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    migrate.upgrade(database)
    make_finished_study(database, STUDY, N_TRIALS, metrics={"val_perplexity": 20.0})
    yield database
    database.close()


class Dashboard:
    """The parts that put notes and figures into optuna-dashboard, without the answers around it."""

    def __init__(self, database: Database):
        self.said: list[str] = []
        self.publisher = Publisher(database, self.said.append)
        self.storage = NotedStorage(database.uncached_optuna, self.publisher.notes)
        self.shown = ShownStudies(self.storage)
        self._app = wsgi(self.storage)

    def look(self) -> Look:
        look = self.shown.look(1)
        assert look is not None
        return look

    def publication(self) -> Publication:
        """The publication when the work on it is over."""
        desk = self.publisher.begin(self.look())
        if desk.worker is not None:
            desk.worker.join(60)
        return desk.publication

    def detail(self) -> dict[str, object]:
        """What optuna-dashboard says of the study."""
        environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/api/studies/1", "QUERY_STRING": "after=0", "SERVER_NAME": ""}
        environ |= {"SERVER_PORT": "80", "wsgi.url_scheme": "http"}
        return json.loads(b"".join(self._app(environ, lambda *_: None)))


@pytest.fixture
def dashboard(database: Database) -> Dashboard:
    return Dashboard(database)


def end_a_trial(database: Database, number: int) -> None:
    study = optuna.load_study(study_name="quickstart", storage=database.optuna)
    study.add_trial(optuna.create_trial(state=optuna.trial.TrialState.FAIL))
    assert study.trials[-1].number == number


def test_the_figures_have_titles_and_are_small(dashboard: Dashboard):
    figures = {figure.name: json.loads(figure.json) for figure in dashboard.publication().figures}
    titles = {name: figure["layout"]["title"]["text"].partition("<")[0] for name, figure in figures.items()}
    sensitivities = [title for name, title in titles.items() if "sensitivity" in name]
    assert sorted(sensitivities) == sorted(f"Sensitivity to {name}" for name in dashboard.look().trials[0].params)
    assert [title for title in titles.values() if title not in sensitivities] == [
        "Importance by two measures",
        "Interactions",
        "Optimum by training length",
        "Parallel coordinates of the best trials",
        "Learning curves of the best and pruned trials",
    ]
    assert all(len(figure.json) < 30_000 for figure in dashboard.publication().figures)


def test_the_note_says_what_the_study_is_and_what_to_be_wary_of(dashboard: Dashboard):
    dashboard.publication()
    note = dashboard.detail()["note"]["body"]
    for told in ("Minimizing val_loss (objective: ", "| learning_rate |", "### Warnings", "**tie**", "[search_space]"):
        assert told in note


def test_the_best_trials_have_notes_and_the_others_none(dashboard: Dashboard, database: Database):
    dashboard.publication()
    notes = {trial["number"]: trial["note"]["body"] for trial in dashboard.detail()["trials"] if trial["note"]["body"]}
    best = optuna.load_study(study_name="quickstart", storage=database.optuna).best_trial.number
    assert len(notes) == 5
    assert notes[best].startswith("**The best of 20 complete trials**")


def test_nothing_is_stored(dashboard: Dashboard, database: Database):
    """Whatever a study's attributes hold travels with each poll, and a reader's page must not write."""
    before = stored(database)
    dashboard.publication()
    dashboard.detail()
    assert stored(database) == before


def stored(database: Database) -> list[object]:
    tables = ("study_system_attributes", "study_user_attributes", "trial_user_attributes", "trial_system_attributes")
    with database.begin() as connection:
        return [connection.execute(sa.text(f"select * from public.{table} order by 1")).all() for table in tables]


@pytest.mark.parametrize("body", ["Looks good.", ""])
def test_a_note_that_somebody_saved_stays_his_own(dashboard: Dashboard, body: str):
    dashboard.publication()
    study = optuna.load_study(study_name="quickstart", storage=dashboard.storage)
    save_note(study, body)
    detail = dashboard.detail()
    assert detail["note"] == {"version": 1, "body": body}
    assert len([trial for trial in detail["trials"] if trial["note"]["body"]]) == 5


def test_a_trial_s_note_that_somebody_saved_stays_his_own(dashboard: Dashboard, database: Database):
    dashboard.publication()
    study = optuna.load_study(study_name="quickstart", storage=dashboard.storage)
    best = study.best_trial.number
    save_note(optuna.Trial(study, study.best_trial._trial_id), "Mine.")
    notes = {trial["number"]: trial["note"]["body"] for trial in dashboard.detail()["trials"] if trial["note"]["body"]}
    assert (len(notes), notes[best]) == (5, "Mine.")


def test_it_is_made_again_only_when_trials_have_ended_and_not_at_once(
    dashboard: Dashboard, database: Database, monkeypatch: pytest.MonkeyPatch
):
    first = dashboard.publication()
    assert dashboard.publication() is first
    end_a_trial(database, N_TRIALS)
    assert dashboard.publication() is first
    monkeypatch.setattr(figures_module, "REFRESH_EVERY_S", 0.0)
    second = dashboard.publication()
    assert (first.n_finished, second.n_finished) == (N_TRIALS, N_TRIALS + 1)
    assert dashboard.publication() is second


def test_the_first_page_waits_for_its_figures_but_not_for_long(dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(figures_module, "WAIT_S", 60.0)
    assert dashboard.publisher.publication(dashboard.look()).figures
    other = Dashboard(dashboard.publisher._database)
    monkeypatch.setattr(figures_module, "WAIT_S", 0.0)
    began = time.monotonic()
    assert other.publisher.publication(other.look()) is NOTHING
    assert time.monotonic() - began < 0.5
    assert other.publication().figures


def test_of_a_study_that_is_not_ours_nothing_is_told(database: Database):
    dashboard = Dashboard(database)
    theirs = optuna.create_study(study_name="theirs", storage=database.optuna)
    theirs.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    look = dashboard.shown.look(theirs._study_id)
    publication = dashboard.publisher.publication(look)
    assert (publication.n_finished, publication.figures, publication.notes) == (3, (), {})


def test_a_study_that_is_deleted_meanwhile_or_a_database_that_is_away_stop_nothing(database: Database):
    """The thread that makes a publication has nobody who would catch what it raises."""
    dashboard = Dashboard(database)
    look = dashboard.look()
    optuna.delete_study(study_name="quickstart", storage=database.optuna)
    assert not dashboard.publisher.publication(look).figures
    away = Publisher(Database("postgresql://hpopt@127.0.0.1:1/none"), dashboard.said.append)
    assert away.publication(look) is NOTHING
    assert dashboard.said[-1].startswith("no figures of study 'quickstart': postgresql://hpopt@127.0.0.1:1/none")
