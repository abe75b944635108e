"""The status of a study is shown completely at any width, and its state is described in one line."""

import io
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console

from hpopt.analysis.trials import Outcome
from hpopt.storage.progress import Best, BudgetUsage, Enqueued, FinishedTrial, Progress, StudyState, WorkerRow
from hpopt.terminal.status import (
    describe_enqueued,
    describe_pause,
    describe_state,
    render_overview,
    render_status,
)

LONG_NAME = "moe-muon-learning-rate-and-warmup-on-the-standard-library-2026-with-replicates"
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
WIDTHS = [40, 60, 80, 120, 1000]


def usage(**changes):
    counts = {"n_finished": 13, "n_running": 2, "n_pending_retry": 0, "n_enqueued": 0, "best_value": None}
    hours = {"device_hours": 1.5, "wall_hours": 1.0}
    return BudgetUsage(**{"state": "open", "state_reason": None, **counts, **hours, **changes})


def worker(worker_id, **changes):
    """Return a worker between two trials."""
    of_its_trial = (
        *("trial", "attempt_number", "trial_started_at", "seconds", "trial_device_seconds"),
        *("step", "tokens", "value", "tokens_per_second"),
    )
    fields = {
        "host": "node3",
        "pid": 1,
        "engine": "local",
        "job": None,
        "device": "cuda",
        "started_at": NOON,
        "device_seconds": 0.0,
        "seconds_since_heartbeat": 1.0,
        "is_stale": False,
    }
    return WorkerRow(worker_id=worker_id, **{**dict.fromkeys(of_its_trial), **fields, **changes})


TRAINING = {
    "trial": 7,
    "attempt_number": 2,
    "trial_started_at": NOON,
    "seconds": 125.0,
    "trial_device_seconds": 300.0,
}
EVALUATED = {"step": 120, "tokens": 1000, "value": 3.25, "tokens_per_second": 5600.0}


def progress(*workers, name="small", planned_trials=40, finished_reason=None, best=None, **changes):
    return Progress(
        name=name,
        metric="val_loss",
        state_since=NOON,
        planned_trials=planned_trials,
        n_steps=90,
        finished_reason=finished_reason,
        usage=usage(**changes),
        n_by_outcome={},
        tokens=0,
        workers=workers,
        best=best,
        default_value=None,
    )


BEST = Best(
    study_name="small",
    value=3.25,
    value_low=None,
    value_high=None,
    n_seeds=1,
    source="search",
    params={"learning_rate": 0.02, "optimizer": "muon"},
    trial=7,
    finished_at=NOON,
)


def text_of(renderable, width=1000):
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    text = console.file.getvalue()
    assert max(len(line) for line in text.splitlines()) <= width
    return text


def joined(text):
    """Return a text without spaces and line breaks."""
    return "".join(text.split())


def test_names_values_and_reasons_with_line_feeds_of_other_programs_are_shown_on_one_line():
    best = replace(BEST, params={"a\nb": "c\nd"})
    paused = progress(name="x\ny", state="paused", state_reason="first\nsecond", best=best)
    failed = FinishedTrial(
        trial=1, outcome=Outcome.FAILED, value=None, reason="e\nf", device_seconds=1.0, finished_at=NOON
    )
    overview, status = text_of(render_overview([paused])), text_of(render_status(paused, [failed], None))
    assert len(text_of(render_overview([progress()])).splitlines()) == len(overview.splitlines())
    assert "first second" in overview
    for words in ("is paused: first second;", r"a\nb=c\nd", "(e f)"):
        assert words in status


@pytest.mark.parametrize("width", WIDTHS)
def test_no_width_cuts_a_name_or_a_reason(width):
    reason = "5 trials in a row failed: RuntimeError: CUDA error: an illegal memory access was encountered"
    paused = progress(name=LONG_NAME, state="paused", state_reason=reason)
    for renderable in (render_overview([paused, progress()]), render_status(paused, [], None)):
        text = text_of(renderable, width)
        assert LONG_NAME in joined(text)
        # Cells of a table stand between the words of a reason that wraps.
        assert all(word in text for word in reason.split())
        assert "paused" in text


@pytest.mark.parametrize("width", WIDTHS)
def test_workers_are_shown_with_their_trials_at_any_width(width):
    text = text_of(render_status(progress(worker(12, **TRAINING, **EVALUATED)), [], None), width)
    parts = ("12@node3", "cuda", "7(attempt2)", "120", "3.2500", "5,600", "2min05s", "5min00s", "1h30min")
    assert [part for part in parts if part not in joined(text)] == []


