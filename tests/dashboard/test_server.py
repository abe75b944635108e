import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import optuna
import psycopg2
import pytest

from hpopt.cli.auth import read_password
from hpopt.dashboard.figures import FigureBuilder
from hpopt.dashboard.server import MAX_REQUEST_BYTES, make_app, serve
from hpopt.errors import DatabaseError, InputError
from hpopt.storage.database import Database

PASSWORD = "correct horse battery"
TIMEOUT_S = 60
N_TRIALS = 12

# A shell has its background jobs ignore SIGINT, and everything that the tests start inherits that.
SERVE = """
import functools, json, signal, sys
from hpopt.dashboard.server import serve
from hpopt.storage.database import Database
signal.signal(signal.SIGINT, signal.default_int_handler)
serve(Database(sys.argv[1]), port=0, log=functools.partial(print, flush=True), **json.loads(sys.argv[2]))
"""


@dataclass(frozen=True)
class Dashboard:
    """A process that serves the dashboard, and its port."""

    process: subprocess.Popen[str]
    port: int

    def get(self, path: str, **headers: str) -> str:
        return self.request("GET", path, **headers)

    def get_json(self, path: str, **headers: str) -> dict[str, object]:
        return json.loads(self.get(path, **headers))

    def wait_for_figures(self, path: str) -> dict[str, object]:
        """Return a study with our figures, for which a request waits two seconds at most."""
        deadline = time.monotonic() + TIMEOUT_S
        while not (detail := self.get_json(f"{path}?after=0"))["plotly_graph_objects"]:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        return detail

    def request(self, method: str, path: str, **headers: str) -> str:
        request = Request(f"http://127.0.0.1:{self.port}{path}", headers=headers, method=method)
        with urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310 - the address is ours.
            return str(response.read().decode())


@pytest.fixture(scope="module")
def dashboard(shared_optuna_url: str) -> Iterator[Dashboard]:
    """A dashboard for the tests that do not stop it."""
    with running(shared_optuna_url, host="127.0.0.1") as dashboard:
        yield dashboard


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(url: str, **options: str | bool) -> Iterator[Dashboard]:
    """Serve in another process, which prints its URL when it accepts requests."""
    command = [sys.executable, "-c", SERVE, url, json.dumps(options)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield Dashboard(process, read_port(process.stdout.readline()))
    finally:
        process.kill()
        process.communicate()


def read_port(line: str) -> int:
    """Return the port in `dashboard on http://HOST:PORT/dashboard...`."""
    return int(line.rpartition("/dashboard")[0].rpartition(":")[2])


def login(password: str) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(f'hpopt:{password}'.encode()).decode()}"}


def execute(url: str, statement: str) -> None:
    with closing(psycopg2.connect(url.replace("+psycopg2", ""))) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)


def test_the_page_is_served(dashboard: Dashboard):
    assert "Optuna Dashboard" in dashboard.get("/dashboard")


def test_the_study_is_listed(dashboard: Dashboard):
    studies = dashboard.get_json("/api/studies")["study_summaries"]
    assert [study["study_name"] for study in studies] == ["moe-muon"]


def test_an_oversized_request_is_refused_before_all_of_it_is_received(dashboard: Dashboard):
    n_bytes = MAX_REQUEST_BYTES
    for headers in ({"Content-Length": str(n_bytes)}, {"Content-Length": "9" * 12}, {"Transfer-Encoding": "chunked"}):
        with closing(HTTPConnection("127.0.0.1", dashboard.port, timeout=TIMEOUT_S)) as connection:
            connection.request("POST", "/api/studies", headers=headers)
            if "Transfer-Encoding" in headers:
                connection.send(b"%x\r\n%b" % (2 * n_bytes, b"x" * n_bytes))
            assert connection.getresponse().status == 413


