"""Owns the figure of learning curves that the dashboard's page gets in large studies, instead of drawing its own.

optuna-dashboard draws a line and an entry of the legend for each trial, again at each poll: 5,000 of them keep the
browser busy for half a minute. Ours has three lines with gaps, over trials that are chosen. Everything else of a trial,
its intermediate values on its own page included, stays as it is.
"""

import json
import math
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpopt.dashboard import study_answer
from hpopt.dashboard.study_answer import ShownFigure
from hpopt.reporting.selection import BEST, COMPLETE, GRID, MUTED, POINTS_PER_CURVE

# A second of drawing on one core.
MAX_STOCK_CURVES = 200
N_BEST, N_SAMPLED = 50, 100
FIGURE_ID = "hpopt-learning-curves"
_COLORS = {TrialState.PRUNED: MUTED, TrialState.COMPLETE: COMPLETE, TrialState.RUNNING: BEST}


def redraw_curves(body: bytes, trials: Sequence[FrozenTrial], directions: Sequence[StudyDirection]) -> bytes:
    """Put our figure into the answer about a study, and take optuna-dashboard's out, if there are many curves."""
    drawn = [trial for trial in trials if trial.intermediate_values and trial.state in _COLORS]
    # Of several objectives optuna-dashboard draws no curves.
    if len(directions) > 1 or len(drawn) <= MAX_STOCK_CURVES or not study_answer.has_curves(body):
        return body
    figure = json.dumps(_figure(_choose(drawn, directions[0])), separators=(",", ":"))
    return study_answer.put_in(study_answer.take_out_curves(body), [ShownFigure(FIGURE_ID, figure)])


def _choose(trials: Sequence[FrozenTrial], direction: StudyDirection) -> list[FrozenTrial]:
    """Give the running trials, the best complete ones, and of all others an even sample."""
    sign = -1.0 if direction is StudyDirection.MAXIMIZE else 1.0
    complete = [trial for trial in trials if trial.state is TrialState.COMPLETE and trial.values]
    best = sorted(complete, key=lambda trial: sign * trial.values[0])[:N_BEST]
    always = {trial.number for trial in best} | {trial.number for trial in trials if trial.state is TrialState.RUNNING}
    # A power of two, so that the sample stays the same until the study has doubled.
    stride = 2 ** math.ceil(math.log2(len(trials) / N_SAMPLED))
    return [trial for place, trial in enumerate(trials) if place % stride == 0 or trial.number in always]


def _figure(trials: Sequence[FrozenTrial]) -> dict[str, Any]:
    axis = {"gridcolor": GRID, "zeroline": False, "automargin": True}
    title = f"Learning curves of {len(trials)} trials: running, best {N_BEST}, and a sample"
    return {
        "data": [_line(state, [trial for trial in trials if trial.state is state]) for state in _COLORS],
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


def _line(state: TrialState, trials: Sequence[FrozenTrial]) -> dict[str, Any]:
    """Draw the curves of all trials as one line, with a gap after each."""
    points = [*chain.from_iterable(map(_points, trials))]
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


def _points(trial: FrozenTrial) -> Iterator[tuple[int | None, float | None, int | None]]:
    steps = sorted(step for step, value in trial.intermediate_values.items() if math.isfinite(value))
    stride = math.ceil(len(steps) / POINTS_PER_CURVE) or 1
    for step in sorted({*steps[::stride], *steps[-1:]}):
        yield step, float(f"{trial.intermediate_values[step]:.5g}"), trial.number
    yield None, None, None
