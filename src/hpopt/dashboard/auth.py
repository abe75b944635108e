"""Restrict access to the dashboard: password, read-only mode, host names, cross-site requests and security headers.

optuna-dashboard has no authentication, and any client that reaches it can delete studies.
"""

import base64
import hashlib
import hmac
import json
import math
import threading
import time
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from hpopt.formats import format_count
from hpopt.storage.database import is_loopback

if TYPE_CHECKING:
    from _typeshed import OptExcInfo
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

USER = "hpopt"
# Probes send no password, and learn only whether the database answers.
HEALTH_PATH = "/healthz"
# "Safe" as in RFC 9110: optuna-dashboard 0.21 changes nothing on these, and its page needs no others to be read.
SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}
SECURITY_HEADERS = {
    # plotly compiles its WebGL drawing code with eval, and both plotly and the page write inline styles.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; connect-src 'self'; "
        "img-src 'self' data: blob:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # With `no-referrer` browsers hide the origin of a submitted form, and it would be refused as cross-site.
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_LOG_EVERY_S = 60
_SECURITY_HEADER_NAMES = {name.lower() for name in SECURITY_HEADERS}


class AuthMiddleware:
    """A WSGI middleware that refuses unauthorized requests and adds security headers to every response.

    Without a password it serves requests addressed to this machine only, with one authenticated requests. They may
    write if it is `writable`. Failed logins are logged, at most one line a minute, but not delayed: a delay would
    occupy one of the server's few threads and lock out users who know the password. The password has to be long
    instead.
    """

    def __init__(
        self,
        app: "WSGIApplication",
        *,
        password: str | None,
        writable: bool,
        log: Callable[[str], None] = print,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._digest = None if password is None else _digest(f"{USER}:{password}".encode())
        self._writable = writable
        self._failures = _FailureLog(log, clock)

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Answer a request."""

        def start_with_headers(
            status: str, headers: list[tuple[str, str]], exc_info: "OptExcInfo | None" = None, /
        ) -> Callable[[bytes], object]:
            others = [header for header in headers if header[0].lower() not in _SECURITY_HEADER_NAMES]
            return start_response(status, [*others, *SECURITY_HEADERS.items()], exc_info)

        refusal = self._find_refusal(environ)
        if refusal is None:
            return self._app(environ, start_with_headers)
        status, reason = refusal
        # A browser sends its first request without a password, and then asks its user for one.
        if status is HTTPStatus.UNAUTHORIZED and "HTTP_AUTHORIZATION" in environ:
            self._failures.add(environ.get("REMOTE_ADDR", "an unknown address"))
        return respond_with_error(status, reason, start_with_headers)

    def _find_refusal(self, environ: "WSGIEnvironment") -> tuple[HTTPStatus, str] | None:
        """Return the status and the reason with which to refuse a request, or None to pass it on."""
        is_safe = environ["REQUEST_METHOD"] in SAFE_METHODS
        # DNS rebinding: a foreign page may point its own name at this machine, and is then of the dashboard's origin.
        if self._digest is None and not _is_loopback_host(environ.get("HTTP_HOST", "")):
            return HTTPStatus.FORBIDDEN, "without a password this dashboard is served as localhost or 127.0.0.1 only"
        if not is_safe and _is_cross_site(environ):
            return HTTPStatus.FORBIDDEN, "requests from other sites may not write to this dashboard"
        if environ["PATH_INFO"] == HEALTH_PATH:
            return None
        if self._digest is not None and not hmac.compare_digest(_digest(_read_credentials(environ)), self._digest):
            return HTTPStatus.UNAUTHORIZED, f"this dashboard requires user {USER} and its password"
        if not is_safe and not self._writable:
            return HTTPStatus.FORBIDDEN, (
                "this dashboard is read-only; `hpopt dashboard --writable` allows changes, if the user of the database "
                "may make them"
            )
        return None


class _FailureLog:
    """Logs failed logins: the first one at once, then how many there were in at least a minute."""

    def __init__(self, log: Callable[[str], None], clock: Callable[[], float]) -> None:
        self._log = log
        self._clock = clock
        self._lock = threading.Lock()
        self._logged_at = -math.inf
        self._n_since = 0

    def add(self, address: str) -> None:
        """Count a failed login, and log it if no line was logged in the last minute."""
        with self._lock:
            self._n_since += 1
            if self._clock() - self._logged_at < _LOG_EVERY_S:
                return
            others = f" and {format_count(self._n_since - 1, 'other')} before it" if self._n_since > 1 else ""
            self._n_since, self._logged_at = 0, self._clock()
        self._log(f"authentication failed for a request from {address}{others}")


def _is_loopback_host(host: str) -> bool:
    """Return whether a Host header, with or without a port, names this machine."""
    try:
        return is_loopback(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False


def _is_cross_site(environ: "WSGIEnvironment") -> bool:
    """Return whether a page of another site makes this request, as far as the browser reports it.

    Browsers send the password of the dashboard along with such requests.
    """
    # Programs send neither header, and Sec-Fetch-Site is `none` for what the user does outside of any page.
    if environ.get("HTTP_SEC_FETCH_SITE", "none") not in {"same-origin", "none"}:
        return True
    origin, host = environ.get("HTTP_ORIGIN"), environ.get("HTTP_HOST", "")
    # The scheme is not compared: only a proxy in front knows whether the page was served over http or https.
    return origin is not None and origin.partition("://")[2].lower() != host.lower()


def _read_credentials(environ: "WSGIEnvironment") -> bytes:
    """Return `user:password` of HTTP Basic authentication (RFC 7617), or nothing."""
    scheme, _, encoded = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    try:
        return base64.b64decode(encoded, validate=True) if scheme.lower() == "basic" else b""
    except ValueError:
        return b""


def _digest(credentials: bytes) -> bytes:
    # compare_digest takes constant time for equal lengths only; without the digest it would reveal the password's.
    return hashlib.sha256(credentials).digest()


def respond_with_error(status: HTTPStatus, reason: str, start_response: "StartResponse") -> Iterable[bytes]:
    """Respond in the format of optuna-dashboard, whose page shows the reason."""
    body = json.dumps({"reason": reason}).encode() + b"\n"
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    if status is HTTPStatus.UNAUTHORIZED:
        headers.append(("WWW-Authenticate", f'Basic realm="{USER}", charset="UTF-8"'))
    start_response(f"{status} {status.phrase}", headers)
    return [body]
