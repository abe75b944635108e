"""Run the database tasks of a worker in order on one thread, with heartbeats between them.

While the database is unreachable training goes on, and the tasks wait here.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError, wait
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self, TypeAlias, TypeVar

from hpopt.errors import DatabaseError, DatabaseLostError

T = TypeVar("T")
# A call to the database that can be repeated without harm.
Task: TypeAlias = Callable[[], T]

# Signals are handled between two looks at a future.
_POLL_S = 0.2


@dataclass(frozen=True, kw_only=True)
class DatabaseThreadOptions:
    """The tasks and times of a DatabaseThread.

    `heartbeat` runs every `heartbeat_every_s`; `disconnect` closes idle connections; `log` takes a line; `stop` is set
    when the worker is asked to stop. After `give_up_after_s` without the database, waiting calls fail; once `stop` is
    set, after `stop_timeout_s`: a worker that was asked to stop has ten seconds for everything. Connections are closed
    `disconnect_after_s` after the last task, because training needs none between two evaluations.
    """

    heartbeat: Task[None]
    disconnect: Callable[[], None]
    log: Callable[[str], None]
    stop: threading.Event
    heartbeat_every_s: float
    give_up_after_s: float
    retry_every_s: float = 1.0
    stop_timeout_s: float = 3.0
    disconnect_after_s: float = 2.0


class DatabaseThread:
    """Runs tasks one after the other, each until the database responds."""

    def __init__(self, options: DatabaseThreadOptions) -> None:
        self._options = options
        self._tasks: deque[_QueuedTask] = deque()
        self._wake = threading.Condition()
        self._is_closed = False
        self._unreachable_since: float | None = None
        self._error: Exception | None = None
        self._heartbeat_at = time.monotonic() + options.heartbeat_every_s
        self._thread = threading.Thread(target=self._run, name="database", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        with self._wake:
            self._is_closed = True
            self._wake.notify()
        # It can hang on a connection that was cut; what it had to send is in the outbox.
        self._thread.join(timeout=self._options.retry_every_s)

    @property
    def is_unreachable(self) -> bool:
        """Whether the database did not respond to the last task."""
        return self._unreachable_since is not None

    @property
    def is_responsive(self) -> bool:
        """Whether to wait for a response: the database is reachable, and the worker was not asked to stop."""
        return not self.is_unreachable and self._error is None and not self._options.stop.is_set()

    @property
    def has_given_up(self) -> bool:
        """Whether the database was unreachable for longer than `give_up_after_s`, or the thread itself failed."""
        since = self._unreachable_since
        if self._error is not None:
            return True
        return since is not None and time.monotonic() - since > self._options.give_up_after_s

    def submit(self, task: Task[T], *, is_heartbeat: bool = False) -> "Future[T]":
        """Queue a task. One with `is_heartbeat` renews the heartbeat itself and postpones the next one."""
        future: Future[T] = Future()
        with self._wake:
            if self._error is not None:
                raise self._error
            self._tasks.append(_QueuedTask(task, future, is_heartbeat))
            self._wake.notify()
        return future

    def call(self, task: Task[T]) -> T:
        """Run a task and return its result. Raises DatabaseLostError if the worker stops waiting."""
        return self.wait_for(self.submit(task))

    def wait_for(self, future: "Future[T]") -> T:
        """Return the result of a submitted task. Raises DatabaseLostError as `call` does."""
        began, stopped = time.monotonic(), None
        while not wait([future], timeout=_POLL_S).done:
            now = time.monotonic()
            if self._options.stop.is_set() and stopped is None:
                stopped = now
            is_late = stopped is not None and now - stopped > self._options.stop_timeout_s
            if is_late or self.has_given_up or now - began > 2 * self._options.give_up_after_s:
                future.cancel()
                raise DatabaseLostError("lost the database: no response; what was not sent is in the outbox")
        return future.result()

    def _run(self) -> None:
        try:
            self._serve()
        except Exception as error:  # noqa: BLE001 - it is raised again in the waiting thread.
            with self._wake:
                self._error = error
                for task in self._tasks:
                    task.fail(error)

    def _serve(self) -> None:
        options = self._options
        disconnect_at = math.inf
        while True:
            task = self._wait_until(min(self._heartbeat_at, disconnect_at))
            if self._is_closed and (task is None or self.is_unreachable):
                return
            now = time.monotonic()
            if task is not None:
                self._run_first(task)
            elif now >= self._heartbeat_at:
                self._try(options.heartbeat, is_heartbeat=True)
            elif now >= disconnect_at:
                options.disconnect()
                disconnect_at = math.inf
                continue
            else:
                continue
            disconnect_at = time.monotonic() + options.disconnect_after_s

    def _wait_until(self, due: float) -> "_QueuedTask | None":
        """Return the first task, or None at time `due`; while the database is unreachable, wait before a retry."""
        with self._wake:
            if self.is_unreachable:
                self._wake.wait_for(lambda: self._is_closed, self._options.retry_every_s)
            elif not self._tasks and not self._is_closed:
                self._wake.wait(max(0.0, due - time.monotonic()))
            return self._tasks[0] if self._tasks else None

    def _run_first(self, task: "_QueuedTask") -> None:
        if task.future.cancelled() or self._try(task.run, is_heartbeat=task.is_heartbeat):
            with self._wake:
                self._tasks.popleft()

    def _try(self, task: Task[None], *, is_heartbeat: bool) -> bool:
        """Run a task; return False while the database is unreachable, which is logged once."""
        log = self._options.log
        try:
            task()
        except DatabaseError as error:
            if self._unreachable_since is None:
                self._unreachable_since = time.monotonic()
                log(f"the database is unreachable, training goes on: {error}")
            return False
        if self._unreachable_since is not None:
            log(f"the database is reachable again after {time.monotonic() - self._unreachable_since:.0f} s")
            self._unreachable_since = None
        if is_heartbeat:
            self._heartbeat_at = time.monotonic() + self._options.heartbeat_every_s
        return True


@dataclass(frozen=True)
class _QueuedTask:
    task: Task[Any]
    future: "Future[Any]"
    is_heartbeat: bool

    def run(self) -> None:
        """Run the task and set its future; DatabaseError is left to the thread, which retries."""
        try:
            result = self.task()
        except DatabaseError:
            raise
        except Exception as error:  # noqa: BLE001 - it is raised where the result is awaited.
            self.fail(error)
        else:
            # The future may have been cancelled.
            with suppress(InvalidStateError):
                self.future.set_result(result)

    def fail(self, error: Exception) -> None:
        with suppress(InvalidStateError):
            self.future.set_exception(error)
