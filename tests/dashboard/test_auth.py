"""The gate by itself, in front of an application that takes anything: real requests to a real server."""

import base64
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection, HTTPResponse
from wsgiref.simple_server import WSGIRequestHandler, make_server
from wsgiref.validate import validator

import pytest

from hpopt.dashboard.auth import HEADERS, guard

PASSWORD = "Grüße an 12 Nachbarn"
WRITING = ["POST", "PUT", "PATCH", "DELETE", "TRACE"]


class Quiet(WSGIRequestHandler):
    """Logs nothing."""

    def log_message(self, *_arguments):
        pass


class Gate:
    """A served gate, and what it let through."""

    def __init__(self, port: int, reached: list[str], said: list[str]):
        self.port = port
        self.reached = reached
        self.said = said

    def ask(self, method: str = "GET", path: str = "/", headers: dict[str, str] | None = None) -> HTTPResponse:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request(method, path, headers=headers or {})
        answer = connection.getresponse()
        answer.body = answer.read()
        connection.close()
        return answer


@contextmanager
def serve(password: str | None = None, *, writable: bool = False) -> Iterator[Gate]:
    reached: list[str] = []
    said: list[str] = []

    def app(environ, start_response):
        reached.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}")
        # As optuna-dashboard does it: a policy of its own, which must not stand beside ours.
        start_response("200 OK", [("Content-Type", "text/plain"), ("content-security-policy", "default-src *")])
        return [b"through"]

    # The validator holds both sides to the rules of WSGI.
    gate = validator(guard(validator(app), password=password, writable=writable, say=said.append))
    with make_server("127.0.0.1", 0, gate, handler_class=Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield Gate(server.server_port, reached, said)
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def start() -> Iterator[Callable[..., Gate]]:
    with ExitStack() as servers:
        yield lambda *arguments, **options: servers.enter_context(serve(*arguments, **options))


@pytest.fixture
def open_gate(start) -> Gate:
    return start()


@pytest.fixture
def locked_gate(start) -> Gate:
    return start(PASSWORD)


def login(user: str = "hpopt", password: str = PASSWORD, scheme: str = "Basic") -> dict[str, str]:
    return {"Authorization": f"{scheme} {base64.b64encode(f'{user}:{password}'.encode()).decode()}"}


@pytest.mark.parametrize("method", ["GET", *WRITING])
def test_without_a_password_this_machine_may_do_everything(open_gate: Gate, method: str):
    assert open_gate.ask(method, "/api").status == 200
    assert open_gate.reached == [f"{method} /api"]


@pytest.mark.parametrize("host", ["localhost", "LocalHost:80", "127.0.0.1", "127.0.0.1:9", "127.1.2.3", "[::1]:8080"])
def test_without_a_password_the_names_of_this_machine_are_served(open_gate: Gate, host: str):
    assert open_gate.ask(headers={"Host": host}).status == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example", "192.168.1.5"),
        *("localhost@evil.example", "evil.example#localhost", "[::2]", "[", ""),
    ],
)
@pytest.mark.parametrize("path", ["/", "/healthz"])
def test_without_a_password_other_names_are_refused(open_gate: Gate, host: str, path: str):
    """A page of evil.example may have that name point to 127.0.0.1, and the browser takes us for a part of it."""
    answer = open_gate.ask(path=path, headers={"Host": host})
    assert (answer.status, open_gate.reached) == (403, [])
    assert "localhost" in json.loads(answer.body)["reason"]


def test_with_a_password_any_name_is_served(locked_gate: Gate):
    """Only its operator knows under which names a server is reached; no foreign page knows the password."""
    assert locked_gate.ask(headers={"Host": "gpu-node-7.example:8080", **login()}).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        login(password=PASSWORD[:-1]),
        login(password=PASSWORD + " "),
        login(password=""),
        login(user="root"),
        login(user="", password=f"hpopt:{PASSWORD}"),
        login(scheme="Bearer"),
        {"Authorization": "Basic"},
        {"Authorization": "Basic ?"},
        {"Authorization": "Basic \xfc"},
    ],
)
def test_who_does_not_know_the_password_is_asked_for_it(locked_gate: Gate, headers: dict[str, str]):
    for method in ("GET", "HEAD", "OPTIONS", "DELETE"):
        answer = locked_gate.ask(method, headers=headers)
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"] == 'Basic realm="hpopt", charset="UTF-8"'
    assert locked_gate.reached == []


