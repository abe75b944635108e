"""CacheMiddleware in front of optuna-dashboard, over a real database."""

import gzip
import io
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing
from types import SimpleNamespace
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import optuna
import pytest
from optuna.storages import BaseStorage
from optuna.trial import TrialState, create_trial
from optuna_dashboard import wsgi

from hpopt.dashboard import cache
from hpopt.dashboard.cache import CacheMiddleware
from hpopt.dashboard.figures import EMPTY, FiguresAndNotes
from hpopt.dashboard.patches import CURVES_ID, MAX_STOCK_CURVES
from hpopt.dashboard.snapshot import Snapshot, SnapshotReader
from hpopt.storage.database import Database

ALL = "after=0"
PATH = "/api/studies/1"
TIMEOUT_S = 60


def no_additions(_snapshot: Snapshot) -> FiguresAndNotes:
    return EMPTY


class Page:
    """optuna-dashboard behind CacheMiddleware, with a count of the requests that reach optuna-dashboard."""

    def __init__(self, storage: BaseStorage, **options: float):
        self.n_made = 0
        self.may_respond = threading.Event()
        self.may_respond.set()
        self._dashboard = wsgi(storage)
        # The validators hold both sides to PEP 3333.
        self.snapshots = SnapshotReader(storage)
        middleware = CacheMiddleware(validator(self._respond), self.snapshots, no_additions, **options)
        self._app = validator(middleware)

    def _respond(self, environ, start_response):
        self.n_made += 1
        assert self.may_respond.wait(TIMEOUT_S)
        return self._dashboard(environ, start_response)

    def request(
        self, path: str, query: str = "", method: str = "GET", body: bytes = b"", **headers: str
    ) -> tuple[str, dict[str, str], bytes]:
        environ = {"REQUEST_METHOD": method, "SCRIPT_NAME": "", "PATH_INFO": path, "QUERY_STRING": query, **headers}
        environ["wsgi.input"] = io.BytesIO(body)
        setup_testing_defaults(environ)
        started: list[tuple[str, dict[str, str]]] = []
        response = self._app(environ, lambda status, headers, _info=None: started.append((status, dict(headers))))
        try:
            return *started[-1], b"".join(response)
        finally:
            response.close()

    def get_study(self) -> dict[str, object]:
        """Request what the page of the study shows, as a browser does."""
        _, headers, body = self.request(PATH, ALL, HTTP_ACCEPT_ENCODING="gzip, br")
        return json.loads(gzip.decompress(body) if headers.get("Content-Encoding") == "gzip" else body)


@pytest.fixture(scope="module")
def shared_storage(shared_optuna_url: str) -> Iterator[BaseStorage]:
    """A storage for the tests that do not write."""
    with closing(Database(shared_optuna_url)) as database:
        yield database.optuna


@pytest.fixture
def storage(optuna_url: str) -> Iterator[BaseStorage]:
    with closing(Database(optuna_url)) as database:
        yield database.optuna


@pytest.fixture
def study(storage: BaseStorage) -> optuna.Study:
    return optuna.load_study(study_name="moe-muon", storage=storage)


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> threading.Semaphore:
    """Released once by each request that waits for the response to another."""
    semaphore = threading.Semaphore(0)

    class SignalingFuture(Future):
        def result(self, timeout: float | None = None):
            if not self.done():
                semaphore.release()
            return super().result(timeout)

    monkeypatch.setattr(cache, "Future", SignalingFuture)
    return semaphore


def in_threads(n: int, function: Callable[[], None]) -> list[threading.Thread]:
    threads = [threading.Thread(target=function) for _ in range(n)]
    for thread in threads:
        thread.start()
    return threads


def environ_of(path: str) -> dict[str, object]:
    environ: dict[str, object] = {"PATH_INFO": path, "QUERY_STRING": ALL, "wsgi.input": io.BytesIO()}
    setup_testing_defaults(environ)
    return environ


