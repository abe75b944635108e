"""Inject faults into workers, their connections, their disk and PostgreSQL, on a seeded schedule, and end each."""

import heapq
import itertools
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import psycopg2
import psycopg2.extensions
import sqlalchemy as sa
from foreign import ForeignWriter
from machine import Disk, Server
from proxy import Link

from hpopt.errors import DatabaseUnreachableError
from hpopt.storage import control
from hpopt.storage.database import Database
from hpopt.storage.studies import Study

_RETRY_S = 0.5
# Of the connections that are not taken.
_N_FREE_CONNECTIONS = 4

_TERMINATE = sa.text(
    """
    select count(*) filter (where pg_terminate_backend(pid)) from pg_stat_activity
    where backend_type = 'client backend' and pid <> pg_backend_pid() and datname = current_database()
      and random() < :share
    """
)


class Workers(Protocol):
    """The worker processes that faults are injected into; those in `pids_with_trials` have started a trial."""

    processes: list[subprocess.Popen[bytes]]
    pids_with_trials: set[int]
    links: list[Link]


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """The timeouts of the workers, in seconds: some faults end before them, others after."""

    heartbeat_every_s: float
    stale_after_s: float
    give_up_after_s: float


def _close_all(connections: list[psycopg2.extensions.connection]) -> None:
    for connection in connections:
        connection.close()


