"""Owns the one thread of a worker that talks to the database: errands in order, and the heartbeat between them.

Leaves what is said to storage/. The worker trains on while the database is away; its errands wait here meanwhile.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError, wait
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from hpopt.errors import DatabaseError, DatabaseLostError

T = TypeVar("T")

_RETRY_S = 1.0
# A worker that was asked to stop has ten seconds for everything.
_PATIENCE_WHEN_STOPPED_S = 3.0
# Between two reports of a training run nobody needs a connection.
_RELEASE_AFTER_S = 2.0
# Signals are answered between two looks at a future.
_POLL_S = 0.2


@dataclass(frozen=True, kw_only=True)
class Manners:
    """How often the courier beats and when it gives up; `beat` and `release` are errands of its own."""

    beat: Callable[[], None]
    release: Callable[[], None]
    say: Callable[[str], None]
    stop: threading.Event
    heartbeat_every_s: float
    give_up_after_s: float


class Courier:
    """Runs errands one after the other, each again and again until the database answers."""

    def __init__(self, manners: Manners) -> None:
        self._manners = manners
        self._errands: deque[_Errand] = deque()
        self._wake = threading.Condition()
        self._is_over = False
        self._away_since: float | None = None
        self._fault: Exception | None = None
        self._beat_at = time.monotonic() + manners.heartbeat_every_s
        self._thread = threading.Thread(target=self._run, name="courier", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        with self._wake:
            self._is_over = True
            self._wake.notify()
        # It may hang on a connection that was cut; what it had to say is in the journal.
        self._thread.join(timeout=_RETRY_S)

    @property
    def is_away(self) -> bool:
        """Whether the database did not answer when it was last asked."""
        return self._away_since is not None

    @property
    def is_waited_for(self) -> bool:
        """Whether it is worth waiting for an answer: the database is there, and nobody asked the worker to stop."""
        return not self.is_away and self._fault is None and not self._manners.stop.is_set()

    @property
    def has_given_up(self) -> bool:
        """Whether the database was away for longer than this worker waits, or the courier itself failed."""
        away_since = self._away_since
        if self._fault is not None:
            return True
        return away_since is not None and time.monotonic() - away_since > self._manners.give_up_after_s

    def send(self, errand: Callable[[], T], *, is_beat: bool = False) -> "Future[T]":
        """Put an errand into the queue; it must be one that can be repeated without harm.

        One that is a sign of life itself spares the next heartbeat.
        """
        future: Future[T] = Future()
        with self._wake:
            if self._fault is not None:
                raise self._fault
            self._errands.append(_Errand(errand, future, is_beat))
            self._wake.notify()
        return future

    def call(self, errand: Callable[[], T]) -> T:
        """Run an errand and wait for what it gives. Raises DatabaseLostError when the worker gives up waiting."""
        return self.wait_for(self.send(errand))

    def wait_for(self, future: "Future[T]") -> T:
        """Wait for an errand that was sent; raises DatabaseLostError as `call` does."""
        began, stopped = time.monotonic(), None
        while not wait([future], timeout=_POLL_S).done:
            now = time.monotonic()
            if self._manners.stop.is_set() and stopped is None:
                stopped = now
            is_late = stopped is not None and now - stopped > _PATIENCE_WHEN_STOPPED_S
            if is_late or self.has_given_up or now - began > 2 * self._manners.give_up_after_s:
                future.cancel()
                raise DatabaseLostError("lost the database: it does not answer; what is undelivered is in the journal")
        return future.result()

    def _run(self) -> None:
        try:
            self._serve()
        except Exception as error:  # noqa: BLE001 - it is raised again where the worker waits.
            with self._wake:
                self._fault = error
                for errand in self._errands:
                    errand.fail(error)

    def _serve(self) -> None:
        manners = self._manners
        last_used: float | None = None
        while True:
            errand = self._wait_until(min(self._beat_at, (last_used or self._beat_at) + _RELEASE_AFTER_S))
            if self._is_over and (errand is None or self.is_away):
                return
            now = time.monotonic()
            if errand is not None:
                self._deliver(errand)
            elif now >= self._beat_at:
                self._try(manners.beat, is_beat=True)
            elif last_used is not None and now >= last_used + _RELEASE_AFTER_S:
                manners.release()
                last_used = None
                continue
            last_used = time.monotonic()

    def _wait_until(self, due: float) -> "_Errand | None":
        """Give the errand that waits the longest, or None at the time given; while the database is away, pause."""
        with self._wake:
            if self.is_away:
                self._wake.wait_for(lambda: self._is_over, _RETRY_S)
            elif not self._errands and not self._is_over:
                self._wake.wait(max(0.0, due - time.monotonic()))
            return self._errands[0] if self._errands else None

    def _deliver(self, errand: "_Errand") -> None:
        if errand.future.cancelled() or self._try(errand.run, is_beat=errand.is_beat):
            with self._wake:
                self._errands.popleft()

    def _try(self, errand: Callable[[], None], *, is_beat: bool) -> bool:
        """Run an errand; False while the database is away, which is said once."""
        say = self._manners.say
        try:
            errand()
        except DatabaseError as error:
            if self._away_since is None:
                self._away_since = time.monotonic()
                say(f"the database is away, going on without it: {error}")
            return False
        if self._away_since is not None:
            say(f"the database is back after {time.monotonic() - self._away_since:.0f} s")
            self._away_since = None
        if is_beat:
            self._beat_at = time.monotonic() + self._manners.heartbeat_every_s
        return True


@dataclass(frozen=True)
class _Errand:
    call: Callable[[], Any]
    future: "Future[Any]"
    is_beat: bool

    def run(self) -> None:
        """Run it and tell who waits for it; only a database that is away is the courier's own affair."""
        try:
            result = self.call()
        except DatabaseError:
            raise
        except Exception as error:  # noqa: BLE001 - it belongs to whoever waits.
            self.fail(error)
        else:
            # Perhaps nobody waits any more.
            with suppress(InvalidStateError):
                self.future.set_result(result)

    def fail(self, error: Exception) -> None:
        with suppress(InvalidStateError):
            self.future.set_exception(error)
