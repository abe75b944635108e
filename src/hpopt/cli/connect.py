"""Open a study when a worker starts, with retries while the database is unreachable."""

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
# Messages of the driver and the server about a database that can become reachable. A wrong password, database or host
# is not among them.
_TRANSIENT = (
    "Connection refused",
    "Connection reset by peer",
    "Connection timed out",
    "No route to host",
    "Network is unreachable",
    # A name server that is unreachable; an unknown host has another message.
    "Temporary failure in name resolution",
    "too many clients already",
    "remaining connection slots",
    # Messages of PgBouncer about a server that is unreachable or full.
    "server login has been failing",
    "query_wait_timeout",
    "no more connections allowed",
    "pgbouncer cannot connect to server",
    "timeout expired",
    "no response for",
    "server closed the connection unexpectedly",
    "the database system is starting up",
    "the database system is shutting down",
    "the database system is in recovery mode",
    "the database system is not yet accepting connections",
    "terminating connection due to administrator command",
)


@contextmanager
def open_study_with_retries(
    storage: str | None, home: Path, name: str, stop: threading.Event, log: Callable[[str], None]
) -> Iterator[tuple["Database", "Study"]]:
    """Open a study, retrying for 30 s while its database is unreachable.

    Raises DatabaseLostError if it stays unreachable, or if the worker is asked to stop meanwhile.
    """
    deadline = time.monotonic() + _WAIT_S
    is_logged = False
    while True:
        with ExitStack() as stack:
            try:
                opened = _open(stack, storage, home, name)
            except DatabaseError as error:
                if not any(words in str(error) for words in _TRANSIENT):
                    raise
                if stop.is_set() or time.monotonic() > deadline:
                    raise DatabaseLostError(f"the database is unreachable: {error}") from error
                if not is_logged:
                    log(f"waiting up to {_WAIT_S:g} s for the database: {error}")
                    is_logged = True
            else:
                yield opened
                return
        stop.wait(_EVERY_S)


def _open(stack: ExitStack, storage: str | None, home: Path, name: str) -> tuple["Database", "Study"]:
    from hpopt.storage.connect import open_database
    from hpopt.storage.studies import load_study

    database = stack.enter_context(open_database(storage, home))
    return database, load_study(database, name)
