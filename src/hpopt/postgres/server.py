"""Owns the running of the Postgres that comes along when no URL is given. Leaves its folder to postgres_folder.py.

One server for a folder, shared by every hpopt process that is given that folder:

    start.lock      held alone while the server is started or stopped
    use.lock        held together by the processes that use the server
    postgres/       data, log, password, port and server.lock

server.lock is inherited by the postmaster and all its children, so the kernel says when the last of them is gone:
neither a process number that another program got meanwhile nor a second container on the folder can deceive it.
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

from hpopt.errors import DatabaseError
from hpopt.postgres.cluster import Cluster, find_cluster, find_fault, find_programs, set_up

WAIT_S = 60
# Below the range from which Linux gives ports to outgoing connections, so that a stopped server finds its port again.
PORTS = range(20000, 32000)
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    # The path of a Unix socket may have 107 characters; folders of users are longer.
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "max_wal_size": "256MB",
    # Parallel queries put their memory into /dev/shm, which is 64 MB in a container.
    "max_parallel_workers_per_gather": "0",
    "timezone": "UTC",
    "log_timezone": "UTC",
}
OTHER_CLIENTS = """
    SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
"""


def start(home: Path, port: int | None = None) -> str:
    """Give the URL of this folder's server, started (and at first made) where it does not run.

    A port that is not asked for is chosen once and kept as long as nobody else takes it.
    Raises DatabaseError if the server cannot be had, or not on the port that was asked for.
    """
    with _told_in_one_line(home):
        url = running_url(home) or _start_alone(home.absolute(), port)
    if port not in (None, urlsplit(url).port):
        raise DatabaseError(f"{home}: its Postgres already runs on port {urlsplit(url).port}, not on {port}")
    return url


def exists(home: Path) -> bool:
    """Say whether this folder has a database, running or not."""
    return (home / "postgres").exists()


def running_url(home: Path) -> str | None:
    """Give the URL of this folder's server if it answers."""
    folder = home.absolute() / "postgres"
    with _told_in_one_line(home):
        try:
            port = int((folder / "data" / "postmaster.pid").read_text().splitlines()[3])
            password = (folder / "password").read_text()
        except (FileNotFoundError, NotADirectoryError, IndexError, ValueError):
            return None
    url = _url(port, password)
    answer = _ask(url, "SHOW data_directory")
    # A copied folder has the same password and port: only the server itself knows whose it is.
    is_ours = answer is not None and Path(answer) == (folder / "data").resolve()
    return url if is_ours else None


def stop(home: Path) -> bool:
    """Stop this folder's server, clients or not, and tell whether there was one."""
    with _told_in_one_line(home):
        if not (home / "postgres").exists():
            return False
        with _locked(home / "start.lock", fcntl.LOCK_EX):
            cluster = find_cluster(home.absolute())
            if (lock := _take_server_lock(cluster, wait_s=0)) is None:
                pg_ctl = find_programs(cluster) / "pg_ctl"
                said = cluster.run(pg_ctl, "-D", cluster.data, "-m", "fast", "-w", "-t", str(WAIT_S), "stop")
                if (lock := _take_server_lock(cluster, WAIT_S)) is None:
                    raise DatabaseError(f"{home}: Postgres does not stop: {find_fault(said.stderr)}")
                os.close(lock)
                return True
            os.close(lock)
            return False


@contextmanager
def use(home: Path) -> Iterator[None]:
    """Keep `stop_if_unused` of other processes off the server. Enter it before `start`."""
    with _told_in_one_line(home):
        _make_home(home)
    with _locked(home / "use.lock", fcntl.LOCK_SH):
        yield


def stop_if_unused(home: Path) -> bool:
    """Stop the server unless another process is inside `use` or connected. Call it after leaving one's own `use`."""
    if (url := running_url(home)) is None:
        return False
    try:
        with _locked(home / "use.lock", fcntl.LOCK_EX | fcntl.LOCK_NB):
            return _ask(url, OTHER_CLIENTS) == "0" and stop(home)
    except BlockingIOError:
        return False


