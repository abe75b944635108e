"""Start, share and stop the embedded Postgres, which hpopt uses when no storage URL is given.

Each home folder has one server, shared by all hpopt processes with that home:

    start.lock      exclusive, held while the server is started or stopped
    use.lock        shared, held by each process that uses the server
    keep            exists if the server was started to stay when no process uses it
    postgres/       data, log, password, port and server.lock

server.lock is inherited by the postmaster and all its children, so the kernel releases it when the last of them has
exited. Unlike a process id it stays correct when the id is reused, and when another container uses the same folder.
While it is free no server runs, and any user of the machine can have taken the port: nothing connects to it.
"""

import fcntl
import os
import secrets
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import psycopg2
from filelock import FileLock

from hpopt.errors import DatabaseError, DatabaseUnreachableError
from hpopt.postgres.cluster import Cluster, find_cluster, find_error_line, find_programs, initialize

WAIT_S = 60
# Longer than another process holds the server lock to see whether it is free.
_PROBE_S = 0.2
# Below Linux's range for outgoing connections, so that a stopped server usually finds its port free again.
PORTS = range(20000, 32000)
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    # The path of a Unix socket is limited to 107 characters, and folders of users may be longer.
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "max_wal_size": "256MB",
    # Parallel queries use shared memory in /dev/shm, which is 64 MB in a container.
    "max_parallel_workers_per_gather": "0",
    "timezone": "UTC",
    "log_timezone": "UTC",
}
# Of libpq: only a server that has the password's verifier can answer. Without it a program that took the port could ask
# for the password in clear text, or for none, and answer with studies of its own.
MUTUAL_AUTH = "require_auth=scram-sha-256"
OTHER_CLIENTS = """
    SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
"""


def start(home: Path, port: int | None = None, *, keep: bool = False) -> str:
    """Return the URL of the server of `home`; initialize and start it if it is not running.

    Without `port` one is chosen at the first start and kept as long as no other program uses it. With `keep` the server
    stays when no process uses it. Raises DatabaseError if the server cannot be started, or not on `port`.
    """
    with _os_errors_as_database_errors(home):
        url = find_running_url(home) or _start_locked(home.absolute(), port)
        if keep:
            (home / "keep").touch()
    if port not in (None, urlsplit(url).port):
        raise DatabaseError(f"{home}: Postgres is already running on port {urlsplit(url).port}, not on {port}")
    return url


def exists(home: Path) -> bool:
    """Return whether `home` has a database, running or not."""
    return (home / "postgres").exists()


def find_running_url(home: Path) -> str | None:
    """Return the URL of the server of `home`, or None if it does not answer."""
    if not exists(home):
        return None
    with _os_errors_as_database_errors(home):
        cluster = find_cluster(home.absolute())
        # Also the server of a folder that was copied to this one, with the same password and port, has another lock.
        if (lock := _acquire_server_lock(cluster, wait_s=0, operation=fcntl.LOCK_SH)) is not None:
            os.close(lock)
            return None
        try:
            port = int(cluster.read("data/postmaster.pid").splitlines()[3])
            url = _format_url(port, cluster.read("password"))
        except (FileNotFoundError, NotADirectoryError, IndexError, ValueError):
            return None
    return url if _query(url, "SELECT 1") else None


def stop(home: Path) -> bool:
    """Stop the server of `home`, even if clients are connected, and return whether it was running."""
    with _os_errors_as_database_errors(home):
        if not (home / "postgres").exists():
            return False
        with _start_lock(home):
            cluster = find_cluster(home.absolute())
            if (lock := _acquire_server_lock(cluster, _PROBE_S)) is not None:
                os.close(lock)
                return False
            (home / "keep").unlink(missing_ok=True)
            pg_ctl = find_programs(cluster) / "pg_ctl"
            result = cluster.run(pg_ctl, "-D", cluster.data, "-m", "fast", "-w", "-t", str(WAIT_S), "stop")
            if (lock := _acquire_server_lock(cluster, WAIT_S)) is None:
                raise DatabaseError(f"{home}: Postgres did not stop: {find_error_line(result.stderr)}")
            os.close(lock)
            return True


@contextmanager
def use(home: Path) -> Iterator[None]:
    """Prevent `stop_if_unused` in other processes from stopping the server. Enter this before `start`."""
    with _os_errors_as_database_errors(home):
        _create_home(home)
    with _flock(home / "use.lock", fcntl.LOCK_SH):
        yield


def stop_if_unused(home: Path) -> bool:
    """Stop the server unless it is to stay or another process is inside `use` or connected; return whether it stopped.

    Leave `use` before calling this.
    """
    if (home / "keep").exists() or not exists(home):
        return False
    try:
        with _flock(home / "use.lock", fcntl.LOCK_EX | fcntl.LOCK_NB):
            url = find_running_url(home)
            return url is not None and _query(url, OTHER_CLIENTS) == "0" and stop(home)
    except BlockingIOError:
        return False


