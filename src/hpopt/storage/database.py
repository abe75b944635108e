"""Connect to PostgreSQL, for hpopt and for Optuna's storage."""

import ipaddress
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import optuna
import psycopg2
import psycopg2.extensions
import sqlalchemy as sa
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError

from hpopt.errors import DatabaseError, DatabasePermissionError, DatabaseUnreachableError
from hpopt.storage.response_limit import ResponseLimit

DRIVER = "postgresql+psycopg2"
CONNECT_TIMEOUT_S = 10
# A transaction that holds locks is ended by the server when its process is frozen.
_LOCK_TIMEOUT_S = 10
# Of the connections of workers.
RESPONSE_TIMEOUT_S = 20
_BRIEF = f"set local lock_timeout = '{_LOCK_TIMEOUT_S} s'; set local idle_in_transaction_session_timeout = '10 s'"
# The SQLSTATE of read_only_sql_transaction.
READ_ONLY = "25006"
INSUFFICIENT_PRIVILEGE = "42501"
# Of a login that will be refused again: invalid_authorization_specification, invalid_password, invalid_catalog_name.
_FINAL = {"28000", "28P01", "3D000"}
# What a server, PgBouncer or libpq says of such a login while a connection is opened, when psycopg2 has no SQLSTATE.
_FINAL_MESSAGE = re.compile(
    r"password authentication failed|SASL authentication failed|no pg_hba\.conf entry|no password supplied"
    r"|(role|user|database) \".*\" does not exist|is not permitted to log in|permission denied for database"
    r"|no such (database|user)|authentication method requirement|server does not support SSL"
)

# A worker uses one connection; the second is for processes with several threads, such as the dashboard.
_ENGINE_OPTIONS = {"pool_size": 1, "max_overflow": 1, "pool_pre_ping": True}
# With these the kernel detects a lost connection after some 20 s, without them after two hours.
_CONNECT_ARGS = {
    "connect_timeout": CONNECT_TIMEOUT_S,
    "tcp_user_timeout": 10_000,
    "keepalives_idle": 10,
    "keepalives_interval": 3,
    "keepalives_count": 3,
}