def test_a_compressed_response_has_the_content_of_an_uncompressed_one(shared_storage: BaseStorage):
    page = Page(shared_storage)
    _, plain_headers, plain = page.request(PATH, ALL)
    _, headers, compressed = page.request(PATH, ALL, HTTP_ACCEPT_ENCODING="gzip")
    assert gzip.decompress(compressed) == plain
    assert (headers["Content-Encoding"], headers["Content-Length"]) == ("gzip", str(len(compressed)))
    assert ("Content-Encoding" in plain_headers, plain_headers["Content-Length"]) == (False, str(len(plain)))
    assert headers["Vary"] == plain_headers["Vary"] == "Accept-Encoding"
    assert len(compressed) < len(plain) / 2


def test_the_response_about_a_small_study_is_that_of_optuna_dashboard(shared_storage: BaseStorage):
    page = Page(shared_storage)
    stock = b"".join(page._dashboard(environ_of(PATH), lambda *_: None))
    assert page.request(PATH, ALL)[2] == stock


def test_simultaneous_equal_requests_share_one_response(shared_storage: BaseStorage, waiting: threading.Semaphore):
    """A browser that is reopened loads all its tabs again."""
    page = Page(shared_storage)
    page.may_respond.clear()
    bodies: list[bytes] = []
    tabs = in_threads(10, lambda: bodies.append(page.request(PATH, ALL)[2]))
    for _ in range(9):
        assert waiting.acquire(timeout=TIMEOUT_S)
    page.may_respond.set()
    for tab in tabs:
        tab.join(TIMEOUT_S)
    assert page.n_made == 1
    assert len(bodies) == 10
    assert len(set(bodies)) == 1
    page.request(PATH, ALL)
    assert page.n_made == 2


def test_an_error_is_raised_for_all_waiting_requests_and_not_cached(
    shared_storage: BaseStorage, waiting: threading.Semaphore
):
    may_fail, n_made = threading.Event(), 0

    def fail(_environ, _start_response):
        nonlocal n_made
        n_made += 1
        assert may_fail.wait(TIMEOUT_S)
        raise OSError("no disk")

    middleware, errors = CacheMiddleware(fail, SnapshotReader(shared_storage), no_additions), []

    def request() -> None:
        try:
            middleware(environ_of(PATH), lambda *_: None)
        except OSError as error:
            errors.append(error)

    tabs = in_threads(3, request)
    for _ in range(2):
        assert waiting.acquire(timeout=TIMEOUT_S)
    may_fail.set()
    for tab in tabs:
        tab.join(TIMEOUT_S)
    assert (len(errors), n_made) == (3, 1)
    request()
    assert (len(errors), n_made) == (4, 2)


def test_the_response_about_an_unchanged_study_is_reused_until_a_change(
    storage: BaseStorage, study: optuna.Study, optuna_url: str
):
    """Every kind of change must be noticed, whichever process writes it."""
    page = Page(storage, fresh_for_s=0.0, stable_after_s=0.0)
    first = page.get_study()
    assert (page.get_study(), page.get_study()) == (first, first)
    n_made = page.n_made
    assert n_made <= 2
    elsewhere = optuna.load_study(study_name=study.study_name, storage=optuna_url)
    changes = (
        lambda: elsewhere.set_user_attr("who", "ada"),
        lambda: elsewhere._storage.set_study_system_attr(study._study_id, "dashboard:note_ver:", 1),
        lambda: elsewhere.ask({"learning_rate": optuna.distributions.FloatDistribution(1e-3, 0.3, log=True)}),
        lambda: elsewhere.tell(12, 0.5),
    )
    for change in changes:
        change()
        page.get_study()
        n_made += 1
        assert page.n_made == n_made