@pytest.mark.parametrize("width", WIDTHS)
def test_a_metric_with_braces_is_shown_at_any_width(width):
    shown = replace(progress(worker(12, **TRAINING, **EVALUATED)), metric="acc@{k} [{}]")
    assert "acc@{k}[{}]" in joined(text_of(render_status(shown, [], None), width))


@pytest.mark.parametrize("width", WIDTHS)
def test_workers_of_an_engine_are_shown_with_their_jobs(width):
    of_slurm = worker(12, engine="slurm", job="41_7", **TRAINING)
    assert "slurm41_7" in joined(text_of(render_status(progress(of_slurm, worker(13)), [], None), width))
    assert "job" not in text_of(render_status(progress(worker(13)), [], None), width)


@pytest.mark.parametrize("width", [60, 120])
def test_a_worker_whose_heartbeat_expired_is_red_with_the_age_of_the_heartbeat(width):
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system="standard")
    stale = worker(13, is_stale=True, seconds_since_heartbeat=70.0)
    console.print(render_status(progress(worker(12, **TRAINING), stale), [], None))
    (line,) = (line for line in console.file.getvalue().splitlines() if "13@node3" in line)
    assert "no heartbeat for 1 min 10 s" in line
    assert "\x1b[31m" in line
    (line,) = (line for line in console.file.getvalue().splitlines() if "12@node3" in line)
    assert "\x1b[31m" not in line


def test_the_overview_counts_the_expired_heartbeats():
    workers = (worker(12), worker(13, is_stale=True, seconds_since_heartbeat=70.0))
    assert "running, 1 of 2 heartbeats expired" in text_of(render_overview([progress(*workers)]))
    assert "expired" not in text_of(render_overview([progress(worker(12))]))


@pytest.mark.parametrize(
    ("study", "state"),
    [
        (progress(), "waiting for workers"),
        (progress(worker(12)), "running"),
        (progress(state="paused", state_reason="manually"), "paused: manually"),
        (progress(state="stopped", state_reason="manually"), "stopped: manually"),
        (progress(finished_reason="trials budget exhausted (40)"), "trials budget exhausted (40)"),
    ],
)
def test_the_overview_shows_the_state_of_each_study(study, state):
    line = next(line for line in text_of(render_overview([study])).splitlines() if "small" in line)
    assert line.split()[:2] == ["small", "13/40"]
    assert line.rstrip().endswith(state)


def test_trials_that_wait_are_shown_and_each_duration_is_named():
    waiting = progress(n_enqueued=2, n_pending_retry=1)
    (line, *_) = text_of(render_status(waiting, [], None)).splitlines()
    assert line == "small  13/40 trials, 3 waiting  wall time 1 h 00 min  device time 1 h 30 min"
    assert "waiting" not in text_of(render_status(progress(), [], None))
    (row,) = (line for line in text_of(render_overview([waiting])).splitlines() if "small" in line)
    assert row.split()[:4] == ["small", "13/40", "2", "3"]


def test_the_time_left_is_not_estimated_while_a_study_is_paused():
    assert "about 1 min 00 s left" in text_of(render_status(progress(), [], 60.0))
    assert "left" not in text_of(render_status(progress(state="paused", state_reason="manually"), [], 60.0))


def test_a_paused_study_is_shown_with_reason_time_and_remedy():
    text = text_of(render_status(progress(state="paused", state_reason="manually"), [], None))
    since = f"{NOON.astimezone():%Y-%m-%d %H:%M}"
    assert f"study 'small' is paused: manually; `hpopt resume small` resumes it (since {since})" in text


def test_a_finished_study_is_shown_without_its_workers():
    text = text_of(render_status(progress(worker(12), finished_reason="target 2 reached"), [], None))
    assert "target 2 reached" in text
    assert "node3" not in text


def test_the_best_trial_and_the_last_finished_ones_are_shown():
    failed = FinishedTrial(
        trial=8,
        outcome=Outcome.FAILED,
        value=None,
        reason="RuntimeError: no data",
        device_seconds=12.0,
        finished_at=NOON + timedelta(minutes=1),
    )
    text = text_of(render_status(progress(best=BEST), [failed], None))
    assert "best val_loss 3.2500 in trial 7: learning_rate=0.02  optimizer=muon" in text
    assert "trial   8  failed    12 s  (RuntimeError: no data)" in text
    assert "no trial has completed yet" in text_of(render_status(progress(), [], None))


