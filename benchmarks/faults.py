"""Owns what goes wrong: a seeded schedule of faults, each with its end. Leaves the workers' restarts to chaos.py."""

import heapq
import itertools
import random
import resource
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import sqlalchemy as sa
from proxy import Link

from hpopt.errors import DatabaseError
from hpopt.postgres import cluster, server
from hpopt.storage import control
from hpopt.storage.database import Database
from hpopt.storage.studies import Study

DISK_MIB = 16
_CHUNK = bytes(2**16)
_STOP_TIMEOUT_S = 30

_TERMINATE = sa.text(
    """
    select count(*) filter (where pg_terminate_backend(pid)) from pg_stat_activity
    where backend_type = 'client backend' and pid <> pg_backend_pid() and datname = current_database()
      and random() < :share
    """
)


class Workers(Protocol):
    """The worker processes that faults are done to; the seasoned ones, by number, have come as far as a trial."""

    processes: list[subprocess.Popen[bytes]]
    seasoned: set[int]
    links: list[Link]


class Server:
    """The own Postgres of a folder, which can be stopped politely or not."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self.url = server.start(home)
        self.is_up = True

    def stop(self, mode: str) -> None:
        """Stop it in one of pg_ctl's modes; `immediate` is what a crash leaves behind."""
        self.is_up = False
        found = cluster.find_cluster(self._home.absolute())
        pg_ctl = cluster.find_programs(found) / "pg_ctl"
        done = found.run(pg_ctl, "-D", found.data, "-m", mode, "-w", "-t", str(_STOP_TIMEOUT_S), "stop")
        if done.returncode != 0:
            raise DatabaseError(f"{found.data}: pg_ctl stop -m {mode}: {done.stdout}{done.stderr}")

    def start(self) -> None:
        """Start it again, on its port."""
        url = server.start(self._home)
        if url != self.url:
            raise DatabaseError(f"{self._home}: its Postgres came back as {url}, not as before")
        self.is_up = True


class Disk:
    """The folder of the checkpoints: a small file system of its own where we may mount one.

    Without the right to mount, the running workers may not make any file longer (RLIMIT_FSIZE), which is a full disk
    but for its errno.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m,mode=0755", "hpopt-chaos", str(folder)]
        try:
            self.is_mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
        except OSError:
            self.is_mounted = False

    def describe(self) -> str:
        """Say how this disk is filled."""
        return f"a tmpfs of {DISK_MIB} MiB, filled" if self.is_mounted else "RLIMIT_FSIZE 0, for want of a mount"

    def fill(self, pids: list[int]) -> None:
        """Leave no room to write to."""
        if not self.is_mounted:
            _let_files_grow(pids, is_allowed=False)
            return
        with (self._folder / "filler").open("wb", buffering=0) as filler:
            while True:
                try:
                    filler.write(_CHUNK)
                except OSError:
                    return

    def free(self, pids: list[int]) -> None:
        """Make room again."""
        if self.is_mounted:
            (self._folder / "filler").unlink(missing_ok=True)
        else:
            _let_files_grow(pids, is_allowed=True)

    def close(self) -> None:
        """Take the file system away, also from under a process that has not quite ended."""
        if self.is_mounted:
            umount = ["umount", "--lazy", str(self._folder)]
            subprocess.run(umount, capture_output=True, check=False)
            self.is_mounted = False


def _let_files_grow(pids: list[int], *, is_allowed: bool) -> None:
    for pid in pids:
        try:
            hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard if is_allowed else 0, hard))
        except ProcessLookupError:
            continue


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How patient the workers are: some faults end before that, others after."""

    heartbeat_every_s: float
    stale_after_s: float
    give_up_after_s: float


