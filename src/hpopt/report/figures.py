"""Owns the figures that can be hovered over: plotly, for the page and the dashboard. Leaves PNG to pictures.py.

Each function gives None when there is nothing to draw. Figures are kept to tens of kB: the dashboard stores them in
Optuna's study attributes and reads them all on each poll.
"""

from collections.abc import Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go

from hpopt.analysis.importance import Importance
from hpopt.analysis.trials import StudyTable, TrialRow
from hpopt.report import selection
from hpopt.report.selection import BEST, COMPLETE, GRID, MUTED, TEXT, Window, format_number
from hpopt.search_space import Categorical


def draw_history(table: StudyTable) -> go.Figure | None:
    """Draw the value of each trial in the order of the trials, and the best so far."""
    complete, pruned = selection.with_value(table.complete()), selection.with_value(table.pruned())
    window = selection.choose_window(table, [row.value for row in complete + pruned])
    if window is None:
        return None
    figure = _figure("trial", table.metric, window)
    # Left to itself, plotly writes trial 0.5 under a handful of trials.
    figure.update_xaxes(tickformat="d", nticks=min(10, max(row.trial for row in complete + pruned) + 2))
    _add_trials(figure, table, [row.trial for row in pruned], pruned, _pruned_marks())
    _add_trials(figure, table, [row.trial for row in complete], complete, _complete_marks())
    steps = list(selection.best_so_far(table))
    if steps:
        steps.append((max(row.trial for row in table.trials), steps[-1][1]))
        line = {"color": BEST, "width": 2, "shape": "hv"}
        figure.add_scatter(
            x=[x for x, _ in steps],
            y=[y for _, y in steps],
            mode="lines",
            line=line,
            name="best so far",
            hoverinfo="skip",
        )
    return figure


def draw_parameter(table: StudyTable, name: str) -> go.Figure | None:
    """Draw the value of each trial against one parameter."""
    complete = [row for row in selection.with_value(table.complete()) if name in row.params]
    pruned = [row for row in selection.with_value(table.pruned()) if name in row.params]
    window = selection.choose_window(table, [row.value for row in complete + pruned])
    if window is None:
        return None
    range_ = table.search_space[name]
    figure = _figure(name, table.metric, window)
    if isinstance(range_, Categorical):
        order = [str(choice) for choice in range_.choices]
        figure.update_xaxes(type="category", categoryorder="array", categoryarray=order)
    elif range_.log:
        figure.update_xaxes(type="log")
    best = [row for row in table.ranked()[:1] if name in row.params]
    rest = [row for row in complete if row not in best]
    for rows, marks in ((pruned, _pruned_marks()), (rest, _complete_marks()), (best, _best_marks())):
        x = [row.params[name] if not isinstance(range_, Categorical) else str(row.params[name]) for row in rows]
        _add_trials(figure, table, x, rows, marks)
    return figure


def draw_curves(table: StudyTable) -> go.Figure | None:
    """Draw the learning curves of the best trials against those of the pruned."""
    best, pruned = selection.choose_curves(table)
    points = [point.value for row in best + pruned for point in selection.finite_points(row)]
    window = selection.choose_window(table, points)
    if window is None:
        return None
    by_tokens = selection.counts_tokens(best + pruned)
    figure = _figure("tokens" if by_tokens else "step", table.metric, window)
    if by_tokens:
        figure.update_xaxes(exponentformat="SI")
    styles = [
        *((row, "pruned", {"color": MUTED, "width": 1.2, "dash": "dot"}) for row in pruned),
        *((row, "next best", {"color": COMPLETE, "width": 1.5}) for row in reversed(best[1:])),
        *((row, "best", {"color": BEST, "width": 3}) for row in best[:1]),
    ]
    seen: set[str] = set()
    for row, name, line in styles:
        curve = selection.finite_points(row)
        figure.add_scatter(
            x=[point.tokens if by_tokens else point.step for point in curve],
            y=[point.value for point in curve],
            mode="lines+markers" if name == "pruned" or len(curve) == 1 else "lines",
            marker={"symbol": "x", "size": [0] * (len(curve) - 1) + [7]} if name == "pruned" else {"size": 7},
            line=line,
            name=name,
            legendgroup=name,
            showlegend=name not in seen,
            hovertemplate=f"trial {row.trial} ({name})<br>%{{x}}: %{{y:.4g}}<extra></extra>",
        )
        seen.add(name)
    return figure


