"""Open a study when a worker starts, with retries while the database is unreachable."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hpopt.errors import DatabaseLostError, DatabaseUnreachableError

if TYPE_CHECKING:
    from hpopt.storage.database import Database
    from hpopt.storage.studies import Study

_WAIT_S = 30.0
_EVERY_S = 1.0


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
            except DatabaseUnreachableError as error:
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
    from hpopt.storage.database import RESPONSE_TIMEOUT_S
    from hpopt.storage.studies import load_study

    database = stack.enter_context(open_database(storage, home, response_timeout_s=RESPONSE_TIMEOUT_S))
    return database, load_study(database, name)