def _start_alone(home: Path, port: int | None) -> str:
    _make_home(home)
    with _locked(home / "start.lock", fcntl.LOCK_EX):
        cluster = find_cluster(home)
        programs = find_programs(cluster)
        set_up(cluster, programs)
        # Who died while starting may have left a server that is coming up, and a killed one takes a while to go.
        deadline = time.monotonic() + WAIT_S
        while (lock := _take_server_lock(cluster, wait_s=0.2)) is None:
            if (url := running_url(home)) is not None:
                return url
            if time.monotonic() > deadline:
                raise DatabaseError(f"{home}: its Postgres runs, here or in another container, and does not answer")
        try:
            return _launch(cluster, programs, lock, [port] if port else _ports(cluster.folder / "port"))
        finally:
            os.close(lock)


def _launch(cluster: Cluster, programs: Path, lock: int, ports: Iterable[int]) -> str:
    """Start the postmaster on the first free port and let it inherit the lock."""
    log = cluster.folder / "log"
    # The lock is ours, so whatever this names is no server of this folder.
    (cluster.data / "postmaster.pid").unlink(missing_ok=True)
    for port in ports:
        if not _is_free(port):
            continue
        log.unlink(missing_ok=True)
        settings = " ".join(f"-c {name}={value}" for name, value in {**SETTINGS, "port": port}.items())
        argv = ("-D", cluster.data, "-w", "-t", str(WAIT_S), "-l", log, "-o", settings, "start")
        said = cluster.run(programs / "pg_ctl", *argv, keep=(lock,))
        if said.returncode == 0:
            (cluster.folder / "port").write_text(str(port))
            return _url(port, (cluster.folder / "password").read_text())
        if _is_free(port):
            fault = find_fault(log.read_text(errors="replace") if log.exists() else said.stderr)
            raise DatabaseError(f"{cluster.folder}: Postgres does not start: {fault}")
    raise DatabaseError(f"port {port} of 127.0.0.1 is taken by another program or cannot be had")


def _ports(port_file: Path) -> Iterator[int]:
    """Give the port of last time, then others."""
    with suppress(FileNotFoundError, ValueError):
        yield int(port_file.read_text())
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


def _url(port: int, password: str) -> str:
    return f"postgresql+psycopg2://hpopt:{password}@127.0.0.1:{port}/hpopt"


def _ask(url: str, query: str) -> str | None:
    """Ask the server for one value; None if it does not answer to our password."""
    plain = url.replace("+psycopg2", "")
    try:
        # The embedded server has no TLS, whatever PGSSLMODE says about the user's others.
        with (
            closing(psycopg2.connect(plain, dbname="postgres", sslmode="disable", connect_timeout=10)) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute(query)
            row = cursor.fetchone()
    except psycopg2.OperationalError:
        return None
    return str(row[0]) if row else None


def _make_home(home: Path) -> None:
    try:
        home.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise DatabaseError(f"{home}: is a file where the folder of the embedded Postgres should be") from error


def _take_server_lock(cluster: Cluster, wait_s: float) -> int | None:
    deadline = time.monotonic() + wait_s
    lock = os.open(cluster.folder / "server.lock", os.O_RDWR | os.O_CREAT, 0o600)
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(lock)
                return None
            time.sleep(0.02)
        else:
            return lock


@contextmanager
def _locked(path: Path, mode: int) -> Iterator[None]:
    with _told_in_one_line(path.parent):
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, mode)
        yield
    finally:
        # Forked children hold copies of the descriptor: closing ours alone would not let go.
        fcntl.flock(lock, fcntl.LOCK_UN)
        os.close(lock)


@contextmanager
def _told_in_one_line(home: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DatabaseError(
            f"{error.filename or home}: {error.strerror or error} (embedded Postgres in {home})"
        ) from error