def test_a_trial_that_finishes_later_is_shown(optuna_url: str):
    """The storage behind the page is cached; what workers add must be read."""
    study = optuna.load_study(study_name="moe-muon", storage=optuna_url)
    path = f"/api/studies/{study._study_id}?after=0"
    with running(optuna_url, host="127.0.0.1") as dashboard:
        assert len(dashboard.get_json(path)["trials"]) == N_TRIALS
        study.optimize(lambda trial: trial.suggest_float("learning_rate", 1e-3, 0.3, log=True), n_trials=1)
        # optuna-dashboard itself reads the trials every two seconds.
        deadline = time.monotonic() + 60
        while len(trials := dashboard.get_json(path)["trials"]) == N_TRIALS and time.monotonic() < deadline:
            time.sleep(0.2)
    assert [trial["state"] for trial in trials] == ["Complete"] * (N_TRIALS + 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_exits_with_0_on_a_signal(shared_optuna_url: str, number: signal.Signals):
    """systemd, Docker and Ctrl-C stop it with these; neither is an error."""
    with running(shared_optuna_url, host="127.0.0.1") as dashboard:
        dashboard.process.send_signal(number)
        _, errors = dashboard.process.communicate(timeout=TIMEOUT_S)
        assert (dashboard.process.returncode, errors) == (0, "")


def test_health_follows_the_database(dashboard: Dashboard, shared_optuna_url: str, postgres_url: str):
    """By this response Kubernetes takes the dashboard out of service, and back in."""
    assert dashboard.get("/healthz") == "ok\n"
    set_connections(postgres_url, shared_optuna_url, allowed=False)
    try:
        with pytest.raises(HTTPError) as response:
            dashboard.get("/healthz")
        assert response.value.code == 503
    finally:
        set_connections(postgres_url, shared_optuna_url, allowed=True)
    assert dashboard.get("/healthz") == "ok\n"


def set_connections(postgres_url: str, url: str, *, allowed: bool) -> None:
    name = url.rpartition("/")[2]
    execute(postgres_url, f"ALTER DATABASE {name} ALLOW_CONNECTIONS {allowed}")
    execute(postgres_url, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")


@pytest.mark.parametrize("password", ["a{b}c", "a%25b", "100%25{x}"])
def test_a_database_password_may_contain_braces_and_percent_signs(shared_optuna_url: str, password: str):
    """Optuna formats the URL as a template."""
    role = f"role_{uuid.uuid4().hex}"
    literal = password.replace("%25", "%")
    execute(shared_optuna_url, f"CREATE ROLE {role} LOGIN PASSWORD '{literal}' IN ROLE hpopt_reader")
    try:
        url = f"postgresql+psycopg2://{role}:{password}@{shared_optuna_url.partition('@')[2]}"
        with closing(Database(url)) as database, closing(FigureBuilder(database, print)) as builder:
            app = make_app(database, builder)
            statuses: list[str] = []
            app({"PATH_INFO": "/healthz"}, lambda status, _headers, _info=None: statuses.append(status))  # type: ignore[arg-type, func-returns-value]
        assert statuses == ["200 OK"]
    finally:
        execute(shared_optuna_url, f"DROP ROLE {role}")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "gpu-node-7"])  # noqa: S104 - that is the point.
def test_other_machines_are_not_served_without_a_password(host: str):
    """All who reach the page can read everything."""
    with pytest.raises(InputError, match=f"host {host}: .* needs a password; set it with --password-file"):
        serve(Database("postgresql://nobody@nowhere/x"), host, 8080)


def test_requests_that_read_write_nothing(optuna_url: str):
    """AuthMiddleware decides by the method what reads; here the database itself is read-only."""
    study = f"/api/studies/{optuna.load_study(study_name='moe-muon', storage=optuna_url)._study_id}"
    name = optuna_url.rpartition("/")[2]
    execute(optuna_url, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    plots = ("contour", "slice", "parallel_coordinate", "rank", "edf", "timeline")
    with running(optuna_url, host="127.0.0.1") as dashboard:
        for path in ("/", "/dashboard", "/incompatible-rdb-schema", "/api/meta", "/api/studies", study):
            dashboard.get(path)
        for path in (f"{study}/param_importances", *(f"{study}/plot/{plot}" for plot in plots)):
            dashboard.get(path)
        dashboard.get(study.replace("/api/studies", "/csv"))
        with pytest.raises(HTTPError, match="403"):
            dashboard.request("DELETE", study)


def test_a_writable_dashboard_can_be_written_to(optuna_url: str):
    with running(optuna_url, host="0.0.0.0", password=PASSWORD, writable=True) as dashboard:  # noqa: S104
        (study,) = dashboard.get_json("/api/studies", **login(PASSWORD))["study_summaries"]
        dashboard.request("DELETE", f"/api/studies/{study['study_id']}", **login(PASSWORD))
    assert optuna.get_all_study_names(optuna_url) == []


def test_on_this_machine_everything_can_be_written_under_its_own_names(optuna_url: str):
    with running(optuna_url, host="127.0.0.1") as dashboard:
        (study,) = dashboard.get_json("/api/studies")["study_summaries"]
        path = f"/api/studies/{study['study_id']}"
        with pytest.raises(HTTPError, match="403"):
            dashboard.request("DELETE", path, Host="evil.example")
        assert optuna.get_all_study_names(optuna_url) == ["moe-muon"]
        dashboard.request("DELETE", path)
        assert optuna.get_all_study_names(optuna_url) == []


def test_a_user_of_the_reader_role_can_serve_a_dashboard_that_changes_nothing(
    shared_quickstart_url: str, new_login: Callable[..., str]
):
    with running(new_login(shared_quickstart_url, "hpopt_reader"), host="127.0.0.1") as dashboard:
        (study,) = dashboard.get_json("/api/studies")["study_summaries"]
        path = f"/api/studies/{study['study_id']}"
        detail = dashboard.wait_for_figures(path)
        assert detail["trials"]
        with pytest.raises(HTTPError, match="403"):
            dashboard.request("DELETE", path)
        assert dashboard.get_json("/api/studies")["study_summaries"]


def test_a_number_of_any_length_is_answered(dashboard: Dashboard):
    """Python converts no more than 4,300 digits."""
    for path in ("/api/studies/{}", "/api/trials/{}/user-attrs", "/dashboard/studies/{}"):
        with pytest.raises(HTTPError, match="404"):
            dashboard.get(path.format("9" * 5000))


def test_idle_connections_do_not_keep_others_out(dashboard: Dashboard):
    """As many as waitress accepts by default."""
    with ExitStack() as stack:
        for _ in range(120):
            stack.enter_context(socket.create_connection(("127.0.0.1", dashboard.port)))
        assert "study_summaries" in dashboard.get("/api/studies")


def test_an_unknown_host_name_is_refused_in_one_line(shared_optuna_url: str):
    with (
        closing(Database(shared_optuna_url)) as database,
        pytest.raises(InputError, match=r"^host nobody\.invalid: no such name or address$"),
    ):
        serve(database, "nobody.invalid", 0, password=PASSWORD)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file or directory"),
        (b"", "the password is empty"),
        (b"\n", "the password is empty"),
        (b"short-one", "12 characters or more"),
        (b"two lines of\nsomething else\n", "one line of printable characters"),
        (b"\xff\xfe binary \xff\xfe", "not UTF-8"),
    ],
)
def test_a_file_without_a_usable_password_is_refused(tmp_path: Path, content: bytes | None, reason: str):
    file = tmp_path / "password"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=f"^--password-file: {file}: .*{reason}") as refusal:
        read_password(file)
    if content:
        assert content.decode(errors="replace").strip()[:8] not in str(refusal.value) or not content.strip()