def test_a_response_made_before_the_cache_of_optuna_dashboard_has_expired_is_not_reused(
    shared_storage: BaseStorage, monkeypatch: pytest.MonkeyPatch
):
    """It may have been made from trials that were ten seconds old."""
    page = Page(shared_storage)
    snapshot = page.snapshots.read(1)
    assert snapshot is not None
    for after_s, n_made in ((1, 1), (10, 2), (20, 3), (30, 3), (40, 3)):
        clock = SimpleNamespace(monotonic=lambda now_s=snapshot.since_s + after_s: now_s)
        monkeypatch.setattr(cache, "time", clock)
        page.get_study()
        assert page.n_made == n_made


def test_the_response_about_a_study_with_running_trials_is_not_reused(storage: BaseStorage, study: optuna.Study):
    page = Page(storage, fresh_for_s=0.0, stable_after_s=0.0)
    study.ask()
    for _ in range(3):
        page.get_study()
    assert page.n_made == 3


def test_the_page_of_a_study_announces_its_request_for_the_trials(shared_storage: BaseStorage):
    page = Page(shared_storage)
    link = f"<{PATH}?after=0>; rel=preload; as=fetch; crossorigin"
    for below in ("", "/trials", "/analytics"):
        assert page.request(PATH.replace("/api", "/dashboard") + below)[1]["Link"] == link
    for other in ("/dashboard", "/dashboard/studies/new", PATH):
        assert "Link" not in page.request(other)[1]


def test_the_curves_of_a_large_study_are_replaced(storage: BaseStorage, study: optuna.Study):
    study.add_trials(
        create_trial(state=TrialState.COMPLETE, value=value, intermediate_values={0: 1.0, 1: value})
        for value in range(MAX_STOCK_CURVES + 1)
    )
    detail = Page(storage).get_study()
    assert [figure["id"] for figure in detail["plotly_graph_objects"]] == [CURVES_ID]
    assert detail["has_intermediate_values"] is False
    assert detail["trials"][-1]["intermediate_values"] == [{"step": 0, "value": 1.0}, {"step": 1, "value": 200.0}]


@pytest.mark.parametrize("number", ["999", "99999999999999999999"])
def test_an_unknown_study_is_not_found(shared_storage: BaseStorage, number: str):
    assert Page(shared_storage).request(f"/api/studies/{number}", ALL)[0].startswith("404")


def test_a_deleted_study_is_not_found_at_once(storage: BaseStorage):
    page = Page(storage)
    for _ in range(3):
        page.get_study()
    assert page.request(PATH, method="DELETE")[0].startswith("204")
    assert page.request(PATH, ALL, HTTP_ACCEPT_ENCODING="gzip")[0].startswith("404")


def test_a_request_that_waited_for_a_thread_is_answered_with_the_last_response(
    storage: BaseStorage, study: optuna.Study
):
    """Of ten tabs that ask together only four find a thread; the others should not need two more responses."""
    page = Page(storage, fresh_for_s=3600.0)
    study.ask()
    first = page.get_study()
    assert page.get_study() == first
    assert page.n_made == 1


def test_a_write_is_shown_at_once(storage: BaseStorage):
    page = Page(storage, fresh_for_s=3600.0)
    assert page.get_study()["note"]["body"] == ""
    note = json.dumps({"body": "Looks good.", "version": 1}).encode()
    length = {"CONTENT_TYPE": "application/json", "CONTENT_LENGTH": str(len(note))}
    assert page.request(f"{PATH}/note", method="PUT", body=note, **length)[0].startswith("204")
    assert page.get_study()["note"]["body"] == "Looks good."


def test_a_study_without_parameters_has_no_importances(storage: BaseStorage):
    """A comparison has none; optuna-dashboard divides by their number."""
    study = optuna.create_study(storage=storage)
    study.add_trials([create_trial(value=float(i)) for i in range(3)])
    status, _, body = Page(storage).request(f"/api/studies/{study._study_id}/param_importances")
    assert (status, json.loads(body)) == ("200 OK", {"param_importances": [[]]})
