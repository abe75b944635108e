"""Owns the serving of optuna-dashboard to this machine. Leaves connections to storage.

optuna-dashboard lets everybody who reaches it delete studies, so only this machine may.
"""

import ipaddress
import logging
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import sqlalchemy as sa
import waitress
from optuna_dashboard import wsgi

from hpopt.errors import DatabaseError, InputError
from hpopt.storage.database import Database

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

# A browser asks for several things at once; the database answers each in milliseconds once its trials are cached.
N_THREADS = 4


def serve(database: Database, host: str, port: int, say: Callable[[str], None] = print) -> None:
    """Serve the dashboard until SIGTERM or Ctrl-C, saying where. Raises InputError if the address cannot be had."""
    if not _is_loopback(host):
        raise InputError(
            f"host {host}: the dashboard has no password yet and can only listen on this machine; use 127.0.0.1"
        )
    app = make_app(database)
    # A waiting request is no news.
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    try:
        server = waitress.create_server(app, host=host, port=port, threads=N_THREADS, ident="hpopt")
    except (OSError, OverflowError) as error:
        raise InputError(f"port {port} of {host} cannot be had: {getattr(error, 'strerror', None) or error}") from error
    say(f"dashboard on http://{host}:{server.effective_port}/dashboard (Ctrl-C ends it)")
    with _sigterm_as_exit():
        try:
            server.run()
        finally:
            server.close()


def make_app(database: Database) -> "WSGIApplication":
    """Make the WSGI application: optuna-dashboard, and /healthz, which asks the database.

    Raises DatabaseError if the database cannot be reached.
    """
    # The cached storage: given the URL, optuna-dashboard would read every trial again on each poll.
    dashboard = wsgi(database.optuna)

    def app(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        if environ.get("PATH_INFO") == "/healthz":
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


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


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
