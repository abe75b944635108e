"""Where a study stands is told whole, whatever the width of the terminal."""

import io
from datetime import UTC, datetime

import pytest
from rich.console import Console

from hpopt.storage.progress import BudgetUsage, Progress, WorkerRow
from hpopt.terminal.status import overview, standing, state_line

LONG_NAME = "moe-muon-learning-rate-and-warmup-on-the-standard-library-2026-with-replicates"
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


def books(**changed):
    counts = {"n_finished": 13, "n_running": 2, "n_waiting": 0, "best_value": None}
    hours = {"device_hours": 1.5, "wall_hours": 1.0, "active_hours": 1.0}
    return BudgetUsage(**{"state": "open", "state_reason": None, **counts, **hours, **changed})


def worker(worker_id, **changed):
    idle = dict.fromkeys(
        ("trial", "go", "trial_started_at", "seconds", "trial_device_seconds", "step", "tokens", "value")
    )
    about = {
        "host": "node3",
        "pid": 1,
        "engine": "local",
        "job": None,
        "device": "cuda",
        "started_at": NOON,
        "device_seconds": 0.0,
    }
    silence = {"seconds_since_heartbeat": 1.0, "is_stale": False, "tokens_per_second": None}
    return WorkerRow(worker_id=worker_id, **{**idle, **about, **silence, **changed})


TRAINING = {"trial": 7, "go": 2, "trial_started_at": NOON, "seconds": 125.0, "trial_device_seconds": 300.0}
EVALUATED = {"step": 120, "tokens": 1000, "value": 3.25, "tokens_per_second": 5600.0}


def progress(*workers, name="small", **changed):
    return Progress(
        name=name,
        metric="val_loss",
        state_since=NOON,
        planned_trials=40,
        over=None,
        books=books(**changed),
        n_by_outcome={},
        tokens=0,
        workers=workers,
        best=None,
        default_value=None,
    )


def drawn(renderable, width):
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    text = console.file.getvalue()
    assert max(len(line) for line in text.splitlines()) <= width
    return text


def words(text):
    """Give a text without the line breaks of its drawing."""
    return "".join(text.split())


@pytest.mark.parametrize("width", [40, 60, 80, 120, 1000])
def test_no_width_cuts_a_name_or_a_reason(width):
    reason = "5 trials in a row failed: RuntimeError: CUDA error: an illegal memory access was encountered"
    paused = progress(name=LONG_NAME, state="paused", state_reason=reason)
    for drawing in (overview([paused, progress()]), standing(paused, [], None)):
        text = drawn(drawing, width)
        assert LONG_NAME in words(text)
        # The cells of a table stand between the words of a reason that is folded in it.
        assert all(word in text for word in reason.split())
        assert "paused" in text


@pytest.mark.parametrize("width", [40, 60, 80, 120, 1000])
def test_who_works_on_what_is_told_at_any_width(width):
    text = drawn(standing(progress(worker(12, **TRAINING, **EVALUATED)), [], None), width)
    for told in ("12@node3", "cuda", "7(go2)", "120", "3.2500", "5,600", "2min05s", "5min00s", "1h30min"):
        assert told in words(text)


@pytest.mark.parametrize("width", [40, 60, 80, 120, 1000])
def test_workers_of_an_engine_are_told_with_their_jobs(width):
    text = drawn(standing(progress(worker(12, engine="slurm", job="41_7", **TRAINING), worker(13)), [], None), width)
    assert "slurm41_7" in words(text)
    assert "job" not in drawn(standing(progress(worker(13)), [], None), width)


@pytest.mark.parametrize("width", [60, 120])
def test_a_silent_worker_is_told_and_red(width):
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system="standard")
    console.print(
        standing(progress(worker(12, **TRAINING), worker(13, is_stale=True, seconds_since_heartbeat=70.0)), [], None)
    )
    (line,) = (line for line in console.file.getvalue().splitlines() if "13@node3" in line)
    assert "silent for 1 min 10 s" in line
    assert "\x1b[31m" in line
    (line,) = (line for line in console.file.getvalue().splitlines() if "12@node3" in line)
    assert "\x1b[31m" not in line


def test_the_time_left_is_not_guessed_while_a_study_is_paused():
    assert "left" in drawn(standing(progress(), [], 60.0), 80)
    assert "left" not in drawn(standing(progress(state="paused", state_reason="by hand"), [], 60.0), 80)


@pytest.mark.parametrize(
    ("state", "n_running", "line"),
    [
        ("paused", 1, "small is paused; its running trial is handed back with its checkpoint, workers wait"),
        ("paused", 3, "small is paused; 3 running trials are handed back with their checkpoints, workers wait"),
        ("stopped", 1, "small is stopped; its running trial ends at its next evaluation, workers leave"),
        ("stopped", 2, "small is stopped; 2 running trials end at their next evaluation, workers leave"),
        ("open", 1, "small is open; 1 trial is running"),
        ("open", 2, "small is open; 2 trials are running"),
    ],
)
def test_a_study_that_is_turned_says_how_many_trials_that_concerns(state, n_running, line):
    assert state_line("small", state, n_running=n_running, n_pending_retry=0) == line
