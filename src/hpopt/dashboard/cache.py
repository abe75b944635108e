"""Cache and compress the dashboard's responses, and have browsers preload the trials of a study."""

import gzip
import re
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import TYPE_CHECKING, NamedTuple

from hpopt.dashboard.figures import FiguresAndNotes
from hpopt.dashboard.patches import insert_figures, replace_curves
from hpopt.dashboard.snapshot import Snapshot, SnapshotReader

if TYPE_CHECKING:
    from _typeshed import OptExcInfo
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

# A smaller response fits into one packet as it is.
_MIN_GZIP_BYTES = 1_000
# Three quarters of the time of the default level, for a tenth more bytes.
_GZIP_LEVEL = 4
# With thousands of trials each is a megabyte or two.
_MAX_RESPONSES = 8
# Tabs that ask together wait in turn for one of the server's few threads. optuna-dashboard itself caches longer.
FRESH_FOR_S = 1.0
# optuna-dashboard 0.21 itself serves the trials of a large study from a cache for up to 10 s.
STABLE_AFTER_S = 12.0
_STUDY_PAGE = re.compile(r"/dashboard/studies/(\d+)(/|$)")
_STUDY = re.compile(r"/api/studies/(\d+)")
_IMPORTANCES = re.compile(r"/api/studies/(\d+)/param_importances")


class Response(NamedTuple):
    """A complete HTTP response."""

    status: str
    headers: list[tuple[str, str]]
    body: bytes


# optuna-dashboard divides by the number of parameters.
_NO_IMPORTANCES = Response("200 OK", [("Content-Type", "application/json")], b'{"param_importances": [[]]}')


class CacheKey(NamedTuple):
    """What a response depends on besides the database."""

    path: str
    query: str
    accepts_gzip: bool


class CachedResponse(NamedTuple):
    """A response about a study, when it was made (monotonic clock), and what it was made from."""

    response: Response
    made_s: float
    snapshot: Snapshot
    additions: FiguresAndNotes


