"""Owns following a running study: a live table on a terminal, plain lines elsewhere. Leaves drawing to report/."""

import threading
from collections.abc import Callable

from rich.console import Console
from rich.live import Live

from hpopt.analysis.progress import EndedTrial, Progress
from hpopt.report.terminal import show_ended, show_seconds, standing
from hpopt.storage import queries
from hpopt.storage.database import Database
from hpopt.storage.studies import Study

_EVERY_S = 1.0


def watch(database: Database, study: Study, console: Console, stop: threading.Event, tend: Callable[[], bool]) -> None:
    """Show a study until `stop` is set or `tend` says that nobody works on it any more."""
    follow = _live if console.is_terminal else _plain
    follow(database, study, console, stop, tend)


def seconds_left(progress: Progress, wall_hours: float | None) -> float | None:
    """Estimate the time to the end of the study from its pace so far, None before the first trial has ended."""
    estimates = []
    elapsed = progress.books.wall_hours * 3600
    if progress.planned_trials is not None and progress.books.n_ended:
        n_left = max(0, progress.planned_trials - progress.books.n_ended)
        estimates.append(elapsed / progress.books.n_ended * n_left)
    if wall_hours is not None:
        estimates.append(max(0.0, wall_hours * 3600 - elapsed))
    return min(estimates, default=None)


def _live(database: Database, study: Study, console: Console, stop: threading.Event, tend: Callable[[], bool]) -> None:
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            progress = queries.progress(database, study)
            ended = queries.ended_trials(database, study)
            live.update(standing(progress, ended, seconds_left(progress, study.file.budget.wall_hours)), refresh=True)
            if not tend() or stop.wait(_EVERY_S):
                return


def _plain(database: Database, study: Study, console: Console, stop: threading.Event, tend: Callable[[], bool]) -> None:
    before = queries.ended_trials(database, study)
    seen = before[-1].finished_at if before else None
    if before:
        console.print(f"{study.name} goes on: {len(before)} trials are done", highlight=False)
    while True:
        alive = tend()
        for trial in queries.ended_trials(database, study, seen):
            seen = trial.finished_at
            progress = queries.progress(database, study)
            console.print(
                _line(trial, progress, seconds_left(progress, study.file.budget.wall_hours)),
                highlight=False,
                soft_wrap=True,
            )
        if not alive or stop.wait(_EVERY_S):
            return


def _line(trial: EndedTrial, progress: Progress, left_s: float | None) -> str:
    of = f"/{progress.planned_trials}" if progress.planned_trials else ""
    best = "" if progress.best is None else f"  best {progress.best.value:.4f}"
    left = "" if left_s is None or progress.over else f"  about {show_seconds(left_s)} left"
    return f"[{progress.books.n_ended}{of}] {show_ended(trial, progress.metric)}{best}{left}"
