"""AuthMiddleware in front of an application that accepts everything, with real HTTP requests."""

import base64
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection, HTTPResponse
from wsgiref.simple_server import WSGIRequestHandler, make_server
from wsgiref.validate import validator

import pytest

from hpopt.dashboard.auth import SECURITY_HEADERS, AuthMiddleware

PASSWORD = "Grüße an 12 Nachbarn"
TIMEOUT_S = 60
UNSAFE_METHODS = ["POST", "PUT", "PATCH", "DELETE", "TRACE"]


class QuietHandler(WSGIRequestHandler):
    """A request handler without an access log."""

    def log_message(self, *_arguments):
        pass


class Server:
    """The served middleware, the requests that it passed on, and what it logged."""

    def __init__(self, port: int, passed: list[str], logged: list[str]):
        self.port = port
        self.passed = passed
        self.logged = logged

    def request(self, method: str = "GET", path: str = "/", headers: dict[str, str] | None = None) -> HTTPResponse:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)
        connection.request(method, path, headers=headers or {})
        response = connection.getresponse()
        response.body = response.read()
        connection.close()
        return response


@contextmanager
def serve(
    password: str | None = None, *, writable: bool = False, clock: Callable[[], float] = time.monotonic
) -> Iterator[Server]:
    passed: list[str] = []
    logged: list[str] = []

    def app(environ, start_response):
        passed.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}")
        # An application with a policy of its own, which must not stand beside that of the middleware.
        start_response("200 OK", [("Content-Type", "text/plain"), ("content-security-policy", "default-src *")])
        return [b"passed"]

    # The validators hold both sides to PEP 3333.
    middleware = AuthMiddleware(validator(app), password=password, writable=writable, log=logged.append, clock=clock)
    with make_server("127.0.0.1", 0, validator(middleware), handler_class=QuietHandler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield Server(server.server_port, passed, logged)
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def start() -> Iterator[Callable[..., Server]]:
    with ExitStack() as servers:
        yield lambda *arguments, **options: servers.enter_context(serve(*arguments, **options))


@pytest.fixture
def open_server(start) -> Server:
    """A server without a password."""
    return start(writable=True)


@pytest.fixture
def protected_server(start) -> Server:
    """A server with a password."""
    return start(PASSWORD)


def login(user: str = "hpopt", password: str = PASSWORD, scheme: str = "Basic") -> dict[str, str]:
    return {"Authorization": f"{scheme} {base64.b64encode(f'{user}:{password}'.encode()).decode()}"}


@pytest.mark.parametrize("method", ["GET", *UNSAFE_METHODS])
def test_without_a_password_this_machine_may_read_and_write(open_server: Server, method: str):
    assert open_server.request(method, "/api").status == 200
    assert open_server.passed == [f"{method} /api"]


@pytest.mark.parametrize("host", ["localhost", "LocalHost:80", "127.0.0.1", "127.0.0.1:9", "127.1.2.3", "[::1]:8080"])
def test_without_a_password_the_names_of_this_machine_are_served(open_server: Server, host: str):
    assert open_server.request(headers={"Host": host}).status == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example", "192.168.1.5"),
        *("localhost@evil.example", "evil.example#localhost", "[::2]", "[", ""),
    ],
)
@pytest.mark.parametrize("path", ["/", "/healthz"])
def test_without_a_password_other_names_are_refused(open_server: Server, host: str, path: str):
    """DNS rebinding: evil.example may resolve to 127.0.0.1, and its page is then of the dashboard's origin."""
    response = open_server.request(path=path, headers={"Host": host})
    assert (response.status, open_server.passed) == (403, [])
    assert "localhost" in json.loads(response.body)["reason"]


def test_with_a_password_any_name_is_served(protected_server: Server):
    """Only its operator knows the names of a server; no foreign page knows the password."""
    assert protected_server.request(headers={"Host": "gpu-node-7.example:8080", **login()}).status == 200


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
def test_a_request_without_the_right_password_is_refused_with_401(protected_server: Server, headers: dict[str, str]):
    for method in ("GET", "HEAD", "OPTIONS", "DELETE"):
        response = protected_server.request(method, headers=headers)
        assert response.status == 401
        assert response.headers["WWW-Authenticate"] == 'Basic realm="hpopt", charset="UTF-8"'
    assert protected_server.passed == []