class CacheMiddleware:
    """A WSGI middleware that makes optuna-dashboard respond sooner.

    The page of a study has the browser preload the trials before the page's script has been loaded. Simultaneous equal
    requests share one response, for example when a browser reopens ten tabs. A response about a study is reused for
    `fresh_for_s`. One made more than `stable_after_s` after the last change of the study, when optuna-dashboard's own
    cache has expired, is reused until the next change. Any request that may write clears the cache.
    """

    def __init__(
        self,
        dashboard: "WSGIApplication",
        snapshots: SnapshotReader,
        get_additions: Callable[[Snapshot], FiguresAndNotes],
        *,
        fresh_for_s: float = FRESH_FOR_S,
        stable_after_s: float = STABLE_AFTER_S,
    ) -> None:
        self._dashboard = dashboard
        self._snapshots = snapshots
        self._get_additions = get_additions
        self._fresh_for_s = fresh_for_s
        self._stable_after_s = stable_after_s
        self._lock = threading.Lock()
        self._pending: dict[CacheKey, Future[Response]] = {}
        self._responses: dict[CacheKey, CachedResponse] = {}

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Answer a request."""
        if environ["REQUEST_METHOD"] != "GET":
            try:
                return self._dashboard(environ, start_response)
            finally:
                with self._lock:
                    self._responses.clear()
        if not environ["PATH_INFO"].startswith("/api/"):
            return self._dashboard(environ, _add_preload_link(environ["PATH_INFO"], start_response))
        response = self._share(environ)
        start_response(response.status, response.headers)
        return [response.body]

    def _share(self, environ: "WSGIEnvironment") -> Response:
        """Make a response, or wait for the equal one that another thread is making."""
        accepts_gzip = "gzip" in environ.get("HTTP_ACCEPT_ENCODING", "")
        key = CacheKey(environ["PATH_INFO"], environ.get("QUERY_STRING", ""), accepts_gzip)
        with self._lock:
            pending = self._pending.get(key)
            if pending is None:
                future = self._pending[key] = Future[Response]()
        if pending is not None:
            return pending.result()
        try:
            future.set_result(self._find_or_make(key, environ))
        except BaseException as error:
            future.set_exception(error)
            raise
        finally:
            with self._lock:
                del self._pending[key]
        return future.result()

    def _find_or_make(self, key: CacheKey, environ: "WSGIEnvironment") -> Response:
        """Return the cached response if it is valid, else make one."""
        cached = self._responses.get(key)
        if cached is not None and time.monotonic() - cached.made_s < self._fresh_for_s:
            return cached.response
        if self._lacks_params(key.path):
            return _encode(_NO_IMPORTANCES, key)
        study = _STUDY.fullmatch(key.path)
        snapshot = None if study is None else self._snapshots.read(int(study[1]))
        additions = None if snapshot is None else self._get_additions(snapshot)
        if cached is not None and self._is_valid(cached, snapshot, additions):
            return cached.response
        response = _request(self._dashboard, environ)
        if snapshot is None or additions is None or not response.status.startswith("200 "):
            return _encode(response, key)
        body = replace_curves(response.body, snapshot.trials, snapshot.study.directions)
        response = _encode(response._replace(body=insert_figures(body, additions.figures)), key)
        if key.accepts_gzip:
            self._store(key, CachedResponse(response, time.monotonic(), snapshot, additions))
        return response

    def _lacks_params(self, path: str) -> bool:
        """Return whether the importances of a study are asked for whose trials have no params, as in a comparison."""
        study = _IMPORTANCES.fullmatch(path)
        snapshot = None if study is None else self._snapshots.read(int(study[1]))
        return snapshot is not None and not any(trial.params for trial in snapshot.trials)

    def _is_valid(self, cached: CachedResponse, snapshot: Snapshot | None, additions: FiguresAndNotes | None) -> bool:
        """Return whether the same response would be made again."""
        is_stable = cached.made_s - cached.snapshot.since_s > self._stable_after_s
        return is_stable and snapshot is cached.snapshot and additions is cached.additions

    def _store(self, key: CacheKey, cached: CachedResponse) -> None:
        with self._lock:
            self._responses[key] = cached
            while len(self._responses) > _MAX_RESPONSES:
                del self._responses[next(iter(self._responses))]


def _request(app: "WSGIApplication", environ: "WSGIEnvironment") -> Response:
    """Return the complete response of an application."""
    started: list[tuple[str, list[tuple[str, str]]]] = []
    parts: list[bytes] = []

    def start_response(
        status: str, headers: list[tuple[str, str]], _exc_info: "OptExcInfo | None" = None, /
    ) -> Callable[[bytes], object]:
        started.append((status, headers))
        return parts.append

    body = app(environ, start_response)
    try:
        parts.extend(body)
    finally:
        if hasattr(body, "close"):
            body.close()
    return Response(*started[-1], b"".join(parts))


def _encode(response: Response, key: CacheKey) -> Response:
    """Compress the body if the client accepts that, and set the headers that depend on the body."""
    body, headers = response.body, [header for header in response.headers if header[0].lower() != "content-length"]
    headers.append(("Vary", "Accept-Encoding"))
    if key.accepts_gzip and len(body) >= _MIN_GZIP_BYTES:
        body = gzip.compress(body, _GZIP_LEVEL)
        headers.append(("Content-Encoding", "gzip"))
    return Response(response.status, [*headers, ("Content-Length", str(len(body)))], body)


def _add_preload_link(path: str, start_response: "StartResponse") -> "StartResponse":
    """Let the browser fetch the trials of a study while it loads the page's script, which takes as long."""
    page = _STUDY_PAGE.match(path)
    if page is None:
        return start_response

    def start_with_link(
        status: str, headers: list[tuple[str, str]], exc_info: "OptExcInfo | None" = None, /
    ) -> Callable[[bytes], object]:
        # Exactly the URL that optuna-dashboard 0.21 requests: with another one the trials would be fetched twice.
        link = f"</api/studies/{page[1]}?after=0>; rel=preload; as=fetch; crossorigin"
        return start_response(status, [*headers, ("Link", link)], exc_info)

    return start_with_link
