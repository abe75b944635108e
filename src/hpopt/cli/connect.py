"""Owns waiting for a database that is away when a worker starts. Leaves one that goes away later to worker.py."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hpopt.errors import DatabaseError, DatabaseLostError

if TYPE_CHECKING:
    from hpopt.storage.database import Database
    from hpopt.storage.studies import Study

_WAIT_S = 30.0
_EVERY_S = 1.0
# What the driver and the server say of a database that is about to come, or come back. A wrong password, database or
# host is not among it: waiting does not mend them.
_AWAY = (
    "Connection refused",
    "Connection reset by peer",
    "Connection timed out",
    "No route to host",
    "Network is unreachable",
    # A name server that is away or starts; a host that does not exist is said in other words.
    "Temporary failure in name resolution",
    "too many clients already",
    "remaining connection slots",
    # PgBouncer's words for a server that is away or full.
    "server login has been failing",
    "query_wait_timeout",
    "no more connections allowed",
    "pgbouncer cannot connect to server",
    "timeout expired",
    "no answer for",
    "server closed the connection unexpectedly",
    "the database system is starting up",
    "the database system is shutting down",
    "the database system is in recovery mode",
    "the database system is not yet accepting connections",
    "terminating connection due to administrator command",
)


@contextmanager
def open_study_patiently(
    storage: str | None, home: Path, name: str, stop: threading.Event, say: Callable[[str], None]
) -> Iterator[tuple["Database", "Study"]]:
    """Open a study, and wait for its database where that is away for a moment.

    Raises DatabaseLostError when it stays away, or when the worker is asked to stop meanwhile.
    """
    deadline = time.monotonic() + _WAIT_S
    is_told = False
    while True:
        with ExitStack() as stack:
            try:
                opened = _open(stack, storage, home, name)
            except DatabaseError as error:
                if not any(words in str(error) for words in _AWAY):
                    raise
                if stop.is_set() or time.monotonic() > deadline:
                    raise DatabaseLostError(f"the database is away: {error}") from error
                if not is_told:
                    say(f"waiting up to {_WAIT_S:g} s for the database: {error}")
                    is_told = True
            else:
                yield opened
                return
        stop.wait(_EVERY_S)


def _open(stack: ExitStack, storage: str | None, home: Path, name: str) -> tuple["Database", "Study"]:
    from hpopt.storage.connect import open_database
    from hpopt.storage.studies import load_study

    database = stack.enter_context(open_database(storage, home))
    return database, load_study(database, name)
