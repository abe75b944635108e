import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import optuna
import psycopg2
import pytest

from hpopt import dashboard
from hpopt.errors import DatabaseError, InputError
from hpopt.storage.database import Database

# A shell has its background jobs ignore Ctrl-C, and with them all that the tests start.
SERVE = """
import signal, sys
from hpopt.dashboard import serve
from hpopt.storage.database import Database
signal.signal(signal.SIGINT, signal.default_int_handler)
serve(Database(sys.argv[1]), "127.0.0.1", int(sys.argv[2]))
"""


@pytest.fixture
def database_with_a_study(database_url: str) -> str:
    study = optuna.create_study(study_name="moe-muon", storage=database_url)
    study.optimize(lambda trial: trial.suggest_float("learning_rate", 1e-3, 0.3, log=True), n_trials=3)
    return database_url


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def server(database_with_a_study: str, free_port: int) -> Iterator[subprocess.Popen[str]]:
    process = start(database_with_a_study, free_port)
    yield process
    process.kill()
    process.communicate()


def start(url: str, port: int) -> subprocess.Popen[str]:
    """Serve in a process of its own and wait until it listens."""
    process = subprocess.Popen([sys.executable, "-c", SERVE, url, str(port)], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < deadline:
        try:
            get(port, "/healthz")
        except HTTPError:
            break
        except URLError:
            time.sleep(0.05)
        else:
            break
    return process


def get(port: int, path: str) -> str:
    with urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return str(answer.read().decode())


def test_the_page_is_served(server: subprocess.Popen[str], free_port: int):
    assert "Optuna Dashboard" in get(free_port, "/dashboard")


def test_the_study_is_listed(server: subprocess.Popen[str], free_port: int):
    studies = json.loads(get(free_port, "/api/studies"))["study_summaries"]
    assert [study["study_name"] for study in studies] == ["moe-muon"]


def test_a_trial_that_is_finished_later_is_seen(
    server: subprocess.Popen[str], free_port: int, database_with_a_study: str
):
    """The storage behind the page is cached; what workers add must come through."""
    study = optuna.load_study(study_name="moe-muon", storage=database_with_a_study)
    path = f"/api/studies/{study._study_id}?after=0"
    assert len(json.loads(get(free_port, path))["trials"]) == 3
    study.optimize(lambda trial: trial.suggest_float("learning_rate", 1e-3, 0.3, log=True), n_trials=1)
    # optuna-dashboard itself looks every two seconds.
    deadline = time.monotonic() + 10
    while len(trials := json.loads(get(free_port, path))["trials"]) < 4 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert [trial["state"] for trial in trials] == ["Complete"] * 4


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_quietly_when_asked_to(server: subprocess.Popen[str], how: signal.Signals):
    """systemd, Docker and Ctrl-C end it in these ways; none of them is an error."""
    server.send_signal(how)
    _, complaints = server.communicate(timeout=10)
    assert (server.returncode, complaints) == (0, "")


def test_health_is_bad_while_the_database_is_away_and_good_again_after(
    server: subprocess.Popen[str], free_port: int, database_with_a_study: str, postgres_url: str
):
    """Kubernetes takes the page out of service by this answer, and must find it back."""
    assert get(free_port, "/healthz") == "ok\n"
    name = database_with_a_study.rpartition("/")[2]
    refuse(postgres_url, name, connections=False)
    with pytest.raises(HTTPError) as answer:
        get(free_port, "/healthz")
    assert answer.value.code == 503
    refuse(postgres_url, name, connections=True)
    assert get(free_port, "/healthz") == "ok\n"


def refuse(postgres_url: str, name: str, *, connections: bool) -> None:
    with closing(psycopg2.connect(postgres_url.replace("+psycopg2", ""))) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS {connections}")
            cursor.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))


@pytest.mark.parametrize("password", ["a{b}c", "a%25b", "100%25{x}"])
def test_a_password_may_hold_braces_and_percent_signs(database_url: str, password: str):
    """Optuna formats the URL as a template; a generated password knows nothing of that."""
    server_part = database_url.partition("@")[2]
    role = f"braces_{abs(hash(password))}"
    with closing(psycopg2.connect(database_url.replace("+psycopg2", ""))) as connection:
        with connection.cursor() as cursor:
            cursor.execute(f"CREATE ROLE {role} SUPERUSER LOGIN PASSWORD %s", (password.replace("%25", "%"),))
        connection.commit()
        try:
            app = dashboard.make_app(Database(f"postgresql+psycopg2://{role}:{password}@{server_part}"))
            statuses: list[str] = []
            app({"PATH_INFO": "/healthz"}, lambda status, _headers, _info=None: statuses.append(status))  # type: ignore[arg-type, func-returns-value]
            assert statuses == ["200 OK"]
        finally:
            with connection.cursor() as cursor:
                cursor.execute(f"REASSIGN OWNED BY {role} TO CURRENT_USER; DROP ROLE {role}")
            connection.commit()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "gpu-node-7"])  # noqa: S104 - that is the point.
def test_other_machines_are_kept_out(host: str):
    """Whoever reaches the page can delete studies."""
    with pytest.raises(InputError, match="no password yet"):
        dashboard.serve(Database("postgresql://nobody@nowhere/x"), host, 8080)


def test_an_occupied_port_is_told_in_one_line(database_url: str, free_port: int):
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", free_port))
        squatter.listen()
        with pytest.raises(InputError, match=f"port {free_port} of 127.0.0.1 cannot be had: Address already in use"):
            dashboard.serve(Database(database_url), "127.0.0.1", free_port)


def test_a_database_that_is_not_there_is_told_without_its_password(free_port: int):
    with pytest.raises(DatabaseError) as refusal:
        dashboard.serve(Database(f"postgresql://hpopt:secret@127.0.0.1:{free_port}/hpopt"), "127.0.0.1", 0)
    assert "secret" not in str(refusal.value)
    assert "\n" not in str(refusal.value)
