"""Owns how the dashboard's answers travel: early, made once for all who ask alike, compressed.

Leaves what they say to optuna-dashboard, curves.py and publishing.py, and who may ask to gate.py.
"""

import gzip
import re
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import TYPE_CHECKING, NamedTuple

from hpopt.dashboard.figures import Publication
from hpopt.dashboard.patches import redraw_curves
from hpopt.dashboard.snapshot import Look, ShownStudies
from hpopt.dashboard.study_answer import put_in

if TYPE_CHECKING:
    from _typeshed import OptExcInfo
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

# Below, compressing saves no packet.
_MIN_GZIP_BYTES = 1_000
# Three quarters of the time of the default, for a tenth more bytes.
_GZIP_LEVEL = 4
# Each is a megabyte or two, of a study of thousands of trials.
_N_KEPT = 8
# Tabs that ask together wait for one of the server's few threads in turn. optuna-dashboard's own memory is longer.
FRESH_FOR_S = 1.0
_STUDY_PAGE = re.compile(r"/dashboard/studies/(\d+)(/|$)")
_STUDY = re.compile(r"/api/studies/(\d+)")


class Answer(NamedTuple):
    """A whole answer."""

    status: str
    headers: list[tuple[str, str]]
    body: bytes


class Question(NamedTuple):
    """What an answer depends on besides the database."""

    path: str
    query: str
    takes_gzip: bool


class Kept(NamedTuple):
    """An answer, when it was made, how the study looked then and what of ours was in it."""

    answer: Answer
    made_s: float
    look: Look
    publication: Publication

    def holds(self, look: Look | None, publication: Publication | None) -> bool:
        """Say whether it would be made alike."""
        return look is self.look and look.is_settled and publication is self.publication


class Answers:
    """optuna-dashboard with answers that come sooner, as a WSGI application.

    The page of a study is told at once what it will ask for, before it has read its program. What several ask for at
    the same time is made once: a browser that opens ten tabs again needs one. An answer about a study in which nothing
    has happened since is given again. Whoever writes by this dashboard makes it forget all of them.
    """

    def __init__(
        self, dashboard: "WSGIApplication", studies: ShownStudies, publish: Callable[[Look], Publication]
    ) -> None:
        self._dashboard = dashboard
        self._studies = studies
        self._publish = publish
        self._lock = threading.Lock()
        self._being_made: dict[Question, Future[Answer]] = {}
        self._kept: dict[Question, Kept] = {}

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Answer a request."""
        if environ["REQUEST_METHOD"] != "GET":
            try:
                return self._dashboard(environ, start_response)
            finally:
                with self._lock:
                    self._kept.clear()
        if not environ["PATH_INFO"].startswith("/api/"):
            return self._dashboard(environ, _announcing(environ["PATH_INFO"], start_response))
        answer = self._share(environ)
        start_response(answer.status, answer.headers)
        return [answer.body]

    def _share(self, environ: "WSGIEnvironment") -> Answer:
        """Make an answer, or wait for the one that is being made."""
        takes_gzip = "gzip" in environ.get("HTTP_ACCEPT_ENCODING", "")
        question = Question(environ["PATH_INFO"], environ.get("QUERY_STRING", ""), takes_gzip)
        with self._lock:
            others = self._being_made.get(question)
            if others is None:
                ours = self._being_made[question] = Future[Answer]()
        if others is not None:
            return others.result()
        try:
            ours.set_result(self._find(question, environ))
        except BaseException as error:
            ours.set_exception(error)
            raise
        finally:
            with self._lock:
                del self._being_made[question]
        return ours.result()

    def _find(self, question: Question, environ: "WSGIEnvironment") -> Answer:
        """Give the answer of the last time if it still holds."""
        before = self._kept.get(question)
        if before is not None and time.monotonic() - before.made_s < FRESH_FOR_S:
            return before.answer
        study = _STUDY.fullmatch(question.path)
        look = None if study is None else self._studies.look(int(study[1]))
        publication = None if look is None else self._publish(look)
        if before is not None and before.holds(look, publication):
            return before.answer
        answer = _collect(self._dashboard, environ)
        if look is None or publication is None or not answer.status.startswith("200 "):
            return _finish(answer, question)
        body = put_in(redraw_curves(answer.body, look.trials, look.study.directions), publication.figures)
        answer = _finish(answer._replace(body=body), question)
        if question.takes_gzip:
            self._keep(question, Kept(answer, time.monotonic(), look, publication))
        return answer

    def _keep(self, question: Question, kept: Kept) -> None:
        with self._lock:
            self._kept[question] = kept
            while len(self._kept) > _N_KEPT:
                del self._kept[next(iter(self._kept))]


def _collect(app: "WSGIApplication", environ: "WSGIEnvironment") -> Answer:
    """Ask an application and wait for all that it says."""
    begun: list[tuple[str, list[tuple[str, str]]]] = []
    parts: list[bytes] = []

    def start(
        status: str, headers: list[tuple[str, str]], _exc_info: "OptExcInfo | None" = None, /
    ) -> Callable[[bytes], object]:
        begun.append((status, headers))
        return parts.append

    said = app(environ, start)
    try:
        parts.extend(said)
    finally:
        if hasattr(said, "close"):
            said.close()
    return Answer(*begun[-1], b"".join(parts))


def _finish(answer: Answer, question: Question) -> Answer:
    body, headers = answer.body, [header for header in answer.headers if header[0].lower() != "content-length"]
    headers.append(("Vary", "Accept-Encoding"))
    if question.takes_gzip and len(body) >= _MIN_GZIP_BYTES:
        body = gzip.compress(body, _GZIP_LEVEL)
        headers.append(("Content-Encoding", "gzip"))
    return Answer(answer.status, [*headers, ("Content-Length", str(len(body)))], body)


def _announcing(path: str, start_response: "StartResponse") -> "StartResponse":
    """Let the browser fetch the trials of a study while it still reads the page's program, which takes as long."""
    page = _STUDY_PAGE.match(path)
    if page is None:
        return start_response

    def start(
        status: str, headers: list[tuple[str, str]], exc_info: "OptExcInfo | None" = None, /
    ) -> Callable[[bytes], object]:
        # It is the very address that optuna-dashboard 0.21 asks for; another one would be fetched twice.
        link = f"</api/studies/{page[1]}?after=0>; rel=preload; as=fetch; crossorigin"
        return start_response(status, [*headers, ("Link", link)], exc_info)

    return start
