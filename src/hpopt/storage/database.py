"""Owns the connections to Postgres, ours and Optuna's. Leaves what is said over them to its neighbours."""

import ipaddress
import select
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

import optuna
import psycopg2
import psycopg2.extensions
import sqlalchemy as sa
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError

from hpopt.errors import DatabaseError

DRIVER = "postgresql+psycopg2"
CONNECT_TIMEOUT_S = 10
# A transaction that others wait for ends by itself when its process is frozen in the middle of it.
_LOCK_TIMEOUT_S = 10
_ANSWER_WITHIN_S = 20
_BRIEF = f"set local lock_timeout = '{_LOCK_TIMEOUT_S} s'; set local idle_in_transaction_session_timeout = '10 s'"
# The SQLSTATE of read_only_sql_transaction.
READ_ONLY = "25006"

# A worker uses one; the second is for those that work in several threads, as the dashboard does.
_ENGINE_OPTIONS = {
    "pool_size": 1,
    "max_overflow": 1,
    "pool_pre_ping": True,
    # The kernel notices a cut cable; without these it would take two hours.
    "connect_args": {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "tcp_user_timeout": 10_000,
        "keepalives_idle": 10,
        "keepalives_interval": 3,
        "keepalives_count": 3,
    },
}


class Database:
    """A Postgres with Optuna's tables and ours."""

    def __init__(self, url: str) -> None:
        self._url = parse_url(url)
        self.engine = sa.create_engine(self._url, **_ENGINE_OPTIONS)

    def __repr__(self) -> str:
        return f"Database({self.address})"

    @property
    def url(self) -> str:
        """The whole URL, password included: for child processes, never for output."""
        return self._url.render_as_string(hide_password=False)

    @property
    def password(self) -> str | None:
        """The password in the URL: for files that only their owner can read."""
        found = self._url.password or self._url.query.get("password")
        return None if found is None else str(found)

    @property
    def url_without_password(self) -> str:
        """The whole URL but for the password, options such as sslmode included."""
        return self._url._replace(password=None).difference_update_query(["password"]).render_as_string()

    @property
    def is_on_loopback(self) -> bool:
        """Whether only processes of this machine reach it: by a socket of the file system, or the loopback network."""
        host = self._url.host or self._url.query.get("host") or ""
        hosts = [host] if isinstance(host, str) else host
        return any(not each or each.startswith("/") or is_loopback(each) for each in hosts)

    @property
    def address(self) -> str:
        """User, host, port and database, without the password."""
        where = {part: getattr(self._url, part) for part in ("username", "host", "port", "database")}
        return sa.URL.create("postgresql", **where).render_as_string()

    @cached_property
    def optuna(self) -> BaseStorage:
        """Optuna's storage on the same database, with its cache of finished trials."""
        return optuna.storages.get_storage(self.uncached_optuna)

    @cached_property
    def uncached_optuna(self) -> RDBStorage:
        """Optuna's storage on the same database, which reads everything anew."""
        # Optuna's models take a moment to import, and most verbs go without its storage.
        from hpopt.storage.optuna_read import ReadingStorage  # noqa: PLC0415

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        # Optuna passes the URL through str.format, which would take braces in a password for fields.
        escaped = self.url.replace("{", "{{").replace("}", "}}")
        with self.errors():
            return ReadingStorage(escaped, engine_kwargs=dict(_ENGINE_OPTIONS))

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()
        if "uncached_optuna" in self.__dict__:
            self.uncached_optuna.remove_session()
            self.uncached_optuna.engine.dispose()

    @contextmanager
    def begin(self) -> Iterator[sa.Connection]:
        """Open one transaction: committed at the end, rolled back on any error. Raises DatabaseError when lost."""
        with self.errors(), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def brief(self) -> Iterator[sa.Connection]:
        """Open a transaction that others may wait for: it neither waits for a lock nor holds one for long."""
        with self.begin() as connection:
            connection.exec_driver_sql(_BRIEF)
            yield connection

    @contextmanager
    def statement(self) -> Iterator[sa.Connection]:
        """Open a connection for one statement, which commits itself: one way there and back."""
        with self.errors(), self.engine.connect() as connection:
            yield connection.execution_options(isolation_level="AUTOCOMMIT")

    def release(self) -> None:
        """Close the connections that nobody uses at the moment."""
        self.engine.dispose()

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn what our library and Optuna's raise when the database does not answer into DatabaseError."""
        try:
            yield
        except (DBAPIError, StorageInternalError, psycopg2.OperationalError, psycopg2.InterfaceError) as error:
            # The last two come from giving a broken connection back, where SQLAlchemy does not translate them.
            if isinstance(error, DBAPIError) and not _is_out_of_reach(error):
                raise
            raise DatabaseError(f"{self.address}: {_first_line(error)}") from error


def is_loopback(host: str) -> bool:
    """Say whether a name or an address reaches no further than this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def limit_waits() -> None:
    """Let every wait for an answer in this process end with an error after a while.

    A server or a proxy that hangs keeps its connection alive, and psycopg2 would wait for it for ever.
    """
    psycopg2.extensions.set_wait_callback(_wait_for_answer)


def _wait_for_answer(connection: psycopg2.extensions.connection) -> None:
    deadline = time.monotonic() + _ANSWER_WITHIN_S
    while (state := connection.poll()) != psycopg2.extensions.POLL_OK:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise psycopg2.OperationalError(f"no answer for {_ANSWER_WITHIN_S} s")
        waiting = select.poll()
        waiting.register(
            connection.fileno(), select.POLLIN if state == psycopg2.extensions.POLL_READ else select.POLLOUT
        )
        waiting.poll(left_s * 1000)


def parse_url(url: str) -> sa.URL:
    """Read a Postgres URL in any of its usual spellings; raises DatabaseError without repeating the password."""
    try:
        parsed = sa.make_url(url)
    except (ArgumentError, ValueError):
        raise DatabaseError(
            "the storage URL cannot be read; expected postgresql://USER:PASSWORD@HOST:PORT/NAME"
        ) from None
    backend = parsed.drivername.partition("+")[0]
    if backend not in {"postgresql", "postgres"}:
        raise DatabaseError(
            f"storage '{backend}' is not supported; hpopt keeps its studies in Postgres (postgresql://...)"
        )
    return parsed.set(drivername=DRIVER)


def _is_out_of_reach(error: DBAPIError) -> bool:
    # After a failover the old primary still answers, but takes no writes.
    is_read_only = getattr(error.orig, "pgcode", None) == READ_ONLY
    return isinstance(error, OperationalError | InterfaceError) or error.connection_invalidated or is_read_only


def _first_line(error: Exception) -> str:
    # Optuna's error speaks of invalid data; what happened is in its cause.
    cause = error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ else error
    lines = [line.strip() for line in str(getattr(cause, "orig", cause)).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