def _start_locked(home: Path, port: int | None) -> str:
    _create_home(home)
    with _start_lock(home):
        cluster = find_cluster(home)
        programs = find_programs(cluster)
        initialize(cluster, programs)
        # A server may be coming up that a killed process started, and one that was killed takes a while to exit.
        deadline = time.monotonic() + WAIT_S
        while (lock := _acquire_server_lock(cluster, _PROBE_S)) is None:
            if (url := find_running_url(home)) is not None:
                return url
            if time.monotonic() > deadline:
                raise DatabaseUnreachableError(
                    f"{home}: Postgres is running, here or in another container, but does not answer"
                )
        try:
            # Left over from a server that was kept, and has not been stopped by hpopt.
            (home / "keep").unlink(missing_ok=True)
            return _start_postmaster(cluster, programs, lock, [port] if port else _choose_ports(cluster))
        finally:
            os.close(lock)


def _start_postmaster(cluster: Cluster, programs: Path, lock: int, ports: Iterable[int]) -> str:
    """Start the postmaster on the first free port, and let it inherit the server lock."""
    log = cluster.folder / "log"
    # This process holds the server lock, so the file can only be left over from a server that has exited.
    (cluster.data / "postmaster.pid").unlink(missing_ok=True)
    for port in ports:
        if not _is_free(port):
            continue
        log.unlink(missing_ok=True)
        settings = " ".join(f"-c {name}={value}" for name, value in {**SETTINGS, "port": port}.items())
        argv = ("-D", cluster.data, "-w", "-t", str(WAIT_S), "-l", log, "-o", settings, "start")
        result = cluster.run(programs / "pg_ctl", *argv, pass_fds=(lock,))
        if result.returncode == 0:
            cluster.write("port", str(port))
            return _format_url(port, cluster.read("password"))
        if _is_free(port):
            error = find_error_line(cluster.read("log") if log.exists() else result.stderr)
            raise DatabaseError(f"{cluster.folder}: Postgres did not start: {error}")
    raise DatabaseError(f"cannot listen on port {port} of 127.0.0.1: another program uses it, or it is not permitted")


def _choose_ports(cluster: Cluster) -> Iterator[int]:
    """Yield the port of the last start, then random ones."""
    with suppress(FileNotFoundError, ValueError):
        yield int(cluster.read("port"))
    for _ in range(100):
        yield secrets.choice(PORTS)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError):
            return False
    return True


def _format_url(port: int, password: str) -> str:
    return f"postgresql+psycopg2://hpopt:{password}@127.0.0.1:{port}/hpopt"


def _query(url: str, query: str) -> str | None:
    """Return the one value of a query, or None if the server does not answer or refuses the password."""
    plain = url.replace("+psycopg2", "")
    try:
        # The embedded server has no TLS, and PGSSLMODE of the environment is meant for other servers.
        with (
            closing(
                psycopg2.connect(f"{plain}?{MUTUAL_AUTH}", dbname="postgres", sslmode="disable", connect_timeout=10)
            ) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute(query)
            row = cursor.fetchone()
    except psycopg2.OperationalError:
        return None
    return str(row[0]) if row else None


def _create_home(home: Path) -> None:
    try:
        home.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise DatabaseError(f"{home}: is a file, but the embedded Postgres needs a folder") from error


def _start_lock(home: Path) -> FileLock:
    return FileLock(home / "start.lock", mode=0o600)


def _acquire_server_lock(cluster: Cluster, wait_s: float, operation: int = fcntl.LOCK_EX) -> int | None:
    """Return a file descriptor that holds the server lock, or None if the server still holds it after `wait_s`.

    Not a FileLock: the postmaster inherits the descriptor, and the lock must outlive this process.
    """
    deadline = time.monotonic() + wait_s
    lock = cluster.open("server.lock", os.O_RDWR | os.O_CREAT)
    while True:
        try:
            fcntl.flock(lock, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(lock)
                return None
            time.sleep(0.02)
        else:
            return lock


@contextmanager
def _flock(path: Path, operation: int) -> Iterator[None]:
    """Hold a lock as flock(2) does. Not a FileLock, which cannot be shared."""
    with _os_errors_as_database_errors(path.parent):
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, operation)
        yield
    finally:
        # Forked children have copies of the descriptor: closing this one alone would not release the lock.
        fcntl.flock(lock, fcntl.LOCK_UN)
        os.close(lock)


@contextmanager
def _os_errors_as_database_errors(home: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DatabaseError(
            f"{error.filename or home}: {error.strerror or error} (embedded Postgres in {home})"
        ) from error
