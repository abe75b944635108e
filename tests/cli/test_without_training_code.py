"""A study is read, paused, resumed and stopped without its training code, and answers without what that code prints."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from contextlib import closing
from time import monotonic, sleep

import pytest
import sqlalchemy as sa

from hpopt.storage import studies
from hpopt.storage.database import Database
from hpopt.study.reading import parse_study_file
from hpopt.worker.attempt import WorkerOptions
from hpopt.worker.loop import work

TIMEOUT_S = 90
MODULE = """
from dataclasses import dataclass
from hpopt.training.run import Evaluation

@dataclass(frozen=True)
class C:
    lr: float = 0.1
    max_steps: int = 10
    seed: int = 0

def train(config: C, run):
    for t in range(1, config.max_steps + 1):
        loss = (config.lr - 0.03) ** 2 + 1 / t
        yield Evaluation(step=t, n_steps=config.max_steps, tokens=1, seconds=0.0, metrics={"val_loss": loss})
"""
STUDY = """
name = "st"
objective = "m:train"
[budget]
trials = 6
[search_space]
lr = { low = 1e-3, high = 0.3, log = true }
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with the training code m.py and the study file st.toml, which is the current folder."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "m.py").write_text(MODULE)
    (folder / "st.toml").write_text(STUDY)
    monkeypatch.chdir(folder)
    sys.modules.pop("m", None)
    yield folder
    sys.modules.pop("m", None)


@pytest.fixture
def finished(migrated, migrated_url, project):
    """The command line on a finished study, whose training code has been imported by no command yet."""
    with closing(Database(migrated_url)) as database, pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(project)
        study = studies.create_study(database, parse_study_file(STUDY, "st.toml"))
        work(database, study, WorkerOptions(home=project / ".hpopt", log=lambda _line: None))
    del sys.modules["m"]
    return migrated


@pytest.fixture
def elsewhere(finished, tmp_path, monkeypatch):
    """The command line in a folder from which the training code cannot be imported."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield finished
    assert "m" not in sys.modules


def test_best_status_and_report_need_no_training_code(elsewhere, tmp_path):
    assert "st: best val_loss" in elsewhere.output("best", "st")
    assert elsewhere.output("best", "st", "--format", "args").startswith("--lr ")
    assert "6/6 trials" in elsewhere.output("status", "st")
    assert "6/6" in elsewhere.output("status")
    report = elsewhere("report", "st", "--output", tmp_path / "report")
    assert report.code == 0, report
    assert "m:train" in (tmp_path / "report" / "index.html").read_text()


def test_pause_resume_stop_and_enqueue_need_no_training_code(elsewhere):
    assert "st is paused" in elsewhere.output("pause", "st")
    assert "st is open" in elsewhere.output("resume", "st")
    assert "st is stopped" in elsewhere.output("stop", "st")
    assert elsewhere.output("enqueue", "st", "lr=0.02").startswith("trial 6 is enqueued, but will not run: ")
    assert elsewhere.refused("enqueue", "st", "lr=0.5") == "hpopt: lr: 0.5 is outside 0.001 to 0.3"


def test_the_dashboard_needs_no_training_code(elsewhere):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    dashboard = subprocess.Popen(
        [sys.executable, "-m", "hpopt", "dashboard", "--port", str(port)],
        env={**os.environ, **elsewhere.environment},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        (summary,) = wait_for_studies(port, dashboard)
    finally:
        dashboard.send_signal(signal.SIGTERM)
        _, err = dashboard.communicate(timeout=TIMEOUT_S)
    assert summary["study_name"] == "st"
    assert dashboard.returncode == 0, err


def wait_for_studies(port, dashboard):
    deadline = monotonic() + TIMEOUT_S
    while monotonic() < deadline and dashboard.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/studies", timeout=5) as response:
                return json.load(response)["study_summaries"]
        except OSError:
            sleep(0.05)
    raise AssertionError("the dashboard does not respond")


def test_status_lists_studies_of_unknown_modules(elsewhere, migrated_url):
    """Other users of the database have training code of their own."""
    execute(migrated_url, "update hpopt.study set file = replace(file, 'm:train', 'of_another_user:train')")
    assert "6/6" in elsewhere.output("status")
    assert "st: best val_loss" in elsewhere.output("best", "st")


def test_an_unreadable_study_is_one_line_on_standard_error_and_the_others_are_listed(created, migrated_url, project):
    with closing(Database(migrated_url)) as database, pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(project)
        studies.create_study(database, parse_study_file(STUDY, "st.toml"))
    execute(migrated_url, "update hpopt.study set file = 'nmae = 1' where file like '%m:train%'")
    for options in ([], ["--json"]):
        result = created("status", *options)
        assert result.code == 0
        assert "answer" in result.stdout
        (line,) = result.stderr.splitlines()
        assert line.startswith("hpopt: study 'st': nmae: unknown key")
    (status,) = json.loads(result.stdout)
    assert status["name"] == "answer"


def test_a_finished_study_answers_after_a_field_of_its_config_was_renamed(finished, project):
    (project / "m.py").write_text(MODULE.replace("lr", "rate"))
    assert "st: best val_loss" in finished.output("best", "st")
    assert "6/6 trials" in finished.output("status", "st")
    report = finished("report", "st", "--output", project / "report")
    assert report.code == 0, report


def test_running_a_study_after_a_field_of_its_config_was_renamed_is_refused(finished, project):
    (project / "m.py").write_text(MODULE.replace("lr", "rate"))
    line = finished.refused("run", "st.toml")
    assert line == "hpopt: st.toml: search_space.lr: m:train does not take it; known: max_steps, rate, seed"


BANNER = 'import sys\nprint("Using device: cpu")\nsys.stdout.write("more\\n")\n'


def test_what_the_training_code_prints_is_not_on_standard_output(finished, project):
    """`$(hpopt best st --format args)` becomes part of a command line."""
    (project / "m.py").write_text(BANNER + MODULE)
    assert finished.output("best", "st", "--format", "args").count("\n") == 1
    assert list(json.loads(finished.output("best", "st", "--format", "json"))["params"]) == ["lr"]
    created = finished("create", "st.toml")
    assert created == (0, "st\n", "Using device: cpu\nmore\n")
    del sys.modules["m"]
    checked = finished("check", "st.toml")
    assert (checked.code, checked.stderr) == (0, "Using device: cpu\nmore\n")
    assert checked.stdout.startswith("st: minimize val_loss")
    assert "Using device" not in checked.stdout


@pytest.mark.parametrize("command", ["check", "create", "run"])
@pytest.mark.parametrize(
    ("statement", "error"),
    [
        ('raise SystemExit("no GPU")', "SystemExit: no GPU"),
        ("raise SystemExit", "SystemExit: "),
        ('raise RuntimeError("two\\nlines")', "RuntimeError: two lines"),
    ],
)
def test_training_code_that_cannot_be_imported_is_refused_with_one_line(finished, project, command, statement, error):
    (project / "m.py").write_text(f"{statement}\n{MODULE}")
    line = finished.refused(command, "st.toml")
    assert line == f"hpopt: st.toml: objective: cannot import m: {error}".strip()


def execute(url, statement):
    with closing(Database(url)) as database, database.begin() as connection:
        connection.execute(sa.text(statement))