def test_a_wrong_password_is_said_to_whoever_runs_it_but_not_itself(locked_gate: Gate):
    """A browser asks once without one, which is no news; guesses are, and may be nearly right."""
    locked_gate.ask()
    assert locked_gate.said == []
    locked_gate.ask(headers=login(password=PASSWORD[:-1]))
    assert locked_gate.said == ["refused: a wrong password, from 127.0.0.1"]


@pytest.mark.parametrize("scheme", ["Basic", "basic"])
def test_who_knows_the_password_is_let_through(locked_gate: Gate, scheme: str):
    answer = locked_gate.ask(headers=login(scheme=scheme))
    assert (answer.status, answer.body) == (200, b"through")


def test_the_probe_of_health_needs_no_password(locked_gate: Gate):
    assert locked_gate.ask(path="/healthz").status == 200


@pytest.mark.parametrize("path", ["/healthz/", "/healthz/../api", "/api?/healthz", "/HEALTHZ"])
def test_what_only_looks_like_the_probe_needs_the_password(locked_gate: Gate, path: str):
    assert locked_gate.ask(path=path).status == 401


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_with_the_password_everything_can_be_read(locked_gate: Gate, method: str):
    assert locked_gate.ask(method, headers=login()).status == 200


@pytest.mark.parametrize("method", WRITING)
def test_with_the_password_nothing_can_be_written(locked_gate: Gate, method: str):
    answer = locked_gate.ask(method, headers=login())
    assert (answer.status, locked_gate.reached) == (403, [])
    assert "read-only" in json.loads(answer.body)["reason"]


@pytest.mark.parametrize("method", WRITING)
def test_what_is_writable_can_be_written_with_the_password_only(start, method: str):
    gate = start(PASSWORD, writable=True)
    assert gate.ask(method).status == 401
    assert gate.ask(method, headers=login()).status == 200
    assert gate.reached == [f"{method} /"]


@pytest.mark.parametrize(
    "sent",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "invented"},
        {"Origin": "https://evil.example"},
        {"Origin": "http://localhost:9"},
        {"Origin": "http://localhost"},
        {"Origin": "http://localhost:8080.evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Sec-Fetch-Site": "same-origin", "Origin": "https://evil.example"},
        {"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost:8080"},
    ],
)
@pytest.mark.parametrize("password", [None, PASSWORD])
def test_a_page_of_another_site_cannot_write(start, sent: dict[str, str], password: str | None):
    """The browser of who has the dashboard open would send the password along."""
    gate = start(password, writable=True)
    answer = gate.ask("POST", headers={"Host": "localhost:8080", **login(), **sent})
    assert (answer.status, gate.reached) == (403, [])
    assert "other sites" in json.loads(answer.body)["reason"]


@pytest.mark.parametrize(
    "sent",
    [
        {"Sec-Fetch-Site": "same-origin", "Origin": "http://localhost:8080"},
        {"Origin": "https://localhost:8080"},
        {"Sec-Fetch-Site": "none"},
        {},
    ],
)
def test_its_own_page_and_programs_can_write(open_gate: Gate, sent: dict[str, str]):
    """A proxy in front may speak https."""
    assert open_gate.ask("POST", headers={"Host": "localhost:8080", **sent}).status == 200


def test_a_link_from_another_site_can_be_followed(open_gate: Gate):
    assert open_gate.ask(headers={"Sec-Fetch-Site": "cross-site"}).status == 200


@pytest.mark.parametrize(("headers", "status"), [({}, 401), (login(), 200), ({"Origin": "null", **login()}, 403)])
def test_every_answer_has_each_header_of_security_once(locked_gate: Gate, headers: dict[str, str], status: int):
    answer = locked_gate.ask("GET" if status != 403 else "POST", headers=headers)
    assert answer.status == status
    assert {name: answer.headers.get_all(name) for name in HEADERS} == {k: [v] for k, v in HEADERS.items()}
    assert set(Counter(name.lower() for name in answer.headers).values()) == {1}
