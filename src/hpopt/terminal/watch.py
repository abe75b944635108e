"""Follow a running study: a live table on a terminal, lines elsewhere."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from rich.console import Console
from rich.live import Live
from rich.text import Text

from hpopt.errors import DatabaseError
from hpopt.formats import format_count, format_duration, format_metric
from hpopt.storage import budget, control, queries, studies
from hpopt.storage.confirmation import family_finished_reason
from hpopt.storage.database import Database
from hpopt.storage.progress import FinishedTrial, Progress
from hpopt.storage.studies import Study
from hpopt.terminal.answer import format_finished
from hpopt.terminal.status import describe_pause, render_status
from hpopt.terminal.time_left import seconds_left

# How many of the last finished trials are shown.
N_FINISHED_SHOWN = 6
_EVERY_S = 1.0
# The time of a trial is that of the start of its transaction, which is visible after its end.
_OVERLAP = timedelta(seconds=10)


def watch(
    database: Database, study: Study, console: Console, stop: threading.Event, is_running: Callable[[], bool]
) -> None:
    """Show a study until `stop` is set or `is_running` returns False."""
    follow = _live if console.is_terminal else _plain
    follow(database, study, console, stop, is_running)


def has_work(database: Database, study: Study) -> bool:
    """Return whether workers have anything to do or to wait for: not if the study is paused or has finished."""
    try:
        family = studies.family_of(database, study)
        is_paused = any(budget.read_usage(database, member).state == "paused" for member in family)
        return not is_paused and family_finished_reason(database, study) is None
    except DatabaseError:
        return True


def _live(
    database: Database, study: Study, console: Console, stop: threading.Event, is_running: Callable[[], bool]
) -> None:
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while is_running():
            try:
                progress = queries.progress(database, study)
                finished = queries.finished_trials(database, study, last=N_FINISHED_SHOWN)
            except DatabaseError as error:
                live.update(Text(f"waiting for the database: {error}", style="yellow"), refresh=True)
            else:
                left_s = seconds_left(progress, study.file.budget)
                live.update(render_status(progress, finished, left_s), refresh=True)
            if stop.wait(_EVERY_S):
                return


def _plain(
    database: Database, study: Study, console: Console, stop: threading.Event, is_running: Callable[[], bool]
) -> None:
    logs: dict[int, _Log] = {}
    running = True
    while True:
        try:
            for member in studies.family_of(database, study):
                if member.study_id not in logs:
                    logs[member.study_id] = _Log.begin(database, member, console)
                for line in logs[member.study_id].new_lines(database, with_state=running):
                    console.print(line, soft_wrap=True)
        except DatabaseError:
            # The workers log it, and wait for the database too.
            pass
        if not running:
            return
        running = is_running() and not stop.wait(_EVERY_S)


@dataclass
class _Log:
    """The lines of a study, and which of its trials have been shown."""

    study: Study
    shown: set[int]
    last: datetime | None
    state: str = "open"

    @staticmethod
    def begin(database: Database, study: Study, console: Console) -> "_Log":
        """Return the log of a study; what it has done before has one line."""
        before = queries.finished_trials(database, study)
        if before:
            console.print(f"{study.name} continues: {format_count(len(before), 'finished trial')}")
        elif study.role == "confirm":
            candidates = format_count(study.n_candidates, "configuration")
            console.print(f"{study.name}: the best {candidates} run again with fresh seeds")
        return _Log(study, {trial.trial for trial in before}, before[-1].finished_at if before else None)

    def new_lines(self, database: Database, *, with_state: bool) -> list[str]:
        """Return a line for each trial that has finished since the last call, and for a change of the state."""
        return [*self._trial_lines(database), *(self._state_lines(database) if with_state else ())]

    def _trial_lines(self, database: Database) -> list[str]:
        after = None if self.last is None else self.last - _OVERLAP
        finished = queries.finished_trials(database, self.study, after=after)
        new = [trial for trial in finished if trial.trial not in self.shown]
        if not new:
            return []
        progress = queries.progress(database, self.study)
        left_s = seconds_left(progress, self.study.file.budget)
        n_shown = len(self.shown)
        self.shown |= {trial.trial for trial in new}
        self.last = new[-1].finished_at
        return [_line(trial, n_shown + i, progress, left_s) for i, trial in enumerate(new, start=1)]

    def _state_lines(self, database: Database) -> list[str]:
        now = control.read_state(database, self.study)
        before, self.state = self.state, now.state
        if now.state in {before, "stopped"}:
            return []
        if now.state == "paused":
            return [describe_pause(self.study.name, now.reason, n_failed=now.n_failed)]
        return [f"{self.study.name} was resumed"]


def _line(trial: FinishedTrial, n_finished: int, progress: Progress, left_s: float | None) -> str:
    of = f"/{progress.planned_trials}" if progress.planned_trials else ""
    best = "" if progress.best is None else f"  best {format_metric(progress.best.value)}"
    left = "" if left_s is None or progress.finished_reason else f"  about {format_duration(left_s)} left"
    return f"[{n_finished}{of}] {format_finished(trial, progress.metric)}{best}{left}"
