"""Owns what several test files need."""

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest

from hpopt.postgres import server


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A real server, shared by all processes of one pytest run; the last one to leave stops it."""
    # Not below pytest's own temporary folder, which is closed to the user that a server started by root runs as.
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", uuid.uuid4().hex)
    home = Path(tempfile.gettempdir(), f"hpopt-tests-{run}")
    with server.use(home):
        url = server.start(home)
        # Nobody wants this data after a power cut, and a database is made and dropped for every test.
        for statement in ("ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()"):
            _execute(url, statement)
        yield url
    if server.stop_if_unused(home):
        shutil.rmtree(home)


@pytest.fixture
def database_url(postgres_url: str) -> Iterator[str]:
    """An empty database of the test's own."""
    name = f"test_{uuid.uuid4().hex}"
    _execute(postgres_url, f"CREATE DATABASE {name}")
    yield f"{postgres_url.removesuffix('/hpopt')}/{name}"
    _execute(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


def _execute(url: str, statement: str) -> None:
    with closing(psycopg2.connect(url.replace("+psycopg2", ""))) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
