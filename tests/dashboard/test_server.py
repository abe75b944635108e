import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import optuna
import psycopg2
import pytest

from hpopt.cli.auth import read_password
from hpopt.dashboard.figures import Publisher
from hpopt.dashboard.server import MAX_REQUEST_BYTES, make_app, serve
from hpopt.errors import DatabaseError, InputError
from hpopt.storage import migrate
from hpopt.storage.database import Database

PASSWORD = "correct horse battery"

# A shell has its background jobs ignore Ctrl-C, and with them all that the tests start.
SERVE = """
import json, signal, sys
from hpopt.dashboard.server import MAX_REQUEST_BYTES, make_app, serve
from hpopt.storage.database import Database
signal.signal(signal.SIGINT, signal.default_int_handler)
serve(Database(sys.argv[1]), port=int(sys.argv[2]), **json.loads(sys.argv[3]))
"""


@pytest.fixture
def database_with_a_study(database_url: str) -> str:
    migrate.upgrade(Database(database_url))
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
    with running(database_with_a_study, free_port, host="127.0.0.1") as process:
        yield process


@contextmanager
def running(url: str, port: int, **options: str | bool) -> Iterator[subprocess.Popen[str]]:
    """Serve in a process of its own."""
    command = [sys.executable, "-c", SERVE, url, str(port), json.dumps(options)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        wait_until_it_listens(process, port)
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_until_it_listens(process: subprocess.Popen[str], port: int) -> None:
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


def get(port: int, path: str, **headers: str) -> str:
    return ask(port, path, "GET", **headers)


def ask(port: int, path: str, method: str, **headers: str) -> str:
    request = Request(f"http://127.0.0.1:{port}{path}", headers=headers, method=method)
    with urlopen(request, timeout=10) as answer:  # noqa: S310 - the address is ours.
        return str(answer.read().decode())


def login(password: str) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(f'hpopt:{password}'.encode()).decode()}"}


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
    take_connections(postgres_url, database_with_a_study, allowed=False)
    with pytest.raises(HTTPError) as answer:
        get(free_port, "/healthz")
    assert answer.value.code == 503
    take_connections(postgres_url, database_with_a_study, allowed=True)
    assert get(free_port, "/healthz") == "ok\n"


def take_connections(postgres_url: str, url: str, *, allowed: bool) -> None:
    name = url.rpartition("/")[2]
    execute(postgres_url, f"ALTER DATABASE {name} ALLOW_CONNECTIONS {allowed}")
    execute(postgres_url, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")


def execute(url: str, statement: str) -> None:
    with closing(psycopg2.connect(url.replace("+psycopg2", ""))) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)


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
            theirs = Database(f"postgresql+psycopg2://{role}:{password}@{server_part}")
            app = make_app(theirs, Publisher(theirs, print))
            statuses: list[str] = []
            app({"PATH_INFO": "/healthz"}, lambda status, _headers, _info=None: statuses.append(status))  # type: ignore[arg-type, func-returns-value]
            assert statuses == ["200 OK"]
        finally:
            with connection.cursor() as cursor:
                cursor.execute(f"REASSIGN OWNED BY {role} TO CURRENT_USER; DROP ROLE {role}")
            connection.commit()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "gpu-node-7"])  # noqa: S104 - that is the point.
def test_without_a_password_other_machines_are_kept_out(host: str):
    """Whoever reaches the page can read everything."""
    with pytest.raises(InputError, match=f"host {host}: .* needs a password; give it by --password-file"):
        serve(Database("postgresql://nobody@nowhere/x"), host, 8080)


def test_what_reads_writes_nothing(database_with_a_study: str, free_port: int):
    """The gate tells reading from writing by the method; here the database itself refuses to be written to."""
    study = f"/api/studies/{optuna.load_study(study_name='moe-muon', storage=database_with_a_study)._study_id}"
    name = database_with_a_study.rpartition("/")[2]
    execute(database_with_a_study, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    plots = ("contour", "slice", "parallel_coordinate", "rank", "edf", "timeline")
    with running(database_with_a_study, free_port, host="127.0.0.1"):
        for path in ("/", "/dashboard", "/incompatible-rdb-schema", "/api/meta", "/api/studies", study):
            get(free_port, path)
        for path in (f"{study}/param_importances", *(f"{study}/plot/{plot}" for plot in plots)):
            get(free_port, path)
        get(free_port, study.replace("/api/studies", "/csv"))
        with pytest.raises(HTTPError, match="500"):
            ask(free_port, study, "DELETE")


def test_what_is_started_writable_can_be_written(database_with_a_study: str, free_port: int):
    with running(database_with_a_study, free_port, host="0.0.0.0", password=PASSWORD, writable=True):  # noqa: S104
        (study,) = json.loads(get(free_port, "/api/studies", **login(PASSWORD)))["study_summaries"]
        ask(free_port, f"/api/studies/{study['study_id']}", "DELETE", **login(PASSWORD))
    assert optuna.get_all_study_names(database_with_a_study) == []


def test_on_this_machine_everything_can_be_written_under_its_own_names(
    server: subprocess.Popen[str], free_port: int, database_with_a_study: str
):
    (study,) = json.loads(get(free_port, "/api/studies"))["study_summaries"]
    path = f"/api/studies/{study['study_id']}"
    with pytest.raises(HTTPError, match="403"):
        ask(free_port, path, "DELETE", Host="evil.example")
    assert optuna.get_all_study_names(database_with_a_study) == ["moe-muon"]
    ask(free_port, path, "DELETE")
    assert optuna.get_all_study_names(database_with_a_study) == []


def test_an_oversized_request_is_refused_without_waiting_for_all_of_it(server: subprocess.Popen[str], free_port: int):
    n_bytes = MAX_REQUEST_BYTES
    for sent in ({"Content-Length": str(n_bytes)}, {"Content-Length": "9" * 12}, {"Transfer-Encoding": "chunked"}):
        with closing(HTTPConnection("127.0.0.1", free_port, timeout=10)) as connection:
            connection.request("POST", "/api/studies", headers=sent)
            if "Transfer-Encoding" in sent:
                connection.send(b"%x\r\n%b" % (2 * n_bytes, b"x" * n_bytes))
            assert connection.getresponse().status == 413


def test_a_name_that_nobody_has_is_told_in_one_line(database_url: str, free_port: int):
    with pytest.raises(InputError, match=r"^host nobody\.invalid: no such name or address$"):
        serve(Database(database_url), "nobody.invalid", free_port, password=PASSWORD)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "No such file or directory"),
        (b"", "the password is empty"),
        (b"\n", "the password is empty"),
        (b"short-one", "12 characters or more"),
        (b"two lines of\nsomething else\n", "one line of printable characters"),
        (b"\xff\xfe binary \xff\xfe", "not UTF-8"),
    ],
)
def test_a_file_without_a_usable_password_is_refused(tmp_path: Path, content: bytes | None, complaint: str):
    file = tmp_path / "password"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=f"^--password-file: {file}: .*{complaint}") as refusal:
        read_password(file)
    if content:
        assert content.decode(errors="replace").strip()[:8] not in str(refusal.value) or not content.strip()