class Faults:
    """Injects faults one after the other, on a random schedule that a seed repeats, and ends each in time."""

    def __init__(
        self, *, seed: int, mean_gap_s: float, workers: Workers, server: Server, disk: Disk, timeouts: Timeouts
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.log: list[str] = []
        self._random = random.Random(seed)  # noqa: S311 - a schedule is no secret.
        self._mean_gap_s = mean_gap_s
        self._workers = workers
        self._server = server
        self._disk = disk
        self._timeouts = timeouts
        self._database = Database(server.url)
        self._study: Study | None = None
        self._writer: ForeignWriter | None = None
        self._seed = seed
        self._began = time.monotonic()
        self._next_at = self._began
        # What has a fault at the moment: each thing has one at a time.
        self._affected: set[object] = set()
        # A heap of the time of an end, a counter that orders equal times, what is affected, and the function.
        self._ends: list[tuple[float, int, object, Callable[[], None]]] = []
        self._counter = itertools.count()
        self._kinds: dict[str, tuple[int, Callable[[], bool]]] = {
            "kill -9 of a worker": (14, self._kill),
            "SIGTERM to a worker": (10, self._terminate),
            "SIGSTOP, later SIGCONT": (14, self._freeze),
            "packets of one worker dropped": (10, self._drop_packets),
            "replies to one worker dropped": (10, self._drop_replies),
            "packets of all workers dropped": (4, self._drop_all),
            "connections of one worker refused": (8, self._refuse),
            "pg_terminate_backend": (14, self._cut),
            "Postgres restarted, fast": (5, self._restart_fast),
            "Postgres restarted, immediate": (5, self._restart_immediate),
            "Postgres shutting down for a while": (4, self._shut_down),
            "all connections but a few taken": (4, lambda: self._take_connections(_N_FREE_CONNECTIONS)),
            "all connections taken": (4, lambda: self._take_connections(0)),
            "rows of another program": (16, self._write_foreign),
            "checkpoint disk full": (6, self._fill_disk),
            "study paused, later resumed": (5, self._pause),
        }

    def begin(self, study: Study) -> None:
        """Begin the schedule; the study is paused and resumed by some of the faults."""
        self._study = study
        self._writer = ForeignWriter(self._server.url, study.name, self._seed)
        self._began = self._next_at = time.monotonic()

    def step(self) -> None:
        """Begin and end the faults that are due."""
        now = time.monotonic()
        self._end_until(now)
        if now < self._next_at:
            return
        self._next_at = now + self._random.expovariate(1 / self._mean_gap_s)
        names = list(self._kinds)
        name = self._random.choices(names, [weight for weight, _ in self._kinds.values()])[0]
        # Another fault can have taken the connections.
        with suppress(DatabaseUnreachableError):
            if self._kinds[name][1]():
                self.counts[name] += 1
                self._write_log(name)

    def end_all(self) -> None:
        """End every fault."""
        self._end_until(float("inf"))

    def close(self) -> None:
        """Close the connections."""
        self._database.close()
        if self._writer is not None:
            self._writer.close()

    def _write_log(self, text: str) -> None:
        self.log.append(f"{time.strftime('%H:%M:%S')} {time.monotonic() - self._began:8.2f} s  {text}")

    def _end_until(self, now: float) -> None:
        while self._ends and self._ends[0][0] <= now:
            _, _, affected, end = heapq.heappop(self._ends)
            self._affected.discard(affected)
            end()
            self._write_log(f"end: {affected}")

    def _end_after(self, duration_s: float, affected: object, end: Callable[[], None]) -> None:
        """End a fault that has begun after some seconds."""
        self._affected.add(affected)
        heapq.heappush(self._ends, (time.monotonic() + duration_s, next(self._counter), affected, end))

    def _draw_duration(self) -> float:
        """Draw the duration of a fault: below stale_after_s, above it, or above give_up_after_s."""
        timeouts = self._timeouts
        bounds = (
            (0.1, timeouts.stale_after_s),
            (timeouts.stale_after_s, 4 * timeouts.stale_after_s),
            (timeouts.give_up_after_s, 1.2 * timeouts.give_up_after_s),
        )
        return self._random.uniform(*self._random.choices(bounds, (4, 4, 2))[0])

    def _worker(self) -> subprocess.Popen[bytes] | None:
        running = [process for process in self._workers.processes if process.poll() is None]
        return self._random.choice(running) if running else None

    def _link(self) -> Link | None:
        unaffected = [link for link in self._workers.links if link not in self._affected]
        return self._random.choice(unaffected) if unaffected else None

    def _kill(self) -> bool:
        return self._signal(signal.SIGKILL) is not None

    def _terminate(self) -> bool:
        return self._signal(signal.SIGTERM) is not None

    def _signal(self, number: signal.Signals) -> subprocess.Popen[bytes] | None:
        worker = self._worker()
        if worker is not None:
            worker.send_signal(number)
            self._write_log(f"{number.name} to {worker.pid}")
        return worker

    def _freeze(self) -> bool:
        worker = self._signal(signal.SIGSTOP)
        if worker is None:
            return False
        # For a worker that is stopped twice, the first SIGCONT ends both faults.
        self._end_after(
            self._draw_duration(), f"process {worker.pid} stopped", lambda: worker.send_signal(signal.SIGCONT)
        )
        return True

    def _drop_packets(self) -> bool:
        link = self._link()
        if link is None:
            return False
        link.stall(replies_only=False)
        is_reset = self._random.random() < 0.5  # noqa: PLR2004 - one in two.
        self._end_after(self._draw_duration(), link, lambda: link.flow(reset=is_reset))
        return True

    def _drop_replies(self) -> bool:
        link = self._link()
        if link is None:
            return False
        link.stall(replies_only=True)
        # The requests arrive: their transactions are committed, and the worker gets no reply.
        self._end_after(self._random.uniform(0.05, self._timeouts.stale_after_s), link, lambda: link.flow(reset=True))
        return True

    def _drop_all(self) -> bool:
        links = [link for link in self._workers.links if link not in self._affected]
        seconds = self._random.uniform(0.1, 2 * self._timeouts.stale_after_s)
        for link in links:
            link.stall(replies_only=False)
            self._end_after(seconds, link, lambda link=link: link.flow(reset=False))  # type: ignore[misc]
        return bool(links)

    def _refuse(self) -> bool:
        link = self._link()
        if link is None:
            return False
        link.refuse()
        self._end_after(self._draw_duration(), link, link.accept)
        return True

    def _cut(self) -> bool:
        if not self._server.is_running:
            return False
        share = self._random.choice((0.1, 0.3, 1.0))
        with self._database.begin() as connection:
            return bool(connection.scalar(_TERMINATE, {"share": share}))

    def _take_connections(self, n_free: int) -> bool:
        """Take connections as another program does, so that the fleet is answered `too many clients`."""
        if not self._server.is_running or "connections" in self._affected:
            return False
        # The schedule has a connection of its own, which stays open.
        with self._database.begin():
            taken: list[psycopg2.extensions.connection] = []
            with suppress(psycopg2.OperationalError):
                while True:
                    taken.append(self._server.connect())
        for connection in taken[:n_free]:
            connection.close()
        self._end_after(self._draw_duration(), "connections", lambda: _close_all(taken))
        return True

    def _write_foreign(self) -> bool:
        return self._writer is not None and self._server.is_running and self._writer.write()

    def _shut_down(self) -> bool:
        """Let the server answer new connections with SQLSTATE 57P03, cannot_connect_now."""
        if not self._server.is_running or "connections" in self._affected:
            return False
        self._server.stop_slowly()
        self._end_after(
            self._random.uniform(0.5, 2 * self._timeouts.stale_after_s), "Postgres shutting down", self._server.start
        )
        return True

    def _restart_fast(self) -> bool:
        return self._restart("fast")

    def _restart_immediate(self) -> bool:
        return self._restart("immediate")

    def _restart(self, mode: str) -> bool:
        if not self._server.is_running:
            return False
        self._server.stop(mode)
        self._end_after(
            self._random.uniform(0.0, 2 * self._timeouts.stale_after_s), "Postgres down", self._server.start
        )
        return True

    def _fill_disk(self) -> bool:
        if "disk full" in self._affected:
            return False
        # A process that cannot write at all does not start, which is another fault than a full disk.
        pids = [process.pid for process in self._workers.processes if process.pid in self._workers.pids_with_trials]
        self._disk.fill(pids)
        self._end_after(self._random.uniform(0.1, 3.0), "disk full", lambda: self._disk.free(pids))
        return True

    def _pause(self) -> bool:
        study = self._study
        if study is None or not self._server.is_running or "study paused" in self._affected:
            return False
        control.pause(self._database, study, "by chaos.py")
        self._end_after(self._random.uniform(0.2, 3.0), "study paused", lambda: self._resume(study))
        return True

    def _resume(self, study: Study) -> None:
        if not self._server.is_running:
            self._server.start()
        try:
            control.resume(self._database, study)
        except DatabaseUnreachableError:
            self._end_after(_RETRY_S, "study paused", lambda: self._resume(study))
