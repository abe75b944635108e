"""The parts of the machine that faults are injected into: its embedded PostgreSQL server and its disk."""

import resource
import subprocess
from contextlib import suppress
from pathlib import Path

import psycopg2
import psycopg2.extensions

from hpopt.errors import DatabaseError
from hpopt.postgres import cluster, server

DISK_MIB = 16
_CHUNK = bytes(2**16)
_STOP_TIMEOUT_S = 30


class Server:
    """The embedded PostgreSQL server of a folder, which can be stopped in any mode of pg_ctl."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self.url = server.start(home)
        self.is_running = True
        # Keeps a server running that stops slowly.
        self._last_client: psycopg2.extensions.connection | None = None

    def stop(self, mode: str) -> None:
        """Stop the server in a mode of pg_ctl; `immediate` leaves what a crash leaves."""
        self.is_running = False
        found = cluster.find_cluster(self._home.absolute())
        pg_ctl = cluster.find_programs(found) / "pg_ctl"
        done = found.run(pg_ctl, "-D", found.data, "-m", mode, "-w", "-t", str(_STOP_TIMEOUT_S), "stop")
        if done.returncode != 0:
            raise DatabaseError(f"{found.data}: pg_ctl stop -m {mode}: {done.stdout}{done.stderr}")

    def stop_slowly(self) -> None:
        """Let the server wait for its clients before it stops, and answer to others that it is shutting down."""
        self.is_running = False
        self._last_client = self.connect()
        found = cluster.find_cluster(self._home.absolute())
        found.run(cluster.find_programs(found) / "pg_ctl", "-D", found.data, "-m", "smart", "-W", "stop")

    def connect(self) -> psycopg2.extensions.connection:
        """Connect as another program does."""
        return psycopg2.connect(self.url.replace("+psycopg2", ""))

    def start(self) -> None:
        """Start the server again, on its port."""
        if self._last_client is not None:
            self._last_client.close()
            self._last_client = None
            # Workers that evaluate often keep their connections.
            with suppress(DatabaseError):
                self.stop("fast")
        url = server.start(self._home)
        if url != self.url:
            raise DatabaseError(f"{self._home}: its server has another URL after a restart: {url}")
        self.is_running = True


class Disk:
    """The disk of the checkpoints: a small tmpfs.

    Without the right to mount one, a full disk is simulated by RLIMIT_FSIZE 0 for the running workers, whose writes
    then fail with another errno.
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
        """Describe how the disk is filled."""
        return f"a tmpfs of {DISK_MIB} MiB" if self.is_mounted else "RLIMIT_FSIZE 0, because no tmpfs could be mounted"

    def fill(self, pids: list[int]) -> None:
        """Fill the disk."""
        if not self.is_mounted:
            _set_file_size_limit(pids, is_limited=True)
            return
        with (self._folder / "filler").open("wb", buffering=0) as filler:
            while True:
                try:
                    filler.write(_CHUNK)
                except OSError:
                    return

    def free(self, pids: list[int]) -> None:
        """Free the disk."""
        if self.is_mounted:
            (self._folder / "filler").unlink(missing_ok=True)
        else:
            _set_file_size_limit(pids, is_limited=False)

    def close(self) -> None:
        """Unmount the disk, even while a process still uses it."""
        if self.is_mounted:
            umount = ["umount", "--lazy", str(self._folder)]
            subprocess.run(umount, capture_output=True, check=False)
            self.is_mounted = False


def _set_file_size_limit(pids: list[int], *, is_limited: bool) -> None:
    for pid in pids:
        try:
            hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (0 if is_limited else hard, hard))
        except ProcessLookupError:
            continue
