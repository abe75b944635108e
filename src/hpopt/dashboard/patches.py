"""Patch optuna-dashboard's response about a study: insert figures, and replace the learning curves of large studies.

optuna-dashboard draws a line and a legend entry for each trial, again at each poll: 5,000 of them keep the browser busy
for half a minute. The replacement has three lines with gaps, over a selection of trials. Everything else about a trial,
including the intermediate values on its own page, stays as it is.

A response is megabytes of JSON: two keys are located and overwritten without parsing it. A response in a format other
than that of optuna-dashboard 0.21 is returned unchanged.
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpopt.reporting.selection import BEST, COMPLETE, GRID, MUTED, POINTS_PER_CURVE
from hpopt.search.direction import Direction

# These take a second to draw on one core.
MAX_STOCK_CURVES = 200
N_BEST, N_SAMPLED = 50, 100
CURVES_ID = "hpopt-learning-curves"
_COLORS = {TrialState.PRUNED: MUTED, TrialState.COMPLETE: COMPLETE, TrialState.RUNNING: BEST}
# These match keys only: within a JSON string the quotes would have backslashes.
_HAS_CURVES = re.compile(rb'"has_intermediate_values":\s*true')
_FIGURES = re.compile(rb'"plotly_graph_objects":\s*\[(\s*\])?')


class PlotlyFigure(NamedTuple):
    """A figure of the study page: the id of its element, and plotly's JSON."""

    id: str
    json: str


def insert_figures(body: bytes, figures: Sequence[PlotlyFigure]) -> bytes:
    """Insert figures before those that the response already has."""
    if not figures:
        return body
    items = ", ".join(json.dumps({"id": figure.id, "graph_object": figure.json}) for figure in figures).encode()
    return _FIGURES.sub(
        lambda match: b'"plotly_graph_objects": [' + items + (b"]" if match[1] else b", "), body, count=1
    )


def replace_curves(body: bytes, trials: Sequence[FrozenTrial], directions: Sequence[StudyDirection]) -> bytes:
    """Replace the learning curves by one figure if the page would draw more than MAX_STOCK_CURVES of them."""
    drawn = [trial for trial in trials if trial.intermediate_values and trial.state in _COLORS]
    # optuna-dashboard draws no curves for several objectives.
    if len(directions) > 1 or len(drawn) <= MAX_STOCK_CURVES or not _draws_curves(body):
        return body
    direction = Direction.MAXIMIZE if directions[0] is StudyDirection.MAXIMIZE else Direction.MINIMIZE
    chosen = _choose(drawn, direction)
    figure = json.dumps(_draw_curves(chosen), separators=(",", ":"))
    hidden = _HAS_CURVES.sub(b'"has_intermediate_values": false', body, count=1)
    return insert_figures(hidden, [PlotlyFigure(CURVES_ID, figure)])


def _draws_curves(body: bytes) -> bool:
    """Return whether the page would draw its own curves, and the response has a list to insert a figure into."""
    return bool(_HAS_CURVES.search(body) and _FIGURES.search(body))


def _choose(trials: Sequence[FrozenTrial], direction: Direction) -> list[FrozenTrial]:
    """Return the running trials, the best complete ones, and an even sample of the others."""
    complete = [trial for trial in trials if trial.state is TrialState.COMPLETE and trial.values]
    best = sorted(complete, key=lambda trial: direction.loss(trial.values[0]))[:N_BEST]
    always = {trial.number for trial in best} | {trial.number for trial in trials if trial.state is TrialState.RUNNING}
    # A power of two, so that the sample stays the same until the study has doubled.
    stride = 2 ** math.ceil(math.log2(len(trials) / N_SAMPLED))
    return [trial for i, trial in enumerate(trials) if i % stride == 0 or trial.number in always]


def _draw_curves(trials: Sequence[FrozenTrial]) -> dict[str, Any]:
    axis = {"gridcolor": GRID, "zeroline": False, "automargin": True}
    title = f"Learning curves of {len(trials)} trials: running, best {N_BEST}, and a sample"
    return {
        "data": [_draw_line(state, [trial for trial in trials if trial.state is state]) for state in _COLORS],
        "layout": {
            "title": {"text": title, "font": {"size": 16}},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"color": MUTED},
            "xaxis": {**axis, "title": {"text": "Step"}},
            "yaxis": {**axis, "title": {"text": "Objective Value"}},
            "uirevision": "true",
        },
    }


def _draw_line(state: TrialState, trials: Sequence[FrozenTrial]) -> dict[str, Any]:
    """Return the curves of all trials as one line, with a gap after each."""
    points = [*chain.from_iterable(map(_iterate_points, trials))]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": state.name.lower(),
        "line": {"color": _COLORS[state], "width": 1},
        "x": [step for step, _, _ in points],
        "y": [value for _, value, _ in points],
        "text": [number for _, _, number in points],
        "hovertemplate": "trial %{text}<br>%{x}: %{y}<extra></extra>",
    }


def _iterate_points(trial: FrozenTrial) -> Iterator[tuple[int | None, float | None, int | None]]:
    """Yield at most POINTS_PER_CURVE + 1 points of a curve as (step, value, trial number), and a gap."""
    steps = sorted(step for step, value in trial.intermediate_values.items() if math.isfinite(value))
    stride = math.ceil(len(steps) / POINTS_PER_CURVE) or 1
    for step in sorted({*steps[::stride], *steps[-1:]}):
        yield step, float(f"{trial.intermediate_values[step]:.5g}"), trial.number
    yield None, None, None