def test_a_failed_login_is_logged_without_the_password(protected_server: Server):
    """A browser sends its first request without one, which is not logged; a wrong one may be nearly right."""
    protected_server.request()
    assert protected_server.logged == []
    protected_server.request(headers=login(password=PASSWORD[:-1]))
    assert protected_server.logged == ["authentication failed for a request from 127.0.0.1"]


@pytest.mark.parametrize("scheme", ["Basic", "basic"])
def test_a_request_with_the_right_password_is_passed_on(protected_server: Server, scheme: str):
    response = protected_server.request(headers=login(scheme=scheme))
    assert (response.status, response.body) == (200, b"passed")


def test_the_health_probe_needs_no_password(protected_server: Server):
    assert protected_server.request(path="/healthz").status == 200


@pytest.mark.parametrize("path", ["/healthz/", "/healthz/../api", "/api?/healthz", "/HEALTHZ"])
def test_paths_that_resemble_the_health_probe_need_the_password(protected_server: Server, path: str):
    assert protected_server.request(path=path).status == 401


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_with_the_password_everything_can_be_read(protected_server: Server, method: str):
    assert protected_server.request(method, headers=login()).status == 200


@pytest.mark.parametrize("method", UNSAFE_METHODS)
def test_with_the_password_nothing_can_be_written(protected_server: Server, method: str):
    response = protected_server.request(method, headers=login())
    assert (response.status, protected_server.passed) == (403, [])
    assert "read-only" in json.loads(response.body)["reason"]


@pytest.mark.parametrize("method", UNSAFE_METHODS)
def test_a_writable_dashboard_can_be_written_to_with_the_password_only(start, method: str):
    server = start(PASSWORD, writable=True)
    assert server.request(method).status == 401
    assert server.request(method, headers=login()).status == 200
    assert server.passed == [f"{method} /"]


@pytest.mark.parametrize(
    "headers",
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
def test_a_page_of_another_site_cannot_write(start, headers: dict[str, str], password: str | None):
    """The browser of a user who has the dashboard open would send the password along."""
    server = start(password, writable=True)
    response = server.request("POST", headers={"Host": "localhost:8080", **login(), **headers})
    assert (response.status, server.passed) == (403, [])
    assert "other sites" in json.loads(response.body)["reason"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "same-origin", "Origin": "http://localhost:8080"},
        {"Origin": "https://localhost:8080"},
        {"Sec-Fetch-Site": "none"},
        {},
    ],
)
def test_its_own_page_and_programs_may_write(open_server: Server, headers: dict[str, str]):
    """A proxy in front may serve https."""
    assert open_server.request("POST", headers={"Host": "localhost:8080", **headers}).status == 200


def test_a_link_from_another_site_can_be_followed(open_server: Server):
    assert open_server.request(headers={"Sec-Fetch-Site": "cross-site"}).status == 200


@pytest.mark.parametrize(("headers", "status"), [({}, 401), (login(), 200), ({"Origin": "null", **login()}, 403)])
def test_every_response_has_each_security_header_once(protected_server: Server, headers: dict[str, str], status: int):
    response = protected_server.request("GET" if status != 403 else "POST", headers=headers)
    assert response.status == status
    for name, value in SECURITY_HEADERS.items():
        assert response.headers.get_all(name) == [value]
    assert set(Counter(name.lower() for name in response.headers).values()) == {1}


def test_failed_logins_are_logged_once_a_minute_with_their_number(start: Callable[..., Server]):
    """Otherwise anyone could fill the disk with the log."""
    now = [0.0]
    server = start(PASSWORD, clock=lambda: now[0])
    for now[0] in (0, 1, 2, 59, 61, 62, 125):
        server.request(headers=login(password="wrong"))
    line = "authentication failed for a request from 127.0.0.1"
    assert server.logged == [line, f"{line} and 3 others before it", f"{line} and 1 other before it"]