@pytest.mark.parametrize("content", [f"{PASSWORD}\n", f"{PASSWORD}\r\n", PASSWORD, f"\ufeff{PASSWORD}"])
def test_the_password_file_overrides_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str):
    """An editor ends the line, which nobody types into the browser; on Windows it may write a byte order mark."""
    monkeypatch.setenv("HPOPT_DASHBOARD_PASSWORD", "another password")
    (tmp_path / "password").write_text(content, encoding="utf-8", newline="")
    assert read_password(tmp_path / "password") == PASSWORD


def test_the_password_is_removed_from_the_environment(monkeypatch: pytest.MonkeyPatch):
    """The embedded Postgres may run as another user, who could read it."""
    monkeypatch.setenv("HPOPT_DASHBOARD_PASSWORD", PASSWORD)
    assert read_password(None) == PASSWORD
    assert "HPOPT_DASHBOARD_PASSWORD" not in os.environ


@pytest.mark.parametrize("password", ["", "short", "two lines of\nsomething else", "not text of any kind \udcff"])
def test_an_environment_without_a_usable_password_is_refused(monkeypatch: pytest.MonkeyPatch, password: str):
    monkeypatch.setenv("HPOPT_DASHBOARD_PASSWORD", password)
    with pytest.raises(InputError, match=r"^HPOPT_DASHBOARD_PASSWORD: ") as refusal:
        read_password(None)
    assert not password or password not in str(refusal.value)


def test_a_dashboard_for_other_machines_is_read_only_and_never_prints_its_password(shared_optuna_url: str):
    command = [sys.executable, "-m", "hpopt", "dashboard", "--host", "0.0.0.0", "--port", "0"]  # noqa: S104
    environment = {**os.environ, "HPOPT_STORAGE": shared_optuna_url, "HPOPT_DASHBOARD_PASSWORD": PASSWORD}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        first_line = process.stderr.readline()
        dashboard = Dashboard(process, read_port(first_line))
        for path in ("/", "/dashboard", "/api/studies", "/static/bundle.js", "/csv/1"):
            for headers in ({}, login("wrong")):
                with pytest.raises(HTTPError, match="401"):
                    dashboard.get(path, **headers)
        assert dashboard.get("/healthz") == "ok\n"
        (study,) = dashboard.get_json("/api/studies", **login(PASSWORD))["study_summaries"]
        with pytest.raises(HTTPError) as response:
            dashboard.request("DELETE", f"/api/studies/{study['study_id']}", **login(PASSWORD))
        assert response.value.code == 403
        assert "read-only" in json.load(response.value)["reason"]
        assert optuna.get_all_study_names(shared_optuna_url) == ["moe-muon"]
    finally:
        process.terminate()
        output, errors = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, output) == (0, "")
    access = "(user hpopt with password, read-only); press Ctrl-C to stop"
    assert first_line == f"dashboard on http://0.0.0.0:{dashboard.port}/dashboard {access}\n"
    assert errors.splitlines() == ["authentication failed for a request from 127.0.0.1"]


def test_an_occupied_port_is_refused_in_one_line(shared_optuna_url: str, free_port: int):
    with socket.socket() as squatter, closing(Database(shared_optuna_url)) as database:
        squatter.bind(("127.0.0.1", free_port))
        squatter.listen()
        message = f"^cannot listen on port {free_port} of 127.0.0.1: Address already in use$"
        with pytest.raises(InputError, match=message):
            serve(database, "127.0.0.1", free_port)


def test_an_unreachable_database_is_reported_without_its_password(free_port: int):
    with pytest.raises(DatabaseError) as refusal:
        serve(Database(f"postgresql://hpopt:secret@127.0.0.1:{free_port}/hpopt"), "127.0.0.1", 0)
    assert "secret" not in str(refusal.value)
    assert "\n" not in str(refusal.value)
