"""Limit the time in which a server has to respond to a statement.

A server or proxy that hangs keeps its connections alive, and psycopg2 has no timeout of its own, only a callback for
all connections of a process, those of training functions included.
"""

import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import psycopg2
import psycopg2.extensions

# How often expired statements are looked for, as a share of the limit.
_POLL = 0.05


@dataclass
class _Statement:
    """A statement without a response: a descriptor of its connection, and when its time is over (monotonic clock)."""

    descriptor: int
    deadline_s: float
    is_expired: bool = False


class ResponseLimit:
    """Shuts down connections whose server does not respond within `timeout_s`; None is without limit."""

    def __init__(self, timeout_s: float | None) -> None:
        self.timeout_s = timeout_s
        self._lock = threading.Lock()
        self._running: list[_Statement] = []
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def connect(self, *arguments: Any) -> psycopg2.extensions.connection:  # noqa: ANN401 - those of psycopg2.
        """Return a connection with this limit: a connection factory of psycopg2."""
        connection = _LimitedConnection(*arguments)
        connection.limit = self
        return connection

    def close(self) -> None:
        """End the thread; the next statement starts another."""
        self._closed.set()

    @contextmanager
    def apply(self, connection: psycopg2.extensions.connection) -> Iterator[Callable[[], None]]:
        """Raise psycopg2.OperationalError if the statement of the block is not answered in time.

        Between several statements the block calls the yielded function, which gives the next one the whole time.
        """
        timeout_s = self.timeout_s
        if timeout_s is None or connection.closed:
            yield lambda: None
            return
        # A descriptor of its own: libpq can close the other one, and its number can be used again.
        statement = _Statement(os.dup(connection.fileno()), time.monotonic() + timeout_s)

        def renew() -> None:
            statement.deadline_s = time.monotonic() + timeout_s

        with self._lock:
            self._running.append(statement)
            if self._thread is None or not self._thread.is_alive() or self._closed.is_set():
                self._closed = threading.Event()
                self._thread = threading.Thread(
                    target=self._watch, args=(self._closed, timeout_s), name="response-limit", daemon=True
                )
                self._thread.start()
        try:
            yield renew
        except psycopg2.OperationalError as error:
            if statement.is_expired:
                raise psycopg2.OperationalError(f"no response for {timeout_s:g} s") from error
            raise
        finally:
            with self._lock:
                self._running.remove(statement)
            os.close(statement.descriptor)

    def _watch(self, closed: threading.Event, timeout_s: float) -> None:
        while not closed.wait(_POLL * timeout_s):
            with self._lock:
                for statement in self._running:
                    if time.monotonic() > statement.deadline_s:
                        _expire(statement, timeout_s)


def _expire(statement: _Statement, timeout_s: float) -> None:
    response = select.poll()
    response.register(statement.descriptor, select.POLLIN)
    if response.poll(0) and not statement.is_expired:
        # The response is there, and the thread that waits for it has not run since.
        statement.deadline_s = time.monotonic() + timeout_s
        return
    statement.is_expired = True
    with suppress(OSError), socket.socket(fileno=os.dup(statement.descriptor)) as shared:
        shared.shutdown(socket.SHUT_RDWR)


class _LimitedCursor(psycopg2.extensions.cursor):  # type: ignore[misc]  # It has no types.
    """A cursor whose statements have the limit of their connection."""

    def execute(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - those of psycopg2.
        with self.connection.limit.apply(self.connection):
            super().execute(*arguments, **options)

    def executemany(self, *arguments: Any) -> None:  # noqa: ANN401 - those of psycopg2.
        query, rows = arguments
        with self.connection.limit.apply(self.connection) as renew:

            def renewed() -> Iterator[Any]:
                for row in rows:
                    renew()
                    yield row

            super().executemany(query, renewed())


class _LimitedConnection(psycopg2.extensions.connection):  # type: ignore[misc]  # As above.
    """A connection whose statements have a limit."""

    limit: ResponseLimit

    def __init__(self, *arguments: Any) -> None:  # noqa: ANN401 - those of psycopg2.
        super().__init__(*arguments)
        self.cursor_factory = _LimitedCursor

    def commit(self) -> None:
        with self.limit.apply(self):
            super().commit()

    def rollback(self) -> None:
        with self.limit.apply(self):
            super().rollback()