class Faults:
    """Injects faults one after the other, by a random schedule that a seed repeats, and ends each in its time."""

    def __init__(
        self, *, seed: int, mean_gap_s: float, workers: Workers, server: Server, disk: Disk, patience: Patience
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.log: list[str] = []
        self._random = random.Random(seed)  # noqa: S311 - a schedule is no secret.
        self._mean_gap_s = mean_gap_s
        self._workers = workers
        self._server = server
        self._disk = disk
        self._patience = patience
        self._database = Database(server.url)
        self._study: Study | None = None
        self._began = time.monotonic()
        self._next_at = self._began
        # What is disturbed at the moment, and is disturbed once at a time.
        self._busy: set[object] = set()
        self._ends: list[tuple[float, int, object, Callable[[], None]]] = []
        self._order = itertools.count()
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
            "checkpoint disk full": (6, self._fill_disk),
            "study paused, later resumed": (5, self._pause),
        }

    def begin(self, study: Study) -> None:
        """Begin the schedule; the study is the one that is paused now and then."""
        self._study = study
        self._began = self._next_at = time.monotonic()

    def step(self) -> None:
        """Do what is due by now."""
        now = time.monotonic()
        self._end_until(now)
        if now < self._next_at:
            return
        self._next_at = now + self._random.expovariate(1 / self._mean_gap_s)
        names = list(self._kinds)
        name = self._random.choices(names, [weight for weight, _ in self._kinds.values()])[0]
        if self._kinds[name][1]():
            self.counts[name] += 1
            self._note(name)

    def settle(self) -> None:
        """End every fault that still lasts."""
        self._end_until(float("inf"))

    def close(self) -> None:
        """Let go of the database."""
        self._database.close()

    def _note(self, text: str) -> None:
        self.log.append(f"{time.strftime('%H:%M:%S')} {time.monotonic() - self._began:8.2f} s  {text}")

    def _end_until(self, now: float) -> None:
        while self._ends and self._ends[0][0] <= now:
            _, _, what, end = heapq.heappop(self._ends)
            end()
            self._busy.discard(what)
            self._note(f"over: {what}")

    def _last(self, seconds: float, what: object, end: Callable[[], None]) -> None:
        """Let what has begun last for a while."""
        self._busy.add(what)
        heapq.heappush(self._ends, (time.monotonic() + seconds, next(self._order), what, end))

    def _while(self) -> float:
        """Draw how long a fault lasts: shorter than stale-after, longer, or longer than give-up-after."""
        patience = self._patience
        bounds = (
            (0.1, patience.stale_after_s),
            (patience.stale_after_s, 4 * patience.stale_after_s),
            (patience.give_up_after_s, 1.2 * patience.give_up_after_s),
        )
        return self._random.uniform(*self._random.choices(bounds, (4, 4, 2))[0])

    def _worker(self) -> subprocess.Popen[bytes] | None:
        running = [process for process in self._workers.processes if process.poll() is None]
        return self._random.choice(running) if running else None

    def _link(self) -> Link | None:
        free = [link for link in self._workers.links if link not in self._busy]
        return self._random.choice(free) if free else None

    def _kill(self) -> bool:
        return self._signal(signal.SIGKILL) is not None

    def _terminate(self) -> bool:
        return self._signal(signal.SIGTERM) is not None

    def _signal(self, number: signal.Signals) -> subprocess.Popen[bytes] | None:
        worker = self._worker()
        if worker is not None:
            worker.send_signal(number)
            self._note(f"{number.name} to {worker.pid}")
        return worker

    def _freeze(self) -> bool:
        worker = self._signal(signal.SIGSTOP)
        if worker is None:
            return False
        # Of one that is stopped twice, the first end is the end.
        self._last(self._while(), f"process {worker.pid} stopped", lambda: worker.send_signal(signal.SIGCONT))
        return True

    def _drop_packets(self) -> bool:
        link = self._link()
        if link is None:
            return False
        link.stall(replies_only=False)
        is_reset = self._random.random() < 0.5  # noqa: PLR2004 - one in two.
        self._last(self._while(), link, lambda: link.flow(reset=is_reset))
        return True

    def _drop_replies(self) -> bool:
        link = self._link()
        if link is None:
            return False
        link.stall(replies_only=True)
        # The requests arrived: what was committed is, and nobody is told.
        self._last(self._random.uniform(0.05, self._patience.stale_after_s), link, lambda: link.flow(reset=True))
        return True

    def _drop_all(self) -> bool:
        links = [link for link in self._workers.links if link not in self._busy]
        seconds = self._random.uniform(0.1, 2 * self._patience.stale_after_s)
        for link in links:
            link.stall(replies_only=False)
            self._last(seconds, link, lambda link=link: link.flow(reset=False))  # type: ignore[misc]
        return bool(links)

    def _refuse(self) -> bool:
        link = self._link()
        if link is None:
            return False
        link.refuse()
        self._last(self._while(), link, link.accept)
        return True

    def _cut(self) -> bool:
        if not self._server.is_up:
            return False
        share = self._random.choice((0.1, 0.3, 1.0))
        with self._database.begin() as connection:
            return bool(connection.scalar(_TERMINATE, {"share": share}))

    def _restart_fast(self) -> bool:
        return self._restart("fast")

    def _restart_immediate(self) -> bool:
        return self._restart("immediate")

    def _restart(self, mode: str) -> bool:
        if not self._server.is_up:
            return False
        self._server.stop(mode)
        self._last(self._random.uniform(0.0, 2 * self._patience.stale_after_s), "Postgres down", self._server.start)
        return True

    def _fill_disk(self) -> bool:
        if "disk full" in self._busy:
            return False
        # A process that may not write at all does not even start, which is no fault of its disk.
        pids = [process.pid for process in self._workers.processes if process.pid in self._workers.seasoned]
        self._disk.fill(pids)
        self._last(self._random.uniform(0.1, 3.0), "disk full", lambda: self._disk.free(pids))
        return True

    def _pause(self) -> bool:
        study = self._study
        if study is None or not self._server.is_up or "study paused" in self._busy:
            return False
        control.pause(self._database, study, "by chaos")
        self._last(self._random.uniform(0.2, 3.0), "study paused", lambda: self._resume(study))
        return True

    def _resume(self, study: Study) -> None:
        if not self._server.is_up:
            self._server.start()
        control.resume(self._database, study)
