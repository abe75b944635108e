"""Open a database by its URL, or the embedded one of a folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hpopt.errors import DatabaseError
from hpopt.postgres import server
from hpopt.storage import migrate
from hpopt.storage.database import Database


@contextmanager
def open_database(
    url: str | None, home: Path, *, create: bool = False, response_timeout_s: float | None = None
) -> Iterator[Database]:
    """Open the database of `url`, else the embedded one below `home`; with `create`, create and migrate it.

    The embedded server is started if it does not run, and the last process that uses it stops it, unless it was
    started by `hpopt db start`. With `response_timeout_s` a statement fails that has no response in that time.
    Raises DatabaseError if the database is unreachable or its tables are those of another version.
    """
    if url is not None:
        with _ready(url, response_timeout_s, create=create) as database:
            yield database
        return
    if not create and not server.exists(home):
        raise DatabaseError(f"{home}: no database here yet; `hpopt run FILE` creates one, --storage names another")
    try:
        with (
            server.use(home),
            _ready(f"{server.start(home)}?{server.MUTUAL_AUTH}", response_timeout_s, create=create) as database,
        ):
            yield database
    finally:
        server.stop_if_unused(home)


@contextmanager
def _ready(url: str, response_timeout_s: float | None, *, create: bool) -> Iterator[Database]:
    database = Database(url, response_timeout_s=response_timeout_s)
    try:
        if create:
            migrate.upgrade(database)
        else:
            migrate.require_current(database)
        yield database
    finally:
        database.close()
