"""Owns the serving of optuna-dashboard. Leaves who may do what to gate.py, and connections to storage."""

import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import sqlalchemy as sa
import waitress
from optuna_dashboard import wsgi
from waitress.server import MultiSocketServer, TcpWSGIServer

from hpopt.dashboard.auth import HEALTH, USER, guard
from hpopt.dashboard.cache import Answers
from hpopt.dashboard.figures import Publisher
from hpopt.dashboard.noted_storage import NotedStorage
from hpopt.dashboard.snapshot import ShownStudies
from hpopt.errors import DatabaseError, InputError
from hpopt.storage.database import Database, is_loopback

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

# A browser asks for several things at once; the database answers each in milliseconds once its trials are cached.
N_THREADS = 4
SWITCH_INTERVAL_S = 0.0005
# Notes are the longest that anybody sends.
MAX_REQUEST_BYTES = 2**20


def serve(
    database: Database,
    host: str,
    port: int,
    say: Callable[[str], None] = print,
    *,
    password: str | None = None,
    writable: bool = False,
) -> None:
    """Serve the dashboard until SIGTERM or Ctrl-C, saying where; with a password it can be read only unless `writable`.

    Raises InputError if the address cannot be had, or reaches beyond this machine and there is no password.
    """
    if password is None and not is_loopback(host):
        raise InputError(
            f"host {host}: other machines may reach this dashboard, so it needs a password; give it by --password-file "
            "or HPOPT_DASHBOARD_PASSWORD, or listen on 127.0.0.1"
        )
    # The page's program is sent while the answer about its trials is made: taking shorter turns, both are there sooner.
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    # A waiting request is no news.
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    with closing(Publisher(database, say)) as publisher:
        app = guard(make_app(database, publisher), password=password, writable=writable, say=say)
        server = _listen(app, host, port)
        rights = (
            "" if password is None else f", user {USER} and its password, {'writable' if writable else 'read-only'}"
        )
        say(f"dashboard on {_url(server, host)}/dashboard{rights} (Ctrl-C ends it)")
        with _sigterm_as_exit():
            try:
                server.run()
            finally:
                server.close()


def _listen(app: "WSGIApplication", host: str, port: int) -> MultiSocketServer | TcpWSGIServer:
    try:
        return waitress.create_server(
            app, host=host, port=port, threads=N_THREADS, ident="hpopt", max_request_body_size=MAX_REQUEST_BYTES
        )
    except (OSError, OverflowError) as error:
        raise InputError(f"port {port} of {host} cannot be had: {getattr(error, 'strerror', None) or error}") from error
    except ValueError as error:
        raise InputError(f"host {host}: no such name or address") from error


def _url(server: MultiSocketServer | TcpWSGIServer, host: str) -> str:
    # A name may stand for several addresses, each with a server of its own.
    port = server.effective_listen[0][1] if isinstance(server, MultiSocketServer) else server.effective_port
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def make_app(database: Database, publisher: Publisher) -> "WSGIApplication":
    """Make the WSGI application: optuna-dashboard with our figures and notes, and /healthz, which asks the database.

    Raises DatabaseError if the database cannot be reached.
    """
    # The cached storage: given the URL, optuna-dashboard would read every trial again on each poll.
    storage = NotedStorage(database.uncached_optuna, publisher.notes)
    shown = ShownStudies(storage)
    dashboard = Answers(wsgi(storage), shown, publisher.publication)
    threading.Thread(target=publisher.prepare, args=(shown,), daemon=True).start()

    def app(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        if environ.get("PATH_INFO") == HEALTH:
            return _answer_health(database, start_response)
        answer: Iterable[bytes] = dashboard(environ, start_response)
        return answer

    return app


def _answer_health(database: Database, start_response: "StartResponse") -> Iterable[bytes]:
    try:
        with database.begin() as connection:
            connection.execute(sa.text("SELECT 1"))
    except DatabaseError:
        status, body = "503 Service Unavailable", b"the database does not answer\n"
    else:
        status, body = "200 OK", b"ok\n"
    start_response(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


@contextmanager
def _sigterm_as_exit() -> Iterator[None]:
    """Let SIGTERM end the server as Ctrl-C does. Python hands out signals in the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)
