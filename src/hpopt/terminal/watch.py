"""Owns following a running study: a live table on a terminal, plain lines elsewhere. Leaves drawing to report/."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from rich.console import Console
from rich.live import Live
from rich.text import Text

from hpopt.errors import DatabaseError
from hpopt.storage import budget, control, queries
from hpopt.storage.database import Database
from hpopt.storage.progress import EndedTrial, Progress
from hpopt.storage.studies import Study
from hpopt.terminal.answer import show_ended, show_metric, show_seconds
from hpopt.terminal.status import paused_line, standing

# How many of the trials that ended last are shown.
N_ENDED_SHOWN = 6
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


def has_work(database: Database, study: Study) -> bool:
    """Say whether there is anything for workers to do or to wait for: not in a study that is paused or over."""
    try:
        counted = budget.read_books(database, study)
    except DatabaseError:
        return True
    return counted.state != "paused" and budget.finished(study, counted) is None


def _live(database: Database, study: Study, console: Console, stop: threading.Event, tend: Callable[[], bool]) -> None:
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while tend():
            try:
                progress = queries.progress(database, study)
                ended = queries.ended_trials(database, study, last=N_ENDED_SHOWN)
            except DatabaseError as error:
                live.update(Text(f"waiting for the database: {error}", style="yellow"), refresh=True)
            else:
                left_s = seconds_left(progress, study.file.budget.wall_hours)
                live.update(standing(progress, ended, left_s), refresh=True)
            if stop.wait(_EVERY_S):
                return


def _plain(database: Database, study: Study, console: Console, stop: threading.Event, tend: Callable[[], bool]) -> None:
    before = queries.ended_trials(database, study)
    if before:
        console.print(f"{study.name} goes on: {len(before)} trials are done")
    story = _Story(study, told={trial.trial for trial in before}, last=before[-1].finished_at if before else None)
    alive = True
    while alive:
        alive = tend() and not stop.wait(_EVERY_S)
        try:
            for line in story.go_on(database, is_followed=alive):
                console.print(line, soft_wrap=True)
        except DatabaseError:
            # The workers say so in their logs, and wait for it too.
            continue


@dataclass
class _Story:
    """What has been told of a study so far."""

    study: Study
    told: set[int]
    last: datetime | None
    state: str = "open"

    def go_on(self, database: Database, *, is_followed: bool) -> list[str]:
        """Give a line for each trial that has ended since, and for a study that was paused or goes on."""
        return [*self._ends(database), *(self._turns(database) if is_followed else ())]

    def _ends(self, database: Database) -> list[str]:
        after = None if self.last is None else self.last - _OVERLAP
        ended = queries.ended_trials(database, self.study, after=after)
        new = [trial for trial in ended if trial.trial not in self.told]
        if not new:
            return []
        progress = queries.progress(database, self.study)
        left_s = seconds_left(progress, self.study.file.budget.wall_hours)
        n_told = len(self.told)
        self.told |= {trial.trial for trial in new}
        self.last = new[-1].finished_at
        return [_line(trial, n_told + i, progress, left_s) for i, trial in enumerate(new, start=1)]

    def _turns(self, database: Database) -> list[str]:
        now = control.find_state(database, self.study)
        before, self.state = self.state, now.state
        if now.state in {before, "stopped"}:
            return []
        return [paused_line(self.study.name, now.reason) if now.state == "paused" else f"{self.study.name} goes on"]


def _line(trial: EndedTrial, n_ended: int, progress: Progress, left_s: float | None) -> str:
    of = f"/{progress.planned_trials}" if progress.planned_trials else ""
    best = "" if progress.best is None else f"  best {show_metric(progress.best.value)}"
    left = "" if left_s is None or progress.over else f"  about {show_seconds(left_s)} left"
    return f"[{n_ended}{of}] {show_ended(trial, progress.metric)}{best}{left}"
