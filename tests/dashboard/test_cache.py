"""How the answers travel: real requests to what serves the dashboard, over a real database."""

import gzip
import io
import json
import threading
import time
from collections.abc import Iterator
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import optuna
import pytest
from optuna.trial import TrialState, create_trial
from optuna_dashboard import wsgi

from hpopt.dashboard import cache, snapshot
from hpopt.dashboard.cache import Answers
from hpopt.dashboard.figures import NOTHING, Publication
from hpopt.dashboard.patches import FIGURE_ID, MAX_STOCK_CURVES
from hpopt.dashboard.snapshot import ShownStudies
from hpopt.storage.database import Database

ALL = "after=0"


def publish_nothing(_look: snapshot.Look) -> Publication:
    return NOTHING


class Page:
    """optuna-dashboard behind Answers, and how often it was asked."""

    def __init__(self, storage: optuna.storages.BaseStorage):
        self.n_made = 0
        self.go_on = threading.Event()
        self.go_on.set()
        self._dashboard = wsgi(storage)
        # The validator holds both sides to the rules of WSGI.
        self._app = validator(Answers(validator(self._make), ShownStudies(storage), publish_nothing))

    def _make(self, environ, start_response):
        self.n_made += 1
        self.go_on.wait(10)
        return self._dashboard(environ, start_response)

    def ask(
        self, path: str, query: str = "", method: str = "GET", body: bytes = b"", **headers: str
    ) -> tuple[str, dict[str, str], bytes]:
        environ = {"REQUEST_METHOD": method, "SCRIPT_NAME": "", "PATH_INFO": path, "QUERY_STRING": query, **headers}
        environ["wsgi.input"] = io.BytesIO(body)
        setup_testing_defaults(environ)
        said: list[tuple[str, dict[str, str]]] = []
        answer = self._app(environ, lambda status, headers, _info=None: said.append((status, dict(headers))))
        try:
            return *said[-1], b"".join(answer)
        finally:
            answer.close()

    def detail(self, path: str) -> dict[str, object]:
        """Ask as a browser does for what the page of a study shows."""
        _, headers, body = self.ask(path, ALL, HTTP_ACCEPT_ENCODING="gzip, br")
        return json.loads(gzip.decompress(body) if headers.get("Content-Encoding") == "gzip" else body)


@pytest.fixture
def storage(database_url: str) -> Iterator[optuna.storages.BaseStorage]:
    database = Database(database_url)
    yield database.optuna
    database.close()


@pytest.fixture
def study(storage: optuna.storages.BaseStorage) -> optuna.Study:
    study = optuna.create_study(study_name="moe-muon", storage=storage)
    study.optimize(lambda trial: trial.suggest_float("learning_rate", 1e-3, 0.3, log=True), n_trials=12)
    return study


@pytest.fixture
def path(study: optuna.Study) -> str:
    return f"/api/studies/{study._study_id}"


@pytest.fixture
def page(storage: optuna.storages.BaseStorage) -> Page:
    return Page(storage)


@pytest.fixture
def nothing_is_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what is asked again at once be asked much later."""
    monkeypatch.setattr(cache, "FRESH_FOR_S", 0.0)


@pytest.fixture
def all_is_settled(nothing_is_fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what has not changed since the last look not have changed for long."""
    monkeypatch.setattr(snapshot, "SETTLED_AFTER_S", 0.0)


def test_what_is_compressed_is_what_would_be_sent_otherwise(
    page: Page, path: str, storage: optuna.storages.BaseStorage
):
    _, plain_headers, plain = page.ask(path, ALL)
    _, headers, compressed = page.ask(path, ALL, HTTP_ACCEPT_ENCODING="gzip")
    assert gzip.decompress(compressed) == plain
    assert (headers["Content-Encoding"], headers["Content-Length"]) == ("gzip", str(len(compressed)))
    assert ("Content-Encoding" in plain_headers, plain_headers["Content-Length"]) == (False, str(len(plain)))
    assert headers["Vary"] == plain_headers["Vary"] == "Accept-Encoding"
    assert len(compressed) < len(plain) / 2


def test_of_a_small_study_everything_is_as_optuna_dashboard_says_it(page: Page, path: str):
    theirs = b"".join(page._dashboard(environ_of(path), lambda *_: None))
    assert page.ask(path, ALL)[2] == theirs


def environ_of(path: str) -> dict[str, object]:
    environ: dict[str, object] = {"PATH_INFO": path, "QUERY_STRING": ALL, "wsgi.input": io.BytesIO()}
    setup_testing_defaults(environ)
    return environ


def test_ten_tabs_at_once_need_one_answer(page: Page, path: str):
    """A browser that was closed opens all its tabs again."""
    page.go_on.clear()
    said: list[bytes] = []
    tabs = [threading.Thread(target=lambda: said.append(page.ask(path, ALL)[2])) for _ in range(10)]
    for tab in tabs:
        tab.start()
    time.sleep(0.5)
    page.go_on.set()
    for tab in tabs:
        tab.join(timeout=10)
    assert page.n_made == 1
    assert len(said) == 10
    assert len(set(said)) == 1
    page.ask(path, ALL)
    assert page.n_made == 2


