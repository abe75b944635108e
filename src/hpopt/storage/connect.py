"""Open a database by its URL, or the embedded one of a folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hpopt.errors import DatabaseError
from hpopt.postgres import server
from hpopt.storage import migrate
from hpopt.storage.database import Database


@contextmanager
def open_database(url: str | None, home: Path, *, create: bool = False) -> Iterator[Database]:
    """Open the database of `url`, else the embedded one below `home`; with `create`, create and migrate it.

    The embedded server is started if it does not run, and stopped at the end if it was started here and no other
    process uses it. Raises DatabaseError if it is unreachable or its tables are those of another version.
    """
    if url is not None:
        with _ready(url, create=create) as database:
            yield database
        return
    if not create and not server.exists(home):
        raise DatabaseError(f"{home}: no database here yet; `hpopt run FILE` creates one, --storage names another")
    is_started_here = server.find_running_url(home) is None
    try:
        with server.use(home), _ready(server.start(home), create=create) as database:
            yield database
    finally:
        if is_started_here:
            server.stop_if_unused(home)


@contextmanager
def _ready(url: str, *, create: bool) -> Iterator[Database]:
    database = Database(url)
    try:
        if create:
            migrate.upgrade(database)
        else:
            migrate.require_current(database)
        yield database
    finally:
        database.close()
