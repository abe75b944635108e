"""Owns what the dashboard adds to the page of a study: figures, its note, and notes of its best trials.

They are made when somebody looks, and again at most every half minute when trials have ended since. Nothing of it is
stored: an Optuna study would carry all figures through each poll, and read-only would not be. Leaves the numbers to
analysis/, the words and drawings to report/.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from optuna_dashboard._note import note_str_key_prefix, note_ver_key

from hpopt.analysis.trials import StudyTable
from hpopt.dashboard.snapshot import Look, ShownStudies
from hpopt.dashboard.study_answer import ShownFigure
from hpopt.errors import HpoptError
from hpopt.reporting import interactive
from hpopt.reporting.chart import Chart
from hpopt.reporting.folder import draw_charts
from hpopt.reporting.markdown import render_note, render_trial_notes
from hpopt.reporting.selection import COMPLETE, GRID, MUTED, TEXT
from hpopt.reporting.summary import summarize
from hpopt.storage import queries, studies
from hpopt.storage.database import Database

REFRESH_EVERY_S = 30.0
# An analysis takes a second.
N_PREPARED = 3
# The first page of a small study waits for its figures; that of a large one is not kept waiting.
WAIT_S = 2.0
LARGE_STUDY = 1_000
_LARGE_WAITS_S = 4.0
# optuna-dashboard draws a history of its own; and its cards are so high.
_CARD_HEIGHT = 450
_N_SENSITIVITIES = 8
SHOWN = ("sensitivity", "importance", "interactions", "budget", "parallel", "curves")
# The page is light or dark as its reader likes, and figures do not know: these can be read on both.
_ON_BOTH = {TEXT: "#7f8792", MUTED: "#8a929e", COMPLETE: "#2f8fcc", GRID: "rgba(122,130,142,0.25)"}

Attributes = Mapping[str, Any]
Read = TypeVar("Read")


@dataclass(frozen=True, kw_only=True)
class Publication:
    """What is added to a study of which so many trials had ended; notes are attributes as optuna-dashboard has them."""

    n_ended: int = -1
    figures: tuple[ShownFigure, ...] = ()
    notes: Attributes = field(default_factory=dict)


NOTHING = Publication()


@dataclass
class _Desk:
    """What is known of one study: the last publication, and the work on the next."""

    publication: Publication = NOTHING
    began_s: float = float("-inf")
    worker: threading.Thread | None = None


class Publisher:
    """Publications of studies, kept in memory and up to date."""

    def __init__(self, database: Database, say: Callable[[str], None]) -> None:
        self._database = database
        self._say = say
        self._desks: dict[int, _Desk] = {}
        self._lock = threading.Lock()
        # One study after the other: an analysis takes a core.
        self._turn = threading.Lock()
        self._reading = threading.Lock()
        self._is_closed = False

    def publication(self, look: Look) -> Publication:
        """Give the last publication, and have the next one made if it is time.

        The first of a small study is waited for; that of a large one comes with a later answer.
        """
        desk = self.begin(look)
        if desk.publication is NOTHING and len(look.trials) <= LARGE_STUDY and desk.worker is not None:
            desk.worker.join(WAIT_S)
        return desk.publication

    def prepare(self, shown: ShownStudies) -> None:
        """Begin with the newest studies before anybody looks."""
        for study_id in (self._read(shown.newest) or [])[:N_PREPARED]:
            look = self._read(partial(shown.look, study_id))
            if look is not None:
                self.begin(look)

    def close(self) -> None:
        """Ask the database for nothing more, once what was asked is answered: nobody else would end the connection."""
        with self._reading:
            self._is_closed = True

    def begin(self, look: Look) -> _Desk:
        """Begin with the next publication if it is time; of a large study after the page that is being made now."""
        wait_s = _LARGE_WAITS_S if len(look.trials) > LARGE_STUDY else 0.0
        study_id, n_ended = look.study._study_id, sum(trial.state.is_finished() for trial in look.trials)  # noqa: SLF001
        with self._lock:
            desk = self._desks.setdefault(study_id, _Desk())
            is_due = time.monotonic() - desk.began_s >= REFRESH_EVERY_S and desk.publication.n_ended != n_ended
            if is_due and (desk.worker is None or not desk.worker.is_alive()):
                desk.began_s = time.monotonic()
                arguments = (desk, look, n_ended, wait_s)
                desk.worker = threading.Thread(target=self._publish, args=arguments, daemon=True)
                desk.worker.start()
            return desk

    def notes(self, study_id: int) -> Attributes:
        """Give the notes of a study as attributes of it."""
        desk = self._desks.get(study_id)
        return {} if desk is None else desk.publication.notes

    def _publish(self, desk: _Desk, look: Look, n_ended: int, wait_s: float) -> None:
        time.sleep(wait_s)
        name = look.study.study_name
        try:
            with self._turn:
                table = self._read(partial(self._read_table, name))
                desk.publication = Publication(n_ended=n_ended) if table is None else _make(table, look, n_ended)
        except HpoptError as error:
            # The database is away: a look in half a minute tries again.
            self._say(f"no figures of study '{name}': {error}")
        except Exception as error:  # noqa: BLE001 - the page goes on without figures, and its server's log says why.
            self._say(f"no figures of study '{name}': {type(error).__name__}: {error}")

    def _read_table(self, name: str) -> StudyTable | None:
        """Read the trials of a study; None if it is not ours: of others there are no evaluations, seeds and file."""
        study = studies.find_study(self._database, name)
        return None if study is None else queries.read_table(self._database, study)

    def _read(self, read: Callable[[], Read]) -> Read | None:
        """Ask the database, unless this is closed."""
        with self._reading:
            return None if self._is_closed else read()


def _make(table: StudyTable, look: Look, n_ended: int) -> Publication:
    summary = summarize(table)
    charts = draw_charts(table, summary.insights)
    figures = tuple(_show(card) for kind in SHOWN if kind in charts for card in _cards(charts[kind]))
    ids = {trial.number: trial._trial_id for trial in look.trials}  # noqa: SLF001 - it has no other.
    notes = _as_attributes(None, render_note(table, summary))
    for number, note in render_trial_notes(table).items():
        if number in ids:
            notes |= _as_attributes(ids[number], note)
    return Publication(n_ended=n_ended, figures=figures, notes=notes)


def _cards(chart: Chart) -> Iterator[Chart]:
    """Give a chart as it fits into cards: each parameter's sensitivity has one of its own."""
    if chart.name != "sensitivity":
        yield chart
        return
    for i, panel in enumerate(chart.panels[:_N_SENSITIVITIES]):
        title = f"Sensitivity to {panel.title}"
        yield Chart(name=f"{chart.name}-{i}", title=title, panels=(panel,), caption=panel.caption)


def _show(chart: Chart) -> ShownFigure:
    figure = interactive.draw_card(chart, _CARD_HEIGHT).to_json()
    for color, other in _ON_BOTH.items():
        figure = figure.replace(color, other)
    return ShownFigure(f"hpopt-{chart.name}", figure)


def _as_attributes(trial_id: int | None, note: str) -> dict[str, Any]:
    """Give a note as optuna-dashboard 0.21 stores one: version 0, so that whoever saves one replaces it."""
    return {note_ver_key(trial_id): 0, f"{note_str_key_prefix(trial_id)}0": note}
