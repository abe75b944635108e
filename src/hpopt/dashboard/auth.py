"""Owns who may do what at the dashboard: password, read-only, other sites, headers. Leaves the serving to serving.py.

optuna-dashboard asks nobody who they are, and lets everybody who reaches it delete studies.
"""

import base64
import hashlib
import hmac
import json
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from hpopt.storage.database import is_loopback

if TYPE_CHECKING:
    from _typeshed import OptExcInfo
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

USER = "hpopt"
# Probes have no password, and learn nothing here but whether the database answers.
HEALTH = "/healthz"
# Nothing that optuna-dashboard 0.21 does on these changes anything, and its page needs nothing else to be read.
READING = {"GET", "HEAD", "OPTIONS"}
HEADERS = {
    # plotly compiles with eval what it draws with WebGL, and it and the page write styles as they go.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; connect-src 'self'; "
        "img-src 'self' data: blob:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Not `no-referrer`, under which browsers hide the origin of a form that is sent, and it would be refused.
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_OURS = {name.lower() for name in HEADERS}


def guard(
    app: "WSGIApplication", *, password: str | None, writable: bool, say: Callable[[str], None] = print
) -> "WSGIApplication":
    """Put the gate in front of an application; wrong passwords are said to whoever runs it.

    Without a password it answers to this machine only, and there everybody may write. With one it answers to whoever
    has it, and they may write if it is `writable`. Guesses are not slowed down: each would hold one of the server's few
    threads, and so lock out those who know the password. It has to be long instead.
    """
    key = None if password is None else _digest(f"{USER}:{password}".encode())

    def gate(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        def start(
            status: str, headers: list[tuple[str, str]], exc_info: "OptExcInfo | None" = None, /
        ) -> Callable[[bytes], object]:
            theirs = [header for header in headers if header[0].lower() not in _OURS]
            return start_response(status, [*theirs, *HEADERS.items()], exc_info)

        refusal = _refusal(environ, key, may_write=writable or key is None)
        # A browser asks once without a password before it asks its user for it.
        if refusal and refusal[0] is HTTPStatus.UNAUTHORIZED and "HTTP_AUTHORIZATION" in environ:
            say(f"refused: a wrong password, from {environ.get('REMOTE_ADDR', 'somewhere')}")
        return app(environ, start) if refusal is None else _refuse(*refusal, start)

    return gate


def _refusal(environ: "WSGIEnvironment", key: bytes | None, *, may_write: bool) -> tuple[HTTPStatus, str] | None:
    """Give the status and the reason with which a request is refused, if it is."""
    reads = environ["REQUEST_METHOD"] in READING
    # A page may point a name of its own at this machine, and would then be of the same site as the dashboard.
    if key is None and not _names_this_machine(environ.get("HTTP_HOST", "")):
        return HTTPStatus.FORBIDDEN, "without a password this dashboard goes by localhost or 127.0.0.1 only"
    if not reads and _comes_from_another_site(environ):
        return HTTPStatus.FORBIDDEN, "pages of other sites may not write to this dashboard"
    if environ["PATH_INFO"] == HEALTH:
        return None
    if key is not None and not hmac.compare_digest(_digest(_credentials(environ)), key):
        return HTTPStatus.UNAUTHORIZED, f"this dashboard asks for user {USER} and its password"
    if not reads and not may_write:
        return HTTPStatus.FORBIDDEN, "this dashboard is read-only; `hpopt dashboard --writable` makes one that is not"
    return None


def _names_this_machine(host: str) -> bool:
    """Say so of the name and port that a request is addressed to."""
    try:
        return is_loopback(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False


def _comes_from_another_site(environ: "WSGIEnvironment") -> bool:
    """Believe the browser, which sends a page's password along with whatever another page asks for."""
    # A program sends neither header, and a person's own click is of no site.
    if environ.get("HTTP_SEC_FETCH_SITE", "none") not in {"same-origin", "none"}:
        return True
    origin, host = environ.get("HTTP_ORIGIN"), environ.get("HTTP_HOST", "")
    # Only a proxy in front knows whether the page came by http or https.
    return origin is not None and origin.partition("://")[2].lower() != host.lower()


def _credentials(environ: "WSGIEnvironment") -> bytes:
    """Give `user:password` of HTTP Basic authentication (RFC 7617), or nothing."""
    scheme, _, encoded = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    try:
        return base64.b64decode(encoded, validate=True) if scheme.lower() == "basic" else b""
    except ValueError:
        return b""


def _digest(credentials: bytes) -> bytes:
    # Comparing takes the same time whatever the length of the two, which would tell that of the password.
    return hashlib.sha256(credentials).digest()


def _refuse(status: HTTPStatus, reason: str, start_response: "StartResponse") -> Iterable[bytes]:
    """Answer as optuna-dashboard does, whose page shows the reason."""
    body = json.dumps({"reason": reason}).encode() + b"\n"
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    if status is HTTPStatus.UNAUTHORIZED:
        headers.append(("WWW-Authenticate", f'Basic realm="{USER}", charset="UTF-8"'))
    start_response(f"{status} {status.phrase}", headers)
    return [body]
