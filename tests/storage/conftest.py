"""Owns a migrated database and a study for the tests of storage."""

from collections.abc import Iterator

import pytest

from hpopt.storage import migrate, studies
from hpopt.storage.database import Database
from hpopt.storage.studies import Study
from hpopt.study.reading import parse_study_file

STUDY_FILE = """
name = "tiny"
[budget]
trials = 4
[sampler]
name = "random"
[search_space]
learning_rate = { low = 1e-3, high = 0.3, log = true }
momentum      = { low = 0.8, high = 0.99 }
ns_steps      = { low = 1, high = 9, type = "int" }
optimizer     = { choices = ["muon", "adamw"] }
[fixed]
max_steps = 90
eval_steps = 10
"""


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A migrated database of the test's own."""
    database = Database(database_url)
    migrate.upgrade(database)
    yield database
    database.close()


@pytest.fixture
def study_file() -> str:
    """The text of a study of four trials over a space with every kind of parameter."""
    return STUDY_FILE


@pytest.fixture
def study(database: Database) -> Study:
    """A study of four trials over a space with every kind of parameter."""
    return studies.create_study(database, parse_study_file(STUDY_FILE, "tiny.toml"))
