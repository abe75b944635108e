"""Estimate how long a study still runs, from the durations of its trials and the workers that are at work."""

import heapq
from collections.abc import Sequence

from hpopt.storage.progress import Progress, WorkerRow
from hpopt.study.file import Budget

# The durations of fewer finished trials, or of less than one for each worker, say little.
_MIN_TRIALS = 5


def seconds_left(progress: Progress, budget: Budget) -> float | None:
    """Estimate the seconds to the end of the study with its present workers.

    Return None while no worker runs a trial, and while there is too little to tell. A target can end a study sooner.
    """
    workers = [worker for worker in progress.workers if not worker.is_stale]
    running = [worker for worker in workers if worker.trial is not None]
    if not running or progress.usage.state != "open" or progress.finished_reason is not None:
        return None
    estimates = []
    if progress.planned_trials is not None and progress.usage.n_finished >= max(_MIN_TRIALS, len(workers)):
        estimates.append(_schedule(progress, progress.planned_trials, workers))
    if budget.wall_hours is not None:
        estimates.append(3600 * (budget.wall_hours - progress.usage.wall_hours))
    if budget.gpu_hours is not None:
        estimates.append(3600 * (budget.gpu_hours - progress.usage.device_hours) / len(running))
    return max(0.0, min(estimates)) if estimates else None


def _schedule(progress: Progress, n_trials: int, workers: Sequence[WorkerRow]) -> float:
    """Return when the last of the remaining trials ends, each started by the first worker that is free."""
    elapsed = {worker.worker_id: _elapsed(worker) for worker in workers if worker.trial is not None}

    def expect(after: float) -> float:
        return _expect(progress.recent_seconds, list(elapsed.values()), after)

    free_at = [expect(elapsed[one.worker_id]) if one.worker_id in elapsed else 0.0 for one in workers]
    heapq.heapify(free_at)
    seconds = expect(0.0)
    for _ in range(n_trials - progress.usage.n_finished - len(elapsed)):
        heapq.heapreplace(free_at, free_at[0] + seconds)
    return max(free_at)


def _elapsed(worker: WorkerRow) -> float:
    """Return how long the trial of a worker has run in all of its attempts, as far as heartbeats say."""
    return max(worker.seconds or 0.0, worker.trial_device_seconds or 0.0)


def _expect(finished: Sequence[float], running: Sequence[float], elapsed: float) -> float:
    """Return the mean time that a trial still takes after `elapsed`, from the durations of finished and running ones.

    A running trial takes longer than it has so far, and where many are pruned, those that finish first are the short
    ones: this is the mean of the distribution of Kaplan and Meier 1958. One that has run for longer than any finished
    trial is expected to take as long again.
    """
    ends = sorted([(seconds, True) for seconds in finished] + [(seconds, False) for seconds in running])
    mean, share, before = 0.0, 1.0, elapsed
    n_left = sum(seconds > elapsed for seconds, _ in ends)
    for seconds, is_finished in ends:
        if seconds <= elapsed:
            continue
        mean += share * (seconds - before)
        before = seconds
        share *= (n_left - 1) / n_left if is_finished else 1.0
        n_left -= 1
    is_longest = max(running, default=0.0) > max(finished)
    return mean + share * max(running) if is_longest else mean
