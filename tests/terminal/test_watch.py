"""A running study is followed in lines where there is no terminal, and its end is estimated from its pace."""

import io
import threading
from collections.abc import Iterator

import pytest
from rich.console import Console

from hpopt.analysis.trials import Outcome
from hpopt.storage import attempts, control, studies
from hpopt.storage.database import Database
from hpopt.study.reading import parse_study_file
from hpopt.terminal import watch as watch_module
from hpopt.terminal.watch import has_work, watch

STUDY = """
name = "small"
[budget]
trials = 3
[search_space]
momentum = { low = 0.8, high = 0.99 }
"""


@pytest.fixture
def database(migrated_url: str) -> Iterator[Database]:
    database = Database(migrated_url)
    yield database
    database.close()


@pytest.fixture
def study(database, monkeypatch):
    monkeypatch.setattr(watch_module, "_EVERY_S", 0.01)
    return studies.create_study(database, parse_study_file(STUDY, "small.toml"))


def finish_trial(database, study, outcome=Outcome.COMPLETE, value=None):
    worker_id = attempts.register_worker(database, study, host="here", pid=1, device="cpu")
    attempt = attempts.reserve(database, study, worker_id)
    attempts.start(database, study, attempt, {"momentum": 0.9}, seed=7, config={}, data_fingerprint=None)
    attempts.finish(database, attempt, outcome, value=value, reason="no data" if value is None else None)


def followed(database, study, *events):
    """Return the lines that follow a study in which one event happens between two lines, until the last one."""
    console = Console(file=io.StringIO(), width=60)
    remaining = list(events)

    def is_running():
        if remaining:
            remaining.pop(0)()
        return bool(remaining)

    watch(database, study, console, threading.Event(), is_running)
    return console.file.getvalue().splitlines()


def test_each_finished_trial_is_one_line_with_the_best_so_far(database, study):
    lines = followed(
        database,
        study,
        lambda: finish_trial(database, study, value=3.25),
        lambda: None,
        lambda: finish_trial(database, study, Outcome.FAILED),
    )
    assert lines == [
        "[1/3] trial   0  complete  val_loss 3.2500  0 s  best 3.2500",
        "[2/3] trial   1  failed    0 s  (no data)  best 3.2500",
    ]


def test_trials_that_had_finished_before_are_counted_and_not_shown(database, study):
    finish_trial(database, study, value=3.25)
    lines = followed(database, study, lambda: finish_trial(database, study, value=2.0), lambda: None)
    assert lines[0] == "small continues: 1 finished trial"
    assert lines[1].startswith("[2/3] trial   1  complete  val_loss 2.0000")
    assert len(lines) == 2


def test_a_pause_and_a_resume_are_one_line_each(database, study):
    lines = followed(
        database,
        study,
        lambda: control.pause(database, study, "nodes are needed"),
        lambda: None,
        lambda: control.resume(database, study),
        lambda: None,
    )
    assert lines == [
        "study 'small' is paused: nodes are needed; `hpopt resume small` resumes it",
        "small was resumed",
    ]


def test_workers_have_work_unless_the_study_is_paused_or_has_finished(database, study):
    assert has_work(database, study)
    control.pause(database, study)
    assert not has_work(database, study)
    control.resume(database, study)
    for _ in range(3):
        finish_trial(database, study, value=1.0)
    assert not has_work(database, study)


def test_workers_may_have_work_while_the_database_is_unreachable(study):
    """They wait for the database too."""
    assert has_work(Database("postgresql://me@127.0.0.1:1/nowhere"), study)