class Database:
    """A PostgreSQL database with the tables of Optuna and hpopt.

    With `response_timeout_s`, which can change, a statement fails that the server does not respond to in that time.
    """

    def __init__(self, url: str, *, response_timeout_s: float | None = None) -> None:
        self._url = parse_url(url)
        self._limit = ResponseLimit(response_timeout_s)
        self.engine = sa.create_engine(self._url, **self._engine_options)

    def __repr__(self) -> str:
        return f"Database({self.address})"

    @property
    def response_timeout_s(self) -> float | None:
        """The seconds in which the server responds to a statement, or None for any time."""
        return self._limit.timeout_s

    @response_timeout_s.setter
    def response_timeout_s(self, seconds: float | None) -> None:
        self._limit.timeout_s = seconds

    @property
    def _engine_options(self) -> dict[str, Any]:
        connect_args = {**_CONNECT_ARGS, "connection_factory": self._limit.connect}
        return {**_ENGINE_OPTIONS, "connect_args": connect_args}

    @property
    def url(self) -> str:
        """The URL with the password: for child processes, never for output."""
        return self._url.render_as_string(hide_password=False)

    @property
    def password(self) -> str | None:
        """The password of the URL: for files that only their owner can read."""
        password = self._url.password or self._url.query.get("password")
        return None if password is None else str(password)

    @property
    def url_without_password(self) -> str:
        """The URL without the password, with options such as sslmode."""
        return self._url._replace(password=None).difference_update_query(["password"]).render_as_string()

    @property
    def libpq_url(self) -> str:
        """The URL without the password, as psql and other programs of libpq take it."""
        return (
            self._url.set(drivername="postgresql")
            .difference_update_query(["password", "require_auth"])
            ._replace(password=None)
            .render_as_string()
        )

    @property
    def is_on_loopback(self) -> bool:
        """Whether only processes of this machine reach it: over a Unix socket or the loopback network."""
        host = self._url.host or self._url.query.get("host") or ""
        hosts = [host] if isinstance(host, str) else host
        return any(not name or name.startswith("/") or is_loopback(name) for name in hosts)

    @property
    def address(self) -> str:
        """User, host, port and database, without the password."""
        parts = {part: getattr(self._url, part) for part in ("username", "host", "port", "database")}
        return sa.URL.create("postgresql", **parts).render_as_string()

    @cached_property
    def optuna(self) -> BaseStorage:
        """Optuna's storage on the same database, with its cache of finished trials."""
        return optuna.storages.get_storage(self.uncached_optuna)

    @cached_property
    def uncached_optuna(self) -> RDBStorage:
        """Optuna's storage on the same database, without a cache."""
        # The import takes a while, and most commands do not need it.
        from hpopt.storage.optuna_read import ReadingStorage  # noqa: PLC0415

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        # Optuna passes the URL through str.format, which treats braces in a password as fields.
        escaped = self.url.replace("{", "{{").replace("}", "}}")
        with self.errors():
            return ReadingStorage(escaped, engine_kwargs=self._engine_options)

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()
        if "uncached_optuna" in self.__dict__:
            self.uncached_optuna.remove_session()
            self.uncached_optuna.engine.dispose()
        self._limit.close()

    @contextmanager
    def begin(self) -> Iterator[sa.Connection]:
        """Open one transaction: committed at the end, rolled back on any error. Raises DatabaseError if it is lost."""
        with self.errors(), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def brief(self) -> Iterator[sa.Connection]:
        """Open a transaction with timeouts, so that it neither waits for a lock nor holds one for long."""
        with self.begin() as connection:
            connection.exec_driver_sql(_BRIEF)
            yield connection

    @contextmanager
    def statement(self) -> Iterator[sa.Connection]:
        """Open a connection in autocommit mode for one statement: one round trip."""
        with self.errors(), self.engine.connect() as connection:
            yield connection.execution_options(isolation_level="AUTOCOMMIT")

    def disconnect(self) -> None:
        """Close the idle connections."""
        self.engine.dispose()

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Raise DatabaseUnreachableError for the errors of drivers and of Optuna that mean an unreachable database.

        Raises DatabaseError where the database refuses the login for good, and DatabasePermissionError for a right that
        its user does not have. The cause is told by its SQLSTATE. Errors of opening a connection have none: English
        messages are matched (_FINAL_MESSAGE), and in another language a refused login counts as an unreachable
        database, which is tried again.
        """
        try:
            yield
        except (DBAPIError, StorageInternalError, psycopg2.OperationalError, psycopg2.InterfaceError) as error:
            # psycopg2's own errors come from returning a broken connection, where SQLAlchemy does not wrap them.
            cause = _cause(error)
            message = str(cause).strip() or type(cause).__name__
            line = f"{self.address}: {message.splitlines()[0]}"
            sqlstate = getattr(cause, "pgcode", None)
            if sqlstate == INSUFFICIENT_PRIVILEGE:
                raise DatabasePermissionError(line) from error
            if isinstance(error, DBAPIError) and sqlstate not in _FINAL and not _is_unreachable(error):
                raise
            is_final = sqlstate in _FINAL if sqlstate else _FINAL_MESSAGE.search(message)
            raise (DatabaseError if is_final else DatabaseUnreachableError)(line) from error


def is_loopback(host: str) -> bool:
    """Return whether a host name or address is that of this machine's loopback network."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def parse_url(url: str) -> sa.URL:
    """Parse a PostgreSQL URL in any of its usual spellings. Raises DatabaseError, without the password."""
    try:
        parsed = sa.make_url(url)
    except (ArgumentError, ValueError):
        raise DatabaseError(
            "the storage URL cannot be read; expected postgresql://USER:PASSWORD@HOST:PORT/NAME"
        ) from None
    # An @ in a password ends it, and what follows would be shown as the host.
    if url.count("@") > 1 or "@" in f"{parsed.host}{parsed.database}":
        raise DatabaseError("the storage URL cannot be read: write @ in a user name or password as %40")
    backend = parsed.drivername.partition("+")[0]
    if backend not in {"postgresql", "postgres"}:
        raise DatabaseError(
            f"storage '{backend}' is not supported; hpopt stores its studies in PostgreSQL (postgresql://...)"
        )
    return parsed.set(drivername=DRIVER)


def _is_unreachable(error: DBAPIError) -> bool:
    # After a failover the old primary still responds, but is read-only.
    is_read_only = getattr(error.orig, "pgcode", None) == READ_ONLY
    return isinstance(error, OperationalError | InterfaceError) or error.connection_invalidated or is_read_only


def _cause(error: BaseException) -> BaseException:
    """Return the error of the driver."""
    # The message of Optuna's error mentions invalid data; its cause has what happened.
    cause = error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ else error
    return getattr(cause, "orig", None) or cause