def test_a_failure_is_told_to_all_who_wait_and_is_forgotten(storage: optuna.storages.BaseStorage, path: str):
    go_on, n_made = threading.Event(), 0

    def fail(_environ, _start_response):
        nonlocal n_made
        n_made += 1
        go_on.wait(10)
        raise OSError("no disk")

    served, failures = Answers(fail, ShownStudies(storage), publish_nothing), []

    def ask() -> None:
        try:
            served(environ_of(path), lambda *_: None)
        except OSError as error:
            failures.append(error)

    tabs = [threading.Thread(target=ask) for _ in range(3)]
    for tab in tabs:
        tab.start()
    time.sleep(0.5)
    go_on.set()
    for tab in tabs:
        tab.join(timeout=10)
    assert (len(failures), n_made) == (3, 1)
    ask()
    assert (len(failures), n_made) == (4, 2)


def test_of_a_study_at_rest_the_same_answer_is_given_until_something_happens(
    page: Page, path: str, study: optuna.Study, all_is_settled: None
):
    """Each of the things that happen must be seen, however they come into the database."""
    first = page.detail(path)
    assert (page.detail(path), page.detail(path)) == (first, first)
    n_made = page.n_made
    assert n_made <= 2
    elsewhere = optuna.load_study(study_name=study.study_name, storage=study._storage._backend.url)
    happenings = (
        lambda: elsewhere.set_user_attr("who", "ada"),
        lambda: elsewhere._storage.set_study_system_attr(study._study_id, "dashboard:note_ver:", 1),
        lambda: elsewhere.ask({"learning_rate": optuna.distributions.FloatDistribution(1e-3, 0.3, log=True)}),
        lambda: elsewhere.tell(12, 0.5),
    )
    for happen in happenings:
        happen()
        page.detail(path)
        n_made += 1
        assert page.n_made == n_made


def test_a_study_is_at_rest_only_when_optuna_dashboard_has_forgotten_what_was_before(
    page: Page, path: str, nothing_is_fresh: None
):
    """It takes the trials of ten seconds ago for new: such an answer must not be kept."""
    for _ in range(3):
        page.detail(path)
    assert page.n_made == 3
    assert snapshot.SETTLED_AFTER_S > 10


def test_running_trials_never_rest(page: Page, path: str, study: optuna.Study, all_is_settled: None):
    study.ask()
    for _ in range(3):
        page.detail(path)
    assert page.n_made == 3


def test_the_page_of_a_study_says_what_it_will_ask_for(page: Page, path: str):
    link = f"<{path}?after=0>; rel=preload; as=fetch; crossorigin"
    for below in ("", "/trials", "/analytics"):
        assert page.ask(path.replace("/api", "/dashboard") + below)[1]["Link"] == link
    for other in ("/dashboard", "/dashboard/studies/new", path):
        assert "Link" not in page.ask(other)[1]


def test_large_studies_get_our_curves(page: Page, path: str, study: optuna.Study):
    for value in range(MAX_STOCK_CURVES + 1):
        study.add_trial(create_trial(state=TrialState.COMPLETE, value=value, intermediate_values={0: 1.0, 1: value}))
    detail = page.detail(path)
    assert [figure["id"] for figure in detail["plotly_graph_objects"]] == [FIGURE_ID]
    assert detail["has_intermediate_values"] is False
    assert detail["trials"][-1]["intermediate_values"] == [{"step": 0, "value": 1.0}, {"step": 1, "value": 200.0}]


@pytest.mark.parametrize("number", ["999", "99999999999999999999"])
def test_a_study_that_is_not_there_is_not_found(page: Page, number: str):
    assert page.ask(f"/api/studies/{number}", ALL)[0].startswith("404")


def test_what_is_deleted_is_gone_at_once(page: Page, path: str):
    for _ in range(3):
        page.detail(path)
    assert page.ask(path, method="DELETE")[0].startswith("204")
    assert page.ask(path, ALL, HTTP_ACCEPT_ENCODING="gzip")[0].startswith("404")


def test_who_waited_for_a_thread_is_given_what_was_just_made(page: Page, path: str, study: optuna.Study):
    """Of ten tabs that ask together only four are heard; the others should not need two more answers."""
    study.ask()
    first = page.detail(path)
    assert page.detail(path) == first
    assert page.n_made == 1


def test_what_was_just_written_is_seen_at_once(page: Page, path: str, study: optuna.Study):
    assert page.detail(path)["note"]["body"] == ""
    note = json.dumps({"body": "Looks good.", "version": 1}).encode()
    length = {"CONTENT_TYPE": "application/json", "CONTENT_LENGTH": str(len(note))}
    assert page.ask(f"{path}/note", method="PUT", body=note, **length)[0].startswith("204")
    assert page.detail(path)["note"]["body"] == "Looks good."