def draw_importance(measures: Sequence[Importance]) -> go.Figure | None:
    """Draw the shares of the parameters by each measure side by side."""
    drawn = [measure for measure in measures if measure.shares]
    if not drawn:
        return None
    figure = _figure("share", "", None)
    names = list(drawn[0].shares or {})[::-1]
    for measure, color, pattern in zip(drawn, (COMPLETE, BEST), ("", "/"), strict=False):
        shares = [(measure.shares or {}).get(name, 0.0) for name in names]
        figure.add_bar(
            x=shares,
            y=names,
            orientation="h",
            name=measure.measure,
            text=[f"{share:.0%}" for share in shares],
            textposition="outside",
            cliponaxis=False,
            marker={"color": color, "pattern": {"shape": pattern, "size": 5, "solidity": 0.35}},
            hovertemplate=f"{measure.measure}<br>%{{y}}: %{{x:.1%}}<extra></extra>",
        )
    figure.update_xaxes(range=[0, 1.08], tickformat=".0%")
    # plotly draws the first trace at the bottom of its group.
    figure.update_layout(barmode="group", height=130 + 52 * len(names), legend_traceorder="reversed")
    figure.data = figure.data[::-1]
    return figure


def _figure(x_title: str, y_title: str, window: Window | None) -> go.Figure:
    axis = {
        "gridcolor": GRID,
        "linecolor": GRID,
        "zeroline": False,
        "automargin": True,
        "exponentformat": "SI",
        "minexponent": 4,
    }
    figure = go.Figure(
        layout={
            # The default template is 7 kB in every figure.
            "template": go.layout.Template(),
            "font": {"family": "system-ui, sans-serif", "color": TEXT, "size": 13},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "margin": {"l": 8, "r": 12, "t": 34, "b": 8},
            "height": 340,
            "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
            "xaxis": {**axis, "title": {"text": escape(x_title)}},
            "yaxis": {**axis, "title": {"text": escape(y_title)}},
        }
    )
    if window is not None:
        figure.update_yaxes(range=[window.low, window.high])
        if window.note():
            figure.layout.xaxis.title.text += f" <span style='color:{MUTED};font-size:11px'>({window.note()})</span>"
    return figure


def _add_trials(
    figure: go.Figure, table: StudyTable, x: Sequence[Any], rows: Sequence[TrialRow], marks: dict[str, Any]
) -> None:
    if not rows:
        return
    hover = [
        "<br>".join(
            [
                f"trial {row.trial}",
                f"{escape(table.metric)} {format_number(row.value)}",
                *(f"{escape(name)} {escape(str(value))}" for name, value in row.params.items()),
            ]
        )
        for row in rows
    ]
    figure.add_scatter(
        x=list(x), y=[row.value for row in rows], mode="markers", hovertext=hover, hoverinfo="text", **marks
    )


def _complete_marks() -> dict[str, Any]:
    return {"name": "complete", "marker": {"symbol": "circle", "size": 8, "color": COMPLETE, "opacity": 0.85}}


def _pruned_marks() -> dict[str, Any]:
    return {"name": "pruned", "marker": {"symbol": "x-thin", "size": 7, "line": {"color": MUTED, "width": 1.6}}}


def _best_marks() -> dict[str, Any]:
    return {"name": "best", "marker": {"symbol": "star", "size": 15, "color": BEST}}