@pytest.mark.parametrize("content", [f"{PASSWORD}\n", f"{PASSWORD}\r\n", PASSWORD, f"\ufeff{PASSWORD}"])
def test_the_file_of_the_password_wins_over_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
):
    """An editor ends the line, which nobody types at the prompt; Windows puts a mark in front."""
    monkeypatch.setenv("HPOPT_DASHBOARD_PASSWORD", "another password")
    (tmp_path / "password").write_text(content, encoding="utf-8", newline="")
    assert read_password(tmp_path / "password") == PASSWORD


def test_the_password_of_the_environment_is_not_inherited(monkeypatch: pytest.MonkeyPatch):
    """The Postgres that comes along may run as another user, who could read it."""
    monkeypatch.setenv("HPOPT_DASHBOARD_PASSWORD", PASSWORD)
    assert read_password(None) == PASSWORD
    assert "HPOPT_DASHBOARD_PASSWORD" not in os.environ


@pytest.mark.parametrize("password", ["", "short", "two lines of\nsomething else", "not text of any kind \udcff"])
def test_an_environment_without_a_usable_password_is_refused(monkeypatch: pytest.MonkeyPatch, password: str):
    monkeypatch.setenv("HPOPT_DASHBOARD_PASSWORD", password)
    with pytest.raises(InputError, match=r"^HPOPT_DASHBOARD_PASSWORD: ") as refusal:
        read_password(None)
    assert not password or password not in str(refusal.value)


def test_what_others_can_reach_is_read_only_behind_a_password_that_is_never_said(
    database_with_a_study: str, free_port: int
):
    migrate.upgrade(Database(database_with_a_study))
    command = [sys.executable, "-m", "hpopt", "dashboard", "--host", "0.0.0.0", "--port", str(free_port)]  # noqa: S104
    environment = {**os.environ, "HPOPT_STORAGE": database_with_a_study, "HPOPT_DASHBOARD_PASSWORD": PASSWORD}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        wait_until_it_listens(process, free_port)
        for path in ("/", "/dashboard", "/api/studies", "/static/bundle.js", "/csv/1"):
            for headers in ({}, login("wrong")):
                with pytest.raises(HTTPError, match="401"):
                    get(free_port, path, **headers)
        assert get(free_port, "/healthz") == "ok\n"
        (study,) = json.loads(get(free_port, "/api/studies", **login(PASSWORD)))["study_summaries"]
        with pytest.raises(HTTPError) as answer:
            ask(free_port, f"/api/studies/{study['study_id']}", "DELETE", **login(PASSWORD))
        assert answer.value.code == 403
        assert "read-only" in json.load(answer.value)["reason"]
        assert optuna.get_all_study_names(database_with_a_study) == ["moe-muon"]
    finally:
        process.terminate()
        output, said = process.communicate(timeout=10)
    assert (process.returncode, output) == (0, "")
    rights = "user hpopt and its password, read-only (Ctrl-C ends it)"
    first, *refusals = said.splitlines()
    assert first == f"dashboard on http://0.0.0.0:{free_port}/dashboard, {rights}"
    assert refusals == ["refused: a wrong password, from 127.0.0.1"] * 5


def test_an_occupied_port_is_told_in_one_line(database_url: str, free_port: int):
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", free_port))
        squatter.listen()
        with pytest.raises(InputError, match=f"port {free_port} of 127.0.0.1 cannot be had: Address already in use"):
            serve(Database(database_url), "127.0.0.1", free_port)


def test_a_database_that_is_not_there_is_told_without_its_password(free_port: int):
    with pytest.raises(DatabaseError) as refusal:
        serve(Database(f"postgresql://hpopt:secret@127.0.0.1:{free_port}/hpopt"), "127.0.0.1", 0)
    assert "secret" not in str(refusal.value)
    assert "\n" not in str(refusal.value)
