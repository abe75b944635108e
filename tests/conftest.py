"""A PostgreSQL server for all processes of one pytest run, and databases on it."""

import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import hypothesis
import psycopg2
import pytest

from hpopt.postgres import server
from hpopt.storage import migrate
from hpopt.storage.database import Database

# The same examples in each run, however long one takes.
hypothesis.settings.register_profile("hpopt", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("hpopt")

# xdist sets it, and commands would print to a pipe in that width.
os.environ.pop("COLUMNS", None)

# Copying a database, which most tests begin with, is ten times as fast in memory. A container can have 64 MiB of it.
MEMORY = Path("/dev/shm")  # noqa: S108 - tempfile chooses the names in it.
if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 4 * 2**30:
    tempfile.tempdir = str(MEMORY)


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The URL of a real server, shared by all processes of one pytest run; the last one to finish stops it."""
    # Not below pytest's own temporary folder, which the user that runs a server started by root cannot enter.
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", uuid.uuid4().hex)
    home = Path(tempfile.gettempdir(), f"hpopt-tests-{run}")
    with server.use(home):
        # No test needs its data after a crash of the machine, and each creates and drops a database.
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(server.SETTINGS, "fsync", "off")
            url = server.start(home)
        yield url
    if server.stop_if_unused(home):
        shutil.rmtree(home)


@pytest.fixture
def database_url(postgres_url: str) -> Iterator[str]:
    """The URL of an empty database of the test's own."""
    with _new_database(postgres_url) as url:
        yield url


@pytest.fixture(scope="module")
def shared_database_url(postgres_url: str) -> Iterator[str]:
    """The URL of an empty database of the module's own."""
    with _new_database(postgres_url) as url:
        yield url


@pytest.fixture(scope="session")
def template(postgres_url: str) -> str:
    """The name of a migrated database to copy, which accepts no connections: each would make a copy fail."""
    with closing(psycopg2.connect(postgres_url.replace("+psycopg2", ""))) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            # The first process of the run migrates, the others wait here.
            cursor.execute("SELECT pg_advisory_lock(1)")
            cursor.execute("SELECT FROM pg_database WHERE datname = 'migrated'")
            if cursor.fetchone() is None:
                cursor.execute("DROP DATABASE IF EXISTS migrating WITH (FORCE)")
                cursor.execute("CREATE DATABASE migrating")
                with closing(Database(_url_of(postgres_url, "migrating"))) as database:
                    migrate.upgrade(database)
                cursor.execute("ALTER DATABASE migrating ALLOW_CONNECTIONS false")
                # The new name says that it is complete.
                cursor.execute("ALTER DATABASE migrating RENAME TO migrated")
    return "migrated"


@pytest.fixture
def migrated_url(postgres_url: str, template: str) -> Iterator[str]:
    """The URL of a migrated database of the test's own."""
    name = f"test_{uuid.uuid4().hex}"
    _execute(postgres_url, f"CREATE DATABASE {name} TEMPLATE {template}")
    # A copy has no settings of roles, and the search path of a user called hpopt begins with our schema.
    _execute(postgres_url, f"ALTER ROLE current_user IN DATABASE {name} SET search_path = public")
    yield _url_of(postgres_url, name)
    _execute(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def new_login(postgres_url: str) -> Iterator[Callable[..., str]]:
    """Return the URL of a database for a new user, who is a member of a role."""
    users: list[str] = []

    def create(url: str, role: str | None = None) -> str:
        users.append(f"login_{uuid.uuid4().hex}")
        member = f" IN ROLE {role}" if role else ""
        _execute(postgres_url, f"CREATE ROLE {users[-1]} LOGIN PASSWORD 'secret'{member}")
        scheme, _, address = url.partition("://")
        return f"{scheme}://{users[-1]}:secret@{address.partition('@')[2]}"

    yield create
    for user in users:
        _execute(postgres_url, f"DROP ROLE {user}")


@contextmanager
def _new_database(postgres_url: str) -> Iterator[str]:
    name = f"test_{uuid.uuid4().hex}"
    _execute(postgres_url, f"CREATE DATABASE {name}")
    yield _url_of(postgres_url, name)
    _execute(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


def _url_of(postgres_url: str, name: str) -> str:
    return f"{postgres_url.removesuffix('/hpopt')}/{name}"


def _execute(url: str, statement: str) -> None:
    with closing(psycopg2.connect(url.replace("+psycopg2", ""))) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
