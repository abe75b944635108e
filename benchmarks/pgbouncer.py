"""Start PgBouncer in transaction mode before a PostgreSQL server, as a child process.

`apt-get install pgbouncer` installs it on Debian.
"""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
import psycopg2.extras
import sqlalchemy as sa

from hpopt.storage.database import parse_url

START_TIMEOUT_S = 10.0
# Like PostgreSQL, PgBouncer does not run as root.
NOBODY = 65534

# userlist.txt has passwords in plain text, because PgBouncer also logs in to the server with them by SCRAM.
_CONFIG = """\
[databases]
* = host={host} port={port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen_port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {folder}/userlist.txt
logfile = {folder}/log
pool_mode = transaction
default_pool_size = {pool_size}
max_client_conn = {max_clients}
admin_users = {user}
"""


@dataclass(frozen=True, kw_only=True)
class PgBouncer:
    """A running PgBouncer; `url` is that of the database it was started for, through it."""

    url: str
    pool_size: int
    pid: int

    def show(self, name: str) -> list[dict[str, Any]]:
        """Return the rows of a SHOW command of its console: `servers`, `clients`, `pools` and so on."""
        return show(self.url, name)


def is_installed() -> bool:
    """Return whether PgBouncer is installed on this machine."""
    return _find_program() is not None


@contextmanager
def pgbouncer(url: str, *, pool_size: int, max_clients: int = 1000) -> Iterator[PgBouncer]:
    """Start a PgBouncer that has at most `pool_size` connections to the database of `url`, and stop it at the end."""
    program = _find_program()
    if program is None:
        raise FileNotFoundError("pgbouncer is not installed: apt-get install pgbouncer")
    # Not below a folder that the user it runs as cannot enter.
    folder = Path(tempfile.mkdtemp(prefix="hpopt-pgbouncer-"))
    try:
        parsed = parse_url(url)
        through = parsed.set(host="127.0.0.1", port=_free_port())
        _write_settings(folder, parsed, through, pool_size=pool_size, max_clients=max_clients)
        with _running(program, folder) as pid:
            bouncer = PgBouncer(url=through.render_as_string(hide_password=False), pool_size=pool_size, pid=pid)
            _wait_for(bouncer, folder)
            yield bouncer
    finally:
        shutil.rmtree(folder)


def show(url: str, name: str) -> list[dict[str, Any]]:
    """Return the rows of a SHOW command of the PgBouncer that `url` leads through."""
    plain = parse_url(url).set(drivername="postgresql", database="pgbouncer").render_as_string(hide_password=False)
    with closing(psycopg2.connect(plain, connect_timeout=5, sslmode="disable")) as connection:
        # The console has no transactions.
        connection.autocommit = True
        with connection.cursor(cursor_factory=psycopg2.extras.RealDictCursor) as cursor:
            cursor.execute(f"SHOW {name}")
            return [dict(row) for row in cursor.fetchall()]


def _find_program() -> str | None:
    return shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _write_settings(folder: Path, url: sa.URL, through: sa.URL, *, pool_size: int, max_clients: int) -> None:
    users = folder / "userlist.txt"
    users.touch(mode=0o600)
    users.write_text(f'"{url.username}" "{str(url.password or "").replace(chr(34), chr(34) * 2)}"\n')
    config = _CONFIG.format(
        host=url.host,
        port=url.port,
        listen_port=through.port,
        folder=folder,
        pool_size=pool_size,
        max_clients=max_clients,
        user=url.username,
    )
    (folder / "pgbouncer.ini").write_text(config)
    if os.geteuid() == 0:
        for path in (folder, *folder.iterdir()):
            os.chown(path, NOBODY, NOBODY)


@contextmanager
def _running(program: str, folder: Path) -> Iterator[int]:
    is_root = os.geteuid() == 0
    process = subprocess.Popen(
        [program, "--quiet", str(folder / "pgbouncer.ini")],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,
        user=NOBODY if is_root else None,
        group=NOBODY if is_root else None,
        extra_groups=[] if is_root else None,
    )
    try:
        yield process.pid
    finally:
        # It has nothing to save, and with other signals it waits for its clients to disconnect.
        process.kill()
        process.wait()


def _wait_for(bouncer: PgBouncer, folder: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        with suppress(psycopg2.OperationalError):
            bouncer.show("version")
            return
        time.sleep(0.05)
    log = folder / "log"
    raise TimeoutError(f"pgbouncer does not respond: {log.read_text() if log.exists() else 'no log'}")
