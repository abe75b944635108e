"""Owns following a running study: a live table on a terminal, plain lines elsewhere. Leaves drawing to report/."""

import threading
from collections.abc import Callable
from datetime import timedelta

from rich.console import Console
from rich.live import Live
from rich.text import Text

from hpopt.analysis.progress import EndedTrial, Progress
from hpopt.errors import DatabaseError
from hpopt.report.terminal import show_ended, show_metric, show_seconds, standing
from hpopt.storage import queries
from hpopt.storage.database import Database
from hpopt.storage.studies import Study

_EVERY_S = 1.0
# The first trial to end says little about a fleet of workers that prunes.
_PACE_TRIALS = 3
# Ends are stamped when their transaction begins, and seen when it is over.
_OVERLAP = timedelta(seconds=10)


def watch(database: Database, study: Study, console: Console, stop: threading.Event, tend: Callable[[], bool]) -> None:
    """Show a study until `stop` is set or `tend` says that nobody works on it any more."""
    follow = _live if console.is_terminal else _plain
    follow(database, study, console, stop, tend)


def seconds_left(progress: Progress, wall_hours: float | None) -> float | None:
    """Estimate the time to the end of the study from its pace so far, None while that is a guess."""
    estimates = []
    elapsed = progress.books.wall_hours * 3600
    if progress.planned_trials is not None and progress.books.n_ended >= _PACE_TRIALS:
        n_left = max(0, progress.planned_trials - progress.books.n_ended)
        estimates.append(elapsed / progress.books.n_ended * n_left)
    if wall_hours is not None:
        estimates.append(max(0.0, wall_hours * 3600 - elapsed))
    return min(estimates, default=None)


def _live(database: Database, study: Study, console: Console, stop: threading.Event, tend: Callable[[], bool]) -> None:
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while tend():
            try:
                progress = queries.progress(database, study)
                ended = queries.ended_trials(database, study)
            except DatabaseError as error:
                live.update(Text(f"waiting for the database: {error}", style="yellow"), refresh=True)
            else:
                left_s = seconds_left(progress, study.file.budget.wall_hours)
                live.update(standing(progress, ended, left_s), refresh=True)
            if stop.wait(_EVERY_S):
                return


def _plain(database: Database, study: Study, console: Console, stop: threading.Event, tend: Callable[[], bool]) -> None:
    before = queries.ended_trials(database, study)
    told = {trial.trial for trial in before}
    last = before[-1].finished_at if before else None
    if before:
        console.print(f"{study.name} goes on: {len(before)} trials are done")
    alive = True
    while alive:
        alive = tend() and not stop.wait(_EVERY_S)
        try:
            ended = queries.ended_trials(database, study, None if last is None else last - _OVERLAP)
            progress = queries.progress(database, study) if ended else None
        except DatabaseError:
            # The workers say so in their logs, and wait for it too.
            continue
        for trial in ended:
            if trial.trial not in told and progress is not None:
                told.add(trial.trial)
                last = trial.finished_at
                left_s = seconds_left(progress, study.file.budget.wall_hours)
                console.print(_line(trial, len(told), progress, left_s), soft_wrap=True)


def _line(trial: EndedTrial, n_ended: int, progress: Progress, left_s: float | None) -> str:
    of = f"/{progress.planned_trials}" if progress.planned_trials else ""
    best = "" if progress.best is None else f"  best {show_metric(progress.best.value)}"
    left = "" if left_s is None or progress.over else f"  about {show_seconds(left_s)} left"
    return f"[{n_ended}{of}] {show_ended(trial, progress.metric)}{best}{left}"
