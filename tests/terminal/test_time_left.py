"""The time left follows from the durations of trials and from the workers that are at work."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from hpopt.storage.progress import BudgetUsage, Progress, WorkerRow
from hpopt.study.file import Budget
from hpopt.terminal.time_left import seconds_left

TRIALS = Budget(trials=9)
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


def worker(worker_id, seconds=None, *, is_stale=False):
    """Return a worker whose trial has run for some seconds, or one between two trials."""
    running = {"trial": worker_id, "attempt_number": 1, "trial_started_at": NOON, "trial_device_seconds": 0.0}
    evaluated = dict.fromkeys(("step", "tokens", "value", "tokens_per_second"))
    return WorkerRow(
        worker_id=worker_id,
        host="here",
        pid=1,
        engine="local",
        job=None,
        device="cpu",
        started_at=NOON,
        device_seconds=0.0,
        seconds_since_heartbeat=1.0,
        is_stale=is_stale,
        seconds=seconds,
        **(dict.fromkeys(running) if seconds is None else running),
        **evaluated,
    )


def progress(*workers, finished=(), **changes):
    usage = BudgetUsage(
        state="open",
        state_reason=None,
        n_finished=len(finished),
        n_running=len(workers),
        n_pending_retry=0,
        n_enqueued=0,
        device_hours=0.5,
        wall_hours=0.25,
        best_value=None,
    )
    return Progress(
        name="small",
        metric="val_loss",
        state_since=NOON,
        planned_trials=9,
        n_steps=90,
        finished_reason=None,
        usage=replace(usage, **changes),
        n_by_outcome={},
        tokens=0,
        workers=workers,
        best=None,
        default_value=None,
        recent_seconds=finished,
    )


def test_the_remaining_trials_are_shared_by_the_workers_at_work():
    """Two trials run for 30 more seconds; of the two others each worker runs one, or one worker both."""
    finished = (60.0,) * 5
    two = progress(worker(1, 30.0), worker(2, 30.0), finished=finished)
    assert seconds_left(two, TRIALS) == pytest.approx(30 + 60)
    one = progress(worker(1, 30.0), finished=finished)
    assert seconds_left(one, TRIALS) == pytest.approx(30 + 3 * 60)
    last = replace(progress(worker(1, 30.0), worker(2), finished=finished), planned_trials=6)
    assert seconds_left(last, TRIALS) == pytest.approx(30)


def test_running_trials_count_as_longer_than_they_have_run_so_far():
    """Of 6 trials 5 were pruned at 10 s, and one has run for 40: it takes 40 more, and others 10 + (30 + 40) / 6."""
    now = progress(worker(1, 40.0), finished=(10.0,) * 5)
    assert seconds_left(now, TRIALS) == pytest.approx(40 + 3 * (10 + 70 / 6))


@pytest.mark.parametrize(
    "workers", [(), (worker(1),), (worker(1, 30.0, is_stale=True),)], ids=["none", "between trials", "expired"]
)
def test_no_time_is_given_while_no_worker_runs_a_trial(workers):
    hours = Budget(trials=9, wall_hours=1.0, gpu_hours=1.0)
    assert seconds_left(progress(*workers, finished=(60.0,) * 5), hours) is None


def test_no_time_is_given_for_a_paused_study_or_from_few_trials():
    assert seconds_left(progress(worker(1, 30.0), finished=(60.0,) * 5, state="paused"), TRIALS) is None
    assert seconds_left(progress(worker(1, 30.0), finished=(60.0,) * 4), TRIALS) is None
    many = [worker(i, 30.0) for i in range(6)]
    assert seconds_left(progress(*many, finished=(60.0,) * 5), TRIALS) is None


def test_the_time_left_ends_with_the_first_limit_in_hours():
    now = progress(worker(1, 0.0), worker(2, 0.0), finished=(9000.0,) * 5)
    assert seconds_left(now, Budget(trials=9, wall_hours=1.0)) == pytest.approx(0.75 * 3600)
    assert seconds_left(now, Budget(trials=9, gpu_hours=1.0)) == pytest.approx(0.25 * 3600)
    assert seconds_left(now, Budget(wall_hours=0.1)) == 0
