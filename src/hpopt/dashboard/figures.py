"""Build the figures and notes that the dashboard adds to the page of a study: sensitivity, importance, best trials.

They are built when a study is viewed, and rebuilt at most every half minute if trials have finished since. Nothing is
stored: stored figures would be part of an Optuna study's attributes and so of every poll, and storing them would need
write access. The numbers come from hpopt.analysis, the text and the charts from hpopt.reporting.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from optuna_dashboard._note import note_str_key_prefix, note_ver_key

from hpopt.analysis.trials import StudyTable
from hpopt.dashboard.patches import PlotlyFigure
from hpopt.dashboard.snapshot import Snapshot, SnapshotReader
from hpopt.errors import HpoptError
from hpopt.reporting import interactive
from hpopt.reporting.chart import Chart
from hpopt.reporting.charts import draw_charts
from hpopt.reporting.markdown import render_note, render_trial_notes
from hpopt.reporting.selection import COMPLETE, GRID, MUTED, TEXT
from hpopt.reporting.summary import summarize
from hpopt.storage import queries, studies
from hpopt.storage.database import Database

REFRESH_EVERY_S = 30.0
# The first page of a small study waits for its figures. For a large study they are built after its page was answered.
WAIT_S = 2.0
LARGE_STUDY_TRIALS = 1_000
LARGE_STUDY_DELAY_S = 4.0
# Each takes a second of one core.
N_PREBUILT_STUDIES = 3
# The height of optuna-dashboard's cards.
_CARD_HEIGHT_PX = 450
_N_SENSITIVITIES = 8
# Without the history, of which optuna-dashboard draws its own.
CHART_NAMES = ("comparison", "sensitivity", "importance", "interactions", "budget", "parallel", "curves")
# Readers choose a light or a dark page, and a figure cannot know which: these colors are legible on both.
_COLORS_FOR_BOTH_SCHEMES = {TEXT: "#7f8792", MUTED: "#8a929e", COMPLETE: "#2f8fcc", GRID: "rgba(122,130,142,0.25)"}

Attributes = Mapping[str, Any]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class FiguresAndNotes:
    """The additions to a study's page when `n_finished` of its trials had finished.

    `notes` are study attributes in optuna-dashboard's format.
    """

    n_finished: int = -1
    figures: tuple[PlotlyFigure, ...] = ()
    notes: Attributes = field(default_factory=dict)


EMPTY = FiguresAndNotes()


@dataclass
class StudyBuild:
    """The latest figures and notes of a study, and the thread that builds the next, if any was started."""

    latest: FiguresAndNotes = EMPTY
    started_s: float = float("-inf")
    thread: threading.Thread | None = None


class FigureBuilder:
    """Builds figures and notes of studies in background threads and keeps the latest in memory.

    `refresh_every_s` is the least time between two builds of a study, `wait_s` how long the first request about a small
    study waits for its figures, and `large_study_delay_s` the delay of a large study's build, during which the response
    about its trials is made.
    """

    def __init__(
        self,
        database: Database,
        log: Callable[[str], None],
        *,
        refresh_every_s: float = REFRESH_EVERY_S,
        wait_s: float = WAIT_S,
        large_study_delay_s: float = LARGE_STUDY_DELAY_S,
    ) -> None:
        self._database = database
        self._log = log
        self._refresh_every_s = refresh_every_s
        self._wait_s = wait_s
        self._large_study_delay_s = large_study_delay_s
        self._builds: dict[int, StudyBuild] = {}
        self._lock = threading.Lock()
        # One study at a time: an analysis occupies a core.
        self._build_lock = threading.Lock()
        self._read_lock = threading.Lock()
        self._is_closed = False

    def get(self, snapshot: Snapshot) -> FiguresAndNotes:
        """Return the latest figures and notes, and start building the next if they are due.

        Waits for the first ones of a small study; those of a large study are returned to a later request.
        """
        build = self.start_if_due(snapshot)
        if build.latest is EMPTY and len(snapshot.trials) <= LARGE_STUDY_TRIALS and build.thread is not None:
            build.thread.join(self._wait_s)
        return build.latest

    def start_newest(self, snapshots: SnapshotReader) -> None:
        """Start building for the newest studies, before they are viewed."""
        for study_id in (self._read(snapshots.newest_study_ids) or [])[:N_PREBUILT_STUDIES]:
            snapshot = self._read(partial(snapshots.read, study_id))
            if snapshot is not None:
                self.start_if_due(snapshot)

    def close(self) -> None:
        """Wait for the query in progress and send no more to the database, so that its connections can be closed."""
        with self._read_lock:
            self._is_closed = True

    def start_if_due(self, snapshot: Snapshot) -> StudyBuild:
        """Start a build if trials have finished since the latest and `refresh_every_s` has passed."""
        delay_s = self._large_study_delay_s if len(snapshot.trials) > LARGE_STUDY_TRIALS else 0.0
        n_finished = sum(trial.state.is_finished() for trial in snapshot.trials)
        with self._lock:
            build = self._builds.setdefault(snapshot.study_id, StudyBuild())
            is_due = time.monotonic() - build.started_s >= self._refresh_every_s
            is_building = build.thread is not None and build.thread.is_alive()
            if is_due and not is_building and build.latest.n_finished != n_finished:
                build.started_s = time.monotonic()
                arguments = (build, snapshot, n_finished, delay_s)
                build.thread = threading.Thread(target=self._build, args=arguments, daemon=True)
                build.thread.start()
            return build

    def read_notes(self, study_id: int) -> Attributes:
        """Return the latest notes of a study as attributes."""
        build = self._builds.get(study_id)
        return {} if build is None else build.latest.notes

    def _build(self, build: StudyBuild, snapshot: Snapshot, n_finished: int, delay_s: float) -> None:
        time.sleep(delay_s)
        name = snapshot.study.study_name
        try:
            with self._build_lock:
                table = self._read(partial(self._read_table, name))
                if table is None:
                    build.latest = FiguresAndNotes(n_finished=n_finished)
                else:
                    build.latest = _draw(table, snapshot, n_finished)
        except HpoptError as error:
            # The database is unreachable; a request after `refresh_every_s` tries again.
            self._log(f"no figures for study '{name}': {error}")
        except Exception as error:  # noqa: BLE001 - the page works without figures, and the server's log has the reason.
            self._log(f"no figures for study '{name}': {type(error).__name__}: {error}")

    def _read_table(self, name: str) -> StudyTable | None:
        """Return the trials of a study.

        None if it was not created by hpopt: other studies have no evaluations, seeds and study file.
        """
        study = studies.find_study(self._database, name)
        return None if study is None else queries.read_table(self._database, study)

    def _read(self, read: Callable[[], T]) -> T | None:
        """Return the result of a query, or None once this is closed."""
        with self._read_lock:
            return None if self._is_closed else read()


def _draw(table: StudyTable, snapshot: Snapshot, n_finished: int) -> FiguresAndNotes:
    summary = summarize(table)
    charts = draw_charts(table, summary.insights)
    figures = tuple(_to_figure(card) for name in CHART_NAMES if name in charts for card in _split(charts[name]))
    ids = {trial.number: trial._trial_id for trial in snapshot.trials}  # noqa: SLF001 - Optuna has no public one.
    notes = _to_attributes(None, render_note(table, summary))
    for number, note in render_trial_notes(table).items():
        if number in ids:
            notes |= _to_attributes(ids[number], note)
    return FiguresAndNotes(n_finished=n_finished, figures=figures, notes=notes)


def _split(chart: Chart) -> Iterator[Chart]:
    """Yield a chart as charts that fit into cards: one for each parameter's sensitivity."""
    if chart.name != "sensitivity":
        yield chart
        return
    for i, panel in enumerate(chart.panels[:_N_SENSITIVITIES]):
        title = f"Sensitivity to {panel.title}"
        yield Chart(name=f"{chart.name}-{i}", title=title, panels=(panel,), caption=panel.caption)


def _to_figure(chart: Chart) -> PlotlyFigure:
    figure = interactive.draw_card(chart, _CARD_HEIGHT_PX).to_json()
    for color, legible in _COLORS_FOR_BOTH_SCHEMES.items():
        figure = figure.replace(color, legible)
    return PlotlyFigure(f"hpopt-{chart.name}", figure)


def _to_attributes(trial_id: int | None, note: str) -> dict[str, Any]:
    """Return a note in the format of optuna-dashboard 0.21, with version 0: a note that a user saves replaces it."""
    return {note_ver_key(trial_id): 0, f"{note_str_key_prefix(trial_id)}0": note}