@pytest.mark.parametrize(
    ("state", "n_running", "line"),
    [
        ("paused", 0, "small is paused; no trial is running, workers wait"),
        ("paused", 1, "small is paused; its running trial returns to the queue with its checkpoint, workers wait"),
        ("paused", 3, "small is paused; 3 running trials return to the queue with their checkpoints, workers wait"),
        ("stopped", 0, "small is stopped; no trial is running, workers exit"),
        ("stopped", 1, "small is stopped; its running trial ends at its next evaluation, workers exit"),
        ("stopped", 2, "small is stopped; 2 running trials end at their next evaluation, workers exit"),
        ("open", 0, "small is open; no trial is running"),
        ("open", 1, "small is open; 1 trial is running"),
        ("open", 2, "small is open; 2 trials are running"),
    ],
)
def test_a_changed_state_is_described_with_the_trials_that_it_concerns(state, n_running, line):
    assert describe_state("small", state_of(state, n_running=n_running)) == line


def state_of(state, n_running=0, n_pending_retry=0, n_failed=0):
    counts = {"n_running": n_running, "n_pending_retry": n_pending_retry, "n_failed": n_failed}
    return StudyState(state=state, reason=None, since=datetime.now(UTC), **counts)


@pytest.mark.parametrize(("n", "trials"), [(1, "1 trial"), (3, "3 trials")])
def test_an_opened_study_is_described_with_the_trials_to_be_retried(n, trials):
    line = describe_state("small", state_of("open", n_pending_retry=n))
    assert line == f"small is open; no trial is running, {trials} to be retried first"
    for state, words in (("paused", "workers wait"), ("stopped", "workers exit")):
        line = describe_state("small", state_of(state, n_pending_retry=n))
        assert line.endswith(f"{words}; `hpopt resume small` retries {trials}")


def test_an_opened_study_is_described_with_the_command_that_runs_failed_trials_again():
    line = describe_state("small", state_of("open", n_failed=5))
    assert line == "small is open; no trial is running; `hpopt retry small --failed` runs 5 failed trials again"


@pytest.mark.parametrize(
    ("state", "sampled", "n_ahead", "blocked_by", "line"),
    [
        ("open", [], 0, None, "trial 4 is enqueued; it is tried next"),
        ("open", [], 1, None, "trial 4 is enqueued; it is tried after 1 waiting trial"),
        ("open", [], 2, None, "trial 4 is enqueued; it is tried after 2 waiting trials"),
        ("open", ["momentum", "depth"], 0, None, "trial 4 is enqueued; it is tried next; sampled: momentum, depth"),
        ("paused", [], 0, None, "trial 4 is enqueued; it is tried next; small is paused: `hpopt resume small`"),
        (
            "open",
            [],
            0,
            "trials budget exhausted (4)",
            (
                "trial 4 is enqueued, but will not run: trials budget exhausted (4); change the budget in the study"
                " file and run `hpopt create FILE`"
            ),
        ),
        (
            "stopped",
            [],
            0,
            "target 2 reached",
            (
                "trial 4 is enqueued, but will not run: target 2 reached; change the budget in the study file and run"
                " `hpopt create FILE`, and run `hpopt resume small`"
            ),
        ),
    ],
)
def test_an_enqueued_configuration_is_described_with_when_it_is_tried(state, sampled, n_ahead, blocked_by, line):
    added = Enqueued(trials=(4,), is_new=True, n_ahead=n_ahead, blocked_by=blocked_by)
    assert describe_enqueued("small", state, sampled, added) == line


def test_enqueued_repetitions_are_described_with_their_numbers_and_seeds():
    added = Enqueued(trials=(4, 5, 6), seeds=(1, 2, 4), is_new=True)
    line = describe_enqueued("small", "open", [], added)
    assert line == "trials 4, 5 and 6 are enqueued with seeds 1, 2 and 4; they are tried next"


def test_a_pause_is_described_with_the_command_that_ends_it():
    assert describe_pause("small", "manually") == "study 'small' is paused: manually; `hpopt resume small` resumes it"
    line = describe_pause("small", "broken", n_failed=5)
    assert "broken; `hpopt retry small --failed` requeues 5 failed trials, `hpopt resume small` resumes it" in line
