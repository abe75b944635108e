"""Studies for the tests of the dashboard, prepared once and copied for each test that needs its own."""

import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import optuna
import psycopg2
import pytest
from finished_trials import make_finished_study

from hpopt.storage import migrate
from hpopt.storage.database import Database

QUICKSTART = (Path(__file__).parents[2] / "studies" / "quickstart.toml").read_text()
N_OPTUNA_TRIALS = 12
N_QUICKSTART_TRIALS = 60


@pytest.fixture(scope="session")
def optuna_template(postgres_url: str) -> Iterator[str]:
    """The name of a database with an Optuna study `moe-muon` of 12 complete trials."""
    with _new_template(postgres_url, _make_optuna_study) as name:
        yield name


@pytest.fixture(scope="session")
def quickstart_template(postgres_url: str) -> Iterator[str]:
    """The name of a database with the study `quickstart` of 60 finished trials."""
    with _new_template(postgres_url, _make_quickstart_study) as name:
        yield name


@pytest.fixture
def optuna_url(postgres_url: str, optuna_template: str) -> Iterator[str]:
    """A copy of `optuna_template` for one test."""
    with _copied(postgres_url, optuna_template) as url:
        yield url


@pytest.fixture(scope="module")
def shared_optuna_url(postgres_url: str, optuna_template: str) -> Iterator[str]:
    """A copy of `optuna_template` for the tests of a module that do not change what is in it."""
    with _copied(postgres_url, optuna_template) as url:
        yield url


@pytest.fixture
def quickstart_url(postgres_url: str, quickstart_template: str) -> Iterator[str]:
    """A copy of `quickstart_template` for one test."""
    with _copied(postgres_url, quickstart_template) as url:
        yield url


@pytest.fixture(scope="module")
def shared_quickstart_url(postgres_url: str, quickstart_template: str) -> Iterator[str]:
    """A copy of `quickstart_template` for the tests of a module that do not change what is in it."""
    with _copied(postgres_url, quickstart_template) as url:
        yield url


def execute(url: str, statement: str) -> None:
    with closing(psycopg2.connect(url.replace("+psycopg2", ""))) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)


def _make_optuna_study(database: Database) -> None:
    study = optuna.create_study(study_name="moe-muon", storage=database.optuna)
    study.optimize(lambda trial: trial.suggest_float("learning_rate", 1e-3, 0.3, log=True), n_trials=N_OPTUNA_TRIALS)


def _make_quickstart_study(database: Database) -> None:
    make_finished_study(database, QUICKSTART, N_QUICKSTART_TRIALS, metrics={"val_perplexity": 20.0})


@contextmanager
def _new_template(postgres_url: str, fill: Callable[[Database], None]) -> Iterator[str]:
    name = f"template_{uuid.uuid4().hex}"
    execute(postgres_url, f"CREATE DATABASE {name}")
    # A database can be copied only while nobody is connected to it.
    with closing(Database(_url_of(postgres_url, name))) as database:
        migrate.upgrade(database)
        fill(database)
    yield name
    execute(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def _copied(postgres_url: str, template: str) -> Iterator[str]:
    name = f"test_{uuid.uuid4().hex}"
    execute(postgres_url, f"CREATE DATABASE {name} TEMPLATE {template}")
    # Settings of a role in a database, such as that of migrate.upgrade, are not copied.
    execute(postgres_url, f"ALTER ROLE CURRENT_USER IN DATABASE {name} SET search_path = public")
    yield _url_of(postgres_url, name)
    execute(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


def _url_of(postgres_url: str, name: str) -> str:
    return f"{postgres_url.removesuffix('/hpopt')}/{name}"
