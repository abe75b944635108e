"""Serve optuna-dashboard over HTTP, with authentication, cached responses, figures and notes."""

import logging
import re
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING

import sqlalchemy as sa
import waitress
from optuna_dashboard import wsgi
from waitress.server import MultiSocketServer, TcpWSGIServer

from hpopt.dashboard.auth import HEALTH_PATH, USER, AuthMiddleware, respond_with_error
from hpopt.dashboard.cache import CacheMiddleware
from hpopt.dashboard.figures import FigureBuilder
from hpopt.dashboard.snapshot import SnapshotReader, StorageWithNotes
from hpopt.errors import DatabaseError, InputError
from hpopt.storage import queries
from hpopt.storage.database import Database, is_loopback

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

# A browser sends several requests at once; each takes milliseconds once the trials are cached.
N_THREADS = 4
# A tenth of Python's default: the page's script is sent while the response about its trials is made, and with shorter
# turns both arrive sooner.
SWITCH_INTERVAL_S = 0.0005
# Notes are the longest requests.
MAX_REQUEST_BYTES = 2**20
# Connections that are idle take nothing but a descriptor; with few allowed, who opens them keeps all others out.
MAX_CONNECTIONS = 2000
IDLE_TIMEOUT_S = 20
_OTHER_FILES = 100
# Ids are numbers of 32 bits, and Python converts no more than 4,300 digits.
_LONG_NUMBER = re.compile(r"\d{19}")


def serve(
    database: Database,
    host: str,
    port: int,
    log: Callable[[str], None] = print,
    *,
    password: str | None = None,
    writable: bool = False,
) -> None:
    """Serve the dashboard until SIGTERM or Ctrl-C, and log its URL; with a password it is read-only unless `writable`.

    Raises InputError if the address is not available, or is reachable from other machines and there is no password.
    """
    if password is None and not is_loopback(host):
        raise InputError(
            f"host {host}: a dashboard that other machines can reach needs a password; set it with --password-file or "
            "HPOPT_DASHBOARD_PASSWORD, or listen on 127.0.0.1"
        )
    # Also without a password: who may not change anything is told so, and sees no errors of the database.
    writable = (writable or password is None) and queries.may_write(database)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    # waitress warns of every request that waits for a thread, which is normal here.
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    with closing(FigureBuilder(database, log)) as builder:
        app = AuthMiddleware(make_app(database, builder), password=password, writable=writable, log=log)
        server = _listen(app, host, port)
        mode = "writable" if writable else "read-only"
        access = "" if password is None else f" (user {USER} with password, {mode})"
        with _sigterm_as_interrupt():
            try:
                log(f"dashboard on {_format_url(server, host)}/dashboard{access}; press Ctrl-C to stop")
                server.run()
            finally:
                server.close()


def _listen(app: "WSGIApplication", host: str, port: int) -> MultiSocketServer | TcpWSGIServer:
    try:
        return waitress.create_server(
            app,
            host=host,
            port=port,
            threads=N_THREADS,
            ident="hpopt",
            max_request_body_size=MAX_REQUEST_BYTES,
            connection_limit=_allow_connections(),
            channel_timeout=IDLE_TIMEOUT_S,
            cleanup_interval=IDLE_TIMEOUT_S / 2,
            # select(2), the default, has no descriptors from 1,024 on.
            asyncore_use_poll=True,
        )
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot listen on port {port} of {host}: {reason}") from error
    except ValueError as error:
        raise InputError(f"host {host}: no such name or address") from error


def _allow_connections() -> int:
    """Return how many connections the server accepts, and let this process open as many files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = MAX_CONNECTIONS + _OTHER_FILES
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return min(MAX_CONNECTIONS, limit - _OTHER_FILES)


def _format_url(server: MultiSocketServer | TcpWSGIServer, host: str) -> str:
    # A name may stand for several addresses, each with a server of its own.
    port = server.effective_listen[0][1] if isinstance(server, MultiSocketServer) else server.effective_port
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def make_app(database: Database, builder: FigureBuilder) -> "WSGIApplication":
    """Return the WSGI application: optuna-dashboard with figures and notes, and /healthz, which queries the database.

    Raises DatabaseError if the database is unreachable.
    """
    # A cached storage: given the URL, optuna-dashboard would read every trial again at each poll.
    storage = StorageWithNotes(database.uncached_optuna, builder.read_notes)
    snapshots = SnapshotReader(storage)
    dashboard = CacheMiddleware(wsgi(storage), snapshots, builder.get)
    threading.Thread(target=builder.start_newest, args=(snapshots,), daemon=True).start()

    def app(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        if environ.get("PATH_INFO") == HEALTH_PATH:
            return _respond_with_health(database, start_response)
        if _LONG_NUMBER.search(environ.get("PATH_INFO", "")):
            return respond_with_error(HTTPStatus.NOT_FOUND, "no study or trial has this number", start_response)
        response: Iterable[bytes] = dashboard(environ, start_response)
        return response

    return app


def _respond_with_health(database: Database, start_response: "StartResponse") -> Iterable[bytes]:
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
def _sigterm_as_interrupt() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does. Python delivers signals to the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, previous)
