"""Owns getting at a database, by URL or the embedded one of a folder. Leaves its rows to its neighbours."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hpopt.errors import DatabaseError
from hpopt.postgres import server
from hpopt.storage import migrate
from hpopt.storage.database import Database


@contextmanager
def open_database(url: str | None, home: Path, *, make: bool = False) -> Iterator[Database]:
    """Open the database that `url` names, else the embedded one under `home`; `make` makes and migrates it.

    The embedded server is started if it does not run, and stopped at the end if it was started here and nobody else
    uses it. Raises DatabaseError if it cannot be had, and unless its tables are those of this hpopt.
    """
    if url is not None:
        with _ready(url, make=make) as database:
            yield database
        return
    if not make and not server.exists(home):
        raise DatabaseError(f"{home}: no database here yet; `hpopt run FILE` makes one, --storage names another")
    is_started_here = server.find_running_url(home) is None
    try:
        with server.use(home), _ready(server.start(home), make=make) as database:
            yield database
    finally:
        if is_started_here:
            server.stop_if_unused(home)


@contextmanager
def _ready(url: str, *, make: bool) -> Iterator[Database]:
    database = Database(url)
    try:
        if make:
            migrate.upgrade(database)
        else:
            migrate.require_current(database)
        yield database
    finally:
        database.close()
